//! Operations on a sequence by its id: allocate, append, free, fork, truncate, trim and touch.
//!
//! Each looks the id up, does the operation of the handle, and notes the use. The statistics count it only
//! if it succeeds.

pub(crate) mod access;
pub(crate) mod forks;
#[cfg(feature = "async")]
pub(crate) mod waiting;
use super::PagedKvCache;
use super::entry::{MapEntry, TrackedSequence};
use crate::error::{PagedKvError, Result};
use crate::id::{SeqId, Worker};
use crate::pool::ReuseHint;
use crate::pool::watermark::Admit;
use crate::sequence::{Append, Sequence};
use crate::sync::Later;
use crate::table::BlockTable;

/// # Sequences
impl PagedKvCache {
    /// Creates a sequence of `num_tokens` tokens (0 creates an empty one). Takes one shard lock twice;
    /// otherwise costs as [`BlockPool::allocate`](crate::BlockPool::allocate).
    ///
    /// # Errors
    /// [`SequenceExists`](PagedKvError::SequenceExists),
    /// [`OutOfMemory`](PagedKvError::OutOfMemory),
    /// [`TooManyTokens`](PagedKvError::TooManyTokens).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// assert_eq!(cache.allocate(SeqId(1), 1), Err(PagedKvError::SequenceExists(SeqId(1))));
    /// assert_eq!(
    ///     cache.allocate(SeqId(2), 33),
    ///     Err(PagedKvError::OutOfMemory { requested: 3, available: 1 }),
    /// );
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn allocate(&self, id: SeqId, num_tokens: usize) -> Result<()> {
        self.allocate_as(id, num_tokens, Admit::Now)
    }

    pub(crate) fn allocate_as(&self, id: SeqId, num_tokens: usize, admit: Admit) -> Result<()> {
        if self.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
        // Outside the map's lock, because it may have to search for blocks.
        let sequence = self.allocate_sequence_as(num_tokens, admit)?;
        self.insert_taken(id, TrackedSequence::new(sequence, 0, self.stamp()))
    }

    fn allocate_sequence_as(&self, num_tokens: usize, admit: Admit) -> Result<Sequence> {
        let num_blocks = self.blocks_for(num_tokens);
        let allocate = || match self.layout() {
            None => self.pool.allocate_sequence(num_tokens, self.block_size),
            Some(layout) => {
                let table = BlockTable::new(self.pool.handle());
                let mut sequence = Sequence::empty_in_groups(table, layout);
                let _ = sequence.append(num_tokens)?;
                Ok(sequence)
            }
        };
        self.watermark.take(self.pool.blocks(), num_blocks, admit, allocate)
    }

