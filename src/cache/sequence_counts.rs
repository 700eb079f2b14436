//! [`SequenceCounts`]: the number of sequences in each shard of the map, read without the locks of the shards.
//!
//! A thread that inserts or removes a sequence counts it while it holds the lock of the map shard. So one
//! thread at a time writes a count, with a plain store. A thread that reads the counts waits for no thread.
//!
//! Invariant: while no thread holds a lock of a map shard, each count is the number of entries of its shard.

use crate::sync::{AtomicUsize, Ordering};

/// The number of sequences in each shard of the map.
pub(super) struct SequenceCounts {
    of_shards: Box<[Count]>,
}

/// The number of sequences in one shard, on a cache line that is written under that shard's lock only.
#[repr(align(64))]
struct Count(AtomicUsize);

impl SequenceCounts {
    pub(super) fn new(num_shards: usize) -> Self {
        Self { of_shards: (0..num_shards).map(|_| Count(AtomicUsize::new(0))).collect() }
    }

    /// Counts a sequence that is inserted into this shard, for the holder of the shard's lock.
    #[inline]
    pub(super) fn inserted(&self, shard: usize) {
        let Count(count) = &self.of_shards[shard];
        // Relaxed: a statistic; the shard's lock orders its writers.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Counts a sequence that is removed from this shard, for the holder of the shard's lock.
    #[inline]
    pub(super) fn removed(&self, shard: usize) {
        let Count(count) = &self.of_shards[shard];
        // Relaxed: as in `inserted`.
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Returns the number of sequences in all shards. Under load each shard is read at a moment of its own.
    pub(super) fn sum(&self) -> usize {
        self.of_shards.iter().map(|Count(count)| count.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_into_one_shard_and_left_another_is_counted_for_each() {
        let counts = SequenceCounts::new(2);
        [0, 0, 1].into_iter().for_each(|shard| counts.inserted(shard));
        assert_eq!(counts.sum(), 3);
        counts.removed(0);
        counts.removed(1);
        assert_eq!(counts.sum(), 1);
    }
}
