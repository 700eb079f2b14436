//! `MapEntry`: an entry of the cache's map, with a sequence or a reference to it.
//!
//! A sequence without leases lives *in* the map, and the lock of its map shard is its lock: one exchange
//! locks it, one unlocks it. A leased sequence lives in a [`SharedEntry`] with a lock of its own, and so
//! does one in the middle of a long operation. So no map shard is held during that operation, and a lease
//! needs no map. The sequence moves back when a thread finds that no other uses it.
//!
//! Invariants:
//!
//! - Leases are taken under the shard's lock. A free and an eviction remove an entry under the shard's lock, and
//!   only at zero leases. So a leased sequence is never evicted.
//! - `free_when_released` removes a leased entry: it is detached, and the end of its last lease releases it.
//! - A `SharedEntry` whose sequence was taken out stays empty.
//!
//! An entry does not know its map.

pub(crate) mod map_hash;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::RefUnwindSafe;

use super::eviction::strategy::Candidate;
use super::reuse::cached_sequence::{CachedSequence, Parts};
use super::reuse::hashed_tokens::{HashedTokens, truncate_parts};
use crate::epochs::next_epoch;
use crate::error::Result;
use crate::id::{AdmissionEpoch, SeqId, Worker};
use crate::lease_count::LeaseCount;
use crate::sequence::Sequence;
use crate::sync::{
    Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers, thread_local,
};

/// Longer tables are forked, truncated and read outside the map's lock. (A trim holds that lock to prevent
/// leases, however long it takes.)
const BRIEF_BLOCKS: usize = 1024;

/// A sequence and the values by which eviction ranks it.
pub(super) struct TrackedSequence {
    sequence: Sequence,
    /// The tokens and hashes of its blocks, if it was admitted by its tokens.
    hashed: Option<Box<HashedTokens>>,
    /// Identifies it among all sequences that ever had its id.
    pub(super) epoch: AdmissionEpoch,
    pub(super) access_count: u64,
    pub(super) last_access: u64,
    pub(super) priority: u32,
    pub(super) worker: Option<Worker>,
    changes: u32,
}

/// Changes whenever the sequence changes: equal versions mean no change between two reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    epoch: AdmissionEpoch,
    last_access: u64,
    changes: u32,
}

impl TrackedSequence {
    pub(super) fn new(sequence: Sequence, priority: u32, stamp: u64) -> Self {
        let (hashed, epoch) = (None, next_epoch());
        let (access_count, last_access, worker, changes) = (1, stamp, None, 0);
        Self { sequence, hashed, epoch, access_count, last_access, priority, worker, changes }
    }

    pub(super) fn of_admitted(
        admitted: CachedSequence,
        priority: u32,
        stamp: u64,
        epoch: AdmissionEpoch,
    ) -> Self {
        let (sequence, hashed) = admitted.into_parts();
        let tracked = Self::new(sequence, priority, stamp);
        Self { hashed: Some(hashed), epoch, ..tracked }
    }

    /// Creates a second sequence of the same tokens, blocks, hashed tokens, worker and priority.
    pub(super) fn fork(&mut self, stamp: u64) -> Result<Self> {
        let fork = Self::new(self.sequence_mut().fork_uncounted()?, self.priority, stamp);
        Ok(Self { hashed: self.hashed.clone(), worker: self.worker, ..fork })
    }

    pub(super) fn truncate(&mut self, num_tokens: usize) -> Result<()> {
        truncate_parts(self.parts(), num_tokens)
    }

    /// Returns the sequence alone, which is no longer a request.
    pub(super) fn into_sequence(self) -> Sequence {
        self.sequence
    }

    /// Returns the sequence, and its tokens and hashes if it has them.
    pub(super) fn named(&mut self) -> (&Sequence, Option<&mut HashedTokens>) {
        (&self.sequence, self.hashed.as_deref_mut())
    }

    pub(super) fn num_named_tokens(&self) -> usize {
        self.hashed.as_ref().map_or(0, |hashed| hashed.num_named())
    }

