//! Tests of eviction: which sequence is evicted, in which order, and which are passed over. They cover
//! all strategies, and sequences that share blocks.

mod common;

use common::snapshot::Snapshot;
use common::{assert_empties, s, shapes, shapes_with};
use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError, SeqId, Worker};

use EvictionStrategy::{LFU, LRU, LongestFirst, Priority, StreamingLLM};
use PagedKvError::NothingToEvict;

const STREAMING: EvictionStrategy = StreamingLLM { sink_tokens: 4, window_tokens: 4 };
const STRATEGIES: [EvictionStrategy; 6] =
    [LRU, LFU, LongestFirst, Priority { levels: 1 }, Priority { levels: 3 }, STREAMING];

/// Runs `check` on caches of 12 blocks of 4 tokens.
fn with(strategy: EvictionStrategy, check: impl Fn(&PagedKvCache)) {
    for cache in shapes_with(12, 4, |builder| builder.with_eviction_strategy(strategy)) {
        check(&cache);
        cache.validate().unwrap();
    }
}

/// Evicts all sequences, and checks that each choice is announced and that nothing is left of its
/// sequence.
fn eviction_order(cache: &PagedKvCache) -> Vec<u64> {
    let mut order = Vec::new();
    while let Some(target) = cache.select_eviction_target() {
        let before = cache.stats();
        assert_eq!(cache.evict(), Ok(target));
        assert_eq!(cache.get_sequence(target), None, "a whole sequence goes");
        let after = cache.stats();
        assert_eq!(after.total_evictions, before.total_evictions + 1);
        assert_eq!(after.num_sequences, before.num_sequences - 1);
        cache.validate().unwrap();
        order.push(target.0);
    }
    assert_eq!(cache.evict(), Err(NothingToEvict));
    order
}

fn allocate(cache: &PagedKvCache, ids: impl IntoIterator<Item = (u64, usize)>) {
    for (id, num_tokens) in ids {
        cache.allocate(s(id), num_tokens).unwrap();
    }
}

#[test]
fn the_least_recently_used_goes_first() {
    for strategy in [LRU, STREAMING] {
        with(strategy, |cache| {
            allocate(cache, [(3, 4), (1, 12), (2, 4), (5, 4), (4, 4)]);
            cache.touch(s(3)).unwrap();
            cache.append(s(1), 0).map(drop).unwrap();
            cache.append(s(2), 1).map(drop).unwrap();
            assert_eq!(eviction_order(cache), [5, 4, 3, 1, 2]);
        });
    }
}

#[test]
fn the_least_often_used_goes_first_and_of_equals_the_least_recent() {
    with(LFU, |cache| {
        allocate(cache, [(1, 4), (2, 4), (3, 4), (4, 4)]);
        for _ in 0..3 {
            cache.touch(s(1)).unwrap();
        }
        cache.append(s(2), 1).map(drop).unwrap();
        cache.append(s(2), 0).map(drop).unwrap();
        cache.touch(s(4)).unwrap();
        cache.touch(s(3)).unwrap();
        let uses = |id| cache.get_sequence(s(id)).unwrap().access_count;
        assert_eq!([1, 2, 3, 4].map(uses), [4, 3, 2, 2]);
        assert_eq!(eviction_order(cache), [4, 3, 2, 1]);
    });
}

#[test]
fn a_new_sequence_of_an_old_id_starts_with_one_use() {
    with(LFU, |cache| {
        allocate(cache, [(1, 4), (2, 4)]);
        (0..9).for_each(|_| cache.touch(s(1)).unwrap());
        cache.touch(s(2)).unwrap();
        cache.free(s(1)).unwrap();
        allocate(cache, [(1, 4)]);
        assert_eq!(eviction_order(cache), [1, 2]);
    });
}

