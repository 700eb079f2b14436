//! `fork_n`: several forks of one sequence, all or none, and the blocks that their copies on write will
//! need.

use crate::cache::PagedKvCache;
use crate::cache::admission::reservation::Reservation;
use crate::cache::entry::{MapEntry, TrackedSequence};
use crate::cache::reuse::cached_sequence::CachedSequence;
use crate::cache::reuse::hashed_tokens::HashedTokens;
use crate::cache::rows::{Row, update_and_use};
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::sequence::{Append, Sequence};
use crate::sync::Later;

/// The most owners that a block can have.
const MOST_FORKS: usize = (1 << 20) - 1;

impl Sequence {
    /// Creates `n` more sequences of the same tokens and blocks, or none; see [`fork`](Self::fork).
    ///
    /// # Errors
    /// As [`fork`](Self::fork), and [`InvalidConfig`](PagedKvError::InvalidConfig) for more forks than a
    /// block can have owners: 2^20 - 1.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut sequence = cache.allocate_sequence(6)?;
    /// let mut room = cache.reserve(sequence.copies_of_forks(3))?;
    /// for fork in &mut sequence.fork_n(3)? {
    ///     assert!(room.append_to(fork, 1)?.copy.is_some()); // cannot fail for want of room
    /// }
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn fork_n(&mut self, n: usize) -> Result<Vec<Sequence>> {
        if n > MOST_FORKS {
            let reason = format!("{n}, at most {MOST_FORKS} forks are made in one call");
            return Err(PagedKvError::InvalidConfig { parameter: "n", reason });
        }
        // Collecting stops at the first refusal and drops the forks made so far.
        let forks = (0..n).map(|_| self.fork_uncounted()).collect::<Result<Vec<_>>>()?;
        forks.iter().for_each(|fork| fork.table().pool().count_fork());
        Ok(forks)
    }

    /// Returns the number of blocks that `n` forks of this sequence may need for their copies on write: one
    /// each if the last block is partly filled, else none. [`reserve`](crate::PagedKvCache::reserve) them,
    /// so that the forks' first tokens have room.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert_eq!(cache.allocate_sequence(6)?.copies_of_forks(3), 3);
    /// assert_eq!(cache.allocate_sequence(8)?.copies_of_forks(3), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn copies_of_forks(&self, n: usize) -> usize {
        let is_partly_filled =
            |table: &&Sequence| !table.num_tokens().is_multiple_of(table.block_size());
        self.group_tables().filter(is_partly_filled).count() * n
    }
}

impl CachedSequence {
    /// Does as [`Sequence::fork_n`].
    ///
    /// # Errors
    /// As [`Sequence::fork`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(2, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2, 3]), &Default::default())?;
    /// assert_eq!(sequence.fork_n(2)?[1].block_ids(), sequence.block_ids());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn fork_n(&mut self, n: usize) -> Result<Vec<CachedSequence>> {
        let (sequence, hashed) = self.parts_mut();
        let forks = sequence.fork_n(n)?.into_iter();
        Ok(forks.map(|fork| CachedSequence::new(fork, HashedTokens::clone(hashed))).collect())
    }
}

/// # Sequences: several forks
impl PagedKvCache {
    /// Does [`fork`](Self::fork) to several ids: all, or none. (Another thread may see some of the forks
    /// before a later one is refused.)
    ///
    /// The first append to a fork may need a block for its copy on write.
    /// [`copies_of_forks`](Sequence::copies_of_forks) counts these blocks: reserve them first, and append
    /// from the reservation, so that no fork is short of its copy.
    ///
    /// # Errors
    /// As [`fork`](Self::fork).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// let refused = cache.fork_n(SeqId(1), &[SeqId(2), SeqId(1)]);
    /// assert_eq!(refused, Err(PagedKvError::SequenceExists(SeqId(1))));
    /// cache.fork_n(SeqId(1), &[SeqId(2), SeqId(3)])?;
    /// assert_eq!((cache.num_sequences(), cache.used_block_count()), (3, 3));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    ///
    /// With room for the copies:
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(5, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// let copies = cache.with_sequence(SeqId(1), |sequence| sequence.copies_of_forks(2));
    /// let mut room = cache.reserve(copies.expect("it was allocated above"))?;
    /// cache.fork_n(SeqId(1), &[SeqId(2), SeqId(3)])?;
    /// assert!(room.append(&cache, SeqId(2), 1)?.copy.is_some());
    /// assert!(room.append(&cache, SeqId(3), 1)?.copy.is_some());
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn fork_n(&self, src: SeqId, dsts: &[SeqId]) -> Result<()> {
        if let Some(&dst) = dsts.iter().find(|dst| self.sequences.contains_key(dst)) {
            return Err(PagedKvError::SequenceExists(dst));
        }
        let fork = |tracked: &mut TrackedSequence| -> Result<Vec<TrackedSequence>> {
            dsts.iter().map(|_| tracked.fork(self.stamp())).collect()
        };
        // A refusal drops the forks made so far, under the lock of the source.
        let forks = {
            let _later = Later::begin();
            self.update_if(src, TrackedSequence::is_brief, fork)??
        };
        let mut inserted = Vec::with_capacity(dsts.len());
        for (&dst, fork) in dsts.iter().zip(forks) {
            let mut as_inserted = Inserted { id: dst, epoch: fork.epoch, evicted: None };
            let late = self.insert_over_evicted(dst, fork, &mut as_inserted.evicted);
            if let Some(late) = late {
                drop(late);
                inserted.into_iter().for_each(|fork| self.take_back(fork));
                return Err(PagedKvError::SequenceExists(dst));
            }
            inserted.push(as_inserted);
        }
        dsts.iter().for_each(|_| self.pool.count_fork());
        Ok(())
    }

    /// Removes a fork, unless its id names another sequence by now. A lease on the fork keeps its blocks
    /// until the lease ends.
    #[cold]
    fn take_back(&self, Inserted { id, epoch, evicted }: Inserted) {
        let is_meant = |entry: &MapEntry| {
            let is_meant = entry.epoch() == epoch;
            if is_meant && let Some(evicted) = evicted {
                self.evicted.note(id, evicted);
            }
            is_meant
        };
        // An error means that another thread has freed or evicted the fork.
        let _ = self.remove_when_released(id, is_meant);
    }
}

/// A fork in the map, which is removed again if a later one is refused.
struct Inserted {
    id: SeqId,
    epoch: AdmissionEpoch,
    /// The sequence of the id that was noted as evicted before.
    evicted: Option<AdmissionEpoch>,
}

impl Reservation {
    /// Does as [`append`](Self::append), for a sequence that is held by its handle or leased.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) if fewer blocks are left than requested,
    /// [`TooManyTokens`](PagedKvError::TooManyTokens),
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) for a row of a lease whose sequence is gone, and
    /// [`WrongCache`](PagedKvError::WrongCache) for a sequence of another cache. Nothing has changed then.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut sequence = cache.allocate_sequence(4)?;
    /// let mut room = cache.reserve(1)?;
    /// assert_eq!(room.append_to(&mut sequence, 1)?.new_blocks, 1..2);
    /// assert!(room.append_to(&mut sequence, 4).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append_to<R: Row>(&mut self, row: &mut R, num_new_tokens: usize) -> Result<Append> {
        update_and_use(row, |(sequence, _)| {
            self.refuse_other_pool(sequence.table().pool())?;
            self.grow(sequence, num_new_tokens)
        })
    }
}
