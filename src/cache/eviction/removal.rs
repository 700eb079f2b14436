//! How does a victim leave? By its epoch and under the lock of its map shard, if it is still as it was
//! chosen.
//!
//! Invariant: a sequence that is leased at that moment stays, so does another one of the same id, and so
//! does one that has another worker by now, if it was chosen for its worker.

use std::cell::Cell;

use crate::cache::PagedKvCache;
use crate::cache::slot::{Live, SharedSlot, Slot};
use crate::evict::EvictionKey;
use crate::id::{SeqId, Worker};
use crate::sync::{Arc, AtomicU64, Later, Ordering, thread_local};

thread_local! {
    /// Evictions that this thread has begun and not ended: more than one if a waker evicts.
    static UNDER_WAY: Cell<u64> = const { Cell::new(0) };
}

/// Evictions that a thread must not wait for, because they wait for it: it evicts in a waker of its own
/// eviction.
pub(super) fn evictions_of_this_thread() -> u64 {
    UNDER_WAY.with(Cell::get)
}

/// Says, also after a panic, that an eviction is over.
struct Over<'a>(&'a AtomicU64);

impl<'a> Over<'a> {
    fn new(evictions_over: &'a AtomicU64) -> Self {
        UNDER_WAY.with(|under_way| under_way.set(under_way.get() + 1));
        Self(evictions_over)
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        UNDER_WAY.with(|under_way| under_way.set(under_way.get() - 1));
        // Release: pairs with the load in `evict`; what this eviction gave back is seen.
        // Loom: of_two_evictions_of_sharers_by_content_each_finds_one.
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// What came of an attempt under the lock of a map shard.
enum Attempt {
    /// It is out of the map.
    Out(Live),
    /// It is not there as it was chosen, or it is leased.
    Missed,
    /// Another thread is at it.
    Busy(Arc<SharedSlot>),
}

impl PagedKvCache {
    /// Removes the sequence of `key`, if nobody leases it and it is `Some` worker's, and looks at it before
    /// its blocks are released.
    pub(super) fn evict_one<R>(
        &self,
        key: &EvictionKey,
        worker: Option<Worker>,
        look: impl FnOnce(&Live) -> R,
    ) -> Option<R> {
        // A waiter that is woken by this eviction finds it over.
        let _later = Later::begin();
        let live = loop {
            match self.try_take_victim(key, worker) {
                Attempt::Out(live) => break live,
                Attempt::Missed => return None,
                // Wait for that thread without the map's lock.
                Attempt::Busy(shared) => drop(shared.write()),
            }
        };
        let over = Over::new(&self.evictions_over);
        let seen = look(&live);
        drop(live);
        drop(over);
        self.evictions.add(1);
        self.tell_if_stalled();
        Some(seen)
    }

    fn try_take_victim(&self, key: &EvictionKey, worker: Option<Worker>) -> Attempt {
        let (mut taken, mut busy) = (None, None);
        let is_meant = |live: &Live| worker.is_none() || live.worker == worker;
        let may_go = |_: &SeqId, slot: &Slot| {
            if slot.epoch() != key.epoch || slot.leases() > 0 {
                return false;
            }
            let is_owned = match slot {
                Slot::Owned(live) => is_meant(live).then_some(live.worker.is_some()),
                Slot::Shared(shared) => match shared.try_write() {
                    // Out of there too, so that no one who waits for its lock changes it any more.
                    Some(mut live) => {
                        taken = live.take_if(|live| is_meant(live));
                        taken.as_ref().map(|live| live.worker.is_some())
                    }
                    None => {
                        busy = Some(Arc::clone(shared));
                        None
                    }
                },
            };
            if let Some(is_owned) = is_owned {
                self.begin_eviction(key, is_owned);
            }
            is_owned.is_some()
        };
        let removed = self.sequences.remove_if(&key.seq_id, may_go);
        match removed.and_then(|(_, slot)| taken.or_else(|| slot.into_live())) {
            Some(live) => Attempt::Out(live),
            None => busy.map_or(Attempt::Missed, Attempt::Busy),
        }
    }

    /// Notes an eviction while the lock of the map shard is held.
    fn begin_eviction(&self, key: &EvictionKey, is_owned: bool) {
        // Relaxed: who misses the sequence in the map has had the lock of its shard after this.
        self.evictions_begun.fetch_add(1, Ordering::Relaxed);
        if is_owned {
            self.evicted.note(key.seq_id, key.epoch);
        }
    }
}