#[test]
fn the_longest_goes_first_and_of_equals_the_least_recent() {
    with(LongestFirst, |cache| {
        allocate(cache, [(1, 5), (2, 9), (3, 5), (4, 1), (5, 8)]);
        cache.touch(s(1)).unwrap();
        cache.append(s(4), 8).map(drop).unwrap();
        cache.touch(s(2)).unwrap();
        assert_eq!(eviction_order(cache), [4, 2, 5, 3, 1]);
    });
}

#[test]
fn the_lowest_priority_goes_first_and_of_equals_the_least_recent() {
    let ids = [5, 1, 2, 3, 4, 6];
    for (levels, expected) in [
        (1, [5, 1, 2, 3, 4, 6]),
        (2, [2, 6, 5, 1, 3, 4]),
        (3, [2, 6, 3, 5, 1, 4]),
        (8, [2, 6, 3, 4, 5, 1]),
        (usize::MAX, [2, 6, 3, 4, 1, 5]),
    ] {
        with(Priority { levels }, |cache| {
            allocate(cache, ids.map(|id| (id, 4)));
            for (id, priority) in [(1, 7), (3, 1), (4, 5), (5, u32::MAX)] {
                cache.set_priority(s(id), priority).unwrap();
            }
            assert_eq!(eviction_order(cache), expected, "{levels} levels");
        });
    }
}

#[test]
fn setting_a_priority_is_not_a_use_and_a_fork_inherits_it() {
    with(Priority { levels: 4 }, |cache| {
        allocate(cache, [(1, 4), (2, 4)]);
        cache.set_priority(s(1), 0).unwrap();
        assert_eq!(cache.select_eviction_target(), Some(s(1)));
        cache.set_priority(s(2), 3).unwrap();
        cache.fork(s(2), s(3)).unwrap();
        let fork = cache.get_sequence(s(3)).unwrap();
        assert_eq!((fork.priority, fork.access_count), (3, 1));
        assert_eq!(eviction_order(cache), [1, 2, 3]);
    });
}

#[test]
fn choosing_and_looking_change_nothing() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            allocate(cache, [(1, 9), (2, 4), (3, 5)]);
            cache.fork(s(1), s(4)).unwrap();
            let before = Snapshot::of(cache);
            for _ in 0..3 {
                assert!(cache.select_eviction_target().is_some());
                assert!(cache.get_sequence(s(1)).is_some());
                assert!(cache.with_sequence(s(2), |_| ()).is_some());
                assert!(!cache.needs_eviction());
            }
            assert_eq!(Snapshot::of(cache), before);
            assert_eq!(cache.evict_to_threshold(1.0), Ok(vec![]));
            assert_eq!(Snapshot::of(cache), before, "nothing to do, nothing done");
        });
    }
}

#[test]
fn sequences_whose_blocks_are_all_shared_are_evicted_and_do_not_loop() {
    for strategy in STRATEGIES {
        for num_tokens in [8, 10] {
            with(strategy, |cache| {
                allocate(cache, [(1, num_tokens)]);
                cache.fork(s(1), s(2)).unwrap();
                cache.fork(s(2), s(3)).unwrap();
                let mut order = eviction_order(cache);
                order.sort();
                assert_eq!(order, [1, 2, 3]);
                assert_eq!(cache.used_block_count(), 0);

                allocate(cache, [(1, num_tokens)]);
                cache.fork(s(1), s(2)).unwrap();
                assert_eq!(cache.evict_to_threshold(0.0).unwrap().len(), 2);
                assert_eq!(cache.used_block_count(), 0);
            });
        }
    }
}

#[test]
fn leased_sequences_are_passed_over() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            allocate(cache, [(1, 4), (2, 4), (3, 4)]);
            let lease = cache.lease(&[s(1), s(3)]).unwrap();
            assert_eq!(cache.select_eviction_target(), Some(s(2)));
            assert_eq!(eviction_order(cache), [2]);
            assert_eq!(cache.evict_to_threshold(0.0), Err(NothingToEvict));
            drop(lease);
            assert_eq!(eviction_order(cache).len(), 2);
        });
    }
}

