//! `RecencyClock`: stamps that order uses, without a cache line that every use writes.
//!
//! A thread's time is `max(its last time, the shared floor) + 1`, and it raises the shared floor once in
//! [`STRIDE`] stamps. On one thread stamps strictly increase. A thread runs ahead of the floor by at most
//! `STRIDE`. So a use can appear older than an earlier one only if each thread was used fewer than `STRIDE`
//! times in between. The thread's ordinal below the time makes each stamp unique.
//!
//! A logical clock has two advantages over a coarse wall clock. Tests need no sleep, and a busy thread
//! distinguishes more than two uses every 5 ms.

use std::cell::Cell;

use crate::sync::{AtomicU64, CachePadded, Ordering, thread_local, thread_ordinal};

/// Stamps that one thread may give before it raises the shared floor.
const STRIDE: u64 = 64;

/// Bits of a stamp that separate threads.
const ORDINAL_BITS: u32 = 16;

thread_local! {
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// Gives increasing stamps to many threads.
pub(crate) struct RecencyClock {
    floor: CachePadded<AtomicU64>,
}

impl RecencyClock {
    pub(crate) fn new() -> Self {
        Self { floor: CachePadded::new(AtomicU64::new(0)) }
    }

    /// Returns a stamp above every stamp that this thread has given. It is unlike every other thread's (up to
    /// 65,536 threads in the life of the process).
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        // Relaxed: stamps only choose victims; no data depends on them.
        let floor = self.floor.load(Ordering::Relaxed);
        let time = LAST.with(Cell::get).max(floor) + 1;
        LAST.with(|last| last.set(time));
        if time >= floor + STRIDE {
            self.floor.fetch_max(time, Ordering::Relaxed);
        }
        (time << ORDINAL_BITS) | (thread_ordinal() as u64 & ((1 << ORDINAL_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_one_thread_strictly_increase() {
        let clock = RecencyClock::new();
        let stamps: Vec<u64> = (0..1_000).map(|_| clock.stamp()).collect();
        assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_thread_that_slept_through_many_uses_stamps_after_them() {
        let clock = RecencyClock::new();
        let early = clock.stamp();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..10 * STRIDE).for_each(|_| _ = clock.stamp()));
        });
        assert!(clock.stamp() >> ORDINAL_BITS > (early >> ORDINAL_BITS) + 9 * STRIDE);
    }

    #[test]
    fn no_two_threads_give_the_same_stamp() {
        let clock = RecencyClock::new();
        let stamps = || (0..1_000).map(|_| clock.stamp()).collect::<Vec<u64>>();
        let (mut a, b) = std::thread::scope(|scope| {
            let (a, b) = (scope.spawn(stamps), scope.spawn(stamps));
            (a.join().unwrap(), b.join().unwrap())
        });
        a.extend(b);
        a.sort_unstable();
        assert!(a.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
