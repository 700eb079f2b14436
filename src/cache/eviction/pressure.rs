//! Is more in use than a threshold allows? [`Pressure`]: blocks in use, but for those that will be free
//! when the open steps end.
//!
//! It does not know who could go.

use crate::cache::PagedKvCache;
use crate::pool::fence::coming::Coming;

/// How far a cache is above a threshold, asked again and again while it evicts.
pub(super) struct Pressure<'a> {
    cache: &'a PagedKvCache,
    threshold: f64,
    coming: Coming,
    /// As of the last look.
    blocks_in_use: usize,
}

impl<'a> Pressure<'a> {
    pub(super) fn new(cache: &'a PagedKvCache, threshold: f64) -> Self {
        Self { cache, threshold, coming: Coming::new(), blocks_in_use: 0 }
    }

    /// True if utilization would be above the threshold once the steps that are open have ended.
    pub(super) fn is_above(&mut self) -> bool {
        self.exceeds(|utilization, threshold| utilization > threshold)
    }

    /// The same, or at it.
    pub(super) fn is_at_or_above(&mut self) -> bool {
        self.exceeds(|utilization, threshold| utilization >= threshold)
    }

    /// Blocks by which it was above, at the last look.
    pub(super) fn excess(&self) -> usize {
        (self.blocks_in_use as f64 - self.threshold * self.cache.total_blocks() as f64) as usize
    }

    fn exceeds(&mut self, is_too_high: impl Fn(f64, f64) -> bool) -> bool {
        let blocks = self.cache.pool.blocks();
        self.blocks_in_use = self.coming.in_use(blocks);
        if self.is_too_much(&is_too_high) {
            return true;
        }
        // It is to end here: then by a look at everything.
        if let Some(blocks_in_use) = self.coming.in_use_anew(blocks) {
            self.blocks_in_use = blocks_in_use;
        }
        self.is_too_much(&is_too_high)
    }

    fn is_too_much(&self, is_too_high: impl Fn(f64, f64) -> bool) -> bool {
        let utilization = self.blocks_in_use as f64 / self.cache.total_blocks() as f64;
        is_too_high(utilization, self.threshold)
    }
}
