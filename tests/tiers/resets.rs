//! A reset during an admission through tiers: no content from before it is found after it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use paged_kv::{CopyOutcome, PagedKvCache, Prompt, Tier, TierAdmission};

use crate::common::random::Random;
use crate::{HOST, admit, assert_at_rest, cache_of, computed, prompt, stored};

#[cfg(not(miri))]
const ROUNDS: u32 = 300;
#[cfg(miri)]
const ROUNDS: u32 = 3;

/// Blocks of a prompt: many, so that an admission takes long.
const BLOCKS: usize = 100;

/// Returns the rounds in which a reset came before the end of the load, and those in which contents were found after it.
fn run_rounds(cache: &PagedKvCache, prompts: &[Prompt]) -> (usize, usize) {
    let (begun, reset) = (AtomicU32::new(0), AtomicU32::new(0));
    // The nanoseconds from the begin of the last admission to the end of its load.
    let lasted = AtomicU64::new(100_000);
    let (mut late, mut found) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(1);
            for round in 1..=ROUNDS {
                while begun.load(SeqCst) < round {
                    std::hint::spin_loop();
                }
                let delay = random.below(lasted.load(SeqCst) as usize);
                let end = Instant::now() + Duration::from_nanos(delay as u64);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                cache.prefix().reset();
                reset.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            let wanted = &prompts[round as usize % prompts.len()];
            let sequence = computed(cache, wanted);
            let store = cache.tiers().store(HOST, wanted.hashes()).unwrap();
            stored(store.expect("no content was stored since the last reset"));
            drop(sequence);
            cache.prefix().forget(usize::MAX);
            let start = Instant::now();
            begun.store(round, SeqCst);
            let admitted = admit(cache, wanted);
            let admitted = match admitted {
                TierAdmission::Loading(ticket) => {
                    let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
                    let loaded = ticket.complete(&outcomes).unwrap();
                    lasted.store(start.elapsed().as_nanos() as u64, SeqCst);
                    late += usize::from(reset.load(SeqCst) == round);
                    Some(loaded.sequence)
                }
                _ => None,
            };
            while reset.load(SeqCst) < round {
                std::thread::yield_now();
            }
            found += usize::from(cache.tiers().lookup(wanted) != [0, 0]);
            drop(admitted);
        }
    });
    (late, found)
}

#[test]
fn a_reset_during_an_admission_leaves_no_content_from_before_it() {
    let cache = cache_of(2 * BLOCKS + 2, &[Tier::host(2 * BLOCKS)]);
    let prompts: Vec<Prompt> = (0..8).map(|name| prompt(&cache, name, BLOCKS)).collect();
    let (late, found) = run_rounds(&cache, &prompts);
    println!("{late} loads were late of {ROUNDS}");
    assert_eq!(found, 0, "rounds in which contents from before the reset were found");
    assert_at_rest(&cache);
}
