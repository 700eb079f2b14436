//! Tests of a replay's reuse: prompts share the blocks that the trace says, and the program counts hits
//! as the oracle does.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{file, number, refusal, report, text};

/// Returns a trace of prompts of 64-token parts: the first `common` parts of each are the same.
pub fn families(prompts: u64, parts: u64, common: u64, rest: u64) -> String {
    let mut lines = String::new();
    for prompt in 0..prompts {
        let id = |part| if part < common { part } else { 1_000 + prompt * 100 + part };
        let ids: Vec<u64> = (0..parts + u64::from(rest > 0)).map(id).collect();
        let length = parts * 64 + rest;
        writeln!(
            lines,
            r#"{{"timestamp":0,"input_length":{length},"output_length":9,"hash_ids":{ids:?}}}"#
        )
        .unwrap();
    }
    lines
}

#[test]
fn prompts_share_their_common_beginning_in_blocks_of_any_divisor() {
    let trace = file("families.jsonl", families(20, 6, 4, 40).as_bytes());
    for (block_size, full, common) in [("64", 6, 4), ("32", 13, 8), ("16", 26, 16)] {
        let arguments = [text(&trace), "--threads", "1", "--live", "1", "--block-size", block_size];
        let shared = report(&arguments);
        assert_eq!(number(&shared, "prompt_blocks"), 20 * full, "{block_size}");
        assert_eq!(number(&shared, "hit_blocks"), 19 * common, "{block_size}");
        let alone = report(&[&arguments[..], &["--reuse", "off"]].concat());
        assert_eq!(number(&alone, "hit_blocks"), 0);
    }
}

#[test]
fn many_workers_share_under_shortage() {
    let trace = file("shortage.jsonl", families(300, 6, 4, 40).as_bytes());
    let shared = report(&[text(&trace), "--threads", "8", "--blocks", "60", "--live", "4"]);
    assert_eq!(number(&shared, "completed"), 300);
    assert!(number(&shared, "hit_blocks") > 0);
}

#[test]
fn blocks_that_do_not_divide_an_id_are_refused() {
    let trace = file("divide.jsonl", families(3, 6, 4, 0).as_bytes());
    let error = refusal(&[text(&trace), "--block-size", "48"]);
    assert!(error.contains("names 64 tokens"), "{error}");
    report(&[text(&trace), "--block-size", "48", "--reuse", "off"]);
}

#[test]
fn ids_that_no_length_explains_are_refused_until_told() {
    let lines = r#"{"timestamp":0,"input_length":100,"output_length":1,"hash_ids":[1,2,3]}
{"timestamp":0,"input_length":100,"output_length":1,"hash_ids":[1,2]}
"#;
    let trace = file("unexplained.jsonl", lines.as_bytes());
    let error = refusal(&[text(&trace)]);
    assert!(error.contains("--id-tokens"), "{error}");
    report(&[text(&trace), "--id-tokens", "48"]);
}

/// The hits are at most half a percentage point below LRU at every capacity that the oracle computed, and
/// equal where nothing is reclaimed.
#[test]
fn a_sequential_replay_hits_as_the_oracles_lru_or_better() {
    let traces = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces/");
    let name = "mooncake_conversation_2000.jsonl";
    let (trace, oracle) = (format!("{traces}{name}"), format!("{traces}oracle_results.jsonl"));
    if !Path::new(&trace).exists() || !Path::new(&oracle).exists() {
        eprintln!("skipped: there is no {trace}, or no results of the oracle");
        return;
    }
    let results = fs::read_to_string(oracle).unwrap();
    let mut compared = 0;
    for line in results.lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        let asked = (&result["trace"], &result["mode"], &result["policy"]);
        if asked != (&name.into(), &"vllm".into(), &"lru".into()) || result["rejected"] != 0 {
            continue;
        }
        let infinite = result["capacity"] == "inf";
        let blocks = if infinite { "100000".into() } else { result["capacity"].to_string() };
        let arguments =
            [&trace, "--threads", "1", "--live", "1", "--block-size", "512", "--blocks", &blocks];
        let ours = report(&arguments);
        assert_eq!(ours["prompt_blocks"], result["blocks"]);
        let (hits, lru) = (number(&ours, "hit_blocks"), number(&result, "hit_blocks"));
        let allowed = number(&result, "blocks") / 200;
        assert!(hits + allowed >= lru, "{blocks} blocks: {hits} of the oracle's {lru} hits");
        assert!(!infinite || hits == lru, "{hits} of {lru} hits with room for everything");
        compared += 1;
    }
    assert!(compared > 3, "the oracle's results are of other traces");
}

/// Prompts requested once do not displace prompts requested again and again.
#[test]
fn two_queues_keep_the_prompts_requested_again() {
    let mut lines = String::new();
    let mut once = 1_000..;
    for round in 0..30 {
        // Two prompts alternate. Between each and its return there are more fresh blocks than fit.
        for prompt in [0, 1] {
            let common: Vec<u64> = (0..20).map(|part| prompt * 100 + part).collect();
            let fresh: Vec<u64> = once.by_ref().take(45).collect();
            for ids in [common, fresh] {
                let tokens = ids.len() * 64 + 1;
                writeln!(
                    lines,
                    r#"{{"timestamp":{round},"input_length":{tokens},"output_length":1,"hash_ids":{ids:?}}}"#
                )
                .unwrap();
            }
        }
    }
    let trace = file("scan.jsonl", lines.as_bytes());
    let hits = |policy: &str, block_size: &str, blocks: &str| {
        let sequential = [text(&trace), "--threads", "1", "--live", "1", "--reclaim", policy];
        let report =
            report(&[&sequential[..], &["--block-size", block_size, "--blocks", blocks]].concat());
        assert_eq!(report["reclaim"], policy);
        number(&report, "hit_blocks")
    };
    // In blocks of 2 tokens: each prompt has 640, each scan 1,440, and the pool 3,200.
    assert_eq!(hits("lru", "2", "3200"), 0, "a prompt comes back after 3,500 other blocks");
    assert!(hits("two-queue", "2", "3200") > 20 * 2 * 640, "most of 58 returns hit");
}

#[test]
fn two_queues_beat_lru_on_a_real_conversation() {
    let trace =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces/mooncake_conversation_2000.jsonl");
    if !Path::new(trace).exists() {
        eprintln!("skipped: there is no {trace}");
        return;
    }
    let hits = |policy, blocks| {
        let sequential = [trace, "--threads", "1", "--live", "1", "--block-size", "512"];
        let cache = ["--reclaim", policy, "--blocks", blocks];
        number(&report(&[&sequential[..], &cache].concat()), "hit_blocks")
    };
    assert!(hits("two-queue", "2000") > hits("lru", "2000") * 5 / 4);
    let (lru, two_queue) = (hits("lru", "20000"), hits("two-queue", "20000"));
    assert!(two_queue + lru / 50 > lru, "{two_queue} hits, {lru} under LRU");
}
