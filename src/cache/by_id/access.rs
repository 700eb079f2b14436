//! Access by id: looks a sequence up, changes it under the right lock, inserts it into the map or removes
//! it.
//!
//! Invariants:
//!
//! - An operation that began with one sequence of an id names its epoch, and changes no other sequence of
//!   the id.
//! - Waiters learn of a change after its locks are released.

use crate::cache::PagedKvCache;
use crate::cache::entry::{MapEntry, SharedEntry, TrackedSequence};
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::sequence::Sequence;
use crate::sync::{Arc, Entry, Later};

impl PagedKvCache {
    /// Changes a sequence, briefly: under the map's lock if no other thread uses it, else under its own
    /// lock.
    pub(in crate::cache) fn update<R>(
        &self,
        id: SeqId,
        change: impl FnOnce(&mut TrackedSequence) -> R,
    ) -> Result<R> {
        self.update_if(id, |_| true, change)
    }

    /// Does as [`update`](Self::update), but under the map's lock only if the change will be `brief`. The
    /// waiters learn of the change afterwards.
    pub(in crate::cache) fn update_if<R>(
        &self,
        id: SeqId,
        brief: impl FnOnce(&TrackedSequence) -> bool,
        change: impl FnOnce(&mut TrackedSequence) -> R,
    ) -> Result<R> {
        let mut emptied = false;
        let changed = self.update_unannounced(id, brief, |tracked| {
            let had_blocks = tracked.has_blocks();
            let changed = change(tracked);
            emptied = had_blocks && !tracked.has_blocks();
            changed
        })?;
        self.announce_change(id, emptied);
        Ok(changed)
    }

    /// Informs waiters of a change of the sequence of that id. `emptied` if the sequence lost its last
    /// block.
    #[inline]
    pub(in crate::cache) fn announce_change(&self, id: SeqId, emptied: bool) {
        self.pool.blocks().announce_change_of(id);
        if emptied {
            self.tell_if_stalled();
        }
    }

    pub(in crate::cache) fn update_unannounced<R>(
        &self,
        id: SeqId,
        brief: impl FnOnce(&TrackedSequence) -> bool,
        change: impl FnOnce(&mut TrackedSequence) -> R,
    ) -> Result<R> {
        let shared = {
            let mut entry = self.sequences.get_mut(&id).ok_or_else(self.missing(id))?;
            if let MapEntry::Owned(tracked) = entry.settle()
                && brief(tracked)
            {
                return Ok(change(tracked));
            }
            entry.share()
        };
        self.update_shared(id, &shared, change)
    }

    /// Changes a sequence under its own lock, unless another thread has taken it out.
    pub(in crate::cache) fn update_shared<R>(
        &self,
        id: SeqId,
        shared: &SharedEntry,
        change: impl FnOnce(&mut TrackedSequence) -> R,
    ) -> Result<R> {
        let mut tracked = shared.write();
        tracked.as_mut().map(change).ok_or_else(self.missing(id))
    }

    /// Changes a sequence without leases. Holds the map's lock during the change, so that no lease begins.
    /// With `Some` epoch, changes the sequence of that epoch only; another sequence under the id counts as
    /// not found. The waiters learn of the change afterwards.
    pub(in crate::cache) fn trim_unleased<R>(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
        trim: impl Fn(&mut Sequence) -> R,
    ) -> Result<R> {
        let _later = Later::begin();
        let trim = |tracked: &mut TrackedSequence| {
            let had_blocks = tracked.has_blocks();
            let trimmed = trim(tracked.sequence_mut());
            (trimmed, had_blocks && !tracked.has_blocks())
        };
        let (trimmed, emptied) = self.trim_unannounced(id, epoch, trim)?;
        self.announce_change(id, emptied);
        Ok(trimmed)
    }

    pub(in crate::cache) fn trim_unannounced<R>(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
        trim: impl Fn(&mut TrackedSequence) -> R,
    ) -> Result<R> {
        loop {
            let mut entry = self.sequences.get_mut(&id).ok_or_else(self.missing_of(id, epoch))?;
            if epoch.is_some_and(|epoch| entry.epoch() != epoch) {
                return Err(PagedKvError::SequenceNotFound(id));
            }
            let shared = match entry.settle() {
                MapEntry::Owned(tracked) => return Ok(trim(tracked)),
                MapEntry::Shared(shared) if shared.leases() > 0 => {
                    return Err(PagedKvError::SequenceLeased(id));
                }
                MapEntry::Shared(shared) => Arc::clone(shared),
            };
            if let Some(mut tracked) = shared.try_write() {
                return tracked.as_mut().map(&trim).ok_or_else(self.missing(id));
            }
            // Another thread uses it: wait for that thread without the map's lock.
            drop(entry);
            drop(shared.write());
        }
    }

