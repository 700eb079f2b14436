//! Tests of serving: every request that the pool can hold is served, under any pressure.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{file, mooncake, number, replay, report, stderr, text};

const STRATEGIES: [&str; 6] = ["youngest", "lru", "lfu", "longest", "priority", "streaming:16,64"];

/// Returns how many requests lost their blocks before they ended.
fn interrupted(report: &Value) -> u64 {
    number(report, "evicted_sequences") + number(report, "preemptions")
}

#[test]
fn a_synthetic_run_reports_every_field() {
    let options = ["--requests", "300", "--threads", "2", "--blocks", "4096", "--seed", "3"];
    let report = report(&options);
    assert_eq!(report["trace"], "synthetic");
    for (field, expected) in
        [("requests", 300), ("completed", 300), ("rejected", 0), ("threads", 2)]
    {
        assert_eq!(number(&report, field), expected, "{field}");
    }
    assert_eq!((number(&report, "blocks_total"), number(&report, "block_size")), (4096, 16));
    let tokens = number(&report, "prompt_tokens") + number(&report, "output_tokens");
    assert!(number(&report, "blocks_allocated") * 16 >= tokens, "{report}");
    assert!((1..=4096).contains(&number(&report, "peak_blocks_used")), "{report}");
    let admissions = number(&report, "admissions");
    assert!((300..=300 + interrupted(&report)).contains(&admissions), "{report}");

    let positive = |value: &Value| value.as_f64().filter(|&value| value > 0.0).is_some();
    assert_eq!(report["leave_free"], 1.0);
    assert!(number(&report, "computed_tokens") >= tokens, "{report}");
    for field in [
        "goodput",
        "reading_seconds",
        "cache_share",
        "wall_seconds",
        "requests_per_second",
        "block_ops_per_second",
    ] {
        assert!(positive(&report[field]), "{field}: {report}");
    }
    let latency = ["p50", "p99", "p999", "max"].map(|share| report["latency_us"][share].clone());
    assert!(latency.iter().all(positive), "{report}");
    assert!(latency.map(|value| value.as_f64().unwrap()).is_sorted(), "{report}");
}

#[test]
fn one_seed_is_one_workload_whatever_the_threads() {
    let tokens = |seed, threads| {
        let report = report(&["--requests", "100", "--seed", seed, "--threads", threads]);
        (number(&report, "prompt_tokens"), number(&report, "output_tokens"))
    };
    assert_eq!(tokens("1", "1"), tokens("1", "4"));
    assert_ne!(tokens("1", "1"), tokens("2", "1"));
}

/// Sixteen prompts of one worker fit together, but less than a sixth of their final lengths does.
#[test]
fn a_pool_too_small_for_all_evicts_and_completes_under_every_strategy() {
    let trace = file("grow.jsonl", mooncake([(16, 160); 400]).as_bytes());
    for strategy in STRATEGIES {
        for threshold in ["0", "0.9", "1"] {
            let report = report(&[
                text(&trace),
                "--strategy",
                strategy,
                "--threshold",
                threshold,
                "--threads",
                "8",
                "--live",
                "16",
                "--blocks",
                "64",
                "--leave-free",
                "0",
            ]);
            assert_eq!(number(&report, "completed"), 400, "{strategy}");
            let evicted = number(&report, "evicted_sequences") > 0;
            assert!(evicted || strategy == "youngest", "{strategy}: {report}");
            assert!(interrupted(&report) > 0, "{strategy}: {report}");
            assert!(number(&report, "admissions") > 400, "{strategy}: {report}");
            assert_eq!(number(&report, "output_tokens"), 400 * 160, "{strategy}");
            assert!(number(&report, "computed_tokens") > 400 * 176, "{strategy}: {report}");
            assert!(report["goodput"].as_f64().unwrap() < 1.0, "{strategy}: {report}");
        }
    }
}

/// The requests that the worker may hold would need eight times the pool.
#[test]
fn a_worker_whose_prompts_leave_room_for_all_outputs_preempts_none() {
    let lengths = [(16, 160), (0, 176)].repeat(200);
    let trace = file("room.jsonl", mooncake(lengths).as_bytes());
    let options = ["--threads", "1", "--live", "47", "--blocks", "64"];
    for strategy in STRATEGIES {
        let report = report(&[&[text(&trace), "--strategy", strategy][..], &options].concat());
        let counts = ["completed", "admissions", "evicted_sequences", "preemptions"];
        assert_eq!(counts.map(|count| number(&report, count)), [400, 400, 0, 0], "{strategy}");
        assert_eq!(number(&report, "computed_tokens"), 400 * 176, "{strategy}");
        assert_eq!(report["goodput"], 1.0, "{strategy}");
    }
}

/// Two requests of three blocks in a pool of five. The second loses two full blocks: each token computed again
/// can be counted by hand. An evicted request finds nothing again, a preempted one the block before its last.
#[test]
fn a_token_computed_again_lowers_the_goodput() {
    let trace = file("again.jsonl", mooncake([(16, 32); 2]).as_bytes());
    for (strategy, again) in [("lru", 32), ("youngest", 16)] {
        assert_computed_again(&[text(&trace), "--strategy", strategy], again);
    }
}

/// As above; the blocks are of prompts, and so the first hits after an eviction too.
#[test]
fn a_prompt_that_hits_again_is_not_computed_again() {
    let line = |id: u32| {
        let ids = [id, id + 1];
        json!({"timestamp": 0, "input_length": 32, "output_length": 16, "hash_ids": ids})
    };
    let trace = file("hits.jsonl", format!("{}\n{}\n", line(0), line(2)).as_bytes());
    for strategy in ["lru", "youngest"] {
        let trace = [text(&trace), "--id-tokens", "16", "--strategy", strategy];
        assert_computed_again(&trace, 16);
    }
}

