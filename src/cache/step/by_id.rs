//! How does a sequence by id take part in a step? As a handle does, under its own lock for the time of
//! each call: meanwhile anybody may free or evict it.
//!
//! Invariant: a row is a sequence, not an id. If another one has come under the id since, it is left
//! alone.

use super::{GrowingRow, Grown, Parts, Step};
use crate::cache::PagedKvCache;
use crate::cache::lease::{Lease, LockedRow};
use crate::cache::slot::Live;
use crate::error::{PagedKvError, Result};
use crate::export::{Gaps, KernelInt, SlotMapping};
use crate::id::{AdmissionEpoch, SeqId};

impl PagedKvCache {
    /// Has a sequence by id take part in a step: what it lets go of from now on, or is freed or evicted
    /// of, waits for the end of the step. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound);
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a step of another cache.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 8)?;
    /// let step = cache.step();
    /// cache.take_part(SeqId(1), &step)?;
    /// cache.evict()?;
    /// assert_eq!(cache.free_block_count(), 2);
    /// drop(step);
    /// assert_eq!(cache.free_block_count(), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn take_part(&self, id: SeqId, step: &Step) -> Result<()> {
        self.refuse_step(step)?;
        let take_part = |live: &mut Live| live.sequence_mut().take_part(step.fence);
        self.update_if(id, Live::is_brief, take_part)
    }

    /// [`Step::grow_batch`] for sequences by id, each listed once, and a use of each that grows. Leases
    /// them for the time of the call; a scheduler that grows the same batch again keeps a [`Lease`], whose
    /// [`grow_batch`](Lease::grow_batch) needs neither look-ups nor memory.
    ///
    /// # Errors
    /// As [`lease`](Self::lease) and [`Step::grow_batch`]; nothing has grown.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 4])?;
    /// let mut step = cache.step();
    /// assert_eq!(cache.grow_batch(&[(SeqId(1), 1)], &mut step)?.done, 1);
    /// cache.free(SeqId(1))?; // the client left
    /// assert_eq!(cache.used_block_count(), 2); // the device is still at it
    /// step.complete();
    /// assert_eq!(cache.used_block_count(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn grow_batch(&self, rows: &[(SeqId, usize)], step: &mut Step) -> Result<Grown> {
        let (ids, num_new_tokens): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        self.lease(&ids)?.grow_batch(&num_new_tokens, step)
    }

    /// [`Step::slots`] for the rows of a step by id, in the order of their numbers. Takes one shard lock a
    /// row; no allocation.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), and as [`Step::slots`].
    ///
    /// ```
    /// use paged_kv::export::Gaps;
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let mut step = cache.step();
    /// assert_eq!(cache.grow_batch(&[(SeqId(1), 2)], &mut step)?.done, 1);
    /// let mut slots = [0_i64; 2];
    /// assert_eq!(cache.slots(&[SeqId(1)], &step, Gaps::Show, &mut slots)?, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slots<T: KernelInt>(
        &self,
        ids: &[SeqId],
        step: &Step,
        gaps: Gaps,
        out: &mut [T],
    ) -> Result<usize> {
        step.refuse_fewer_rows(ids.len())?;
        let mut mapping = SlotMapping::new(out, gaps);
        for (&id, grown) in ids.iter().zip(&step.buffers.rows) {
            self.look(id, |sequence| mapping.push(sequence, grown.new_tokens()))?;
        }
        Ok(mapping.finish())
    }

    /// [`Step::commit`] for a sequence by id. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), and as [`Step::commit`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// let mut step = cache.step();
    /// cache.take_part(SeqId(1), &step)?;
    /// assert_eq!(cache.commit_in(SeqId(1), 9, &mut step)?, 2);
    /// cache.free(SeqId(1))?;
    /// step.complete();
    /// assert_eq!(cache.probe(&[7; 9]), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit_in(&self, id: SeqId, num_tokens: usize, step: &mut Step) -> Result<usize> {
        self.refuse_step(step)?;
        self.update_if(id, |_| false, |live| step.commit_parts(live.parts(), num_tokens))?
    }

    /// [`Step::settle`] for a row of a step that is a sequence by id. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), also if the sequence that grew is gone and
    /// another has come under its id; and as [`Step::settle`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[1, 2])?;
    /// let mut step = cache.step();
    /// assert_eq!(cache.grow_batch(&[(SeqId(1), 5)], &mut step)?.done, 1);
    /// assert_eq!(cache.settle(SeqId(1), 0, &[3, 4], &mut step)?, 1); // of five drafts two were right
    /// step.complete();
    /// assert_eq!(cache.probe(&[1, 2, 3, 4, 5]), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn settle(
        &self,
        id: SeqId,
        row: usize,
        accepted: &[u32],
        step: &mut Step,
    ) -> Result<usize> {
        self.refuse_step(step)?;
        let grown = step.buffers.rows.get(row).map(|grown| grown.epoch);
        let settle = |live: &mut Live| {
            if grown.is_some_and(|grown| grown != Some(live.epoch)) {
                return Err(PagedKvError::SequenceNotFound(id));
            }
            step.settle_parts(row, live.parts(), accepted)
        };
        self.update_if(id, |_| false, settle)?
    }

    /// [`Step::abort`] for a step whose rows are sequences by id, in the order of their numbers.
    ///
    /// # Errors
    /// As [`lease`](Self::lease) and [`Step::abort`]. The step is dropped then, and no row has changed.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 3)?;
    /// let mut step = cache.step();
    /// assert_eq!(cache.grow_batch(&[(SeqId(1), 9)], &mut step)?.done, 1);
    /// cache.abort(step, &[SeqId(1)])?;
    /// assert_eq!(cache.used_block_count(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn abort(&self, step: Step, ids: &[SeqId]) -> Result<()> {
        self.lease(ids)?.abort(step)
    }

    fn refuse_step(&self, step: &Step) -> Result<()> {
        if step.pool.is_of_same_pool(&self.pool.handle()) {
            return Ok(());
        }
        let reason = "a step of another cache".to_owned();
        Err(PagedKvError::InvalidConfig { parameter: "step", reason })
    }
}

