//! `OwnerCounts`: how many owners of each block are counts by id. A release by id may remove only these.
//!
//! Owners through tables and runs are counted by the block's word only, and not here.

use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{AtomicU32, Ordering};

/// How many of each block's owners are counts by id, and may be removed by a release by id.
pub(crate) struct OwnerCounts {
    counts: Box<[AtomicU32]>,
}

impl OwnerCounts {
    pub(crate) fn new(num_blocks: usize) -> Result<Self> {
        Ok(Self { counts: array_of(num_blocks, || AtomicU32::new(0))? })
    }

    /// Counts an owner by id. The block's word must have counted it before.
    pub(crate) fn add(&self, id: BlockId) {
        // Relaxed: pairs with nothing. A release by id that may rely on it comes after this call.
        self.counts[id.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Removes one count, before the block's word does. Returns `None` if none is left.
    pub(crate) fn remove(&self, id: BlockId) -> Option<()> {
        let count = &self.counts[id.index()];
        // Relaxed: of two racing releases of the last count, atomicity lets one pass; the word orders
        // the rest.
        let removed =
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        removed.ok().map(|_| ())
    }
}
