//! Tests of a trace's contents: two prompts share a block exactly if its ids, and all ids before them,
//! are the same.
//!
//! The same blocks hit whether the prompts are given as hashes or, for listeners, as tokens.

use std::collections::HashSet;

use crate::program::{file, number, report, row, text};

/// Returns the requested blocks and the hits, without listeners and, with the feature `events`, with
/// them.
fn blocks_and_hits(name: &str, lines: &[String], options: &[&str]) -> Vec<(u64, u64)> {
    let trace = file(name, lines.concat().as_bytes());
    let sequential = [&[text(&trace), "--threads", "1", "--live", "1"][..], options].concat();
    let listened: &[&[&str]] =
        if cfg!(feature = "events") { &[&[], &["--publish", "tcp://127.0.0.1:0"]] } else { &[&[]] };
    let counted = listened.iter().map(|listened| {
        let report = report(&[&sequential[..], listened].concat());
        (number(&report, "prompt_blocks"), number(&report, "hit_blocks"))
    });
    counted.collect()
}

fn assert_hits(name: &str, lines: &[String], options: &[&str], want: (u64, u64)) {
    for counted in blocks_and_hits(name, lines, options) {
        assert_eq!(counted, want, "{name} {options:?}");
    }
}

#[test]
fn ids_that_differ_in_any_bit_share_nothing() {
    for bit in 0..64 {
        let ids = [1, 2, 3, 4].map(|id: u64| id ^ 1 << bit);
        let first = if bit < 3 { [9, 10, 11, 12].map(|id| id << 8) } else { [1, 2, 3, 4] };
        let lines = [row(0, 64, &first), row(1, 64, &ids)];
        let options = ["--id-tokens", "16", "--requests", "2"];
        assert_hits(&format!("bit_{bit}.jsonl"), &lines, &options, (8, 0));
    }
    let far = [1, 2, 3, 4].map(|id| id + (1 << 44));
    let lines = [row(0, 64, &[1, 2, 3, 4]), row(1, 64, &far)];
    assert_hits("far.jsonl", &lines, &["--id-tokens", "16"], (8, 0));
}

#[test]
fn tokens_without_an_id_are_shared_with_no_request() {
    let lines = [row(0, 1000, &[7]), row(1, 1000, &[7])];
    assert_hits("unnamed.jsonl", &lines, &[], (64, 32));
    // In blocks of one token every token fills a block.
    let lines = [row(0, 7, &[7]), row(1, 7, &[7]), row(2, 7, &[8])];
    assert_hits("unnamed_1.jsonl", &lines, &["--id-tokens", "4", "--block-size", "1"], (12, 4));
    // Tests the highest id, after which no id follows.
    let lines = [row(0, 8, &[u64::MAX, 0]), row(1, 8, &[u64::MAX, 0]), row(2, 7, &[u64::MAX])];
    assert_hits("unnamed_2.jsonl", &lines, &["--id-tokens", "4", "--block-size", "1"], (20, 11));
}

#[test]
fn an_id_in_another_place_is_another_content() {
    let turned = [row(0, 64, &[1, 2, 3, 4]), row(1, 64, &[4, 3, 2, 1])];
    assert_hits("turned.jsonl", &turned, &["--id-tokens", "16"], (8, 0));
    let moved = [row(0, 48, &[1, 2, 3]), row(1, 64, &[9, 1, 2, 3]), row(2, 48, &[2, 3, 4])];
    assert_hits("moved.jsonl", &moved, &["--id-tokens", "16"], (10, 0));
    let repeated = [row(0, 64, &[5, 5, 5, 5]), row(1, 48, &[5, 5, 5])];
    assert_hits("repeated.jsonl", &repeated, &["--id-tokens", "16"], (7, 2));
}

/// By definition a block hits if an earlier prompt began with the same ids up to it, and all blocks
/// before it hit. The last token is always computed.
#[test]
fn hits_are_common_beginnings_with_and_without_listeners() {
    let mut random = 7_u64;
    let mut below = |end: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % end
    };
    let ids = [0, 1, 2, 1 << 32, 1 + (1 << 32), 1 << 63, u64::MAX];
    let prompts: Vec<(u64, Vec<u64>)> = (0..200)
        .map(|_| {
            let length = below(80);
            let parts = length / 16 + below(2).min(length % 16);
            (length, (0..parts).map(|_| ids[below(7) as usize / (1 + below(3) as usize)]).collect())
        })
        .collect();
    let lines: Vec<_> = prompts.iter().map(|(length, ids)| row(0, *length, ids)).collect();
    for block_size in [1, 4, 16] {
        let (mut seen, mut want) = (HashSet::new(), (0, 0));
        for (length, ids) in &prompts {
            let named = (ids.len() as u64 * 16).min(*length) / block_size;
            let block = |at: u64| (ids[..=(at * block_size / 16) as usize].to_vec(), at);
            let most = length.saturating_sub(1) / block_size;
            let hits = (0..named.min(most)).take_while(|&at| seen.contains(&block(at))).count();
            want = (want.0 + named, want.1 + hits as u64);
            seen.extend((0..named).map(block));
        }
        assert!(want.1 > 100, "{want:?}");
        let size = block_size.to_string();
        let options = ["--id-tokens", "16", "--block-size", &size];
        assert_hits(&format!("random_{size}.jsonl"), &lines, &options, want);
    }
}

/// The program prints how many blocks it published.
#[cfg(feature = "events")]
#[test]
fn tokens_without_an_id_are_not_published() {
    use crate::program::{replay, stderr};

    for (length, ids, published) in
        [(1000, &[7][..], 32), (1000, &[7, 8], 62), (1000, &[], 0), (511, &[], 0)]
    {
        let trace = file("told.jsonl", row(0, length, ids).as_bytes());
        let id_tokens = if ids.is_empty() { "1024" } else { "512" };
        let options = ["--publish", "tcp://127.0.0.1:0", "--id-tokens", id_tokens];
        let said = stderr(&replay(&[&[text(&trace)], &options[..]].concat()));
        assert!(said.contains(&format!("published {published} blocks,")), "{ids:?}: {said}");
    }
}
