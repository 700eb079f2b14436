//! How does a sequence by id take part in a step? As a handle does, under its own lock for the time of
//! each call: meanwhile anybody may free or evict it.
//!
//! Invariant: a row is a sequence, not an id. If another one has come under the id since, it is left
//! alone.

use super::{GrowingRow, Grown, Identity, Parts, Step};
use crate::cache::PagedKvCache;
use crate::cache::lease::{Lease, LockedRow};
use crate::cache::slot::Live;
use crate::error::{PagedKvError, Result};
use crate::export::{Gaps, KernelInt, SlotMapping};
use crate::id::SeqId;
use crate::sync::Later;

impl PagedKvCache {
    /// Has a sequence by id take part in a step: what it lets go of from now on, or is freed or evicted
    /// of, waits for the end of the step. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound);
    /// [`WrongCache`](PagedKvError::WrongCache) for a step of another cache.
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
        let take_part = |live: &mut Live| {
            live.sequence_mut().take_part(step.fence);
            step.joined.note((id, live.epoch));
        };
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
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), also if the sequence that grew is gone and
    /// another has come under its id; [`WrongCache`](PagedKvError::WrongCache) for a step of another
    /// cache; and as [`Step::slots`]. The rows before the one that is refused are written then.
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
        self.refuse_step(step)?;
        step.refuse_fewer_rows(ids.len())?;
        let mut mapping = SlotMapping::new(out, gaps);
        for (number, (&id, grown)) in ids.iter().zip(&step.buffers.rows).enumerate() {
            let epoch = step.epoch_of_row(number, id)?;
            self.look_if(id, Some(epoch), |sequence| mapping.push(sequence, grown.new_tokens()))?;
        }
        Ok(mapping.finish())
    }

    /// [`Step::commit`] for a sequence by id. Takes one shard lock.
    ///
    /// A sequence that has not joined the step joins it.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound), also if the sequence that joined is gone and
    /// another has come under its id; and as [`Step::commit`].
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
        let commit = |live: &mut Live| {
            let identity = (id, live.epoch);
            if !step.has_joined(identity)? {
                live.sequence_mut().take_part(step.fence);
                step.joined.note(identity);
            }
            step.commit_parts(live.parts(), num_tokens)
        };
        let _later = Later::begin();
        self.update_if(id, |_| false, commit)?
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
        let settle = |live: &mut Live| match step.epoch_of_row(row, id)? == live.epoch {
            true => step.settle_parts(row, live.parts(), accepted),
            false => Err(PagedKvError::SequenceNotFound(id)),
        };
        let _later = Later::begin();
        self.update_if(id, |_| false, settle)?
    }

    /// [`Step::abort`] for a step whose rows are sequences by id, in the order of their numbers.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) when a sequence that grew is gone, also if
    /// another has come under its id; and as [`Step::revert`]. The step is dropped then, and no row has
    /// changed. ([`revert`](Self::revert) passes over sequences that are gone.)
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
        let mut step = step;
        self.undo_by_id(&mut step, ids, Err)
    }

    /// [`Step::revert`] for a step whose rows are sequences by id, in the order of their numbers. Sequences
    /// that are gone are passed over: of these nothing is left to undo.
    ///
    /// # Errors
    /// As [`Step::revert`]. The step and the rows are as they were.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 3)?;
    /// cache.allocate(SeqId(2), 3)?;
    /// let mut step = cache.step();
    /// assert_eq!(cache.grow_batch(&[(SeqId(1), 2), (SeqId(2), 2)], &mut step)?.done, 2);
    /// cache.free(SeqId(1))?;
    /// assert!(cache.revert(&mut step, &[SeqId(2), SeqId(1)]).is_err());
    /// cache.revert(&mut step, &[SeqId(1), SeqId(2)])?;
    /// assert_eq!(cache.get_sequence(SeqId(2)).unwrap().num_tokens, 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn revert(&self, step: &mut Step, ids: &[SeqId]) -> Result<()> {
        self.undo_by_id(step, ids, |_| Ok(()))
    }

    /// Undoes the growth of a step's rows. `gone` says what a sequence is answered that is not there.
    fn undo_by_id(
        &self,
        step: &mut Step,
        ids: &[SeqId],
        gone: impl Fn(PagedKvError) -> Result<()>,
    ) -> Result<()> {
        self.refuse_step(step)?;
        let (mut lease, mut rows_of) = (self.lease(&[])?, Vec::with_capacity(ids.len()));
        for (number, &id) in ids.iter().enumerate() {
            let epoch = step.epoch_of_row(number, id)?;
            let row = lease.ids().position(|leased| leased == id);
            let row = match row.map_or_else(|| self.lease_more(&mut lease, id, epoch), Ok) {
                Ok(row) => Some(row),
                Err(refusal) => gone(refusal).map(|()| None)?,
            };
            rows_of.push(row);
        }
        lease.undo(step, &rows_of)
    }

    fn refuse_step(&self, step: &Step) -> Result<()> {
        if self.pool.is_pool_of(&step.pool) {
            return Ok(());
        }
        Err(PagedKvError::WrongCache { value: "step" })
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
    pub fn abort(&mut self, mut step: Step) -> Result<()> {
        self.revert(&mut step)
    }

    /// [`Step::revert`] for a step whose rows are the first of the lease, in order.
    ///
    /// # Errors
    /// As [`Step::revert`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let mut lease = cache.lease(&[SeqId(1)])?;
    /// let mut step = cache.step();
    /// assert_eq!(lease.grow_batch(&[5], &mut step)?.done, 1);
    /// lease.revert(&mut step)?;
    /// assert_eq!(lease.grow_batch(&[5], &mut step)?.done, 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn revert(&mut self, step: &mut Step) -> Result<()> {
        let grown = step.buffers.rows.len().min(self.len());
        let rows_of: Vec<Option<usize>> = (0..grown).map(Some).collect();
        self.undo(step, &rows_of)
    }

    fn undo(&mut self, step: &mut Step, rows_of: &[Option<usize>]) -> Result<()> {
        let num_new_tokens = vec![0; self.len()];
        self.with_locked_rows(&num_new_tokens, |rows, _| step.undo(rows, rows_of))
    }
}

impl GrowingRow for LockedRow<'_> {
    fn parts(&mut self) -> Parts<'_> {
        self.live().parts()
    }

    fn num_new_tokens(&self) -> usize {
        crate::batch::BatchRow::num_new_tokens(self)
    }

    fn identity(&self) -> Option<Identity> {
        Some((self.id(), self.look().epoch))
    }
}