    /// Creates a sequence as an owned handle, which is not in the map: dropping the handle frees it, and it
    /// is never evicted. Takes no map look-up.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory),
    /// [`TooManyTokens`](PagedKvError::TooManyTokens).
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 16, 1, 1);
    /// let sequence = cache.allocate_sequence(33)?;
    /// assert_eq!(cache.used_block_count(), 3);
    /// assert!(cache.allocate_sequence(33).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate_sequence(&self, num_tokens: usize) -> Result<Sequence> {
        self.allocate_sequence_as(num_tokens, Admit::Now)
    }

    /// Allocates slots for `num_new_tokens` more tokens of a sequence, and counts as a use (also with 0
    /// tokens). See [`Sequence::append`]. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`OutOfMemory`](PagedKvError::OutOfMemory),
    /// [`TooManyTokens`](PagedKvError::TooManyTokens).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(2, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// assert_eq!(cache.append(SeqId(1), 1)?.new_blocks, 1..2);
    /// assert!(cache.append(SeqId(1), 4).is_err());
    /// assert!(cache.append(SeqId(2), 1).is_err());
    /// # Ok::<(), PagedKvError>(())
    /// ```
    #[inline]
    pub fn append(&self, id: SeqId, num_new_tokens: usize) -> Result<Append> {
        // Two calls, so that the common one returns its result in registers. The `Append` is built after
        // the two branches join: otherwise it would be built in memory and copied from there immediately.
        let (start, end, copy) = match self.try_append_fast(id, num_new_tokens) {
            Some((start, end)) => (start as usize, end as usize, None),
            None => {
                let Append { new_blocks, copy } = self.append_slow(id, num_new_tokens)?;
                (new_blocks.start, new_blocks.end, copy)
            }
        };
        // A waiting append to this sequence may have needed the same block. An append within the last block
        // lowers no need.
        if start != end || copy.is_some() {
            self.announce_append(id);
        }
        Ok(Append { new_blocks: start..end, copy })
    }

    /// Informs waiters of an append that took blocks, after its locks were released.
    #[inline]
    pub(super) fn announce_append(&self, id: SeqId) {
        let blocks = self.pool.blocks();
        blocks.announce_change_of(id);
        // The new blocks may have held cached contents until now.
        blocks.announce_loss();
    }

    /// Appends under the map's lock, if the append is short; see [`Sequence::try_append_fast`].
    fn try_append_fast(&self, id: SeqId, num_new_tokens: usize) -> Option<(u32, u32)> {
        if self.is_observed {
            // New blocks may reclaim contents. Their events are emitted, and their observer is called, outside
            // of the locks, by `append_slow`.
            return None;
        }
        let mut entry = self.sequences.get_mut(&id)?;
        let MapEntry::Owned(tracked) = entry.settle() else {
            return None;
        };
        let new_blocks = tracked.sequence_mut().try_append_fast(num_new_tokens)?;
        tracked.note_use(self.stamp());
        Some(new_blocks)
    }

    /// Appends with a copy under the map's lock, or with a search for blocks under the sequence's own lock.
    fn append_slow(&self, id: SeqId, num_new_tokens: usize) -> Result<Append> {
        if self.pool.blocks().reports_overwrites() {
            return self.grow_outside_locks(|stock| stock.append(self, id, num_new_tokens));
        }
        let _later = Later::begin();
        let shared = {
            let mut entry = self.sequences.get_mut(&id).ok_or_else(self.missing(id))?;
            if let MapEntry::Owned(tracked) = entry.settle()
                && let Some(append) = tracked.sequence_mut().append_or_copy_near(num_new_tokens)
            {
                tracked.note_use(self.stamp());
                return Ok(append);
            }
            entry.share()
        };
        self.update_shared(id, &shared, |tracked| {
            let append = tracked.sequence_mut().append(num_new_tokens)?;
            tracked.note_use(self.stamp());
            Ok(append)
        })?
    }

    /// Removes a sequence and releases its blocks; those without another owner return to the pool. Takes one
    /// shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`SequenceEvicted`](PagedKvError::SequenceEvicted) (once: then it is not found),
    /// [`SequenceLeased`](PagedKvError::SequenceLeased).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// cache.free(SeqId(1))?;
    /// assert_eq!(cache.free(SeqId(1)), Err(PagedKvError::SequenceNotFound(SeqId(1))));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn free(&self, id: SeqId) -> Result<()> {
        let freed = self.take_out(id).map(drop);
        freed.inspect_err(|_| _ = self.evicted.forget(id))?;
        self.tell_if_stalled();
        Ok(())
    }

    /// Removes a sequence immediately, and releases its blocks when its last lease ends. Use it for a
    /// request whose client left while a batch with the request runs. The id may be used again immediately;
    /// the leases still reach the old sequence.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`SequenceEvicted`](PagedKvError::SequenceEvicted) (once: then it is not found).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// assert_eq!(cache.free(SeqId(1)), Err(PagedKvError::SequenceLeased(SeqId(1))));
    /// cache.free_when_released(SeqId(1))?;
    /// assert_eq!(cache.used_block_count(), 3);
    /// drop(lease);
    /// assert_eq!(cache.used_block_count(), 0);
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn free_when_released(&self, id: SeqId) -> Result<()> {
        let removed = self.remove_when_released(id, |_| true);
        removed.inspect_err(|_| _ = self.evicted.forget(id))
    }

    /// Removes the sequence of this id if `is_meant` returns true, which is called under the map's lock.
    /// Its blocks are released when its last lease ends.
    pub(super) fn remove_when_released(
        &self,
        id: SeqId,
        is_meant: impl FnOnce(&MapEntry) -> bool,
    ) -> Result<()> {
        let may_go = |_: &SeqId, entry: &MapEntry| {
            let may_go = is_meant(entry);
            if may_go {
                self.count_removed(id);
            }
            may_go
        };
        let removed = self.sequences.remove_if(&id, may_go);
        let (_, entry) = removed.ok_or_else(self.missing(id))?;
        entry.release_when_unleased();
        self.tell_if_stalled();
        Ok(())
    }

    /// Creates a second sequence `dst` of the same tokens and blocks as `src`, with its priority. See
    /// [`Sequence::fork`]. Takes two shard locks, one after the other.
    ///
    /// # Errors
    /// [`SequenceExists`](PagedKvError::SequenceExists) of `dst`,
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) of `src`,
    /// [`TooManyOwners`](PagedKvError::TooManyOwners).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// cache.fork(SeqId(1), SeqId(2))?;
    /// assert_eq!(cache.used_block_count(), 3);
    /// let refused = cache.fork(SeqId(1), SeqId(2));
    /// assert_eq!(refused, Err(PagedKvError::SequenceExists(SeqId(2))));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn fork(&self, src: SeqId, dst: SeqId) -> Result<()> {
        let fork = |tracked: &mut TrackedSequence| tracked.fork(self.stamp());
        let fork = self.update_if(src, TrackedSequence::is_brief, fork).and_then(|fork| fork);
        let fork = fork.map_err(|refusal| match self.sequences.contains_key(&dst) {
            true => PagedKvError::SequenceExists(dst),
            false => refusal,
        })?;
        self.insert(dst, fork)?;
        self.pool.count_fork();
        Ok(())
    }

    /// Drops the tokens of a sequence from `num_tokens` on. See [`Sequence::truncate`]. Takes one shard
    /// lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`TruncateBeyondEnd`](PagedKvError::TruncateBeyondEnd),
    /// [`TokensTrimmed`](PagedKvError::TokensTrimmed).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// cache.allocate(SeqId(1), 33)?;
    /// cache.truncate(SeqId(1), 32)?;
    /// assert_eq!(cache.used_block_count(), 2);
    /// assert!(cache.truncate(SeqId(1), 33).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn truncate(&self, id: SeqId, num_tokens: usize) -> Result<()> {
        let _later = Later::begin();
        let brief = |tracked: &TrackedSequence| tracked.truncates_briefly(num_tokens);
        self.update_if(id, brief, |tracked| tracked.truncate(num_tokens))?
    }

    /// Trims a sequence to its first `sink_tokens` and last `window_tokens`, and returns the number of
    /// tokens whose slots it released. See [`Sequence::apply_streaming_llm`]. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`SequenceLeased`](PagedKvError::SequenceLeased): a running batch may read the blocks that a trim
    /// releases.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 32)?;
    /// assert_eq!(cache.apply_streaming_llm(SeqId(1), 4, 8)?, 20);
    /// let _lease = cache.lease(&[SeqId(1)])?;
    /// assert!(cache.apply_streaming_llm(SeqId(1), 4, 4).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn apply_streaming_llm(
        &self,
        id: SeqId,
        sink_tokens: usize,
        window_tokens: usize,
    ) -> Result<usize> {
        let trim =
            |sequence: &mut Sequence| sequence.apply_streaming_llm(sink_tokens, window_tokens);
        self.trim_unleased(id, None, trim)?
    }
}

