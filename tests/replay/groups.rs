//! Tests of groups of layers: a replay serves them under pressure, and a sweep compares them with full attention.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{file, mooncake, number, refusal, replay, report, row, run, stderr, text};
use crate::reuse::families;

const ONE_BY_ONE: [&str; 4] = ["--threads", "1", "--live", "1"];

/// Returns the counts of `groups` in a report: hits of the longest group, and the tokens that each group lost.
fn of_groups(report: &Value) -> (u64, Vec<u64>) {
    let groups = &report["groups"];
    let by_group = groups["by_group"].as_array().expect("a list of groups");
    let lost = by_group.iter().map(|of_group| number(of_group, "tokens_lost"));
    (number(groups, "longest_hit_blocks"), lost.collect())
}

#[test]
fn groups_hit_what_full_attention_hits_if_all_is_kept() {
    let trace = file("groups_kept.jsonl", families(20, 6, 4, 40).as_bytes());
    let alone = report(&[&[text(&trace)][..], &ONE_BY_ONE].concat());
    assert!(alone.get("groups").is_none(), "{alone}");
    for spec in ["full:16", "full:16,window:16:64", "full:16,window:64:100", "gpt-oss-20b"] {
        let report = report(&[&[text(&trace), "--groups", spec][..], &ONE_BY_ONE].concat());
        let (longest, lost) = of_groups(&report);
        assert_eq!(number(&report, "hit_blocks"), number(&alone, "hit_blocks"), "{spec}");
        assert_eq!(longest, number(&alone, "hit_blocks"), "{spec}");
        assert!(lost.iter().all(|&tokens| tokens == 0), "{report}");
    }
}

/// Each prompt shares 256 of its 424 tokens with those before it. The windows are kept for the end of a prompt, and
/// states at the ends of chunks only.
#[test]
fn a_group_that_keeps_less_loses_hits() {
    let trace = file("groups_lose.jsonl", families(20, 6, 4, 40).as_bytes());
    for (options, hit_blocks) in [
        (&["--groups", "full:16,window:16:32"][..], 16),
        (&["--groups", "full:16,window:16:32", "--group-retention", "every:96"], 12),
        (&["--groups", "full:16,window:16:32", "--group-retention", "prompt-end"], 0),
        (&["--groups", "full:16,state:32", "--prefill-chunk", "128"], 16),
        (&["--groups", "full:16,state:32", "--prefill-chunk", "192"], 12),
        (&["--groups", "full:16,state:32"], 0),
    ] {
        let report = report(&[&[text(&trace)][..], options, &ONE_BY_ONE].concat());
        assert_eq!(number(&report, "hit_blocks"), 19 * hit_blocks, "{options:?}");
        let (longest, lost) = of_groups(&report);
        assert_eq!(longest, 19 * 16, "{options:?}");
        assert_eq!(lost, [0, 19 * (16 - hit_blocks) * 16], "{options:?}");
    }
}

/// Each prompt of 64 tokens more begins with the one before, apart from its last 40 tokens, which no id names.
#[test]
fn blocks_kept_for_the_end_of_a_prompt_hit_where_its_names_end() {
    let rows = (1..=8).map(|turn| row(0, 64 * turn + 40, &(0..turn).collect::<Vec<_>>()));
    let trace = file("groups_turns.jsonl", rows.collect::<String>().as_bytes());
    for retention in ["dense", "prompt-end"] {
        let options = ["--groups", "full:16,window:16:32", "--group-retention", retention];
        let report = report(&[&[text(&trace)][..], &options, &ONE_BY_ONE].concat());
        assert_eq!(number(&report, "hit_blocks"), 4 * (1..8).sum::<u64>(), "{retention}");
    }
}

/// The youngest gives way, or another one by each strategy; prompts are refused between two chunks.
#[test]
fn groups_are_served_to_the_end_under_shortage() {
    let shared = file("groups_short.jsonl", families(200, 6, 4, 40).as_bytes());
    let growing = file("groups_grow.jsonl", mooncake([(16, 160); 200]).as_bytes());
    let most = ["--threads", "8", "--live", "8", "--leave-free", "0", "--prefill-chunk", "64"];
    for spec in ["full:16,window:16:64,window:16:32", "full:16,state:32", "sink:16:20:64,full:32"] {
        for strategy in ["youngest", "lru", "streaming:16,64"] {
            for (trace, blocks, count) in [(&shared, "70", 200), (&growing, "40", 200)] {
                let options = ["--groups", spec, "--strategy", strategy, "--blocks", blocks];
                let report = report(&[&[text(trace)][..], &options, &most].concat());
                assert_eq!(number(&report, "completed"), count, "{options:?}");
            }
        }
    }
    let synthetic = ["--groups", "gemma-3-27b", "--requests", "300", "--leave-free", "0"];
    let report = report(&[&synthetic[..], &["--blocks", "4000", "--threads", "4"]].concat());
    assert_eq!(number(&report, "completed"), 300);
}

