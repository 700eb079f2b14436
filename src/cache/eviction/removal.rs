//! Removal of a victim: by its epoch and under the lock of its map shard, if it is still as it was chosen.
//!
//! Invariant: a sequence that is leased at that moment stays, and so does another sequence of the same id.
//! A sequence that was chosen for its worker stays if it has another worker by now.

use std::cell::Cell;

use super::strategy::EvictionKey;
use crate::cache::PagedKvCache;
use crate::cache::entry::{MapEntry, SharedEntry, TrackedSequence};
use crate::id::{SeqId, Worker};
use crate::sync::{Arc, AtomicU64, Later, Ordering, thread_local};
use crate::trace::TraceEvent;

thread_local! {
    /// Evictions that this thread has begun and not ended: more than one if a waker evicts.
    static UNDER_WAY: Cell<u64> = const { Cell::new(0) };
}

/// Returns the number of evictions that a thread must not wait for, because they wait for it: it evicts in
/// a waker of its own eviction.
pub(super) fn evictions_of_this_thread() -> u64 {
    UNDER_WAY.with(Cell::get)
}

/// Counts the end of an eviction when it is dropped, also after a panic.
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
        // Release: pairs with the load in `evict`; its thread sees the blocks that this eviction released.
        // Loom: of_two_evictions_of_sharers_by_content_each_finds_one.
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The outcome of an attempt under the lock of a map shard.
enum TakeAttempt {
    /// The sequence is out of the map.
    Out(TrackedSequence),
    /// The map does not have the chosen sequence as it was, or the sequence is leased.
    Missed,
    /// Another thread uses it.
    Busy(Arc<SharedEntry>),
}

impl PagedKvCache {
    /// Removes the sequence of `key`, if it is unleased and, with `Some` worker, belongs to that worker.
    /// Calls `look` before its blocks are released.
    pub(super) fn evict_one<R>(
        &self,
        key: &EvictionKey,
        worker: Option<Worker>,
        look: impl FnOnce(&TrackedSequence) -> R,
    ) -> Option<R> {
        // A waiter that this eviction wakes finds the eviction ended.
        let _later = Later::begin();
        let tracked = loop {
            match self.try_take_victim(key, worker) {
                TakeAttempt::Out(tracked) => break tracked,
                TakeAttempt::Missed => return None,
                // Wait for that thread without the map's lock.
                TakeAttempt::Busy(shared) => drop(shared.write()),
            }
        };
        let over = Over::new(&self.evictions_over);
        let seen = look(&tracked);
        let sequence = tracked.sequence();
        let (num_tokens, num_blocks) = (sequence.num_tokens(), sequence.num_owned_blocks());
        drop(tracked);
        drop(over);
        self.evictions.add(1);
        TraceEvent::Evicted { id: key.seq_id, num_tokens, num_blocks }.emit();
        self.tell_if_stalled();
        Some(seen)
    }

    fn try_take_victim(&self, key: &EvictionKey, worker: Option<Worker>) -> TakeAttempt {
        let (mut taken, mut busy) = (None, None);
        let is_meant = |tracked: &TrackedSequence| worker.is_none() || tracked.worker == worker;
        let may_go = |_: &SeqId, entry: &MapEntry| {
            if entry.epoch() != key.epoch || entry.leases() > 0 {
                return false;
            }
            let is_owned = match entry {
                MapEntry::Owned(tracked) => is_meant(tracked).then_some(tracked.worker.is_some()),
                MapEntry::Shared(shared) => match shared.try_write() {
                    // Taken out of the shared entry too, so that no thread that waits for its lock changes
                    // it.
                    Some(mut tracked) => {
                        taken = tracked.take_if(|tracked| is_meant(tracked));
                        taken.as_ref().map(|tracked| tracked.worker.is_some())
                    }
                    None => {
                        busy = Some(Arc::clone(shared));
                        None
                    }
                },
            };
            if let Some(is_owned) = is_owned {
                self.count_removed(key.seq_id);
                self.begin_eviction(key, is_owned);
            }
            is_owned.is_some()
        };
        let removed = self.sequences.remove_if(&key.seq_id, may_go);
        match removed.and_then(|(_, entry)| taken.or_else(|| entry.into_live())) {
            Some(tracked) => TakeAttempt::Out(tracked),
            None => busy.map_or(TakeAttempt::Missed, TakeAttempt::Busy),
        }
    }

    /// Notes an eviction while the lock of the map shard is held.
    fn begin_eviction(&self, key: &EvictionKey, is_owned: bool) {
        // Relaxed: a thread that misses the sequence in the map has taken the lock of its shard after this.
        self.evictions_begun.fetch_add(1, Ordering::Relaxed);
        if is_owned {
            self.evicted.note(key.seq_id, key.epoch);
        }
    }
}
