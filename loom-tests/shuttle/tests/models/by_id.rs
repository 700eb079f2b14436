//! Models of operations by id in a cache that is too small for them: they do not disturb each other.

use paged_kv::PagedKvError::{
    NothingToEvict, OutOfMemory, SequenceEvicted, SequenceExists, SequenceLeased, SequenceNotFound,
};
use paged_kv::{PagedKvCache, SeqId, Worker};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, C, assert_all_free_at_end, cache};

/// Retries after evictions, as a scheduler does.
fn with_evictions(cache: &PagedKvCache, attempt: impl Fn() -> paged_kv::Result<()>) -> bool {
    for _ in 0..3 {
        match attempt() {
            Ok(()) => return true,
            Err(OutOfMemory { requested, available }) => {
                assert!(available < requested, "{available} of {requested} is room enough");
                match cache.evict() {
                    Ok(_) | Err(NothingToEvict) => {}
                    Err(refusal) => panic!("an eviction is refused with {refusal}"),
                }
            }
            Err(SequenceNotFound(_) | SequenceExists(_)) => return false,
            Err(refusal) => panic!("refused with {refusal}"),
        }
    }
    false
}

/// Serves a request from its prompt to its end, with a second sample on the way.
fn serve(cache: &PagedKvCache, id: SeqId, sample: SeqId) {
    with_evictions(cache, || cache.allocate(id, 3));
    with_evictions(cache, || cache.fork(id, sample));
    with_evictions(cache, || cache.append(id, 2).map(drop));
    with_evictions(cache, || cache.append(sample, 1).map(drop));
    for id in [sample, id] {
        assert!(matches!(cache.free(id), Ok(()) | Err(SequenceNotFound(_))));
    }
}