/// 424 tokens and 9 of output are 28 blocks of full attention, and 4 of the window: at most 16 tokens are added at a
/// time to the 31 before.
#[test]
fn a_request_needs_few_blocks_of_a_window() {
    let trace = file("groups_few.jsonl", families(3, 6, 4, 40).as_bytes());
    let options = ["--groups", "full:16,window:16:32", "--prefill-chunk", "16"];
    for (blocks, completed) in [("32", 3), ("31", 0)] {
        let pool = ["--blocks", blocks];
        let report = report(&[&[text(&trace)][..], &options, &ONE_BY_ONE, &pool].concat());
        assert_eq!(number(&report, "completed"), completed, "{blocks}");
    }
}

#[test]
fn the_summary_says_which_group_lost_hits() {
    let trace = file("groups_said.jsonl", families(20, 6, 4, 40).as_bytes());
    let options = ["--groups", "full:16,window:16:32", "--group-retention", "prompt-end"];
    let output = replay(&[&[text(&trace)][..], &options, &ONE_BY_ONE].concat());
    let summary = String::from_utf8_lossy(&output.stdout);
    for words in ["kept prompt-end", "1: window:16:32, 4,864 tokens of hits lost"] {
        assert!(summary.contains(words), "{words} is not in\n{summary}");
    }
}

#[test]
fn malformed_groups_are_refused() {
    let trace = file("groups_refused.jsonl", families(3, 6, 4, 0).as_bytes());
    let error = refusal(&[text(&trace), "--groups", "full:24"]);
    assert!(error.contains("names 64 tokens") && error.contains("--groups"), "{error}");
    report(&[text(&trace), "--groups", "full:24", "--reuse", "off"]);
    for (options, reason) in [
        (&["--groups", "full:16,window:16"][..], "expected window:B:W"),
        (&["--groups", "full:16", "--block-size", "16"], "cannot be used with"),
        (&["--group-retention", "dense"], "--groups"),
        (&["--groups", "full:16", "--group-retention", "some"], "expected dense"),
    ] {
        let output = replay(&[&[text(&trace)][..], options].concat());
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(stderr(&output).contains(reason), "{options:?}: {}", stderr(&output));
    }
}

/// Of two groups, full attention has half as many blocks of tokens in the same bytes.
#[test]
fn a_sweep_compares_groups_with_full_attention_of_the_same_bytes() {
    let trace = file("groups_swept.jsonl", families(20, 6, 4, 40).as_bytes());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    let (csv, svg) = (directory.join("groups.csv"), directory.join("groups.svg"));
    let files = ["--csv", text(&csv), "--svg", text(&svg), "--blocks", "56,200"];
    let groups = ["--groups", "full:16,window:16:32", "--group-retention", "dense,prompt-end"];
    let output = run(&[&["sweep", text(&trace)], &groups[..], &files].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = fs::read_to_string(&csv).unwrap();
    let mut lines = table.lines();
    let head = lines.next().expect("a head");
    assert!(head.ends_with("rejected,lost_by_0_full:16,lost_by_1_window:16:32"), "{head}");
    for (retention, name) in [("dense", "groups dense"), ("prompt-end", "groups prompt-end")] {
        for blocks in ["56", "200"] {
            let options = ["--group-retention", retention, "--blocks", blocks];
            let replayed =
                report(&[&[text(&trace)][..], &groups[..2], &options, &ONE_BY_ONE].concat());
            let hits = number(&replayed, "hit_blocks");
            let cell = format!("{name},lru,{blocks},,520,{hits},{:.6}", hits as f64 / 520.0);
            assert!(lines.any(|line| line.starts_with(&cell)), "{cell} is not in\n{table}");
        }
    }
    for (blocks, half) in [("56", "28"), ("200", "100")] {
        let options = ["--block-size", "16", "--blocks", half];
        let replayed = report(&[&[text(&trace)][..], &options, &ONE_BY_ONE].concat());
        let hits = number(&replayed, "hit_blocks");
        let cell = format!("all full attention,lru,{blocks},,520,{hits},");
        assert!(lines.any(|line| line.starts_with(&cell)), "{cell} is not in\n{table}");
    }
    assert!(lines.next().is_some_and(|line| line.starts_with("ceiling,,,,520,304,")), "{table}");
    let picture = fs::read_to_string(&svg).unwrap();
    for words in ["all full attention", "groups dense: longest group", "blocks of the pool"] {
        assert!(picture.contains(words), "the picture says nothing of {words}");
    }
}