/// S1 is older than S2; both own the same blocks.
#[test]
fn a_fork_is_passed_over_only_if_others_use_all_its_blocks() {
    for strategy in STRATEGIES {
        for num_tokens in [8, 10] {
            // No other owner: both are evicted.
            with(strategy, |cache| {
                allocate(cache, [(1, num_tokens)]);
                cache.fork(s(1), s(2)).unwrap();
                assert_eq!(eviction_order(cache).len(), 2);
            });
            // A leased sequence uses all blocks of the other.
            for leased in [1, 2] {
                with(strategy, |cache| {
                    allocate(cache, [(1, num_tokens)]);
                    cache.fork(s(1), s(2)).unwrap();
                    let lease = cache.lease(&[s(leased)]).unwrap();
                    assert_eq!(cache.select_eviction_target(), None);
                    assert_eq!(cache.evict(), Err(NothingToEvict));
                    assert_eq!(cache.evict_to_threshold(0.0), Err(NothingToEvict));
                    // A third sequence with a block of its own is evicted in their place.
                    allocate(cache, [(3, 1)]);
                    assert_eq!(eviction_order(cache), [3]);
                    drop(lease);
                    assert_eq!(eviction_order(cache).len(), 2);
                });
            }
            // Counts by id hold all blocks of both, then all but one.
            with(strategy, |cache| {
                allocate(cache, [(1, num_tokens)]);
                cache.fork(s(1), s(2)).unwrap();
                let ids = cache.get_sequence(s(1)).unwrap().block_ids;
                ids.iter().for_each(|&id| cache.pool().retain(id).unwrap());
                assert_eq!(cache.evict(), Err(NothingToEvict));
                cache.pool().release(ids[0]).unwrap();
                assert_eq!(eviction_order(cache).len(), 2, "one block is theirs alone");
                assert_eq!(cache.used_block_count(), ids.len() - 1);
                ids[1..].iter().for_each(|&id| cache.pool().release(id).unwrap());
                assert_eq!(cache.used_block_count(), 0);
            });
        }
    }
}

#[test]
fn a_copy_that_is_still_to_be_made_holds_its_source() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            allocate(cache, [(1, 2)]);
            cache.fork(s(1), s(2)).unwrap();
            let append = cache.append(s(2), 1).unwrap();
            let lease = cache.lease(&[s(2)]).unwrap();
            assert_eq!(cache.evict(), Err(NothingToEvict), "the append holds the block of S1");
            drop(append);
            assert_eq!(cache.evict(), Ok(s(1)));
            drop(lease);
        });
    }
}

#[test]
fn evictions_judge_a_chain_by_its_unleased_forks() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            // S1: run 1. S2: run 1, run 2. S3: run 1, run 2, and a block of its own.
            allocate(cache, [(1, 8)]);
            cache.fork(s(1), s(2)).unwrap();
            cache.append(s(2), 8).map(drop).unwrap();
            cache.fork(s(2), s(3)).unwrap();
            cache.append(s(3), 4).map(drop).unwrap();
            let lease = cache.lease(&[s(2)]).unwrap();
            assert_eq!(eviction_order(cache), [3], "S2 uses all of S1's blocks");
            drop(lease);

            cache.fork(s(2), s(3)).unwrap();
            let lease = cache.lease(&[s(1)]).unwrap();
            let mut order = eviction_order(cache);
            order.sort();
            assert_eq!(order, [2, 3], "together they free the second run");
            assert_eq!(cache.used_block_count(), 2);
            drop(lease);
            assert_eq!(eviction_order(cache), [1]);
        });
    }
}

