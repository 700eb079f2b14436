//! Models of leases: a leased sequence stays in place, and no thread waits forever.

use paged_kv::PagedKvError::{NothingToEvict, SequenceExists, SequenceLeased, SequenceNotFound};
use paged_kv::{AppendBatch, EvictionStrategy};
use shuttle::thread::{scope, yield_now};

use crate::explore::explore;
use crate::{A, B, C, Contents, assert_all_free_at_end, cache, shape};

/// While the lease is held, its sequence owns the blocks, whatever other threads call.
#[test]
fn a_leased_sequence_is_neither_freed_nor_evicted() {
    explore(|| {
        let (cache, contents) = (cache(5), Contents::new(5));
        cache.allocate(A, 4).expect("there is room");
        cache.allocate(B, 4).expect("there is room");
        scope(|scope| {
            scope.spawn(|| {
                let Ok(lease) = cache.lease(&[A]) else { return };
                let blocks = cache.get_sequence(A).expect("a leased sequence stays").block_ids;
                blocks.iter().for_each(|&block| contents.write(block, 1));
                let mut batch = AppendBatch::default();
                let _ = lease.append_batch(&[1], &mut batch);
                assert_eq!(cache.apply_streaming_llm(A, 2, 2), Err(SequenceLeased(A)));
                let now = cache.get_sequence(A).expect("a leased sequence stays");
                assert_eq!((&now.block_ids[..2], now.leases), (&blocks[..], 1));
                assert!(blocks.iter().all(|&block| contents.read(block) == 1), "others wrote");
                drop(lease);
            });
            scope.spawn(|| {
                let freed = cache.free(A);
                let refused = [Err(SequenceLeased(A)), Err(SequenceNotFound(A))];
                assert!(freed.is_ok() || refused.contains(&freed), "{freed:?}");
            });
            for _ in 0..3 {
                let evicted = cache.evict();
                assert!(matches!(evicted, Ok(A | B) | Err(NothingToEvict)), "{evicted:?}");
                if let Ok(scratch) = cache.pool().allocate(3) {
                    scratch.as_slice().iter().for_each(|&block| contents.write(block, 2));
                }
            }
        });
        assert_all_free_at_end(&cache);
    });
}