#[test]
fn requests_short_of_room_evict_each_other_and_leave_nothing() {
    explore(|| {
        let cache = cache(5);
        scope(|scope| {
            scope.spawn(|| serve(&cache, A, SeqId(11)));
            scope.spawn(|| serve(&cache, B, SeqId(12)));
            serve(&cache, C, SeqId(13));
        });
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn one_of_the_threads_that_allocate_an_id_succeeds() {
    explore(|| {
        let cache = cache(6);
        let won: usize = scope(|scope| {
            let allocate = || match cache.allocate(A, 3) {
                Ok(()) => 1,
                Err(refusal) => {
                    assert_eq!(refusal, SequenceExists(A), "there is room for all three");
                    0
                }
            };
            let others = [scope.spawn(allocate), scope.spawn(allocate)];
            allocate() + others.map(|other| other.join().expect("it ended")).iter().sum::<usize>()
        });
        assert_eq!((won, cache.num_sequences(), cache.used_block_count()), (1, 1, 2));
        let stats = cache.stats();
        assert_eq!((stats.total_allocations, stats.total_frees), (2, 0), "what was refused shows");
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn one_of_the_threads_that_free_an_id_succeeds() {
    explore(|| {
        let cache = cache(6);
        cache.allocate(A, 3).expect("there is room");
        cache.fork(A, B).expect("it is there");
        scope(|scope| {
            let free = || cache.free(A).is_ok();
            let other = scope.spawn(free);
            let writer = scope.spawn(|| cache.append(B, 1).map(drop));
            assert!(free() != other.join().expect("it ended"), "freed by both or by neither");
            writer.join().expect("it ended").expect("the fork has room");
        });
        assert_eq!(cache.used_block_count(), 2, "what the fork holds");
        assert_all_free_at_end(&cache);
    });
}

/// The last block is partly filled, and three sequences share it. Each append copies it, except the last
/// one.
#[test]
fn appends_to_forks_never_write_a_block_another_reads() {
    explore(|| {
        let cache = cache(4);
        cache.allocate(A, 1).expect("there is room");
        cache.fork(A, B).expect("it is there");
        cache.fork(A, C).expect("it is there");
        scope(|scope| {
            scope.spawn(|| cache.append(B, 1).map(drop).expect("there is room"));
            scope.spawn(|| cache.free(C).expect("it is there"));
            cache.append(A, 1).map(drop).expect("there is room");
        });
        let of = |id| cache.get_sequence(id).expect("it is there").block_ids;
        assert_ne!(of(A), of(B), "two sequences write one block");
        assert_eq!(cache.used_block_count(), 2);
        assert_all_free_at_end(&cache);
    });
}

/// A fork whose source is freed or evicted during the call has all of its blocks, or is refused.
#[test]
fn a_fork_beside_the_end_of_its_source_is_whole_or_refused() {
    explore(|| {
        let cache = cache(5);
        cache.allocate(A, 5).expect("there is room");
        scope(|scope| {
            let evicted = scope.spawn(|| cache.evict());
            let grown = scope.spawn(|| cache.append(A, 1).is_ok());
            let forked = cache.fork(A, B);
            assert!(matches!(forked, Ok(()) | Err(SequenceNotFound(A))), "{forked:?}");
            let evicted = evicted.join().expect("it ended");
            assert!(matches!(evicted, Ok(A | B) | Err(NothingToEvict)), "{evicted:?}");
            let grown = grown.join().expect("it ended");
            let fork = cache.get_sequence(B);
            assert_eq!(fork.is_some(), forked.is_ok() && evicted != Ok(B));
            if let Some(fork) = fork {
                assert!(fork.num_tokens == 5 || grown && fork.num_tokens == 6, "{fork:?}");
                assert_eq!(fork.num_blocks(), 3);
            }
        });
        assert_all_free_at_end(&cache);
    });
}

/// A refusal is true at some moment of its call. None reports a leased id, because there are no leases.
#[test]
fn truncating_trimming_and_touching_meet_an_eviction() {
    explore(|| {
        let cache = cache(6);
        cache.allocate(A, 8).expect("there is room");
        cache.allocate(B, 4).expect("there is room");
        scope(|scope| {
            scope.spawn(|| {
                let trimmed = cache.apply_streaming_llm(A, 2, 2);
                assert!(matches!(trimmed, Ok(0 | 2 | 4) | Err(SequenceNotFound(A))), "{trimmed:?}");
                let _ = cache.touch(A);
            });
            scope.spawn(|| {
                let truncated = cache.truncate(A, 6);
                assert_ne!(truncated, Err(SequenceLeased(A)));
                let _ = cache.touch(B);
            });
            let evicted = cache.evict_to_threshold(0.5);
            assert!(evicted.is_ok(), "{evicted:?}");
        });
        assert_all_free_at_end(&cache);
    });
}

/// A sequence stays if it is handed to another worker, or if it was allocated under the id of an earlier
/// one. This holds for a sequence in the map, and after a lease for one with a lock of its own.
#[test]
fn an_eviction_for_a_worker_takes_nothing_that_is_not_its_own() {
    for comes_again in [false, true] {
        explore(move || {
            let cache = cache(6);
            cache.allocate(A, 4).expect("there is room");
            cache.set_worker(A, Worker(1)).expect("it is there");
            scope(|scope| {
                let evicted = scope.spawn(|| {
                    let mut out = Vec::new();
                    let freed = cache.evict_for(Worker(1), 1, &mut out);
                    assert_eq!(freed.is_ok(), !out.is_empty());
                    freed
                });
                scope.spawn(|| drop(cache.lease(&[A])));
                let stays = if comes_again {
                    match cache.free(A) {
                        Ok(()) | Err(SequenceEvicted(A)) => {}
                        Err(SequenceLeased(A)) => return,
                        Err(refusal) => panic!("refused with {refusal}"),
                    }
                    cache.allocate(A, 4).expect("the id and its blocks are free");
                    true
                } else {
                    match cache.set_worker(A, Worker(2)) {
                        Ok(()) => true,
                        Err(SequenceEvicted(A)) => false,
                        Err(refusal) => panic!("refused with {refusal}"),
                    }
                };
                let evicted = evicted.join().expect("it ended");
                assert_eq!(cache.get_sequence(A).is_some(), stays, "{evicted:?}");
                assert!(!stays || comes_again || evicted == Err(NothingToEvict));
            });
            assert_all_free_at_end(&cache);
        });
    }
}
