//! `ShardedCounter`: a count that many threads add to, without a cache line that they all write.
//!
//! Each thread adds to the cell of its ordinal; the sum is read over all cells. The sum never misses an
//! addition that happened before the read.

use crate::sync::{AtomicU64, CachePadded, Ordering, thread_ordinal};

const CELLS: usize = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 16 } else { 64 };

/// A count that many threads add to, each mostly in a cache line of its own.
pub(crate) struct ShardedCounter {
    cells: Box<[CachePadded<AtomicU64>]>,
}

impl ShardedCounter {
    pub(crate) fn new() -> Self {
        Self { cells: (0..CELLS).map(|_| CachePadded::new(AtomicU64::new(0))).collect() }
    }

    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // Relaxed: a statistic orders nothing; threads that share a cell need the atomicity only.
        self.cells[thread_ordinal() % CELLS].fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sum(&self) -> u64 {
        // The sum wraps, as the cells do.
        let cells = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed));
        cells.fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt may have any length, so counts of tokens may overflow.
    #[test]
    fn a_sum_beyond_64_bits_wraps_around() {
        let counter = ShardedCounter::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| counter.add(u64::MAX - 1));
            }
        });
        assert_eq!(counter.sum(), u64::MAX - 7);
    }

    #[test]
    fn no_addition_is_lost_between_threads() {
        let counter = ShardedCounter::new();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!(counter.sum(), 40_000);
    }
}
