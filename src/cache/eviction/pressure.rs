//! [`Pressure`]: compares the blocks in use with a threshold. Blocks that will be free when the open steps
//! end do not count.

use crate::cache::PagedKvCache;
use crate::pool::in_flight::coming::Coming;

/// How far a cache is above a threshold, checked repeatedly while it evicts.
pub(super) struct Pressure<'a> {
    cache: &'a PagedKvCache,
    threshold: f64,
    coming: Coming,
    /// As of the last check.
    blocks_in_use: usize,
}

impl<'a> Pressure<'a> {
    pub(super) fn new(cache: &'a PagedKvCache, threshold: f64) -> Self {
        Self { cache, threshold, coming: Coming::new(), blocks_in_use: 0 }
    }

    /// Returns true if utilization would be above the threshold once the open steps have ended.
    pub(super) fn is_above(&mut self) -> bool {
        self.exceeds(|utilization, threshold| utilization > threshold)
    }

    /// Returns true if utilization would be at or above the threshold once the open steps have ended.
    pub(super) fn is_at_or_above(&mut self) -> bool {
        self.exceeds(|utilization, threshold| utilization >= threshold)
    }

    /// Returns the number of blocks above the threshold at the last check.
    pub(super) fn excess(&self) -> usize {
        (self.blocks_in_use as f64 - self.threshold * self.cache.total_blocks() as f64) as usize
    }

    fn exceeds(&mut self, is_too_high: impl Fn(f64, f64) -> bool) -> bool {
        let blocks = self.cache.pool.blocks();
        self.blocks_in_use = self.coming.in_use(blocks);
        if self.is_too_much(&is_too_high) {
            return true;
        }
        // Before the caller stops evicting, count everything again: other owners may have appeared since.
        if let Some(blocks_in_use) = self.coming.reread_in_use(blocks) {
            self.blocks_in_use = blocks_in_use;
        }
        self.is_too_much(&is_too_high)
    }

    fn is_too_much(&self, is_too_high: impl Fn(f64, f64) -> bool) -> bool {
        let utilization = self.blocks_in_use as f64 / self.cache.total_blocks() as f64;
        is_too_high(utilization, self.threshold)
    }
}