    /// Returns the parts of [`named`](Self::named) for a change, which makes another version.
    pub(super) fn parts(&mut self) -> Parts<'_> {
        self.changes = self.changes.wrapping_add(1);
        (&mut self.sequence, self.hashed.as_deref_mut())
    }

    /// Returns true if truncating to `num_tokens` is brief: no long table, and no tokens to hash again.
    pub(super) fn truncates_briefly(&self, num_tokens: usize) -> bool {
        let hashes = self.hashed.as_ref().is_some_and(|hashed| hashed.reaches_beyond(num_tokens));
        self.is_brief() && !hashes
    }

    #[inline]
    pub(super) fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    pub(super) fn has_blocks(&self) -> bool {
        self.sequence.owns_blocks()
    }

    /// Returns the sequence for a change, which makes another version.
    #[inline]
    pub(super) fn sequence_mut(&mut self) -> &mut Sequence {
        self.changes = self.changes.wrapping_add(1);
        &mut self.sequence
    }

    /// Returns the version. A new sequence under the same id has another one too.
    pub(super) fn version(&self) -> Version {
        let Self { epoch, last_access, changes, .. } = *self;
        Version { epoch, last_access, changes }
    }

    /// Returns true if an operation in proportion to the blocks may run under the map's lock.
    pub(super) fn is_brief(&self) -> bool {
        self.sequence.num_owned_blocks() <= BRIEF_BLOCKS
    }

    #[inline]
    pub(super) fn note_use(&mut self, stamp: u64) {
        self.access_count += 1;
        self.last_access = stamp;
    }

    /// Counts a use, for a caller that has no cache.
    pub(super) fn note_use_now(&mut self) {
        let stamp = self.sequence.table().pool().clock().stamp();
        self.note_use(stamp);
    }

    pub(super) fn candidate(&self, seq_id: SeqId) -> Candidate {
        Candidate {
            seq_id,
            num_tokens: self.sequence.num_tokens(),
            access_count: self.access_count,
            last_access: self.last_access,
            priority: self.priority,
            worker: self.worker,
            epoch: self.epoch,
        }
    }
}

/// An entry of the map.
pub(super) enum MapEntry {
    /// The shard's lock is the sequence's lock.
    Owned(TrackedSequence),
    /// The sequence has a lock of its own.
    Shared(Arc<SharedEntry>),
}

/// A sequence with a lock of its own, and the leases on it.
pub(super) struct SharedEntry {
    /// Identifies the sequence among all that ever had its id, also after it was taken out.
    epoch: AdmissionEpoch,
    leases: LeaseCount,
    /// `None` once the sequence was freed or evicted.
    tracked: RwLock<Option<TrackedSequence>>,
}

// A panic under the lock leaves the sequence consistent: see the guide's page on panics.
impl RefUnwindSafe for SharedEntry {}

thread_local! {
    static LOOKING: Cell<usize> = const { Cell::new(0) };
}

/// While this thread has one, it reads sequences before threads that wait to change them. Such threads may
/// wait for a closure that reads the sequence, and the closure may wait for this thread.
pub(super) struct Looking {
    /// It belongs to one thread.
    _of_thread: PhantomData<*const ()>,
}

impl Looking {
    pub(super) fn begin() -> Self {
        LOOKING.with(|looking| looking.set(looking.get() + 1));
        Self { _of_thread: PhantomData }
    }

    fn is_any() -> bool {
        LOOKING.with(Cell::get) > 0
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.with(|looking| looking.set(looking.get() - 1));
    }
}

impl MapEntry {
    /// Moves the sequence back into the map if no other thread uses it.
    #[inline]
    pub(super) fn settle(&mut self) -> &mut Self {
        if let Self::Shared(shared) = self
            && let Some(alone) = Arc::get_mut(shared)
            && let Some(tracked) = alone.tracked.get_mut().take()
        {
            *self = Self::Owned(tracked);
        }
        self
    }

