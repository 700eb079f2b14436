//! Tests of sources: a trace is read from every source and in every form, and a trace without requests is
//! refused.

use std::fs;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::program::{
    compressed, file, mooncake, number, refusal, refused, report, row, run, run_with_input, text,
};

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,4808,10\n\
                     2023-11-16 18:17:04,3180,8\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns both formats, each as a trace of two requests.
fn traces() -> [(&'static str, String); 2] {
    [("jsonl", row(0, 64, &[1, 2, 3, 4]) + &row(1, 64, &[1, 2, 3, 4])), ("csv", AZURE.to_owned())]
}

/// Returns a trace in the forms that editors and spreadsheets give to lines.
fn forms(trace: &str) -> [String; 5] {
    let crlf = trace.replace('\n', "\r\n");
    let spread = format!("\n  \n{}", trace.replace('\n', "\n\n\t\n"));
    [
        trace.to_owned(),
        format!("\u{FEFF}{trace}"),
        format!("\u{FEFF}{crlf}"),
        crlf.trim_end().to_owned(),
        spread,
    ]
}

#[test]
fn marks_and_line_ends_are_read_in_every_format() {
    for (format, trace) in traces() {
        for (at, form) in forms(&trace).iter().enumerate() {
            let name = format!("form_{at}.{format}");
            let plain = file(&name, form.as_bytes());
            let gz = compressed(&format!("{name}.gz"), form.as_bytes());
            for path in [plain, gz] {
                assert_eq!(number(&report(&[text(&path)]), "completed"), 2, "{path:?}");
            }
        }
    }
}

#[test]
fn a_pipe_is_read_as_a_file_is() {
    for (format, trace) in traces() {
        for bytes in [trace.clone().into_bytes(), gzip(trace.as_bytes())] {
            for path in ["-", "/dev/stdin"] {
                let options = ["replay", path, "--format", format, "--json"];
                let output = run_with_input(&options, &bytes);
                assert_eq!(output.status.code(), Some(0), "{output:?}");
                let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(number(&report, "completed"), 2);
                assert_eq!(report["trace"], path);
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn a_named_pipe_and_a_substituted_process_are_read() {
    use std::process::Command;

    use crate::program::end_of;

    let trace = file("substituted.jsonl", traces()[0].1.as_bytes());
    let script = "\"$0\" replay <(gzip -c \"$1\") --format jsonl --json && \
                  rm -f \"$1.pipe.jsonl\" && mkfifo \"$1.pipe.jsonl\" && \
                  { cat \"$1\" > \"$1.pipe.jsonl\" & } && \"$0\" replay \"$1.pipe.jsonl\" --json";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_paged-kv"), text(&trace)]);
    let output = end_of(&mut shell);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("\"completed\":2,").count(), 2, "{text}");
}

#[test]
fn format_decides_where_the_name_does_not_and_first_bytes_tell_gzip() {
    for (format, trace) in traces() {
        let bare = file(&format!("bare_{format}"), trace.as_bytes());
        let error = refusal(&[text(&bare)]);
        assert!(error.contains("--format"), "{error}");
        assert_eq!(number(&report(&[text(&bare), "--format", format]), "completed"), 2);
        let misnamed = [
            file(&format!("plain.{format}.gz"), trace.as_bytes()),
            file(&format!("packed.{format}"), &gzip(trace.as_bytes())),
        ];
        for path in misnamed {
            assert_eq!(number(&report(&[text(&path)]), "completed"), 2, "{path:?}");
        }
        // Files that were compressed one by one and then joined.
        let (first, rest) = trace.split_at(trace.len() / 2);
        let joined = [gzip(first.as_bytes()), gzip(rest.as_bytes())].concat();
        let joined = file(&format!("joined.{format}.gz"), &joined);
        assert_eq!(number(&report(&[text(&joined)]), "completed"), 2);
    }
    let error = refusal(&["-", "--format", "json"]);
    assert!(error.contains("jsonl or csv"), "{error}");
}

#[test]
fn nothing_to_do_is_no_requests() {
    let header = AZURE.split_inclusive('\n').next().unwrap();
    let empties = [
        ("jsonl", ""),
        ("jsonl", "\n \r\n\n"),
        ("jsonl", "\u{FEFF}"),
        ("csv", ""),
        ("csv", "\u{FEFF}\r\n"),
        ("csv", header),
        ("csv", header.trim_end()),
    ];
    for (at, (format, content)) in empties.into_iter().enumerate() {
        let name = format!("empty_{at}.{format}");
        let plain = file(&name, content.as_bytes());
        let gz = compressed(&format!("{name}.gz"), content.as_bytes());
        let empty_gz = file(&format!("{name}.0.{format}.gz"), b"");
        for path in [plain, gz, empty_gz] {
            for command in ["replay", "sweep"] {
                let error = refused(&run(&[command, text(&path)]));
                assert!(error.contains("no requests"), "{error}");
                assert!(error.contains(text(&path)), "{error}");
            }
        }
        let error =
            refused(&run_with_input(&["replay", "-", "--format", format], content.as_bytes()));
        assert!(error.contains("-:") && error.contains("no requests"), "{error}");
    }
    let trace = file("some.jsonl", traces()[0].1.as_bytes());
    for arguments in [&["--requests", "0"][..], &[text(&trace), "--requests", "0"]] {
        let error = refusal(arguments);
        assert!(error.contains("no requests"), "{error}");
    }
}

/// 2 GB of blanks or digits in one line are refused within some MB, without room for the line.
#[cfg(unix)]
#[test]
fn a_line_without_end_is_refused_by_its_number_in_bounded_memory() {
    use crate::program::run_within;

    for (name, byte) in [("endless.jsonl.gz", b' '), ("digits.jsonl.gz", b'1')] {
        // Members of 16 MiB each, which form one line together.
        let mebibytes = gzip(&vec![byte; 16 << 20]);
        let path = file(name, &[gzip(row(0, 0, &[]).as_bytes()), mebibytes.repeat(128)].concat());
        let error = refused(&run_within(300_000, &["replay", "-t", "1", text(&path)]));
        assert!(error.contains(&format!("{name}:2: longer than 16 MiB")), "{error}");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn bytes_that_are_no_trace_are_refused_by_their_place() {
    let good = mooncake([(10, 1)]);
    let line = |bytes: &[u8]| [good.as_bytes(), bytes, b"\n"].concat();
    let packed = gzip(good.repeat(500).as_bytes());
    let directory = file("directory.jsonl/inside", b"");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nul.jsonl", line(b"\0"), ":2: "),
        ("nuls.jsonl", line(&[0; 4096]), ":2: "),
        ("utf16.jsonl", good.encode_utf16().flat_map(u16::to_le_bytes).collect(), ":1: "),
        (
            "twice.jsonl",
            line(good.trim_end().replace('{', "{\"timestamp\":0,").as_bytes()),
            ":2: duplicate field",
        ),
        ("nan.jsonl", line(good.trim_end().replace(":0,", ":NaN,").as_bytes()), ":2: "),
        ("infinite.jsonl", line(good.trim_end().replace(":0,", ":1e999,").as_bytes()), ":2: "),
        ("deep.jsonl", line("[".repeat(100_000).as_bytes()), ":2: "),
        (
            "many.jsonl",
            line(row(0, u64::MAX - 1, &[]).trim_end().as_bytes()),
            ":2: 18446744073709551614 + 1 tokens",
        ),
        ("cut.jsonl.gz", packed[..packed.len() - 1].to_vec(), ":501: "),
        ("head.jsonl.gz", packed[..7].to_vec(), ":1: "),
        ("tail.jsonl.gz", [&packed[..], b"tail"].concat(), ":501: "),
        ("broken.jsonl.gz", [&packed[..20], &[0xFF; 20], &packed[40..]].concat(), ":"),
    ];
    for (name, bytes, place) in cases {
        let error = refusal(&[text(&file(name, &bytes))]);
        assert!(error.contains(&format!("{name}{place}")), "{name}{place} is not in {error}");
    }
    let error = refusal(&[text(directory.parent().unwrap())]);
    assert!(error.contains("directory.jsonl: "), "{error}");
}
