//! Tests of shortage: exactly the requests that fit succeed, wherever the free blocks are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use paged_kv::{BlockTable, PagedKvError};

use crate::common::assert_empties;
use crate::{cache, seconds, threads, watched};

/// Lets `racers` threads request `n` blocks at the same time, round after round: as many as fit succeed.
fn assert_fitting_succeed(num_blocks: usize, home_shards: usize, racers: usize, n: usize) {
    let cache = cache(num_blocks, home_shards);
    let pool = cache.pool();
    let fitting = (num_blocks / n).min(racers);
    let (start, end) = (Barrier::new(racers), Barrier::new(racers));
    let rounds = 150 * seconds() as usize;
    let served: Vec<AtomicUsize> = (0..rounds).map(|_| AtomicUsize::new(0)).collect();
    // Checked at the end: a thread that stopped early would leave the others at the barrier.
    let refusals = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..racers {
            scope.spawn(|| {
                for served in &served {
                    start.wait();
                    let table = pool.allocate(n);
                    let refusal = table.as_ref().err().cloned();
                    served.fetch_add(usize::from(table.is_ok()), Ordering::Relaxed);
                    refusals.lock().unwrap().extend(refusal);
                    end.wait();
                    drop(table);
                }
            });
        }
    });
    for refusal in refusals.into_inner().unwrap() {
        let PagedKvError::OutOfMemory { requested, available } = refusal else {
            panic!("{refusal}");
        };
        assert!(requested == n && available < n, "{refusal}");
    }
    for served in served {
        let served = served.into_inner();
        assert_eq!(served, fitting, "{racers} asked for {n} of {num_blocks}, {home_shards} shards");
    }
    assert_empties(&cache);
}

#[test]
fn of_two_that_do_not_fit_together_exactly_one_is_served() {
    watched(|| {
        for home_shards in [1, 2, 4, 16] {
            assert_fitting_succeed(128, home_shards, 2, 96);
            assert_fitting_succeed(128, home_shards, 4, 65);
            assert_fitting_succeed(1024, home_shards, 2, 1000);
        }
    });
}

#[test]
fn of_many_that_do_not_fit_together_exactly_those_that_fit_are_served() {
    watched(|| {
        for home_shards in [1, 4] {
            let half = (64 * 2 / (threads() + 1)).max(1);
            assert_fitting_succeed(64, home_shards, threads(), half);
            assert_fitting_succeed(64, home_shards, threads(), 1 + 64 / threads());
        }
    });
}

#[test]
fn blocks_freed_on_other_threads_can_all_be_allocated_by_one() {
    watched(|| {
        for (num_blocks, home_shards) in [(64, 4), (128, 16), (5000, 4), (5000, 64)] {
            let cache = cache(num_blocks, home_shards);
            let pool = cache.pool();
            for _ in 0..10 * seconds() {
                let share = num_blocks / threads();
                let tables: Vec<BlockTable> =
                    (0..threads()).map(|_| pool.allocate(share).unwrap()).collect();
                let released = Barrier::new(threads() + 1);
                let done = Barrier::new(threads() + 1);
                thread::scope(|scope| {
                    for table in tables {
                        let (released, done) = (&released, &done);
                        scope.spawn(move || {
                            drop(table);
                            released.wait();
                            done.wait();
                        });
                    }
                    released.wait();
                    // The threads are still there, and so are the home shards that they filled.
                    let all = pool.allocate(num_blocks);
                    let refused = pool.allocate(1).unwrap_err();
                    done.wait();
                    assert_eq!(all.expect("everything is free").len(), num_blocks);
                    assert_eq!(refused, PagedKvError::OutOfMemory { requested: 1, available: 0 });
                });
            }
            assert_empties(&cache);
        }
    });
}

#[test]
fn a_batch_and_a_rival_that_do_not_fit_together_are_not_both_refused() {
    watched(|| {
        for home_shards in [1, 4] {
            let cache = cache(128, home_shards);
            let barrier = Barrier::new(2);
            for round in 0..100 * seconds() {
                let rival = paged_kv::SeqId(1);
                let batch = [paged_kv::SeqId(2), paged_kv::SeqId(3)];
                batch.iter().for_each(|&id| cache.allocate(id, 0).unwrap());
                let (grown, allocated) = thread::scope(|scope| {
                    let grow = scope.spawn(|| {
                        barrier.wait();
                        let rows = batch.map(|id| (id, 4 * 48));
                        cache.append_batch(&rows, &mut Default::default())
                    });
                    barrier.wait();
                    let allocated = cache.allocate(rival, 4 * 96);
                    (grow.join().unwrap(), allocated)
                });
                assert!(
                    grown.is_ok() != allocated.is_ok(),
                    "round {round}: {grown:?} {allocated:?}"
                );
                assert_eq!(cache.used_block_count(), 96);
                cache.sequence_ids().into_iter().for_each(|id| cache.free(id).unwrap());
            }
            assert_empties(&cache);
        }
    });
}
