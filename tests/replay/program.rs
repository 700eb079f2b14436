//! The program as tests run it, and the traces that tests give it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// A run that takes longer makes no progress.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn replay(arguments: &[&str]) -> Output {
    run(&[&["replay"], arguments].concat())
}

/// Runs the program with an empty standard input.
pub fn run(arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"));
    end_of(program.args(arguments).stdin(Stdio::null()))
}

/// Runs the program with `input` on standard input, through a pipe.
pub fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let path = file(&format!("input-{}", next_number()), input);
    let mut cat = Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().expect("cat starts");
    let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"));
    let output = end_of(program.args(arguments).stdin(cat.stdout.take().expect("it is piped")));
    cat.wait().expect("cat can be waited for");
    output
}

/// Runs the program with at most `kib` KiB of address space.
pub fn run_within(kib: u64, arguments: &[&str]) -> Output {
    let script = format!("ulimit -v {kib} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_paged-kv")]).args(arguments);
    end_of(shell.stdin(Stdio::null()))
}

/// Waits for the end of a program that prints less than a pipe holds.
pub fn end_of(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program starts");
    let begin = Instant::now();
    while child.try_wait().expect("the program can be waited for").is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().expect("the program can be killed");
            panic!("{command:?} did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("the output can be read")
}

fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the report of a run that must succeed and leave nothing behind.
pub fn report(arguments: &[&str]) -> Value {
    let output = replay(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["leaked_blocks"], 0, "{report}");
    assert_eq!(report["validate"], "ok", "{report}");
    assert_eq!(report["blocks_allocated"], report["blocks_freed"], "{report}");
    let ended = number(&report, "completed") + number(&report, "rejected");
    assert_eq!(ended, number(&report, "requests"), "{report}");
    report
}

pub fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is a count: {report}"))
}

/// Returns the stderr of a replay that must stop because of its input, with nothing on stdout.
pub fn refusal(arguments: &[&str]) -> String {
    refused(&replay(arguments))
}

/// Returns the stderr of a command that was refused: exit code 2, no report, and no panic.
pub fn refused(output: &Output) -> String {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty(), "a report was printed: {error}");
    assert!(error.starts_with("error: "), "{error}");
    error
}

/// Writes a file of this name and content, for this test run only.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    fs::create_dir_all(directory.join(name).parent().expect("it is below"))
        .expect("the test directory can be made");
    let path = directory.join(name);
    fs::write(&path, content).expect("the test file can be written");
    path
}

pub fn compressed(name: &str, content: &[u8]) -> PathBuf {
    let path = file(name, b"");
    let mut encoder = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap();
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the test directory has a name in UTF-8")
}

/// Returns a line of a Mooncake trace.
pub fn row(time: u64, input_length: u64, ids: &[u64]) -> String {
    format!(
        "{{\"timestamp\":{time},\"input_length\":{input_length},\"output_length\":1,\
         \"hash_ids\":{ids:?}}}\n"
    )
}

/// Returns a Mooncake trace of these prompts and outputs, in tokens.
pub fn mooncake(lengths: impl IntoIterator<Item = (u64, u64)>) -> String {
    let mut lines = String::new();
    for (time, (prompt, output)) in lengths.into_iter().enumerate() {
        let time = time / 3;
        writeln!(
            lines,
            r#"{{"timestamp":{time},"input_length":{prompt},"output_length":{output},"hash_ids":[]}}"#
        )
        .unwrap();
    }
    lines
}
