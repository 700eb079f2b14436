//! Tests of room: every way in which blocks become available wakes the waiters, and no request is served
//! that should wait.

use std::time::{Duration, Instant};

use paged_kv::PagedKvError::{DeadlinePassed, OutOfMemory, SequenceExists, SequenceNotFound};
use paged_kv::{AdmitOptions, PagedKvCache, SeqId, Step, Watermark, Worker};

use super::common::lease_row;
use super::{HANG, Task, assert_all_back, cache};

/// Fills a cache of 4 blocks, and has a request wait for `num_blocks`, which `give` makes available.
fn wakes(num_blocks: usize, fill: impl FnOnce(&PagedKvCache), give: impl FnOnce(&PagedKvCache)) {
    let cache = cache(4);
    fill(&cache);
    let mut task = Task::waiting(cache.waiting().reserve(num_blocks).timeout(HANG));
    give(&cache);
    assert_eq!(task.wakes(), 1);
    assert_eq!(task.served().unwrap().num_blocks(), num_blocks);
    for id in cache.sequence_ids() {
        cache.free(id).unwrap();
    }
    assert_all_back(&cache);
}

fn fill(cache: &PagedKvCache) {
    cache.allocate(SeqId(1), 16).unwrap();
}

#[test]
fn frees_evictions_truncations_and_trims_wake_the_waiter() {
    wakes(4, fill, |cache| cache.free(SeqId(1)).unwrap());
    wakes(4, fill, |cache| assert_eq!(cache.evict(), Ok(SeqId(1))));
    wakes(4, fill, |cache| assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![SeqId(1)])));
    wakes(2, fill, |cache| cache.truncate(SeqId(1), 8).unwrap());
    wakes(2, fill, |cache| assert_eq!(cache.apply_streaming_llm(SeqId(1), 4, 4), Ok(8)));
}

#[test]
fn waiting_requests_are_counted_by_class() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 12).unwrap();
    // An owner that may release its block: the sequences are not deadlocked.
    let handle = cache.pool().allocate(1).unwrap();
    let waiting = || {
        let stats = cache.stats();
        (stats.requests_waiting_new, stats.requests_waiting_to_grow)
    };
    assert_eq!(waiting(), (0, 0));
    let reserve = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    assert_eq!(waiting(), (1, 0));
    let admit = Task::waiting(cache.waiting().allocate(SeqId(2), 4).timeout(HANG));
    let grow = Task::waiting(cache.waiting().append(SeqId(1), 4).timeout(HANG));
    assert_eq!(waiting(), (2, 1));
    drop((grow, admit));
    assert_eq!(waiting(), (1, 0));
    drop((reserve, handle));
    cache.free(SeqId(1)).unwrap();
    assert_eq!(waiting(), (0, 0));
    assert_all_back(&cache);
}

#[test]
fn a_block_that_becomes_idle_wakes_the_waiter() {
    let admit = |cache: &PagedKvCache| {
        cache.admit(SeqId(1), &[7; 16]).unwrap();
        assert_eq!(cache.commit(SeqId(1), 16), Ok(4));
    };
    wakes(4, admit, |cache| cache.free(SeqId(1)).unwrap());
}

#[test]
fn the_last_lease_on_a_freed_sequence_wakes_the_waiter() {
    wakes(4, fill, |cache| {
        let lease = cache.lease(&[SeqId(1)]).unwrap();
        cache.free_when_released(SeqId(1)).unwrap();
        assert_eq!(cache.used_block_count(), 4);
        drop(lease);
    });
}

#[test]
fn dropped_handles_copies_and_reservations_wake_the_waiter() {
    let full = cache(4);
    let mut sequence = full.allocate_sequence(10).unwrap();
    let mut fork = sequence.fork().unwrap();
    let append = fork.append(1).unwrap();
    drop(sequence);
    let mut task = Task::waiting(full.waiting().reserve(1).timeout(HANG));
    drop(append); // the source of the copy
    drop(task.served().unwrap());
    let room = full.reserve(1).unwrap();
    let mut task = Task::waiting(full.waiting().reserve(4).timeout(HANG));
    drop(fork);
    assert_eq!(task.wakes(), 0, "three blocks are not enough");
    drop(room);
    drop(task.served().unwrap());
    assert_all_back(&full);
}

#[test]
fn evictions_for_a_worker_and_the_end_of_a_step_wake_a_waiter() {
    let fill_for = |cache: &PagedKvCache| {
        fill(cache);
        cache.set_worker(SeqId(1), Worker(7)).unwrap();
    };
    wakes(4, fill_for, |cache| {
        assert_eq!(cache.evict_for(Worker(7), 1, &mut Vec::new()), Ok(4));
    });
    let ends: [fn(Step); 2] = [|step| _ = step.complete(), drop];
    for end in ends {
        for forked in [false, true] {
            wakes(4, fill, |cache| {
                let mut step = cache.step(Default::default());
                step.join(&mut lease_row(cache, SeqId(1))).unwrap();
                if forked {
                    // A run of blocks is released on another path than single blocks.
                    cache.fork(SeqId(1), SeqId(2)).unwrap();
                    cache.free(SeqId(2)).unwrap();
                }
                cache.free(SeqId(1)).unwrap();
                assert_eq!(cache.used_block_count(), 4);
                end(step);
            });
        }
    }
}

