//! Tests of order: requests are served in turn, and a large request is never starved.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, yield_now};
use std::time::Instant;

use paged_kv::{Fairness, PagedKvCache, SeqId};

use super::{HANG, Task, assert_all_back, cache};

#[test]
fn first_come_first_served_and_one_is_woken_at_a_time() {
    let cache = cache(8);
    cache.allocate(SeqId(0), 32).unwrap();
    let mut tasks: Vec<_> =
        (0..4).map(|_| Task::waiting(cache.waiting().reserve(2).timeout(HANG))).collect();
    cache.free(SeqId(0)).unwrap();
    let mut held = Vec::new();
    for first in 0..4 {
        let wakes: Vec<usize> = tasks.iter().map(Task::wakes).collect();
        let expected: Vec<usize> = (0..4).map(|task| usize::from(task <= first)).collect();
        assert_eq!(wakes, expected, "each is woken by the one before it");
        held.push(tasks[first].served().unwrap());
    }
    drop(held);
    assert_all_back(&cache);
}

#[test]
fn a_small_request_does_not_pass_a_large_one() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 4).unwrap();
    cache.allocate(SeqId(2), 12).unwrap();
    let mut large = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
    let mut small = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    cache.free(SeqId(1)).unwrap();
    assert_eq!((large.wakes(), small.wakes()), (0, 0));
    cache.free(SeqId(2)).unwrap();
    assert_eq!((large.wakes(), small.wakes()), (1, 0));
    drop(large.served().unwrap());
    drop(small.served().unwrap());
    assert_all_back(&cache);
}

