//! Closures that wait for room while they look at a sequence.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use paged_kv::wait::Patience;
use paged_kv::{PagedKvCache, SeqId};

use crate::{BLOCK_SIZE, HANG, watched};

fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG);
        thread::yield_now();
    }
}

/// Gives room by `give` while sequence 2 waits to grow, a closure at sequence 1 waits for room, and a thread
/// that changes sequence 1 waits for the closure.
fn give_room_to_a_closure(give: impl Fn(&PagedKvCache) + Copy + Send + 'static) {
    watched(move || {
        let cache = &Arc::new(PagedKvCache::new(8, BLOCK_SIZE, 1, 1));
        cache.allocate(SeqId(3), 3 * BLOCK_SIZE).unwrap();
        cache.allocate(SeqId(2), 4 * BLOCK_SIZE).unwrap();
        cache.allocate(SeqId(1), BLOCK_SIZE).unwrap();
        let reserve = || cache.reserve_blocking(1, Patience::default()).map(drop);
        thread::scope(|scope| {
            let grown = scope.spawn(|| cache.append_blocking(SeqId(2), 1, Patience::default()));
            wait_until(|| cache.num_waiting() == 1);
            let reserved = scope.spawn(move || cache.with_sequence(SeqId(1), |_| reserve()));
            wait_until(|| cache.num_waiting() == 2);
            let changed = scope.spawn(|| cache.append(SeqId(1), 1));
            // Until it waits for the closure, which nothing tells.
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
