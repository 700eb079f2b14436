//! How many owners of a block are counts by id? What a release by id may take off.
//!
//! It does not know tables: their owners are none of its.

use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{AtomicU32, Ordering};

/// How many of each block's owners are counts by id: what a release by id may take off.
pub(crate) struct IdCounts {
    counts: Box<[AtomicU32]>,
}

impl IdCounts {
    pub(crate) fn new(num_blocks: usize) -> Result<Self> {
        Ok(Self { counts: array_of(num_blocks, || AtomicU32::new(0))? })
    }

    /// Counts an owner that the block's word has counted already.
    pub(crate) fn add(&self, id: BlockId) {
        // Relaxed: pairs with nothing. A release by id that may rely on it comes after this call.
        self.counts[id.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back one count, before the block's word does. `None` if there is none left.
    pub(crate) fn remove(&self, id: BlockId) -> Option<()> {
        let count = &self.counts[id.index()];
        // Relaxed: of two racing releases the atomicity lets one pass; the word orders the rest.
        let removed =
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        removed.ok().map(|_| ())
    }
}