#[test]
fn no_more_than_allowed_pass_the_first() {
    let builder = PagedKvCache::builder().num_blocks(4).block_size(4);
    let cache = builder.fairness(Fairness::Bypass { at_most: 2 }).build().unwrap();
    cache.allocate(SeqId(1), 4).unwrap();
    cache.allocate(SeqId(2), 12).unwrap();
    let mut large = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
    let mut middle = Task::waiting(cache.waiting().reserve(2).timeout(HANG));
    let mut small: Vec<_> =
        (0..3).map(|_| Task::waiting(cache.waiting().reserve(1).timeout(HANG))).collect();
    cache.free(SeqId(1)).unwrap();
    drop(small[0].served().unwrap()); // the first to pass; the block it gives back wakes another
    drop(small[1].served().unwrap());
    assert_eq!((large.wakes(), middle.wakes(), small[2].wakes()), (0, 0, 0));
    cache.free(SeqId(2)).unwrap();
    let held = large.served().unwrap();
    // One block is left, which is too little for the next waiter, and two requests have passed it
    // already.
    assert_eq!((middle.wakes(), small[2].wakes()), (0, 0));
    drop(held);
    drop(middle.served().unwrap());
    drop(small[2].served().unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_waiter_passed_while_second_is_not_passed_while_first() {
    for at_most in 1..4 {
        let builder = PagedKvCache::builder().num_blocks(4).block_size(4);
        let cache = builder.fairness(Fairness::Bypass { at_most }).build().unwrap();
        cache.allocate(SeqId(1), 4).unwrap();
        cache.allocate(SeqId(2), 12).unwrap();
        let first = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
        let mut second = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
        let small = |_| Task::waiting(cache.waiting().reserve(1).timeout(HANG));
        let mut small: Vec<_> = (0..=at_most).map(small).collect();
        let mut last = small.pop().unwrap();
        cache.free(SeqId(1)).unwrap();
        small.iter_mut().for_each(|small| drop(small.served().unwrap()));
        drop(first);
        assert_eq!((second.wakes(), last.wakes()), (0, 0), "{at_most} have passed the second");
        let mut late = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
        cache.free(SeqId(2)).unwrap();
        drop(second.served().unwrap());
        drop((last.served().unwrap(), late.served().unwrap()));
        assert_all_back(&cache);
    }
}

/// The first waiter was woken for room that no longer suffices for it, and a smaller one after it fits.
#[test]
fn a_first_that_is_refused_lets_a_smaller_one_pass() {
    let builder = PagedKvCache::builder().num_blocks(6).block_size(4);
    let cache = builder.fairness(Fairness::Bypass { at_most: 1 }).build().unwrap();
    cache.allocate(SeqId(1), 12).unwrap();
    cache.allocate(SeqId(2), 12).unwrap();
    let mut large = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
    let mut small = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    cache.truncate(SeqId(1), 0).unwrap();
    drop(cache.append(SeqId(2), 8).unwrap()); // before the first is polled
    assert_eq!((large.wakes(), small.wakes()), (1, 0));
    assert!(large.poll().is_pending());
    drop(small.served().unwrap());
    cache.free(SeqId(1)).unwrap();
    cache.free(SeqId(2)).unwrap();
    drop(large.served().unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_waiter_that_leaves_returns_its_unused_bypass() {
    let builder = PagedKvCache::builder().num_blocks(4).block_size(4);
    let cache = builder.fairness(Fairness::Bypass { at_most: 1 }).build().unwrap();
    cache.allocate(SeqId(1), 4).unwrap();
    cache.allocate(SeqId(2), 12).unwrap();
    let large = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
    let one = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    let mut other = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    cache.free(SeqId(1)).unwrap();
    assert_eq!((one.wakes(), other.wakes()), (1, 0));
    drop(one);
    drop(other.served().unwrap());
    drop(large);
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn sequences_that_grow_go_before_new_ones() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 8).unwrap();
    cache.allocate(SeqId(2), 8).unwrap();
    let mut new = Task::waiting(cache.waiting().allocate(SeqId(3), 4).timeout(HANG));
    let mut growing = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    cache.truncate(SeqId(2), 4).unwrap();
    assert_eq!((growing.wakes(), new.wakes()), (1, 0));
    assert_eq!(growing.served().unwrap().new_blocks, 2..3);
    cache.free(SeqId(2)).unwrap();
    new.served().unwrap();
    cache.free(SeqId(1)).unwrap();
    cache.free(SeqId(3)).unwrap();
    assert_all_back(&cache);
}

/// An endless stream of requests for one block meets a request for half the pool. The large request is
/// served as soon as the blocks that were held at its arrival have been returned.
#[test]
fn half_the_pool_is_served_against_a_stream_of_single_blocks() {
    const BLOCKS: usize = 64;
    const OTHERS: usize = 3;
    const ROUNDS: usize = 20;
    let cache = cache(BLOCKS);
    // The round of the request that waits now, 0 if none does, and how many requests passed each. A
    // worker may be delayed between its request and the count, and must not count for the next round.
    let (served, waiting) = (AtomicBool::new(false), AtomicUsize::new(0));
    let passed: [AtomicUsize; ROUNDS + 1] = std::array::from_fn(|_| AtomicUsize::new(0));
    let mut passes = Vec::new();
    scope(|scope| {
        for worker in 0..OTHERS {
            let (cache, served, passed, waiting) = (&cache, &served, &passed, &waiting);
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                let mut ids = (0..).map(|n| SeqId((worker + n * OTHERS) as u64));
                while !served.load(Ordering::SeqCst) {
                    // Each worker holds a third of the pool, and returns the oldest first.
                    if held.len() * OTHERS >= BLOCKS - OTHERS {
                        cache.free(held.pop_front().unwrap()).unwrap();
                    }
                    let id = ids.next().unwrap();
                    let round = waiting.load(Ordering::SeqCst);
                    match cache.allocate(id, 4) {
                        Ok(()) => {
                            held.push_back(id);
                            passed[round].fetch_add(1, Ordering::SeqCst);
                        }
                        Err(_) => held.pop_front().into_iter().for_each(|id| {
                            cache.free(id).unwrap();
                        }),
                    }
                }
                held.into_iter().for_each(|id| cache.free(id).unwrap());
            });
        }
        for (round, passed) in passed.iter().enumerate().skip(1) {
            let start = Instant::now();
            while cache.free_block_count() > BLOCKS / 4 {
                assert!(start.elapsed() < HANG);
                yield_now();
            }
            let mut task = Task::new(cache.waiting().reserve(BLOCKS / 2).timeout(HANG));
            if task.poll().is_pending() {
                waiting.store(round, Ordering::SeqCst);
                while task.wakes() == 0 {
                    assert!(start.elapsed() < HANG, "it is starved");
                    yield_now();
                }
                // This is read before the request is served: later requests have not passed it.
                passes.push(passed.load(Ordering::SeqCst));
                drop(task.served().unwrap());
                waiting.store(0, Ordering::SeqCst);
            }
        }
        served.store(true, Ordering::SeqCst);
    });
    assert!(!passes.is_empty(), "it never waited");
    assert!(passes.iter().all(|&passed| passed == 0), "passed by new ones: {passes:?}");
    assert_all_back(&cache);
}
