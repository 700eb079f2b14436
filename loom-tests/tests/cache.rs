//! Models of the cache that ships: new sequences above the watermark, leases, evictions and ids.
//!
//! Each model is small: two threads, one or two operations each. Every operation passes the map, a lock
//! and some counters, so a third thread would take hours to explore. `loom-tests/shuttle` samples such
//! executions.
//!
//! The ordinals of threads keep stamps and epochs distinct here, so each thread of a model has its own
//! ordinal.

mod common;

use std::sync::Arc;

use common::{Kv, explore, race, spawn_at};
use paged_kv::PagedKvError::{NothingToEvict, OutOfMemory, SequenceLeased, SequenceNotFound};
use paged_kv::{AdmitOptions, BlockHash, EvictionStrategy, PagedKvCache, Prompt, SeqId, Watermark};

const A: SeqId = SeqId(1);
/// An id in the other shard of the map.
const B: SeqId = SeqId(2);

/// Creates a cache of blocks of one token, and the cells of its blocks.
fn cache_and_kv(num_blocks: usize, home_shards: usize) -> (Arc<PagedKvCache>, Arc<Kv>) {
    (cache(num_blocks, home_shards, 0), Arc::new(Kv::new(num_blocks)))
}

fn cache(num_blocks: usize, home_shards: usize, watermark: usize) -> Arc<PagedKvCache> {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
    let builder = builder.home_shards(home_shards).watermark(Watermark::Blocks(watermark));
    Arc::new(builder.prefix_reuse(false).build().expect("a cache of that shape"))
}

/// Frees the sequences that are left. Then nothing is used, and words, ledgers and statistics agree.
#[track_caller]
fn assert_all_free_at_end(cache: &PagedKvCache) {
    for id in [A, B] {
        let freed = cache.free(id);
        assert!(!matches!(freed, Err(SequenceLeased(_))), "a lease is left on {id}");
    }
    assert_eq!((cache.used_block_count(), cache.sequence_ids()), (0, vec![]));
    let stats = cache.stats();
    assert_eq!(stats.total_allocations, stats.total_frees, "{stats:?}");
    assert_eq!(cache.validate(), Ok(()));
}

/// Writes and reads every block of the cache, if one allocation gets them all.
fn use_all(cache: &PagedKvCache, kv: &Kv) {
    if let Ok(scratch) = cache.pool().allocate(cache.total_blocks()) {
        kv.use_alone(scratch.as_slice(), 2);
    }
}

fn blocks_of(cache: &PagedKvCache, id: SeqId) -> Vec<paged_kv::BlockId> {
    cache.get_sequence(id).expect("it is there").block_ids
}

/// Admits two new sequences of two blocks each from two threads, where two of the four blocks are to be
/// left. Each finds its blocks at home, so only the fence lets it count the other's blocks.
fn two_come_in<T: 'static>(
    come_in: fn(&PagedKvCache, SeqId) -> paged_kv::Result<T>,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        let cache = cache(4, 2, 2);
        let theirs = Arc::clone(&cache);
        spawn_at(1, move || drop(theirs.pool().allocate(2).unwrap())).join().unwrap();
        let theirs = Arc::clone(&cache);
        let (here, there) = race(|| come_in(&cache, A), move || come_in(&theirs, B));
        assert!(here.is_err() || there.is_err(), "two of four blocks are to be left");
        let granted = 2 * [&here, &there].iter().filter(|came_in| came_in.is_ok()).count() as u64;
        // An earlier sequence allocated two blocks and gave them back.
        assert_eq!(cache.stats().total_allocations, 2 + granted, "a refusal counts for nothing");
        drop((here, there));
        assert_all_free_at_end(&cache);
    }
}

#[test]
fn of_two_that_come_in_at_once_none_leaves_too_little() {
    explore(two_come_in(|cache, _| cache.allocate_sequence(2)));
}

#[test]
fn of_two_ids_that_come_in_at_once_none_leaves_too_little() {
    explore(two_come_in(|cache, id| cache.allocate(id, 2)));
}

#[test]
fn of_two_reservations_at_once_none_leaves_too_little() {
    explore(two_come_in(|cache, _| cache.reserve(2)));
}

/// Admits new sequences of one block from two threads, two from each, in a pool whose floor is as high as the
/// watermark. The first of each thread stays within its shard's quota and trusts the floor. The second uses up
/// the quota, so it lowers the floor and counts.
#[test]
fn of_two_that_come_in_at_once_none_leaves_too_little_below_the_floor() {
    explore(|| {
        let cache = cache(16, 2, 6);
        let _used = cache.allocate_sequence(8).unwrap();
        let theirs = Arc::clone(&cache);
        // So that both shards have free blocks.
        spawn_at(1, move || drop(theirs.pool().allocate(2).unwrap())).join().unwrap();
        let theirs = Arc::clone(&cache);
        let two = |cache: &PagedKvCache| [cache.allocate_sequence(1), cache.allocate_sequence(1)];
        let (here, there) = race(|| two(&cache), move || two(&theirs));
        let granted = here.iter().chain(&there).filter(|came_in| came_in.is_ok()).count();
        assert!(granted <= 2, "six of eight blocks are to be left");
        drop((here, there));
    });
}

