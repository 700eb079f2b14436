//! Test of a sweep: it writes the curve that single replays give.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::program::{file, number, report, stderr, text};
use crate::reuse::families;

fn sweep(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_paged-kv");
    Command::new(program).arg("sweep").args(arguments).output().expect("the program starts")
}

#[test]
fn every_cell_equals_the_result_of_a_replay() {
    let trace = file("swept.jsonl", families(20, 6, 4, 40).as_bytes());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    let (csv, svg) = (directory.join("sweep.csv"), directory.join("sweep.svg"));
    let sizes = ["40", "10", "6"];
    let files = ["--csv", text(&csv), "--svg", text(&svg), "--blocks", "40,10,6"];
    let output = sweep(&[&[text(&trace)], &files[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = fs::read_to_string(&csv).unwrap();
    let mut lines: Vec<&str> = table.lines().skip(1).collect();
    assert_eq!(lines.pop(), Some("ceiling,,120,76,0.633333,0,0"), "19 returns of 4 blocks");
    assert_eq!(lines.len(), (3 + 1) * sizes.len());
    let foreseen: Vec<&str> =
        lines.iter().copied().filter(|line| line.starts_with("clairvoyant")).collect();
    assert_eq!(foreseen.len(), sizes.len());
    for policy in ["lru", "two-queue", "hit-density"] {
        for blocks in sizes {
            let sequential = [text(&trace), "--threads", "1", "--live", "1", "--block-size", "64"];
            let cache = ["--blocks", blocks, "--reclaim", policy];
            let replayed = report(&[&sequential[..], &cache].concat());
            // A rejected request counts as having requested its blocks.
            let (hits, rejected) = (number(&replayed, "hit_blocks"), number(&replayed, "rejected"));
            let rate = hits as f64 / 120.0;
            let reclaimed = number(&replayed, "reclaimed_blocks");
            let cell = format!("{policy},{blocks},120,{hits},{rate:.6},{reclaimed},{rejected}");
            assert!(lines.contains(&cell.as_str()), "{cell} is not in\n{table}");
        }
    }
    let picture = fs::read_to_string(&svg).unwrap();
    for word in ["<svg", "two-queue", "lru", "a cache without end", "blocks of 64 tokens"] {
        assert!(picture.contains(word), "the picture says nothing of {word}");
    }
}

#[test]
fn sizes_are_chosen_where_none_are_given() {
    let trace = file("chosen.jsonl", families(20, 6, 4, 40).as_bytes());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    let (csv, svg) = (directory.join("chosen.csv"), directory.join("chosen.svg"));
    let output = sweep(&[text(&trace), "--csv", text(&csv), "--svg", text(&svg)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // 44 contents, and a request of 7 blocks in one batch.
    let table = fs::read_to_string(&csv).unwrap();
    for size in ["lru,7,", "lru,14,", "lru,28,", "lru,51,120,76,"] {
        assert!(table.contains(size), "{size} is not in\n{table}");
    }
}

#[test]
fn a_trace_that_names_no_contents_is_refused() {
    let trace = file("nameless.jsonl", crate::program::mooncake([(100, 1)]).as_bytes());
    let output = sweep(&[text(&trace)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no hash_ids"), "{}", stderr(&output));
}
