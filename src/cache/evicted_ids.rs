//! Which sequences were evicted, and their owners do not know? Ids that are said to be evicted rather
//! than missing.
//!
//! Invariant: an id is here only while no sequence of that id is in the map. It is noted and forgotten
//! under the lock of its map shard; the lock here is taken behind that one, and none behind it.

use std::collections::HashSet;

use crate::id::SeqId;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Ids of evicted sequences that had an owner.
pub(super) struct EvictedIds {
    /// How many, so that mostly nobody takes the lock.
    len: AtomicUsize,
    ids: Mutex<HashSet<SeqId>>,
}

impl EvictedIds {
    pub(super) fn new() -> Self {
        Self { len: AtomicUsize::new(0), ids: Mutex::new(HashSet::new()) }
    }

    /// The caller holds the lock of the id's map shard.
    pub(super) fn note(&self, id: SeqId) {
        let mut ids = self.ids.lock();
        ids.insert(id);
        // Relaxed: who asks for this id comes by the lock of its map shard.
        self.len.store(ids.len(), Ordering::Relaxed);
    }

    /// True if it was here.
    pub(super) fn forget(&self, id: SeqId) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut ids = self.ids.lock();
        let was_here = ids.remove(&id);
        self.len.store(ids.len(), Ordering::Relaxed);
        was_here
    }

    pub(super) fn contains(&self, id: SeqId) -> bool {
        !self.is_empty() && self.ids.lock().contains(&id)
    }

    fn is_empty(&self) -> bool {
        // Relaxed: as in `note`.
        self.len.load(Ordering::Relaxed) == 0
    }
}