#[test]
fn a_trimmed_fork_is_judged_by_the_blocks_it_has_left() {
    for strategy in [LRU, LFU, LongestFirst] {
        with(strategy, |cache| {
            allocate(cache, [(1, 20)]);
            cache.fork(s(1), s(2)).unwrap();
            assert_eq!(cache.apply_streaming_llm(s(2), 4, 4), Ok(12));
            let lease = cache.lease(&[s(1)]).unwrap();
            assert_eq!(cache.evict(), Err(NothingToEvict));
            drop(lease);
            let lease = cache.lease(&[s(2)]).unwrap();
            assert_eq!(cache.evict(), Ok(s(1)), "three blocks are its own");
            assert_eq!(cache.used_block_count(), 2);
            drop(lease);
        });
    }
}

#[test]
fn a_sequence_without_blocks_is_not_evicted() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            allocate(cache, [(1, 0), (2, 4), (3, 0)]);
            assert_eq!(eviction_order(cache), [2]);
            assert_eq!(cache.num_sequences(), 2);
        });
    }
}

#[test]
fn eviction_stops_at_the_threshold_and_keeps_the_strategys_order() {
    for (strategy, expected) in [
        (LRU, [1, 2, 3, 4, 5, 6]),
        (LFU, [6, 5, 4, 3, 2, 1]),
        (LongestFirst, [1, 2, 3, 4, 5, 6]),
        (Priority { levels: 9 }, [3, 2, 1, 4, 5, 6]),
    ] {
        for stop in 0..=12_usize {
            with(strategy, |cache| {
                allocate(cache, [1, 2, 3, 4, 5, 6].map(|id| (id, 8)));
                if strategy == LFU {
                    for id in 1..=6 {
                        (id..=6).for_each(|_| cache.touch(s(id)).unwrap());
                    }
                }
                for (id, priority) in [(1, 2), (2, 1), (4, 4), (5, 5), (6, 6)] {
                    cache.set_priority(s(id), priority).unwrap();
                }
                let threshold = stop as f64 / 12.0;
                let evicted = cache.evict_to_threshold(threshold).unwrap();
                let needed = (12 - stop).div_ceil(2);
                assert_eq!(evicted, expected[..needed].iter().map(|&id| s(id)).collect::<Vec<_>>());
                assert!(cache.utilization() <= threshold);
                assert_eq!(cache.used_block_count(), 12 - 2 * needed);
                assert_eq!(cache.stats().total_evictions, needed as u64);
                assert_eq!(cache.evict_to_threshold(threshold), Ok(vec![]));
                assert_empties(cache);
            });
        }
    }
}

#[test]
fn streaming_trims_before_it_evicts() {
    with(STREAMING, |cache| {
        allocate(cache, [(1, 24), (2, 24)]);
        // One trim is enough: that of the least recently used sequence.
        assert_eq!(cache.evict_to_threshold(8.0 / 12.0), Ok(vec![]));
        let kept = |id| cache.get_sequence(s(id)).map(|info| (info.num_tokens, info.num_blocks()));
        assert_eq!((kept(1), kept(2)), (Some((24, 2)), Some((24, 6))));
        // Both trims are needed.
        assert_eq!(cache.evict_to_threshold(4.0 / 12.0), Ok(vec![]));
        assert_eq!((kept(1), kept(2)), (Some((24, 2)), Some((24, 2))));
        assert_eq!(cache.stats().total_evictions, 0);
        // Both trims are not enough.
        assert_eq!(cache.evict_to_threshold(0.3), Ok(vec![s(1)]));
        assert_eq!((kept(1), kept(2)), (None, Some((24, 2))));
        assert_eq!(cache.evict(), Ok(s(2)), "evict takes whole sequences");
        assert_empties(cache);
    });
}

#[test]
fn streaming_does_not_trim_a_leased_sequence() {
    with(STREAMING, |cache| {
        allocate(cache, [(1, 24), (2, 24)]);
        let lease = cache.lease(&[s(1)]).unwrap();
        assert_eq!(cache.evict_to_threshold(0.7), Ok(vec![]));
        assert_eq!(cache.get_sequence(s(1)).unwrap().num_blocks(), 6);
        assert_eq!(cache.get_sequence(s(2)).unwrap().num_blocks(), 2);
        assert_eq!(cache.evict_to_threshold(0.1), Ok(vec![s(2)]), "as far as it goes");
        assert_eq!(cache.evict_to_threshold(0.1), Err(NothingToEvict));
        drop(lease);
        assert_eq!(cache.evict_to_threshold(0.2), Ok(vec![]));
        assert_eq!(cache.get_sequence(s(1)).unwrap().num_blocks(), 2);
        assert_empties(cache);
    });
}

