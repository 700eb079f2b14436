//! `Choice`: the shard from which a thread reclaims, until it compares shards again.

use crate::pool::idle::ShownFirst;
use crate::sync::{AtomicU32, AtomicU64};

/// The number of no shard: free blocks were not looked for yet.
pub(super) const NEVER: u32 = u32::MAX;

/// The shard from which the holder of a claim reclaims next.
pub(super) struct Choice {
    /// The number of the shard.
    pub(super) shard: AtomicU32,
    /// The shard that is looked at next.
    pub(super) next: AtomicU32,
    /// Blocks that may still be reclaimed there.
    pub(super) credit: AtomicU32,
    /// The least age of the blocks to reclaim there.
    pub(super) age: AtomicU64,
    /// In a learned order, the first block of the best other shard.
    pub(super) rival: ShownFirst,
    /// The shard at which free blocks were looked for last, or [`NEVER`].
    pub(super) next_free: AtomicU32,
    /// Blocks that were gathered since the last such look.
    pub(super) unlooked: AtomicU32,
    /// Blocks that were taken since the peak was noted.
    pub(super) unnoted: AtomicU32,
}

impl Choice {
    pub(super) fn new() -> Self {
        let [shard, next, credit, unlooked, unnoted] = std::array::from_fn(|_| AtomicU32::new(0));
        let (next_free, age) = (AtomicU32::new(NEVER), AtomicU64::new(0));
        Self { shard, next, credit, next_free, unlooked, unnoted, age, rival: ShownFirst::new() }
    }
}