    /// Returns the error for a missing id, which is created only when it is needed.
    pub(in crate::cache) fn missing(&self, id: SeqId) -> impl FnOnce() -> PagedKvError + '_ {
        self.missing_of(id, None)
    }

    /// Does as [`missing`](Self::missing). With `Some` epoch, reports an eviction only if the evicted
    /// sequence had that epoch.
    pub(in crate::cache) fn missing_of(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
    ) -> impl FnOnce() -> PagedKvError + '_ {
        move || match self.evicted.contains(id, epoch) {
            true => PagedKvError::SequenceEvicted(id),
            false => PagedKvError::SequenceNotFound(id),
        }
    }

    /// Inserts a new sequence into the map. Refuses `tracked`, and drops it, if the map has a sequence of that
    /// id.
    pub(in crate::cache) fn insert(&self, id: SeqId, tracked: TrackedSequence) -> Result<()> {
        // A refused sequence is dropped outside the shard's lock.
        let late = self.try_insert(id, tracked);
        late.map_or(Ok(()), |_| Err(PagedKvError::SequenceExists(id)))
    }

    /// Does as [`insert`](Self::insert), for a sequence for which blocks were taken or matched.
    pub(in crate::cache) fn insert_taken(&self, id: SeqId, tracked: TrackedSequence) -> Result<()> {
        let Some(late) = self.try_insert(id, tracked) else {
            return Ok(());
        };
        self.pool.blocks().undo(late.into_sequence());
        Err(PagedKvError::SequenceExists(id))
    }

    /// Inserts a new sequence into the map, or returns it if the map has one of that id.
    pub(in crate::cache) fn try_insert(
        &self,
        id: SeqId,
        tracked: TrackedSequence,
    ) -> Option<TrackedSequence> {
        self.insert_over_evicted(id, tracked, &mut None)
    }

    /// Does as [`try_insert`](Self::try_insert), and sets `evicted` to the sequence of the id that was
    /// noted as evicted before.
    pub(in crate::cache) fn insert_over_evicted(
        &self,
        id: SeqId,
        tracked: TrackedSequence,
        evicted: &mut Option<AdmissionEpoch>,
    ) -> Option<TrackedSequence> {
        match self.sequences.entry(id) {
            Entry::Vacant(vacant) => {
                *evicted = self.evicted.forget(id);
                self.sequence_counts.inserted(self.sequences.determine_map(&id));
                vacant.insert(MapEntry::Owned(tracked));
                None
            }
            Entry::Occupied(_) => Some(tracked),
        }
    }

    /// Counts a sequence that is about to be removed from the map, under the lock of its map shard.
    #[inline]
    pub(in crate::cache) fn count_removed(&self, id: SeqId) {
        self.sequence_counts.removed(self.sequences.determine_map(&id));
    }

    /// Takes a sequence without leases out of the map.
    pub(in crate::cache) fn take_out(&self, id: SeqId) -> Result<TrackedSequence> {
        self.take_out_if(id, None, || {})
    }

    /// Does as [`take_out`](Self::take_out), for the sequence of that epoch only (`None` allows any), and
    /// calls `note` under the map's lock. Another sequence under the id stays, and counts as not found.
    pub(in crate::cache) fn take_out_if(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
        note: impl Fn(),
    ) -> Result<TrackedSequence> {
        let is_meant = |entry: &MapEntry| epoch.is_none_or(|epoch| entry.epoch() == epoch);
        let may_go = |_: &SeqId, entry: &MapEntry| {
            let may_go = entry.leases() == 0 && is_meant(entry);
            if may_go {
                self.count_removed(id);
                note();
            }
            may_go
        };
        loop {
            if let Some((_, entry)) = self.sequences.remove_if(&id, may_go) {
                return entry.into_live().ok_or_else(self.missing(id));
            }
            match self.sequences.get(&id) {
                None => return Err(self.missing_of(id, epoch)()),
                Some(entry) if !is_meant(&entry) => return Err(PagedKvError::SequenceNotFound(id)),
                Some(entry) if entry.leases() > 0 => return Err(PagedKvError::SequenceLeased(id)),
                // Its lease has ended since, or it is a new sequence: try again.
                Some(_) => {}
            }
        }
    }
}
