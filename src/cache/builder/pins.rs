//! The budget of pins.

use super::checks::invalid;
use super::{PagedKvCacheBuilder, Watermark};
use crate::error::Result;

/// The share of the blocks that can be pinned by default.
pub(super) const DEFAULT_BUDGET: Watermark = Watermark::Share(0.2);

impl PagedKvCacheBuilder {
    /// Sets the most blocks that [pins](crate::Retained::pin) may have, by default a fifth of all. Pinned blocks are no
    /// room for requests. Without [`prefix_reuse`](Self::prefix_reuse) nothing is cached, and every pin is refused.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// use paged_kv::{PagedKvCache, PinAnswer, SeqId, Watermark};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = builder.pin_budget(Watermark::Blocks(2)).build()?;
    /// cache.admit(SeqId(1), &[7; 12])?;
    /// cache.commit(SeqId(1), 12)?;
    /// let until = Instant::now() + Duration::from_secs(60);
    /// let answer = cache.retention().pin(&cache.prompt(&[7; 12]), until)?;
    /// assert!(matches!(&answer, PinAnswer::Clipped { pin, .. } if pin.num_tokens() == 8));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn pin_budget(self, budget: Watermark) -> Self {
        Self { pin_budget: budget, ..self }
    }

    /// Returns the blocks of the budget, of a pool of `total` blocks.
    pub(super) fn checked_pin_budget(&self, total: usize) -> Result<usize> {
        match self.pin_budget {
            Watermark::Blocks(blocks) => Ok(blocks.min(total)),
            Watermark::Share(share) if (0.0..=1.0).contains(&share) => {
                Ok((share * total as f64).ceil() as usize)
            }
            Watermark::Share(share) => invalid("pin_budget", format!("{share} is not in 0..=1")),
        }
    }
}