#[test]
fn while_one_waits_new_sequences_are_refused_and_appends_pass() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 8).unwrap();
    let waiting = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
    let refused = |requested| OutOfMemory { requested, available: 0 };
    assert_eq!(cache.allocate(SeqId(2), 4), Err(refused(1)));
    assert_eq!(cache.allocate_sequence(4).unwrap_err(), refused(1));
    assert_eq!(cache.admit(SeqId(2), &[7; 4]), Err(refused(1)));
    assert_eq!(cache.reserve(1).unwrap_err(), refused(1));
    cache.allocate(SeqId(3), 0).unwrap(); // needs no room
    assert!(cache.append(SeqId(1), 4).is_ok());
    assert!(cache.append(SeqId(3), 4).is_ok());
    drop(waiting);
    cache.free(SeqId(1)).unwrap();
    cache.allocate(SeqId(2), 12).unwrap();
    cache.free(SeqId(2)).unwrap();
    cache.free(SeqId(3)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_request_that_can_never_fit_is_refused_immediately() {
    let cache = PagedKvCache::builder().num_blocks(8).block_size(4).watermark(Watermark::Blocks(2));
    let cache = cache.build().unwrap();
    let refusal = OutOfMemory { requested: 7, available: 6 };
    assert_eq!(cache.waiting().reserve(7).timeout(HANG).block().unwrap_err(), refusal);
    assert_eq!(cache.waiting().allocate(SeqId(1), 28).timeout(HANG).block(), Err(refusal.clone()));
    let (prompt, options) = (cache.prompt(&[7; 28]), AdmitOptions::default());
    assert_eq!(
        cache.waiting().admit(SeqId(1), &prompt, &options).timeout(HANG).block(),
        Err(refusal)
    );
    cache.allocate(SeqId(1), 4).unwrap();
    let grown = cache.waiting().append(SeqId(1), 32).timeout(HANG).block();
    assert_eq!(grown.unwrap_err(), OutOfMemory { requested: 8, available: 7 });
    let missing = cache.waiting().append(SeqId(2), 1).timeout(HANG).block().unwrap_err();
    assert_eq!(missing, SequenceNotFound(SeqId(2)));
    let exists = cache.waiting().allocate(SeqId(1), 4).timeout(HANG).block();
    assert_eq!(exists, Err(SequenceExists(SeqId(1))));
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn new_sequences_wait_for_the_watermark_and_appends_use_it() {
    let cache = PagedKvCache::builder().num_blocks(8).block_size(4).watermark(Watermark::Blocks(2));
    let cache = cache.build().unwrap();
    cache.allocate(SeqId(1), 20).unwrap();
    let mut task = Task::waiting(cache.waiting().allocate(SeqId(2), 8).timeout(HANG));
    assert!(cache.append(SeqId(1), 12).is_ok(), "the watermark is for this");
    cache.truncate(SeqId(1), 20).unwrap();
    assert_eq!(task.wakes(), 0, "three blocks are room, two of which are to stay");
    cache.truncate(SeqId(1), 16).unwrap();
    task.served().unwrap();
    assert_eq!(cache.free_block_count(), 2);
    cache.free(SeqId(1)).unwrap();
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn the_prefix_is_matched_again_on_waking() {
    let cache = cache(4);
    cache.admit(SeqId(1), &[7; 9]).unwrap();
    cache.allocate(SeqId(2), 4).unwrap();
    let (prompt, options) = (cache.prompt(&[7; 12]), AdmitOptions::default());
    let mut task = Task::waiting(cache.waiting().admit(SeqId(3), &prompt, &options).timeout(HANG));
    cache.commit(SeqId(1), 9).unwrap(); // two blocks of the prompt can be matched now
    cache.free(SeqId(1)).unwrap();
    assert_eq!(task.served().unwrap().cached_tokens, 8);
    cache.free(SeqId(2)).unwrap();
    cache.free(SeqId(3)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_deadline_wakes_and_holds_nothing() {
    let cache = cache(4);
    fill(&cache);
    let start = Instant::now();
    let soon = Duration::from_millis(20);
    assert_eq!(cache.waiting().reserve(1).timeout(soon).block().unwrap_err(), DeadlinePassed);
    assert_eq!(
        cache.waiting().append(SeqId(1), 1).timeout(soon).block().unwrap_err(),
        OutOfMemory { requested: 1, available: 0 }
    );
    assert!(start.elapsed() >= Duration::from_millis(20));
    let soon = Duration::from_millis(20);
    let mut task = Task::waiting(cache.waiting().reserve(1).timeout(soon));
    while task.wakes() == 0 {
        assert!(start.elapsed() < super::HANG, "nobody woke it");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(task.served().unwrap_err(), DeadlinePassed);
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}