/// Checks how many tokens a worker computes again of the second of two requests of 48 tokens.
fn assert_computed_again(trace: &[&str], again: u64) {
    let options = ["--threads", "1", "--live", "2", "--blocks", "5", "--leave-free", "0"];
    let report = report(&[trace, &["--threshold", "1"], &options].concat());
    assert_eq!(interrupted(&report), 1, "{report}");
    let counts = ["recomputed_tokens", "kept_tokens", "computed_tokens"];
    let counts = counts.map(|count| number(&report, count));
    assert_eq!(counts, [again, 32 - again, 96 + again], "{report}");
    let goodput = 96.0 / (96 + again) as f64;
    assert!((report["goodput"].as_f64().unwrap() - goodput).abs() < 1e-9, "{report}");
}

#[test]
fn sixteen_workers_with_defaults_preempt_less_than_one_of_a_hundred() {
    let report = report(&["--threads", "16", "--requests", "3000"]);
    assert_eq!((number(&report, "live"), number(&report, "blocks_total")), (64, 262_144));
    assert!(interrupted(&report) < 30, "{report}");
    assert!(report["goodput"].as_f64().unwrap() >= 0.98, "{report}");
}

/// A worker holds as many requests as need its share of the pool, but at most 64.
#[test]
fn the_default_of_live_requests_follows_the_pool_and_the_workers() {
    let trace = file("live.jsonl", mooncake([(16, 16); 10]).as_bytes());
    for (threads, blocks, live) in
        [("1", "64", 32), ("4", "64", 8), ("4", "2", 1), ("1", "500", 64)]
    {
        let report = report(&[text(&trace), "--threads", threads, "--blocks", blocks]);
        assert_eq!(number(&report, "live"), live, "{threads} threads, {blocks} blocks");
    }
}

/// Returns requests of 64 blocks among smaller ones; the first is not the largest.
fn with_large_ones() -> impl Iterator<Item = (u64, u64)> {
    (0..240).map(|at| match at % 12 {
        5 => (1000, 24),
        7 => (0, 1024),
        n => (40 * n, 10 + 7 * n),
    })
}

#[test]
fn a_pool_of_the_largest_request_serves_all_of_them() {
    let trace = file("largest.jsonl", mooncake(with_large_ones()).as_bytes());
    for strategy in STRATEGIES {
        for (live, share) in [("1", "0"), ("64", "0"), ("64", "1")] {
            let options =
                ["--strategy", strategy, "--live", live, "--threads", "16", "--leave-free", share];
            let report = report(&[&[text(&trace), "--blocks", "64"][..], &options].concat());
            assert_eq!(number(&report, "completed"), 240, "{strategy}, {live} live, {share}");
        }
    }
}

#[test]
fn a_request_larger_than_the_pool_is_rejected_and_the_others_served() {
    let trace = file("larger.jsonl", mooncake(with_large_ones()).as_bytes());
    let report = report(&[text(&trace), "--blocks", "63", "--threads", "4"]);
    assert_eq!(number(&report, "rejected"), 40);
    assert_eq!(number(&report, "completed"), 200);
    let small = with_large_ones().filter(|(prompt, output)| prompt + output < 1024);
    let (prompts, outputs): (Vec<_>, Vec<_>) = small.unzip();
    assert_eq!(number(&report, "prompt_tokens"), prompts.iter().sum::<u64>());
    assert_eq!(number(&report, "output_tokens"), outputs.iter().sum::<u64>());
}

#[test]
fn prompts_and_outputs_may_be_empty() {
    let lengths = [(0, 0), (5, 0), (0, 5), (0, 16), (16, 0)].repeat(20);
    let trace = file("empty.jsonl", mooncake(lengths).as_bytes());
    let report = report(&[text(&trace), "--blocks", "1", "--threads", "4"]);
    assert_eq!(number(&report, "completed"), 100);
    assert_eq!(number(&report, "prompt_tokens"), 20 * 21);
    assert_eq!(number(&report, "output_tokens"), 20 * 21);
}

/// An empty sequence frees nothing, so no strategy selects it: its worker preempts it.
#[test]
fn a_worker_without_a_victim_preempts_its_youngest() {
    let trace = file("no_victim.jsonl", mooncake([(0, 16); 50]).as_bytes());
    let options = ["--blocks", "1", "--threads", "2", "--live", "8", "--leave-free", "0"];
    let report = report(&[&[text(&trace), "--strategy", "lru"][..], &options].concat());
    assert_eq!(number(&report, "completed"), 50);
    assert!(number(&report, "preemptions") > 0, "{report}");
}

#[test]
fn the_summary_is_for_people() {
    let output = replay(&["--requests", "1200", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = String::from_utf8_lossy(&output.stdout);
    assert!(summary.contains("1,200 of 1,200 completed"), "{summary}");
    assert!(summary.contains(" 0 leaked"), "{summary}");
    assert!(stderr(&output).is_empty(), "a progress bar was drawn into a pipe");
}

#[test]
fn a_recorded_trace_is_served_by_more_threads_than_cores() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces/mooncake_conversation_2000.jsonl");
    if !Path::new(path).exists() {
        eprintln!("skipped: there is no {path}");
        return;
    }
    let report = report(&[path, "--threads", "32", "--blocks", "8000", "--requests", "500"]);
    assert_eq!(number(&report, "completed"), 500);
    assert_eq!(number(&report, "rejected"), 0);
}