/// An eviction that finds every sequence leased is refused; it takes nothing and ends.
#[test]
fn a_sequence_leased_throughout_is_never_the_victim() {
    explore(|| {
        let cache = cache(6);
        cache.allocate(A, 4).expect("there is room");
        cache.allocate(B, 4).expect("there is room");
        let lease = cache.lease(&[A]).expect("it is there");
        scope(|scope| {
            scope.spawn(|| {
                let second = cache.lease(&[A]).expect("a leased sequence stays");
                assert_ne!(cache.select_eviction_target(), Some(A));
                drop(second);
                assert_eq!(cache.free(A), Err(SequenceLeased(A)));
            });
            let victims = scope.spawn(|| (cache.evict(), cache.evict()));
            assert!(cache.append(A, 1).is_ok(), "there is room");
            assert_eq!(victims.join().expect("it ended"), (Ok(B), Err(NothingToEvict)));
        });
        drop(lease);
        assert_eq!(cache.evict(), Ok(A));
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn a_deferred_free_gives_back_when_the_last_lease_ends() {
    explore(|| {
        let cache = cache(4);
        cache.allocate(A, 4).expect("there is room");
        let lease = cache.lease(&[A]).expect("it is there");
        scope(|scope| {
            scope.spawn(|| {
                let second = cache.lease(&[A]);
                yield_now();
                drop(second);
            });
            scope.spawn(|| {
                cache.free_when_released(A).expect("it is there");
                assert_eq!(cache.free(A), Err(SequenceNotFound(A)));
                cache.allocate(A, 4).expect("the id may be used again, and there is room");
                cache.free_when_released(A).expect("the new one is there");
            });
            let leased = cache.used_block_count();
            assert!(leased >= 2, "{leased} blocks are used though a lease is held on two");
            drop(lease);
        });
        assert_all_free_at_end(&cache);
    });
}

/// Two batches list the same sequences in opposite orders, while another thread changes these sequences.
#[test]
fn batches_in_opposite_orders_do_not_wait_for_each_other() {
    explore(|| {
        let cache = cache(8);
        cache.allocate(A, 2).expect("there is room");
        cache.allocate(B, 2).expect("there is room");
        scope(|scope| {
            let batch = |rows| {
                let mut batch = AppendBatch::default();
                cache.append_batch(rows, &mut batch).expect("there is room");
            };
            scope.spawn(move || batch(&[(A, 1), (B, 1)]));
            scope.spawn(move || batch(&[(B, 1), (A, 1)]));
            cache.append(B, 1).map(drop).expect("there is room");
            cache.truncate(B, 2).expect("it has more");
        });
        let tokens = |id| cache.get_sequence(id).expect("it is there").num_tokens;
        assert_eq!(tokens(A), 4);
        assert!((2..=4).contains(&tokens(B)));
        assert_all_free_at_end(&cache);
    });
}

/// A closure reads the cache again while a writer waits for its sequence and another thread chooses a
/// victim.
#[test]
fn a_nested_read_waits_for_no_waiter_of_its_sequence() {
    explore(|| {
        let cache = cache(8);
        cache.allocate(A, 3).expect("there is room");
        cache.fork(A, B).expect("it is there");
        scope(|scope| {
            scope.spawn(|| {
                cache.with_sequence(A, |outer| {
                    let inner = cache.with_sequence(A, |inner| inner.num_tokens());
                    assert!(inner.is_none_or(|inner| inner == outer.num_tokens()));
                    let _ = cache.select_eviction_target();
                });
            });
            scope.spawn(|| {
                let mut batch = AppendBatch::default();
                cache.append_batch(&[(B, 1), (A, 1)], &mut batch).expect("there is room");
            });
            let _ = cache.select_eviction_target();
            cache.append(A, 2).map(drop).expect("there is room");
        });
        assert_eq!(cache.get_sequence(A).expect("it is there").num_tokens, 6);
        assert_all_free_at_end(&cache);
    });
}

/// Trims by strategy do not touch a sequence that is leased at that moment.
#[test]
fn a_trim_beside_a_lease_takes_nothing_that_is_leased() {
    explore(|| {
        let strategy = EvictionStrategy::StreamingLLM { sink_tokens: 2, window_tokens: 2 };
        let cache = shape(6).with_eviction_strategy(strategy).build().expect("a cache");
        cache.allocate(A, 8).expect("there is room");
        cache.allocate(B, 4).expect("there is room");
        scope(|scope| {
            scope.spawn(|| {
                let Ok(lease) = cache.lease(&[A]) else { return };
                let blocks = cache.get_sequence(A).expect("it stays").block_ids;
                assert!(cache.append(A, 0).is_ok());
                assert_eq!(cache.get_sequence(A).expect("it stays").block_ids, blocks);
                drop(lease);
            });
            let evicted = cache.evict_to_threshold(0.7);
            assert!(evicted.is_ok(), "{evicted:?}");
        });
        assert_all_free_at_end(&cache);
    });
}

/// A refused call takes back its own forks only, not a sequence that has taken the id of a fork.
#[test]
fn a_refused_fork_n_leaves_another_sequence_under_its_id_alone() {
    explore(|| {
        let cache = cache(8);
        cache.allocate(A, 3).expect("there is room");
        scope(|scope| {
            scope.spawn(|| {
                let refused = cache.fork_n(A, &[B, C, C]);
                assert!(matches!(refused, Err(SequenceExists(B | C))), "{refused:?}");
            });
            let lease = cache.lease(&[B]).ok();
            if cache.free_when_released(B).is_ok() && cache.allocate(B, 5).is_ok() {
                yield_now();
                let info = cache.get_sequence(B).expect("this thread alone frees it");
                assert_eq!(info.num_tokens, 5);
                cache.free(B).expect("this thread alone frees it");
            }
            drop(lease);
        });
        assert_eq!(cache.stats().total_forks, 0);
        assert_all_free_at_end(&cache);
    });
}
