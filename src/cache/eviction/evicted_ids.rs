//! [`EvictedIds`]: the latest evicted sequences whose workers have not been informed. An operation on such
//! an id is refused with `SequenceEvicted`, not `SequenceNotFound`.
//!
//! An id stays until its worker frees it. At most [`MOST`] ids stay: beyond that the oldest is forgotten,
//! and is missing like any other. So workers that never ask cost about 3 MB at most. Every operation is
//! amortized `O(1)`.
//!
//! Invariant: an id is here only while no sequence of that id is in the map. A thread notes and forgets an
//! id under the lock of its map shard. It takes the lock here after that one, and no lock after the lock
//! here.

use std::collections::{HashMap, VecDeque};

use crate::id::{AdmissionEpoch, SeqId};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// The most ids that are remembered.
const MOST: usize = 1 << 16;

/// Ids of evicted sequences that had a worker.
pub(in crate::cache) struct EvictedIds {
    /// Number of ids, so that most calls do not take the lock.
    len: AtomicUsize,
    /// Number of ids that were forgotten because the table was full.
    forgotten: AtomicU64,
    latest: Mutex<Latest>,
}

/// The latest ids, in a bounded number.
struct Latest {
    most: usize,
    ids: HashMap<SeqId, AdmissionEpoch>,
    /// Ids in the order in which they were noted, the oldest first. An entry that was forgotten since has
    /// another epoch in `ids`, or none.
    order: VecDeque<(SeqId, AdmissionEpoch)>,
    /// Number of ids that were forgotten because the table was full.
    forgotten: u64,
}

impl EvictedIds {
    pub(in crate::cache) fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            forgotten: AtomicU64::new(0),
            latest: Mutex::new(Latest::new(MOST)),
        }
    }

    /// Notes the sequence of that epoch. The caller holds the lock of the id's map shard.
    pub(in crate::cache) fn note(&self, id: SeqId, epoch: AdmissionEpoch) {
        let mut latest = self.latest.lock();
        latest.note(id, epoch);
        // Relaxed: a thread that asks for this id has taken the lock of its map shard.
        self.len.store(latest.ids.len(), Ordering::Relaxed);
        // Relaxed: a statistic.
        self.forgotten.store(latest.forgotten, Ordering::Relaxed);
    }

    /// Forgets an id, and returns the epoch of its evicted sequence, if it was here.
    pub(in crate::cache) fn forget(&self, id: SeqId) -> Option<AdmissionEpoch> {
        if self.is_empty() {
            return None;
        }
        let mut latest = self.latest.lock();
        let evicted = latest.ids.remove(&id);
        self.len.store(latest.ids.len(), Ordering::Relaxed);
        evicted
    }

    /// Returns true if the last sequence of that id was evicted and, with `Some` epoch, had that epoch.
    pub(in crate::cache) fn contains(&self, id: SeqId, epoch: Option<AdmissionEpoch>) -> bool {
        if self.is_empty() {
            return false;
        }
        let evicted = self.latest.lock().ids.get(&id).copied();
        evicted.is_some_and(|evicted| epoch.is_none_or(|epoch| epoch == evicted))
    }

    /// Returns how many ids are remembered, and how many were forgotten because the table was full. Takes
    /// no lock, because a thread with the lock here may also hold a map shard's.
    pub(in crate::cache) fn counts(&self) -> (usize, u64) {
        (self.len.load(Ordering::Relaxed), self.forgotten.load(Ordering::Relaxed))
    }

    /// Locks the ids, as a thread does that notes or forgets one.
    #[cfg(test)]
    pub(in crate::cache) fn lock(&self) -> impl Sized + '_ {
        self.latest.lock()
    }

    fn is_empty(&self) -> bool {
        // Relaxed: as in `note`.
        self.len.load(Ordering::Relaxed) == 0
    }
}

impl Latest {
    fn new(most: usize) -> Self {
        Self { most, ids: HashMap::new(), order: VecDeque::new(), forgotten: 0 }
    }

    fn note(&mut self, id: SeqId, epoch: AdmissionEpoch) {
        self.ids.insert(id, epoch);
        self.order.push_back((id, epoch));
        while self.ids.len() > self.most
            && let Some((oldest, epoch)) = self.order.pop_front()
        {
            if self.ids.get(&oldest) == Some(&epoch) {
                self.ids.remove(&oldest);
                self.forgotten += 1;
            }
        }
        // Workers usually free their ids, and then no entry reaches the front: drop the entries of freed
        // ids here.
        if self.order.len() > 2 * self.ids.len().max(32) {
            self.order.retain(|(id, epoch)| self.ids.get(id) == Some(epoch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latest_of(latest: &Latest) -> Vec<u64> {
        let mut ids: Vec<u64> = latest.ids.keys().map(|id| id.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn the_oldest_id_is_forgotten_when_there_is_no_place_for_one_more() {
        let mut latest = Latest::new(3);
        (1..=3).for_each(|id| latest.note(SeqId(id), AdmissionEpoch(id)));
        assert_eq!((latest_of(&latest), latest.forgotten), (vec![1, 2, 3], 0));
        latest.note(SeqId(4), AdmissionEpoch(4));
        assert_eq!((latest_of(&latest), latest.forgotten), (vec![2, 3, 4], 1));
    }

    #[test]
    fn an_id_that_was_evicted_again_is_as_young_as_the_last_time() {
        let mut latest = Latest::new(2);
        for (id, at) in [(1, 1), (2, 2), (1, 3), (3, 4)] {
            latest.note(SeqId(id), AdmissionEpoch(at));
        }
        assert_eq!((latest_of(&latest), latest.forgotten), (vec![1, 3], 1));
    }

    #[test]
    fn ids_that_their_owners_freed_take_no_place() {
        const IDS: u64 = if cfg!(miri) { 1_000 } else { 10_000 };
        let mut latest = Latest::new(100);
        for id in 0..IDS {
            latest.note(SeqId(id), AdmissionEpoch(id));
            if id % 1_000 != 0 {
                assert!(latest.ids.remove(&SeqId(id)).is_some());
            }
            assert!(latest.order.len() <= 64, "{} places for {}", latest.order.len(), id);
        }
        assert_eq!((latest.ids.len() as u64, latest.forgotten), (IDS / 1_000, 0));
    }

    #[test]
    fn an_evicted_sequence_is_told_from_others_of_its_id() {
        let evicted = EvictedIds::new();
        let (id, [first, second]) = (SeqId(1), [1, 2].map(AdmissionEpoch));
        assert!(!evicted.contains(id, None) && evicted.forget(id).is_none());
        evicted.note(id, second);
        assert!(evicted.contains(id, None) && evicted.contains(id, Some(second)));
        assert!(!evicted.contains(id, Some(first)) && !evicted.contains(SeqId(2), None));
        assert_eq!(evicted.counts(), (1, 0));
        assert!(evicted.forget(id) == Some(second) && !evicted.contains(id, None));
        assert_eq!(evicted.counts(), (0, 0));
    }
}