#[test]
fn a_threshold_that_is_no_number_is_refused_and_one_below_zero_takes_all() {
    for strategy in STRATEGIES {
        with(strategy, |cache| {
            allocate(cache, [(1, 8), (2, 8)]);
            let refused = cache.evict_to_threshold(f64::NAN);
            assert!(matches!(
                refused,
                Err(PagedKvError::InvalidConfig { parameter: "threshold", .. })
            ));
            assert_eq!(cache.num_sequences(), 2);
            assert_eq!(cache.evict_to_threshold(f64::INFINITY), Ok(vec![]));
            let mut all = cache.evict_to_threshold(f64::NEG_INFINITY).unwrap();
            all.sort();
            assert_eq!(all, [s(1), s(2)]);
            assert_eq!(cache.evict_to_threshold(-1.0), Err(NothingToEvict));
            assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![]));
        });
    }
}

#[test]
fn eviction_is_needed_from_the_threshold_on() {
    for cache in shapes(10, 4) {
        allocate(&cache, [(1, 32)]);
        assert!(!cache.needs_eviction(), "0.8 < 0.9, the default");
        allocate(&cache, [(2, 4)]);
        assert!(cache.needs_eviction());
        assert_empties(&cache);
    }
    for blocks in 0..=10 {
        for limit in 0..=10 {
            let threshold = limit as f64 / 10.0;
            let cache = PagedKvCache::new(10, 4, 1, 1).with_eviction_threshold(threshold);
            allocate(&cache, [(1, 4 * blocks)]);
            assert_eq!(cache.needs_eviction(), blocks >= limit, "{blocks} of 10, {threshold}");
            assert_empties(&cache);
        }
    }
}

#[test]
fn one_call_evicts_many_sequences_without_looking_at_all_of_them_each_time() {
    const SEQUENCES: u64 = 100_000;
    let cache = PagedKvCache::new(SEQUENCES as usize, 4, 1, 1);
    allocate(&cache, (0..SEQUENCES).map(|id| (id, 1)));
    let evicted = cache.evict_to_threshold(0.5).unwrap();
    assert_eq!(evicted, (0..SEQUENCES / 2).map(SeqId).collect::<Vec<_>>());
    assert_empties(&cache);
}

#[test]
fn one_call_evicts_many_sequences_that_share_all_they_have() {
    let cache = PagedKvCache::new(64, 4, 1, 1);
    allocate(&cache, [(0, 40)]);
    (1..5_000).for_each(|id| cache.fork(s(id - 1), s(id)).unwrap());
    assert_eq!(cache.evict_to_threshold(0.0).unwrap().len(), 5_000);
    assert_eq!(cache.used_block_count(), 0);
    assert_empties(&cache);
}

/// A victim that shares all its blocks is examined more closely, which must not wait for a reader.
#[test]
fn a_victim_may_be_chosen_while_a_sequence_is_read() {
    with(LRU, |cache| {
        cache.allocate(s(1), 8).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        let target = cache.with_sequence(s(1), |_| cache.select_eviction_target());
        assert_eq!(target, Some(Some(s(1))));
    });
}

/// The closer examination holds references to the blocks. Two concurrent examinations must not count each
/// other as owners.
#[test]
fn evictions_at_once_do_not_hide_victims_from_each_other() {
    const PAIRS: u64 = 100;
    for _ in 0..20 {
        let cache = PagedKvCache::new(256, 4, 1, 1);
        for pair in 0..PAIRS {
            cache.allocate(s(2 * pair), 8).unwrap();
            cache.fork(s(2 * pair), s(2 * pair + 1)).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..PAIRS).for_each(|_| _ = cache.evict().unwrap()));
            }
        });
        assert_eq!(cache.evict(), Err(NothingToEvict));
        assert_empties(&cache);
    }
}

