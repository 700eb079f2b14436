//! How many hold a lease on a sequence? A count, which says too that what they did can be seen.
//!
//! It does not know the sequence, nor who must not begin one meanwhile.

use crate::sync::{AtomicU32, Ordering};

/// The leases on one sequence.
pub(super) struct Leases(AtomicU32);

impl Leases {
    pub(super) fn none() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(super) fn count(&self) -> u32 {
        // Acquire: pairs with `end`; who finds no lease sees what its holder did.
        // Loom: an_eviction_sees_what_a_lease_did.
        self.0.load(Ordering::Acquire)
    }

    /// One more lease. The caller holds the lock of the map shard.
    pub(super) fn begin(&self) {
        // Relaxed: the shard's lock orders it against removal.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX, "a sequence has at most u32::MAX leases");
    }

    /// One lease fewer. Needs no map.
    pub(super) fn end(&self) {
        // Release: pairs with the load in `count`.
        self.0.fetch_sub(1, Ordering::Release);
    }
}
