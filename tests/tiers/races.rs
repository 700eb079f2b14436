//! Threads that want one content at the same time: it is copied once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use paged_kv::{
    AdmitOptions, CachedSequence, CopyOutcome, LayerGroup, LoadLimit, PagedKvCache, Prompt, Tier,
    TierAdmission,
};

use crate::{
    BLOCK_SIZE, HOST, assert_at_rest, cache_of, computed, loaded, prompt, put, stored, storing,
};

const THREADS: usize = 3;

#[cfg(not(miri))]
const ROUNDS: u32 = 800;
#[cfg(miri)]
const ROUNDS: u32 = 5;

const BLOCKS: usize = 2;

/// Calls `work` on several threads at once, in each round with another prompt.
fn race(prepare: impl Fn(&Prompt), cache: &PagedKvCache, work: impl Fn(&Prompt) + Sync) {
    let barrier = Barrier::new(THREADS);
    for round in 0..ROUNDS {
        let wanted = prompt(cache, round, BLOCKS);
        prepare(&wanted);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    work(&wanted);
                });
            }
        });
    }
}

#[test]
fn threads_that_store_one_content_at_a_time_copy_it_once() {
    let all = ROUNDS as usize * BLOCKS;
    // A tier of several shards may give up a content while another shard has a free slot.
    let cache = cache_of(2 * all, &[Tier::host(2 * all)]);
    race(
        |wanted| drop(computed(&cache, wanted)),
        &cache,
        |wanted| {
            for _ in 0..8 {
                let ticket = cache.tiers().store(HOST, wanted.hashes()).expect("the tier is there");
                ticket.map(stored);
            }
        },
    );
    let tier = cache.stats().tiers[0];
    assert_eq!((tier.blocks_stored, tier.slots_ready), (all as u64, all));
    assert_at_rest(&cache);
}

/// Waits for a load of another thread, or loads, or finds the contents on the device.
fn admitted(cache: &PagedKvCache, wanted: &Prompt) -> CachedSequence {
    loop {
        let options = AdmitOptions::default();
        let admitted = cache.tiers().admit(wanted, &options, LoadLimit::default());
        let (sequence, admission) = match admitted.expect("there is room") {
            TierAdmission::Pending => {
                std::thread::yield_now();
                continue;
            }
            TierAdmission::Ready(sequence, admission) => (sequence, admission),
            TierAdmission::Loading(ticket) => {
                let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
                let loaded = ticket.complete(&outcomes).expect("an outcome a copy");
                (loaded.sequence, loaded.admission)
            }
            other => panic!("an outcome that was unknown: {other:?}"),
        };
        assert_eq!(admission.cached_tokens, wanted.num_tokens() - 1, "none is computed again");
        return sequence;
    }
}

#[test]
fn threads_that_load_one_content_at_a_time_copy_it_once() {
    let all = ROUNDS as usize * BLOCKS;
    let cache = cache_of(2 * all, &[Tier::host(2 * all)]);
    race(
        |wanted| put(&cache, HOST, wanted),
        &cache,
        |wanted| (0..8).for_each(|_| drop(admitted(&cache, wanted))),
    );
    assert_eq!(cache.stats().tiers[0].blocks_loaded, all as u64);
    assert_at_rest(&cache);
}

/// The device has lost the contents of a store. They are pending until the store is settled, and ready then.
#[test]
fn a_content_whose_store_is_settled_meanwhile_is_never_missing() {
    let all = ROUNDS as usize * BLOCKS;
    never_missing(&cache_of(2 * all, &[Tier::host(2 * all)]));
    let groups = [LayerGroup::Full { block_size: BLOCK_SIZE }; 2];
    let builder = PagedKvCache::builder().num_blocks(4 * all).groups(&groups);
    never_missing(&builder.tier(Tier::host(4 * all)).build().expect("two groups"));
}

fn never_missing(cache: &PagedKvCache) {
    let missing = AtomicUsize::new(0);
    for round in 0..ROUNDS {
        let wanted = prompt(cache, round, BLOCKS);
        drop(computed(cache, &wanted));
        let store = storing(cache, HOST, &wanted);
        cache.prefix().forget_prompt(&wanted).expect("a prompt of this cache");
        let is_asked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let options = AdmitOptions::default();
                    let admitted = cache.tiers().admit(&wanted, &options, LoadLimit::default());
                    is_asked.store(true, SeqCst);
                    match admitted.expect("there is room") {
                        TierAdmission::Pending => std::thread::yield_now(),
                        TierAdmission::Loading(ticket) => {
                            drop(loaded(ticket));
                            break;
                        }
                        _ => {
                            missing.fetch_add(1, SeqCst);
                            break;
                        }
                    }
                }
            });
            while !is_asked.load(SeqCst) {
                std::thread::yield_now();
            }
            stored(store);
        });
    }
    assert_eq!(missing.load(SeqCst), 0, "admissions that would compute a content that is ready");
    assert_at_rest(cache);
}
