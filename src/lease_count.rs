//! `LeaseCount`: the number of leases on one sequence. A thread that reads zero sees every act of the lease
//! holders.
//!
//! A sequence that leaves the map while it is leased is *detached*: the end of its last lease releases it.

use crate::sync::{AtomicU32, Ordering, fence};

/// Set once the sequence has left the map.
const DETACHED: u32 = 1 << 31;

/// The leases on one sequence.
pub(crate) struct LeaseCount(AtomicU32);

impl LeaseCount {
    pub(crate) fn none() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn count(&self) -> u32 {
        // Acquire: pairs with `end`; a thread that finds no lease sees every act of the holders.
        // Loom: an_eviction_sees_the_accesses_of_a_lease.
        self.0.load(Ordering::Acquire) & !DETACHED
    }

    /// Counts one more lease. The caller holds the lock of the map shard.
    pub(crate) fn begin(&self) {
        // Relaxed: the shard's lock orders it against removal.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(before < DETACHED - 1, "a sequence has fewer than 2^31 leases");
    }

    /// Counts one lease fewer, without the map. Returns true if it was the last of a detached sequence.
    pub(crate) fn end(&self) -> bool {
        // Release: pairs with the load in `count`.
        let was_last = self.0.fetch_sub(1, Ordering::Release) == DETACHED | 1;
        if was_last {
            // Acquire: pairs with the other ends; the release of the sequence comes after all holders' acts.
            fence(Ordering::Acquire);
        }
        was_last
    }

    /// Notes that the sequence has left the map, so that no further lease begins. Returns true if it has
    /// none.
    pub(crate) fn detach(&self) -> bool {
        // Acquire: pairs with `end`, as in `count`. The later one of this call and the end of the last
        // lease, in the order of this word, releases the sequence.
        self.0.fetch_or(DETACHED, Ordering::Acquire) == 0
    }
}