/// # Eviction: the uses, worker and priority of a sequence
impl PagedKvCache {
    /// Counts a use of a sequence. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.allocate(SeqId(2), 4)?;
    /// cache.touch(SeqId(1))?;
    /// assert_eq!(cache.select_eviction_target(), Some(SeqId(2)));
    /// assert!(cache.touch(SeqId(3)).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn touch(&self, id: SeqId) -> Result<()> {
        self.update(id, |tracked| tracked.note_use(self.stamp()))
    }

    /// Sets the worker of a sequence and of its later forks. A worker evicts its own sequences
    /// ([`evict_for`](Self::evict_for)), and learns of those that were evicted. An operation on an evicted
    /// one is refused with [`SequenceEvicted`](PagedKvError::SequenceEvicted), until its worker frees it
    /// (which returns that error a last time) or a new sequence gets its id. The last 65,536 ids are
    /// remembered ([`CacheStats::evicted_ids`](crate::CacheStats::evicted_ids)); older ones count as not
    /// found. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound),
    /// [`SequenceEvicted`](PagedKvError::SequenceEvicted).
    ///
    /// ```
    /// use paged_kv::{Worker, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.set_worker(SeqId(1), Worker(7))?;
    /// cache.evict()?;
    /// assert_eq!(cache.free(SeqId(1)), Err(PagedKvError::SequenceEvicted(SeqId(1))));
    /// assert_eq!(cache.free(SeqId(1)), Err(PagedKvError::SequenceNotFound(SeqId(1))));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn set_worker(&self, id: SeqId, worker: Worker) -> Result<()> {
        self.update(id, |tracked| tracked.worker = Some(worker))
    }

    /// Sets the priority that [`EvictionStrategy::Priority`](crate::EvictionStrategy::Priority) compares, 0
    /// by default. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.set_priority(SeqId(1), 3)?;
    /// assert_eq!(cache.get_sequence(SeqId(1)).unwrap().priority, 3);
    /// assert!(cache.set_priority(SeqId(2), 3).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn set_priority(&self, id: SeqId, priority: u32) -> Result<()> {
        self.update(id, |tracked| tracked.priority = priority)
    }

    /// Says whether the conversation of a sequence goes on, for the reclaim order after its release: by a free, an
    /// eviction or an abort; see [`ReuseHint`]. The last hint counts. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), and [`SequenceEvicted`](PagedKvError::SequenceEvicted) if it
    /// was evicted.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, ReuseHint, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.set_reuse_hint(SeqId(1), ReuseHint::BackSoon)?;
    /// assert!(cache.set_reuse_hint(SeqId(2), ReuseHint::Closed).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn set_reuse_hint(&self, id: SeqId, hint: ReuseHint) -> Result<()> {
        self.update(id, |tracked| tracked.sequence_mut().set_reuse_hint(hint))
    }
}
