//! Tests of output files: no input is overwritten, and no file is written twice.

#![cfg(unix)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::{file, refused, row, run, stderr, text};

/// Creates a folder with a trace in it, in which commands are run.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay").join(name);
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("a.jsonl"), lines()).unwrap();
    folder
}

fn lines() -> String {
    row(0, 64, &[1, 2, 3, 4])
}

fn sweep_in(folder: &Path, arguments: &[&str]) -> std::process::Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"));
    program.current_dir(folder).args(["sweep", "--id-tokens", "16"]).args(arguments);
    program.output().expect("the program starts")
}

#[test]
fn no_output_is_the_trace_or_another_output_by_any_name() {
    let folder = folder("same");
    fs::hard_link(folder.join("a.jsonl"), folder.join("hard")).unwrap();
    symlink("a.jsonl", folder.join("soft")).unwrap();
    symlink("soft", folder.join("twice")).unwrap();
    symlink("..", folder.join("sub/up")).unwrap();
    symlink("nowhere", folder.join("dangling")).unwrap();
    fs::write(folder.join("old.csv"), "kept").unwrap();
    fs::hard_link(folder.join("old.csv"), folder.join("old.svg")).unwrap();
    let whole = folder.join("a.jsonl");
    let of_trace =
        ["a.jsonl", "./a.jsonl", "sub/../a.jsonl", "sub/up/a.jsonl", "hard", "soft", "twice"];
    let mut cases: Vec<[&str; 4]> = Vec::new();
    for path in of_trace.into_iter().chain([text(&whole)]) {
        cases.push(["--csv", path, "--svg", "new.svg"]);
        cases.push(["--csv", "new.csv", "--svg", path]);
    }
    cases.extend([
        ["--csv", "new", "--svg", "./new"],
        ["--csv", "new", "--svg", "sub/up/new"],
        ["--csv", "old.csv", "--svg", "old.svg"],
        ["--csv", "dangling", "--svg", "nowhere"],
        ["--csv", "nowhere", "--svg", "sub/up/dangling"],
    ]);
    for trace in ["a.jsonl", "soft", "hard", "sub/up/a.jsonl"] {
        for case in &cases {
            let error =
                refused(&sweep_in(&folder, &[&[trace, "--format", "jsonl"], &case[..]].concat()));
            assert!(error.contains("are the same file"), "{trace} {case:?}: {error}");
            assert_eq!(fs::read_to_string(&whole).unwrap(), lines(), "{trace} {case:?}");
            assert_eq!(fs::read_to_string(folder.join("old.csv")).unwrap(), "kept");
            for new in ["new", "new.csv", "new.svg", "nowhere"] {
                assert!(!folder.join(new).exists(), "{case:?} created {new}");
            }
        }
    }
}

/// Standard output and standard input count as files too.
#[test]
fn standard_output_is_neither_the_trace_nor_another_output() {
    let folder = folder("standard");
    for command in [&["replay"][..], &["sweep", "--csv", "x.csv", "--svg", "x.svg"]] {
        for trace in ["a.jsonl", "-"] {
            let append = || File::options().append(true).open(folder.join("a.jsonl")).unwrap();
            let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"));
            program.current_dir(&folder).args(command).args([trace, "--format", "jsonl"]);
            program.stdin(File::open(folder.join("a.jsonl")).unwrap()).stdout(append());
            let output = program.stderr(Stdio::piped()).output().unwrap();
            assert!(refused(&output).contains("are the same file"), "{}", stderr(&output));
            assert_eq!(fs::read_to_string(folder.join("a.jsonl")).unwrap(), lines());
        }
    }
    let error = refused(&sweep_in(&folder, &["a.jsonl", "--csv", "/dev/stdout"]));
    assert!(error.contains("--csv /dev/stdout and standard output"), "{error}");
}

#[test]
fn a_refused_sweep_leaves_files_as_they_are() {
    let folder = folder("refused");
    fs::write(folder.join("old"), "kept").unwrap();
    fs::write(folder.join("bad.jsonl"), lines() + "not json\n").unwrap();
    let none = "sub/none/x";
    let cases: [&[&str]; 6] = [
        &["bad.jsonl", "--csv", "old", "--svg", "new"],
        &["a.jsonl", "--csv", "old", "--svg", none],
        &["a.jsonl", "--csv", none, "--svg", "new"],
        &["a.jsonl", "--csv", "new", "--svg", "sub"],
        &[
            "a.jsonl",
            "--csv",
            "new",
            "--svg",
            "old",
            "--blocks",
            "4294967295",
            "--block-size",
            "16",
        ],
        &["a.jsonl", "--csv", "new", "--svg", "old", "--blocks", "18446744073709551615"],
    ];
    for case in cases {
        refused(&sweep_in(&folder, case));
        assert_eq!(fs::read_to_string(folder.join("old")).unwrap(), "kept", "{case:?}");
        assert!(!folder.join("new").exists(), "{case:?}");
    }
    let output = sweep_in(&folder, &["a.jsonl", "--csv", "old", "--svg", "/dev/null"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs::read_to_string(folder.join("old")).unwrap().starts_with("reclaim,"));
}

#[test]
fn the_null_device_may_be_written_twice() {
    let folder = folder("null");
    let output = sweep_in(&folder, &["a.jsonl", "--csv", "/dev/null", "--svg", "/dev/null"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// A report that is not read, or that has no room, is an error without a panic.
#[test]
fn a_report_that_cannot_be_written_ends_with_2() {
    let trace = file("unread.jsonl", lines().as_bytes());
    for command in [
        &["replay", text(&trace)][..],
        &["replay", text(&trace), "--json"],
        &["sweep", text(&trace), "--csv", "/dev/null", "--svg", "/dev/null"],
        &["soak", "--minutes", "0.001"],
        &["replay", "missing.jsonl"],
    ] {
        for stderr_is_full in [false, true] {
            let full = || File::options().write(true).open("/dev/full").unwrap();
            let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"));
            program.args(command).stdout(full()).stderr(Stdio::piped());
            if stderr_is_full {
                program.stderr(full());
            }
            let output = program.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn every_help_names_the_exit_codes() {
    for command in
        [&["--help"][..], &["replay", "--help"], &["sweep", "--help"], &["soak", "--help"]]
    {
        let output = run(command);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("Exit codes:"), "{command:?}: {help}");
    }
}
