//! `KeptSlot`: an unused slot that a shard keeps, apart from the slab's queue.

use super::slab::{IdleSlab, NO_SLOT};
use crate::sync::{AtomicU32, Ordering};

/// An unused slot that a shard keeps, so that a list that grows as fast as it shrinks leaves the slab's queue
/// alone.
pub(super) struct KeptSlot(AtomicU32);

// All accesses are Relaxed: they are made under the claim of the shard.
impl KeptSlot {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(NO_SLOT))
    }

    pub(super) fn take(&self, slab: &IdleSlab) -> u32 {
        match self.0.load(Ordering::Relaxed) {
            NO_SLOT => slab.take(),
            kept => {
                self.0.store(NO_SLOT, Ordering::Relaxed);
                kept
            }
        }
    }

    pub(super) fn give(&self, slot: u32, slab: &IdleSlab) {
        match self.0.load(Ordering::Relaxed) {
            NO_SLOT => self.0.store(slot, Ordering::Relaxed),
            _ => slab.give(slot),
        }
    }

    /// Returns true if the next slot comes from the slab's queue.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NO_SLOT
    }
}