#[test]
fn an_eviction_sees_the_accesses_of_a_lease() {
    explore(|| {
        let (cache, kv) = cache_and_kv(2, 1);
        cache.allocate(A, 2).unwrap();
        let (ids, lease) = (blocks_of(&cache, A), cache.lease(&[A]).unwrap());
        let their_kv = Arc::clone(&kv);
        race(
            || {
                if cache.evict().is_ok() {
                    assert!(cache.lease(&[A]).is_err(), "it is gone");
                    use_all(&cache, &kv);
                }
            },
            move || {
                their_kv.use_alone(&ids, 1);
                drop(lease);
            },
        );
        assert_all_free_at_end(&cache);
    });
}

/// Either the lease keeps the sequence, or the lease is refused.
#[test]
fn of_a_lease_and_an_eviction_one_has_the_sequence() {
    explore(|| {
        let (cache, kv) = cache_and_kv(2, 1);
        cache.allocate(A, 2).unwrap();
        let ids = blocks_of(&cache, A);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || match cache.evict() {
                Ok(id) => {
                    assert_eq!(id, A);
                    use_all(&cache, &kv);
                }
                Err(refusal) => assert_eq!(refusal, NothingToEvict),
            },
            move || {
                if let Ok(lease) = theirs.lease(&[A]) {
                    their_kv.use_alone(&ids, 1);
                    drop(lease);
                }
            },
        );
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn of_a_lease_and_a_free_one_has_the_sequence() {
    explore(|| {
        let (cache, kv) = cache_and_kv(2, 1);
        cache.allocate(A, 2).unwrap();
        let ids = blocks_of(&cache, A);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        let (freed, leased) = race(
            || {
                let freed = cache.free(A);
                if freed.is_ok() {
                    use_all(&cache, &kv);
                }
                freed
            },
            move || {
                let leased = theirs.lease(&[A]);
                if leased.is_ok() {
                    their_kv.use_alone(&ids, 1);
                }
                leased.map(drop)
            },
        );
        let is_told = matches!((&freed, &leased), (Ok(()), _) | (Err(SequenceLeased(A)), Ok(())));
        assert!(is_told, "{freed:?}, {leased:?}");
        assert_all_free_at_end(&cache);
    });
}

/// Either the end of the lease gives the blocks back, or the deferred free does.
#[test]
fn a_deferred_free_beside_the_end_of_a_lease_frees_once() {
    explore(|| {
        let (cache, kv) = cache_and_kv(2, 1);
        cache.allocate(A, 2).unwrap();
        let (ids, lease) = (blocks_of(&cache, A), cache.lease(&[A]).unwrap());
        let their_kv = Arc::clone(&kv);
        race(
            || {
                assert_eq!(cache.free_when_released(A), Ok(()));
                use_all(&cache, &kv);
            },
            move || {
                their_kv.use_alone(&ids, 1);
                drop(lease);
            },
        );
        assert_eq!(cache.free(A), Err(SequenceNotFound(A)));
        assert_eq!(cache.used_block_count(), 0, "the lease is over");
        assert_all_free_at_end(&cache);
    });
}

/// The end of the last of two leases releases the blocks. Its thread then sees the accesses of the other holder.
#[test]
fn the_last_of_two_leases_sees_the_accesses_of_the_first() {
    explore(|| {
        let (cache, kv) = cache_and_kv(1, 1);
        cache.allocate(A, 1).unwrap();
        let ids = blocks_of(&cache, A);
        kv.use_alone(&ids, 1);
        let leases = (cache.lease(&[A]).unwrap(), cache.lease(&[A]).unwrap());
        cache.free_when_released(A).unwrap();
        let holder = |lease: paged_kv::Lease| {
            let (cache, kv, ids) = (Arc::clone(&cache), Arc::clone(&kv), ids.clone());
            move || {
                assert_eq!(kv.read(ids[0]), 1);
                drop(lease);
                use_all(&cache, &kv);
            }
        };
        race(holder(leases.0), holder(leases.1));
        assert_all_free_at_end(&cache);
    });
}

/// Evicts two sequences that share every block, from two threads. Each eviction frees the block only if
/// the other sequence is gone. An eviction under way counts as gone once it is over. So neither eviction
/// may find nothing to evict.
fn two_evictions_find_one_each(
    cache: fn() -> Arc<PagedKvCache>,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        let cache = cache();
        assert_eq!(cache.used_block_count(), 1);
        let theirs = Arc::clone(&cache);
        let evicted = race(|| cache.evict(), move || theirs.evict());
        assert!(matches!(evicted, (Ok(A), Ok(B)) | (Ok(B), Ok(A))), "{evicted:?}");
        assert_eq!(cache.used_block_count(), 0);
        assert_all_free_at_end(&cache);
    }
}

#[test]
fn of_two_evictions_of_sharers_by_fork_each_finds_one() {
    explore(two_evictions_find_one_each(|| {
        let cache = cache(1, 1, 0);
        cache.allocate(A, 1).unwrap();
        cache.fork(A, B).unwrap();
        cache
    }));
}

/// The sequences own the block by its word, of which an eviction may read an older value.
#[test]
fn of_two_evictions_of_sharers_by_content_each_finds_one() {
    explore(two_evictions_find_one_each(|| {
        let builder = PagedKvCache::builder().num_blocks(1).block_size(1).home_shards(1);
        let cache = builder.build().expect("a cache of that shape");
        let hashes = [1, 2].map(BlockHash::from_u128);
        let options = AdmitOptions::default();
        cache.admit_with(A, &Prompt::from_hashes(&hashes[..1], 1), &options).unwrap();
        assert_eq!(cache.commit(A, 1), Ok(1));
        let prompt = Prompt::from_hashes(&hashes, 2);
        cache.admit_with(B, &prompt, &options.first_chunk(0)).unwrap();
        Arc::new(cache)
    }));
}

/// The chosen sequence is the one that leaves, not a newer sequence of the same id.
#[test]
fn an_eviction_leaves_a_newer_sequence_of_the_id_alone() {
    explore(|| {
        let builder = PagedKvCache::builder().num_blocks(6).block_size(1).home_shards(1);
        let builder = builder.with_eviction_strategy(EvictionStrategy::LongestFirst);
        let cache = Arc::new(builder.prefix_reuse(false).build().unwrap());
        cache.allocate(A, 3).unwrap();
        cache.allocate(B, 2).unwrap();
        let theirs = Arc::clone(&cache);
        let (evicted, again) = race(
            || cache.evict(),
            move || {
                theirs.free(A).ok()?;
                theirs.allocate(A, 1).ok()
            },
        );
        match again {
            Some(()) => assert_eq!(evicted, Ok(B), "the second A is the shortest"),
            None => assert_eq!(evicted, Ok(A)),
        }
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn of_two_frees_of_an_id_one_is_refused() {
    explore(|| {
        let (cache, _) = cache_and_kv(1, 1);
        cache.allocate(A, 1).unwrap();
        let theirs = Arc::clone(&cache);
        let freed = race(|| cache.free(A), move || theirs.free(A));
        let refused = Err(SequenceNotFound(A));
        assert!(freed == (Ok(()), refused.clone()) || freed == (refused, Ok(())), "{freed:?}");
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn of_two_sequences_under_one_id_one_comes_in_and_the_other_leaves_no_trace() {
    explore(|| {
        let cache = cache(2, 1, 0);
        let theirs = Arc::clone(&cache);
        let (here, there) = race(|| cache.allocate(A, 1), move || theirs.allocate(A, 1));
        assert!(here.is_ok() != there.is_ok(), "{here:?}, {there:?}");
        assert_eq!((cache.used_block_count(), cache.stats().total_allocations), (1, 1));
        assert_all_free_at_end(&cache);
    });
}

/// A fork by id reads its source under the lock that an append takes.
#[test]
fn a_fork_by_id_beside_an_append_has_the_tokens_from_before_or_after() {
    explore(|| {
        let cache = cache(4, 1, 0);
        cache.allocate(A, 1).unwrap();
        let theirs = Arc::clone(&cache);
        race(|| cache.append(A, 1).map(drop).unwrap(), move || theirs.fork(A, B).unwrap());
        let (source, fork) = (blocks_of(&cache, A), blocks_of(&cache, B));
        assert_eq!(source.len(), 2);
        assert!(fork == source || fork == source[..1], "{fork:?} of {source:?}");
        assert_all_free_at_end(&cache);
    });
}

/// The append grows the sequence that it found, or finds none.
#[test]
fn an_append_by_id_beside_a_free_grows_it_or_finds_it_gone() {
    explore(|| {
        let (cache, kv) = cache_and_kv(2, 1);
        cache.allocate(A, 1).unwrap();
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || {
                assert_eq!(cache.free(A), Ok(()));
                use_all(&cache, &kv);
            },
            move || match theirs.append(A, 1) {
                Ok(append) => assert_eq!(append.new_blocks, 1..2),
                Err(refusal) => {
                    assert!(matches!(refusal, SequenceNotFound(A) | OutOfMemory { .. }));
                    use_all(&theirs, &their_kv);
                }
            },
        );
        assert_all_free_at_end(&cache);
    });
}