    /// Returns the sequence with a lock of its own, and moves it there if necessary.
    pub(super) fn share(&mut self) -> Arc<SharedEntry> {
        if let Self::Shared(shared) = self {
            return Arc::clone(shared);
        }
        let (epoch, leases) = (self.epoch(), LeaseCount::none());
        let shared = Arc::new(SharedEntry { epoch, leases, tracked: RwLock::new(None) });
        if let Self::Owned(tracked) = std::mem::replace(self, Self::Shared(Arc::clone(&shared))) {
            *shared.tracked.write() = Some(tracked);
        }
        shared
    }

    /// Returns the epoch, which differs from that of every other sequence that had or will have the id.
    #[inline]
    pub(super) fn epoch(&self) -> AdmissionEpoch {
        match self {
            Self::Owned(tracked) => tracked.epoch,
            Self::Shared(shared) => shared.epoch,
        }
    }

    pub(super) fn leases(&self) -> u32 {
        match self {
            Self::Owned(_) => 0,
            Self::Shared(shared) => shared.leases(),
        }
    }

    /// Releases a sequence that has left the map as soon as it has no lease.
    pub(super) fn release_when_unleased(self) {
        match self {
            Self::Owned(tracked) => drop(tracked),
            Self::Shared(shared) if shared.leases.detach() => shared.release(),
            Self::Shared(_) => {}
        }
    }

    /// Returns the sequence of an entry that has left the map: waits for the threads that use it.
    pub(super) fn into_live(self) -> Option<TrackedSequence> {
        match self {
            Self::Owned(tracked) => Some(tracked),
            Self::Shared(shared) => shared.tracked.write().take(),
        }
    }
}

impl SharedEntry {
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Option<TrackedSequence>> {
        self.tracked.write()
    }

    pub(super) fn try_write(&self) -> Option<RwLockWriteGuard<'_, Option<TrackedSequence>>> {
        self.tracked.try_write()
    }

    /// Locks the sequence for reading. Waits after threads that wait to change it, unless they might be
    /// waiting for this thread.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Option<TrackedSequence>> {
        if Looking::is_any() { read_past_writers(&self.tracked) } else { self.tracked.read() }
    }

    /// Shows the sequence to a caller's closure, which may read again.
    pub(super) fn show<R>(&self, look: impl FnOnce(&Sequence) -> R) -> Option<R> {
        let tracked = self.read();
        let _looking = Looking::begin();
        tracked.as_ref().map(|tracked| look(&tracked.sequence))
    }

    pub(super) fn epoch(&self) -> AdmissionEpoch {
        self.epoch
    }

    pub(super) fn leases(&self) -> u32 {
        self.leases.count()
    }

    /// Counts one more lease. The caller holds the lock of the map shard.
    pub(super) fn begin_lease(&self) {
        self.leases.begin();
    }

    /// Counts one lease fewer, without the map. The last one of a sequence that has left the map releases
    /// it.
    pub(super) fn end_lease(&self) {
        if self.leases.end() {
            self.release();
        }
    }

    /// Releases a sequence that has left the map.
    #[cold]
    fn release(&self) {
        let tracked = self.tracked.write().take();
        drop(tracked); // after its lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::BlockPool;

    #[test]
    fn a_thread_knows_while_a_closure_of_its_caller_looks_at_a_sequence() {
        let pool = BlockPool::new(4);
        let entry = || {
            let sequence = pool.allocate_sequence(4, 4).unwrap();
            MapEntry::Owned(TrackedSequence::new(sequence, 0, 1)).share()
        };
        let (outer, inner) = (entry(), entry());
        for _ in 0..2 {
            assert!(!Looking::is_any());
            outer.show(|_| {
                inner.show(|_| assert!(Looking::is_any()));
                assert!(Looking::is_any(), "still at the outer one");
            });
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            outer.show(|_| panic!("of the caller's"));
        }));
        assert!(panicked.is_err() && !Looking::is_any());
    }
}
