//! Checks of the parameters of a cache, each and together, before anything is allocated.

use super::{PagedKvCacheBuilder, Watermark};
use crate::array::refuse_beyond_memory;
use crate::cache::eviction::strategy::EvictionStrategy;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::pool::{MOST_BLOCKS, checked_shards, default_shards, default_shards_of_cache};

/// Bytes of one element of K or V (f16), unless the bytes of a block are given.
const ELEMENT_BYTES: usize = 2;

/// Bytes that a cache takes for each block, or slightly fewer: see `tests/no_allocation.rs`.
const BARE_BLOCK_BYTES: usize = 12;

/// Bytes of a block where contents are kept.
const CACHED_BLOCK_BYTES: usize = 80;

/// Further bytes where events are emitted, tokens not counted.
const HEARD_BLOCK_BYTES: usize = 80;

impl PagedKvCacheBuilder {
    /// Checks every parameter, and every value that is computed from several, before anything is allocated.
    pub(super) fn check(&self) -> Result<Checked> {
        for (parameter, value) in [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("block_bytes", self.block_bytes.unwrap_or(1)),
            ("home_shards", self.home_shards.unwrap_or(1)),
        ] {
            if value == 0 {
                return invalid(parameter, "0, at least 1 needed".to_owned());
            }
        }
        if self.num_blocks > MOST_BLOCKS {
            return invalid(
                "num_blocks",
                format!("{}, at most {MOST_BLOCKS} have ids", self.num_blocks),
            );
        }
        if !(0.0..=1.0).contains(&self.eviction_threshold) {
            return invalid(
                "eviction_threshold",
                format!("{} is not in 0..=1", self.eviction_threshold),
            );
        }
        if self.eviction_strategy == (EvictionStrategy::Priority { levels: 0 }) {
            return invalid("eviction_strategy", "0 priority levels, at least 1 needed".to_owned());
        }
        let layout = self.checked_layout()?;
        // One block more: so the length of all blocks and one more never overflows.
        let block_size = self.largest_block_size();
        if (self.num_blocks as u64 + 1).checked_mul(block_size as u64).is_none() {
            return invalid("block_size", format!("{block_size}: slots overflow 64 bits"));
        }
        let total = self.num_blocks - usize::from(self.null_block);
        if total == 0 {
            return invalid("num_blocks", "1, at least 2 needed".to_owned());
        }
        let shards = match self.prefix_reuse {
            true => default_shards_of_cache(self.num_blocks, self.reclaim_policy),
            false => default_shards(self.num_blocks),
        };
        Ok(Checked {
            block_bytes: self.checked_block_bytes()?,
            shards: checked_shards(self.home_shards.unwrap_or(shards))?,
            watermark: self.checked_watermark(total)?,
            pin_budget: self.checked_pin_budget(total)?,
            layout,
        })
    }

    /// Refuses an excessive size before the first array is filled. Each array also refuses its own size.
    pub(super) fn refuse_beyond_memory(&self, has_event_sink: bool) -> Result<()> {
        let bytes = if self.prefix_reuse { CACHED_BLOCK_BYTES } else { BARE_BLOCK_BYTES };
        let bytes = if has_event_sink { bytes + HEARD_BLOCK_BYTES } else { bytes };
        refuse_beyond_memory::<u8>(self.num_blocks.saturating_mul(bytes))
    }

    fn checked_watermark(&self, total: usize) -> Result<usize> {
        let blocks = match self.watermark {
            Watermark::Blocks(blocks) => blocks,
            Watermark::Share(share) if (0.0..=1.0).contains(&share) => {
                (share * total as f64).ceil() as usize
            }
            Watermark::Share(share) => {
                return invalid("watermark", format!("{share} is not in 0..=1"));
            }
        };
        if blocks < total {
            return Ok(blocks);
        }
        invalid("watermark", format!("{blocks} of {total} blocks, which leaves none to come in"))
    }

    fn checked_block_bytes(&self) -> Result<usize> {
        let elements = [self.num_heads, self.head_dim, 2, ELEMENT_BYTES]
            .into_iter()
            .try_fold(self.first_block_size(), usize::checked_mul);
        let block_bytes = self.block_bytes.or(elements);
        match block_bytes.filter(|bytes| bytes.checked_mul(self.num_blocks).is_some()) {
            Some(bytes) => Ok(bytes),
            None => invalid("block_bytes", "the bytes of all blocks overflow".to_owned()),
        }
    }
}

/// Values computed from the parameters.
pub(super) struct Checked {
    pub(super) block_bytes: usize,
    pub(super) shards: usize,
    pub(super) watermark: usize,
    pub(super) pin_budget: usize,
    pub(super) layout: Option<GroupLayout>,
}

pub(super) fn invalid<T>(parameter: &'static str, reason: String) -> Result<T> {
    Err(PagedKvError::InvalidConfig { parameter, reason })
}