impl Lease {
    /// [`Step::grow_batch`] for the leased sequences: row `i` by `num_new_tokens[i]` tokens, and a use of
    /// each that grows. Takes each sequence's own lock, no map; allocates no memory once lease, step and
    /// tables have grown.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) when there is not one number a row; otherwise as
    /// [`Step::grow_batch`]. Nothing has grown.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let mut lease = cache.lease(&[SeqId(1)])?;
    /// let mut step = cache.step();
    /// assert_eq!(lease.grow_batch(&[1], &mut step)?.done, 1);
    /// assert!(lease.grow_batch(&[1, 1], &mut step).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn grow_batch(&mut self, num_new_tokens: &[usize], step: &mut Step) -> Result<Grown> {
        self.with_locked_rows(num_new_tokens, |rows, clock| {
            let grown = step.grow_rows(rows)?;
            let those = rows.iter_mut().take(grown.done);
            those.for_each(|row| row.live().note_use(clock.stamp()));
            Ok(grown)
        })
    }

    /// [`Step::abort`] for a step whose rows are the first of the lease, in order.
    ///
    /// # Errors
    /// As [`Step::abort`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let mut lease = cache.lease(&[SeqId(1)])?;
    /// let mut step = cache.step();
    /// assert_eq!(lease.grow_batch(&[5], &mut step)?.done, 1);
    /// lease.abort(step)?;
    /// assert_eq!(cache.used_block_count(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn abort(&mut self, step: Step) -> Result<()> {
        let (grown, num_new_tokens) = (step.buffers.rows.len(), vec![0; self.len()]);
        let grown = grown.min(self.len());
        self.with_locked_rows(&num_new_tokens, |rows, _| step.undo(&mut rows[..grown]))
    }
}

impl GrowingRow for LockedRow<'_> {
    fn parts(&mut self) -> Parts<'_> {
        self.live().parts()
    }

    fn num_new_tokens(&self) -> usize {
        crate::batch::BatchRow::num_new_tokens(self)
    }

    fn epoch(&self) -> Option<AdmissionEpoch> {
        Some(self.look().epoch)
    }
}
