//! `Choice`: the shard from which a thread reclaims, until it compares shards again.

use crate::sync::{AtomicU32, AtomicU64};

/// The shard from which the holder of a claim reclaims next.
pub(super) struct Choice {
    /// The number of the shard.
    pub(super) shard: AtomicU32,
    /// The shard that is looked at next.
    pub(super) next: AtomicU32,
    /// Blocks that may still be reclaimed there.
    pub(super) credit: AtomicU32,
    /// The shard at which free blocks are looked for next.
    pub(super) next_free: AtomicU32,
    /// Blocks that were gathered since the last such look.
    pub(super) unlooked: AtomicU32,
    /// Blocks that were taken since the peak was noted.
    pub(super) unnoted: AtomicU32,
    /// The least age of these blocks.
    pub(super) age: AtomicU64,
}

impl Choice {
    pub(super) fn new() -> Self {
        let [shard, next, credit, next_free, unlooked, unnoted] =
            std::array::from_fn(|_| AtomicU32::new(0));
        Self { shard, next, credit, next_free, unlooked, unnoted, age: AtomicU64::new(0) }
    }
}
