//! `Phases`: the instructions of the phases of a request, one line for each [`Feature`].
//!
//! Callgrind notes the inclusive cost of each call. The phases are functions of their own, so their costs are those of
//! the calls to them.

use std::hint::black_box;

use paged_kv::{AdmitOptions, CachedSequence, HashAlgorithm, PagedKvCache, Prompt};

use crate::retention::Feature;

/// The prompts that a cache serves.
#[derive(Clone, Copy)]
pub enum Contents {
    /// All have the same 32 blocks.
    Hit,
    /// All have 32 new blocks, each of which reclaims one.
    New,
}

/// The phases whose instructions are shown, by the names of the functions below.
pub const HIT_PHASES: [&str; 2] = ["admit_phase", "release_phase"];
pub const NEW_PHASES: [&str; 3] = ["admit_phase", "commit_phase", "release_phase"];

/// The head of their table.
pub const HEAD: &str = "\
| feature | admit 32 that hit | release them | admit 32 new | publish them | release them |
|---|---:|---:|---:|---:|---:|
";

#[inline(never)]
fn admit_phase(cache: &PagedKvCache, prompt: &Prompt, options: &AdmitOptions) -> CachedSequence {
    cache.admit_sequence(black_box(prompt), options).expect("there is room").0
}

#[inline(never)]
fn commit_phase(sequence: &mut CachedSequence, num_tokens: usize) {
    sequence.commit(black_box(num_tokens)).expect("the prompt has its slots");
}

#[inline(never)]
fn release_phase(sequence: CachedSequence) {
    drop(black_box(sequence));
}

fn prompt(cache: &PagedKvCache, name: u32) -> Prompt {
    let tokens: [u32; 32 * 16 + 1] = std::array::from_fn(|at| name << 10 | at as u32);
    cache.prompt(&tokens)
}

/// Serves `times` prompts of 32 blocks and a token in a cache that is full of idle blocks.
pub fn serve(feature: Feature, contents: Contents, times: u64) {
    let builder = PagedKvCache::builder().num_blocks(1 << 12).block_size(16);
    let cache = feature.build(builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 1 }));
    let options = feature.options();
    let serve = |name| {
        let prompt = prompt(&cache, name);
        let mut sequence = admit_phase(&cache, &prompt, &options);
        feature.give_hint(&mut sequence);
        commit_phase(&mut sequence, prompt.num_tokens());
        release_phase(sequence);
    };
    let _pin = feature.hold(&cache, &prompt(&cache, 2_000_000));
    (0..1 << 8).for_each(|name| serve(1_000_000 + name));
    for time in 0..times as u32 {
        match contents {
            Contents::Hit => serve(1),
            Contents::New => serve(1 + time),
        }
    }
}

/// Returns the instructions of all calls of a function, from callgrind's file with whole names.
pub fn inclusive(file: &str, function: &str) -> f64 {
    let (mut is_meant, mut sum) = (false, 0.0);
    let mut lines = file.lines();
    while let Some(line) = lines.next() {
        if let Some(called) = line.strip_prefix("cfn=") {
            is_meant = called.contains(function);
        } else if line.starts_with("calls=") {
            let cost = lines.next().and_then(|cost| cost.split(' ').nth(1)?.parse::<f64>().ok());
            sum += if is_meant { cost.expect("a call has a cost") } else { 0.0 };
        }
    }
    sum
}