#[test]
fn a_trim_without_an_eviction_is_no_failure() {
    let cache = PagedKvCache::new(8, 4, 1, 1).with_eviction_strategy(STREAMING);
    cache.allocate(s(1), 32).unwrap();
    let blocks = cache.get_sequence(s(1)).unwrap().block_ids;
    // Owners by id hold the blocks that would be left, so evicting the sequence frees nothing.
    let held = [blocks[0], blocks[7]];
    held.iter().for_each(|&id| cache.pool().retain(id).unwrap());
    assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![]));
    assert_eq!((cache.used_block_count(), cache.num_sequences()), (2, 1));
    assert_eq!(cache.evict_to_threshold(0.0), Err(NothingToEvict));
    held.iter().for_each(|&id| cache.pool().release(id).unwrap());
    assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![s(1)]));
    assert_empties(&cache);
}

#[test]
fn sharers_of_an_earlier_run_are_worth_evicting_for_its_blocks() {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    cache.allocate(s(1), 8).unwrap();
    cache.fork(s(1), s(2)).unwrap();
    let _ = cache.append(s(1), 8).unwrap();
    cache.fork(s(1), s(3)).unwrap();
    cache.free(s(2)).unwrap();
    // Of all blocks that the two share, only the first two would be free without them.
    let held = &cache.get_sequence(s(1)).unwrap().block_ids[2..];
    held.iter().for_each(|&id| cache.pool().retain(id).unwrap());
    assert_eq!(cache.evict_to_threshold(0.25), Ok(vec![s(1), s(3)]));
    assert_eq!(cache.used_block_count(), 2);
    held.iter().for_each(|&id| cache.pool().release(id).unwrap());
    assert_empties(&cache);
}

/// Creates 300 sequences of one block, and then one of 3,000 blocks, for which a first guess fails most.
fn many_small_and_one_large() -> PagedKvCache {
    let cache = PagedKvCache::new(3_300, 4, 1, 1);
    for id in 0..300 {
        cache.allocate(s(id), 4).unwrap();
        cache.set_worker(s(id), Worker(7)).unwrap();
    }
    cache.allocate(s(300), 12_000).unwrap();
    cache.set_worker(s(300), Worker(7)).unwrap();
    cache
}

#[test]
fn the_order_goes_on_where_the_first_to_go_do_not_suffice() {
    let first: Vec<SeqId> = (0..200).map(s).collect();
    let cache = many_small_and_one_large();
    assert_eq!(cache.evict_to_threshold(3_100.0 / 3_300.0), Ok(first.clone()));
    assert_eq!(cache.used_block_count(), 3_100);
    let (cache, mut evicted) = (many_small_and_one_large(), Vec::new());
    assert_eq!(cache.evict_for(Worker(7), 200, &mut evicted), Ok(200));
    let went: Vec<SeqId> = evicted.iter().map(|evicted| evicted.seq_id).collect();
    assert_eq!(went, first);
    assert_empties(&cache);
}

#[test]
fn everything_goes_where_there_is_never_enough() {
    for threshold in [-1.0, f64::NEG_INFINITY] {
        let cache = many_small_and_one_large();
        let all: Vec<SeqId> = (0..=300).map(s).collect();
        assert_eq!(cache.evict_to_threshold(threshold), Ok(all));
        assert_eq!(cache.evict_to_threshold(threshold), Err(NothingToEvict));
    }
    let (cache, mut evicted) = (many_small_and_one_large(), Vec::new());
    assert_eq!(cache.evict_for(Worker(7), usize::MAX, &mut evicted), Ok(3_300));
    assert_eq!(evicted.last().unwrap().blocks, 3_000);
}
