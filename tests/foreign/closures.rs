//! Closures that panic, or that wait for room, while they read a sequence.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use paged_kv::{PagedKvCache, SeqId};

use crate::{BLOCK_SIZE, HANG, panic_quietly, watched};

fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG);
        thread::yield_now();
    }
}

/// Has `give` release blocks while three threads wait. Sequence 2 waits to grow, a closure on sequence 1
/// waits for room, and a thread that changes sequence 1 waits for the closure.
fn give_room_to_a_closure(give: impl Fn(&PagedKvCache) + Copy + Send + 'static) {
    watched(move || {
        let cache = &Arc::new(PagedKvCache::new(8, BLOCK_SIZE, 1, 1));
        cache.allocate(SeqId(3), 3 * BLOCK_SIZE).unwrap();
        cache.allocate(SeqId(2), 4 * BLOCK_SIZE).unwrap();
        cache.allocate(SeqId(1), BLOCK_SIZE).unwrap();
        let reserve = || cache.waiting().reserve(1).block().map(drop);
        thread::scope(|scope| {
            let grown = scope.spawn(|| cache.waiting().append(SeqId(2), 1).block());
            wait_until(|| cache.waiting().len() == 1);
            let reserved = scope.spawn(move || cache.with_sequence(SeqId(1), |_| reserve()));
            wait_until(|| cache.waiting().len() == 2);
            let changed = scope.spawn(|| cache.append(SeqId(1), 1));
            // Waits until that thread waits for the closure, which no call can observe.
            thread::sleep(Duration::from_millis(100));
            give(cache);
            assert!(grown.join().unwrap().is_ok());
            assert_eq!(reserved.join().unwrap(), Some(Ok(())));
            assert!(changed.join().unwrap().is_ok());
        });
    });
}

#[test]
fn a_truncation_wakes_a_closure_that_waits_for_room() {
    give_room_to_a_closure(|cache| cache.truncate(SeqId(3), 0).unwrap());
}

#[test]
fn a_freed_sequence_wakes_a_closure_that_waits_for_room() {
    give_room_to_a_closure(|cache| cache.free(SeqId(3)).unwrap());
}

#[test]
fn an_eviction_of_another_sequence_does_not_wait_for_a_closure() {
    give_room_to_a_closure(|cache| assert_eq!(cache.evict(), Ok(SeqId(3))));
}

#[test]
fn a_panicking_closure_unlocks_its_sequence_and_keeps_its_changes() {
    watched(|| {
        let cache = PagedKvCache::new(8, BLOCK_SIZE, 1, 1);
        (1..=3).for_each(|id| cache.allocate(SeqId(id), 8).unwrap());
        for depth in 0..3 {
            let looked = catch_unwind(AssertUnwindSafe(|| {
                cache.with_sequence(SeqId(1), |_| {
                    cache.with_sequence(SeqId(2), |sequence| {
                        match depth {
                            0 => panic_quietly(),
                            1 => cache.truncate(SeqId(3), 4).unwrap(),
                            _ => cache.free(SeqId(3)).unwrap(),
                        }
                        if sequence.num_tokens() > 0 {
                            panic_quietly();
                        }
                    })
                })
            }));
            assert!(looked.is_err());
            cache.validate().unwrap();
            _ = cache.append(SeqId(1), 1).unwrap();
            cache.truncate(SeqId(1), 8).unwrap();
            cache.truncate(SeqId(2), 8).unwrap();
            assert_eq!(cache.used_block_count(), [6, 5, 4][depth]);
        }
    });
}
