//! Which of two uses came later? Stamps that order uses without a line that every use writes.
//!
//! A thread stamps `max(its last stamp, the shared floor) + 1` and raises the shared floor once
//! in [`STRIDE`] stamps. On one thread stamps strictly increase. Between threads a stamp runs
//! ahead of the floor by at most `STRIDE`, so two uses can be out of order only if fewer than
//! that many uses of one thread lie between them. A logical clock rather than a coarse wall clock:
//! tests need no sleeping, and a busy thread tells more than two uses every 5 ms apart.
//!
//! It does not know what is stamped.

use std::cell::Cell;

use crate::sync::{AtomicU64, CachePadded, Ordering};

/// Stamps one thread may give before it tells the others.
const STRIDE: u64 = 64;

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

    /// A stamp above every stamp this thread has given.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        // Relaxed: stamps choose victims, they guard nothing.
        let floor = self.floor.load(Ordering::Relaxed);
        let stamp = LAST.get().max(floor) + 1;
        LAST.set(stamp);
        if stamp >= floor + STRIDE {
            self.floor.fetch_max(stamp, Ordering::Relaxed);
        }
        stamp
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
        assert!(clock.stamp() > early + 9 * STRIDE);
    }
}
