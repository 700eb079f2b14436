//! Tests of hash ids: every line needs as many as its prompt has parts. A line without them is refused
//! with both numbers.

use crate::program::{file, refusal, refused, report, row, run, text};

/// Lengths of prompts and numbers of ids that are too few or too many where an id names 16 tokens.
const MISFITS: [(u64, u64); 9] =
    [(64, 3), (64, 5), (64, 0), (65, 3), (65, 6), (16, 0), (0, 1), (15, 2), (u64::MAX >> 1, 1)];

#[test]
fn a_line_with_too_few_or_too_many_ids_is_named_with_both_numbers() {
    for (at, (length, number)) in MISFITS.into_iter().enumerate() {
        let ids: Vec<u64> = (0..number).collect();
        for empty_before in [false, true] {
            let before = if empty_before { row(0, 0, &[]) } else { row(0, 40, &[1, 2, 3]) };
            let lines =
                [before, "\n".to_owned(), row(1, length, &ids), row(2, 32, &[1, 2])].concat();
            let trace = file(&format!("misfit_{at}.jsonl"), lines.as_bytes());
            for command in [&["replay"][..], &["replay", "--reuse", "off"], &["sweep"]] {
                let error =
                    refused(&run(&[command, &[text(&trace), "--id-tokens", "16"]].concat()));
                let place = format!("{}:3: ", text(&trace));
                assert!(error.contains(&place), "{place} is not in {error}");
                let numbers = format!("{number} hash ids for an input_length of {length},");
                assert!(error.contains(&numbers), "{numbers} is not in {error}");
                assert!(error.contains("names 16 tokens"), "{error}");
            }
        }
    }
}

#[test]
fn a_line_may_have_an_id_for_its_rest() {
    let rows = [(64, 4), (65, 4), (65, 5), (15, 0), (15, 1), (0, 0), (80, 5)];
    let ids = |number: u64| (0..number).collect::<Vec<_>>();
    let lines: String = rows.iter().map(|&(length, number)| row(0, length, &ids(number))).collect();
    let trace = file("rests.jsonl", lines.as_bytes());
    report(&[text(&trace), "--id-tokens", "16"]);
    report(&[text(&trace)]);
}

/// The size that explains most lines is taken as the trace's size.
#[test]
fn without_id_tokens_the_line_that_is_not_as_the_others_is_named() {
    let mut lines: Vec<String> = (1..20).map(|n| row(0, n * 64, &vec![1; n as usize])).collect();
    lines[11] = row(0, 12 * 64, &[1; 11]);
    let trace = file("odd_one.jsonl", lines.concat().as_bytes());
    let error = refusal(&[text(&trace)]);
    let want = format!("{}:12: 11 hash ids for an input_length of 768, expected 12", text(&trace));
    assert!(error.contains(&want) && error.contains("--id-tokens"), "{error}");
}

#[test]
fn a_format_without_ids_has_none_to_check() {
    let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,4808,10\n";
    let trace = file("no_ids.csv", trace.as_bytes());
    report(&[text(&trace), "--id-tokens", "16"]);
}
