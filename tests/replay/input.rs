//! Tests of input: every valid trace is read, and every invalid one is refused with its line and reason.

use std::fs;

use crate::program::{compressed, file, mooncake, number, refusal, report, text};

const AZURE_HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

#[test]
fn compressed_and_plain_are_the_same_trace() {
    let content = mooncake((1..50).map(|n| (n * 10, n)));
    let plain = file("same.jsonl", content.as_bytes());
    let gz = compressed("same.jsonl.gz", content.as_bytes());
    for path in [plain, gz] {
        let report = report(&[text(&path)]);
        assert_eq!(number(&report, "completed"), 49);
        assert_eq!(number(&report, "prompt_tokens"), 12_250);
        assert_eq!(report["trace"], text(&path));
    }
}

#[test]
fn the_last_line_of_an_azure_trace_needs_no_newline() {
    let content = format!(
        "{AZURE_HEADER}\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8"
    );
    let plain = file("azure.csv", content.as_bytes());
    let gz = compressed("azure.csv.gz", content.replace('\n', "\r\n").as_bytes());
    for path in [plain, gz] {
        let report = report(&[text(&path)]);
        assert_eq!(number(&report, "completed"), 2);
        assert_eq!(number(&report, "prompt_tokens"), 7988);
        assert_eq!(number(&report, "output_tokens"), 18);
    }
}

#[test]
fn only_the_requests_asked_for_are_read() {
    let trace = file("first.jsonl", (mooncake([(10, 1); 5]) + "not json\n").as_bytes());
    assert_eq!(number(&report(&[text(&trace), "--requests", "5"]), "completed"), 5);
    assert!(refusal(&[text(&trace), "--requests", "6"]).contains("first.jsonl:6: "));
}

#[test]
fn a_malformed_line_is_named_with_file_line_and_reason() {
    let good = mooncake([(10, 1)]);
    let line = |fields: &str| format!("{good}\n{{{fields}}}\n{good}");
    let azure = |rows: &str| format!("{AZURE_HEADER}\n2023-11-16 18:17:03,10,1\n{rows}\n");
    let long = "2023-11-16 18:17:04,4000000000000000000,3000000000000000000"; // two such lines can be counted
    let cases = [
        ("text.jsonl", format!("{good}{good}hello\n"), 3, "expected"),
        ("cut.jsonl", good.trim_end().replace('}', ""), 1, "EOF"),
        ("array.jsonl", "[1,2,3]\n".to_owned(), 1, "invalid"),
        (
            "no_hashes.jsonl",
            line(r#""timestamp":0,"input_length":1,"output_length":1"#),
            3,
            "missing field `hash_ids`",
        ),
        (
            "no_output.jsonl",
            line(r#""timestamp":0,"input_length":1,"hash_ids":[]"#),
            3,
            "missing field `output_length`",
        ),
        (
            "negative.jsonl",
            line(r#""timestamp":0,"input_length":-1,"output_length":1,"hash_ids":[]"#),
            3,
            "-1",
        ),
        (
            "hash.jsonl",
            line(r#""timestamp":0,"input_length":1,"output_length":1,"hash_ids":["a"]"#),
            3,
            "invalid type: string",
        ),
        ("back.jsonl", mooncake([(1, 1); 4]) + &good, 5, "timestamp goes backwards"),
        ("header.csv", "TIMESTAMP,GeneratedTokens,ContextTokens\n".into(), 1, AZURE_HEADER),
        ("no_header.csv", "2023-11-16 18:17:03.97,10,1\n".into(), 1, AZURE_HEADER),
        ("nothing.csv", String::new(), 1, AZURE_HEADER),
        ("fields.csv", azure("2023-11-16 18:17:04,10"), 3, "expected 3 fields"),
        ("minus.csv", azure("2023-11-16 18:17:04,10,-1"), 3, "GeneratedTokens \"-1\""),
        ("sum.csv", azure(&[long; 3].join("\n")), 5, "before them, are too many to count"),
        ("time.csv", azure("yesterday,10,1"), 3, "TIMESTAMP \"yesterday\""),
        ("back.csv", azure("2023-11-16 18:17:02.999,10,1"), 3, "timestamp goes backwards"),
    ];
    for (name, content, number, reason) in cases {
        let plain = file(name, content.as_bytes());
        let gz = compressed(&format!("{name}.gz"), content.as_bytes());
        for path in [plain, gz] {
            let error = refusal(&[text(&path)]);
            let place = format!("{}:{number}: ", text(&path));
            assert!(error.contains(&place), "{place:?} is not in {error:?}");
            assert!(error.contains(reason), "{reason:?} is not in {error:?}");
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_named_by_line() {
    let latin = [mooncake([(1, 1)]).as_bytes(), b"\xe9\n"].concat();
    let error = refusal(&[text(&file("latin.jsonl", &latin))]);
    assert!(error.contains("latin.jsonl:2: "), "{error}");

    let whole = fs::read(compressed("whole.jsonl.gz", mooncake([(1, 1); 9]).as_bytes())).unwrap();
    let error = refusal(&[text(&file("half.jsonl.gz", &whole[..whole.len() / 2]))]);
    assert!(error.contains("half.jsonl.gz:"), "{error}");
}

#[test]
fn a_file_that_is_no_trace_is_refused() {
    let missing = refusal(&["no/such/trace.jsonl"]);
    assert!(missing.contains("no/such/trace.jsonl: "), "{missing}");
    let unknown = refusal(&[text(&file("trace.txt", b""))]);
    assert!(unknown.contains(".jsonl, .jsonl.gz, .csv or .csv.gz"), "{unknown}");
}

#[test]
fn options_out_of_range_are_refused() {
    for option in [
        ["--threads", "0"],
        ["--live", "0"],
        ["--blocks", "0"],
        ["--block-size", "0"],
        ["--threshold", "1.5"],
        ["--strategy", "fifo"],
        ["--strategy", "streaming:4"],
    ] {
        let error = refusal(&option);
        assert!(error.contains(option[0]), "{option:?}: {error}");
    }
}
