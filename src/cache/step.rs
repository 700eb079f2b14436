//! What may the device still touch? A step of the scheduler, from its launch to its end.
//!
//! ```text
//!   cache.step() ── grow_batch ── copies, tables, slots ── launch ┄┄ settle, commit ── complete
//!                                                              └┄┄ abort, or dropped
//! ```
//!
//! What sequences that took part let go of while the step is open (dropped, freed, truncated, trimmed,
//! evicted, the source of a copy) returns to the pool when it ends; what is committed through it is
//! published when it completes. How blocks are held is told in `pool::fence`.
//!
//! Invariant: who takes part does so before it grows, so that nothing the device was told of is let go
//! of unfenced. A step does not know other steps.

mod opening;
mod rows;

use std::fmt;

pub use self::opening::{Grown, StepBuffers};
pub use self::rows::StepRow;
use super::Published;
use super::cached_sequence::CachedSequence;
use super::naming::refuse_beyond_end;
use crate::batch::grow_fitting;
use crate::error::{PagedKvError, Result};
use crate::export::{KernelInt, block_number};
use crate::id::BlockId;
use crate::pool::PoolHandle;
use crate::pool::fence::Fence;
use crate::prefix::{BlockHash, ExtraKeys, Generation, Offer, Told};
use crate::sequence::Sequence;
use crate::sync::PlainArc;

/// A step of the scheduler that the device may be at. Several may be open at once, up to 64, and end
/// in any order, on any thread.
///
/// Opening and ending one takes four atomic operations if nothing was let go of; ending it takes time
/// in proportion to what was.
///
/// ```
/// use paged_kv::PagedKvCache;
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// let mut sequence = cache.allocate_sequence(8)?;
/// let mut step = cache.step();
/// step.take_part(&mut sequence);
/// drop(sequence); // the request was cancelled, while a kernel reads its blocks
/// assert_eq!(cache.free_block_count(), 2);
/// step.complete();
/// assert_eq!(cache.free_block_count(), 4);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[must_use = "a step that is dropped publishes nothing"]
pub struct Step {
    pool: PoolHandle,
    fence: Fence,
    buffers: StepBuffers,
    published: Option<Published>,
}

/// Blocks of one commit, in order.
struct Committed {
    /// How far they go among all.
    end: usize,
    end_of_tokens: usize,
    /// Under which weights they were computed.
    generation: Generation,
    /// The block before them, and the hash of its content.
    before: Option<BlockId>,
    parent: Option<BlockHash>,
    block_size: usize,
    extra: Option<PlainArc<ExtraKeys>>,
    /// Blocks before the first of them.
    index: usize,
}

/// A row that grew.
struct GrownRow {
    /// Tokens before it grew.
    start_tokens: usize,
    num_new_tokens: usize,
    /// Blocks that had been offered for publication before.
    offered: usize,
    copy: Option<(BlockId, BlockId)>,
}

impl GrownRow {
    /// True if the sequence still has the tokens it had before, and the block that it wrote on from.
    fn can_be_undone(&self, sequence: &Sequence) -> bool {
        if sequence.num_tokens() < self.start_tokens {
            return false;
        }
        if self.start_tokens.is_multiple_of(sequence.block_size()) {
            return true;
        }
        let tail = sequence.block_at(self.start_tokens / sequence.block_size());
        tail.is_some() && self.copy.is_none_or(|(_, dst)| tail == Some(dst))
    }
}

impl Step {
    /// Has a sequence take part: what it lets go of from now on waits for the end of the step.
    /// [`grow_batch`](Self::grow_batch) does so with its rows. No atomic operation.
    ///
    /// # Panics
    /// If the sequence is of another cache.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut sequence = cache.allocate_sequence(8)?;
    /// let mut step = cache.step();
    /// step.take_part(&mut sequence);
    /// sequence.truncate(4)?;
    /// assert_eq!(cache.free_block_count(), 2);
    /// step.complete();
    /// assert_eq!(cache.free_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn take_part<R: StepRow>(&mut self, sequence: &mut R) {
        let sequence = sequence.parts().0;
        assert!(self.is_of_pool(sequence), "a sequence takes part in steps of its own cache");
        sequence.take_part(self.fence);
    }

    fn is_of_pool(&self, sequence: &Sequence) -> bool {
        sequence.table().pool().is_of_same_pool(&self.pool)
    }

    /// Grows as many of the first rows as there is room for, each by its number of tokens, with the
    /// blocks for copies on write, and one allocation for all. The rows take part in the step, and have
    /// numbers in it from 0 on, over all calls.
    ///
    /// # Errors
    /// As [`append_batch_fitting`](crate::append_batch_fitting); nothing has grown.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(4)?, 1), (cache.allocate_sequence(4)?, 1)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 2);
    /// assert_eq!(rows[1].0.num_tokens(), 5);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn grow_batch<R: StepRow>(&mut self, rows: &mut [(R, usize)]) -> Result<Grown> {
        if rows.iter_mut().any(|(row, _)| !self.is_of_pool(row.parts().0)) {
            let reason = "a sequence of another cache".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "rows", reason });
        }
        for (row, _) in &mut *rows {
            row.parts().0.take_part(self.fence);
        }
        fn parts<R: StepRow>(row: &mut (R, usize)) -> (&mut Sequence, usize) {
            (row.0.parts().0, row.1)
        }
        let StepBuffers { batch, rows: grown_rows, .. } = &mut self.buffers;
        let fitted = grow_fitting(rows, parts, batch)?;
        for ((row, num_new_tokens), append) in rows.iter_mut().zip(batch.as_slice()) {
            let (sequence, naming) = row.parts();
            grown_rows.push(GrownRow {
                start_tokens: sequence.num_tokens() - *num_new_tokens,
                num_new_tokens: *num_new_tokens,
                offered: naming.map_or(0, |naming| naming.offered()),
                copy: append.copy.as_ref().map(|copy| (copy.src, copy.dst)),
            });
        }
        // The sources of copies, of which the batch lets go, are held by the step.
        batch.clear();
        Ok(Grown { done: fitted.done, short_by: fitted.short_by })
    }

    /// Appends the copies on write that the device has to make before it writes: source and
    /// destination of each, by block. Returns how many there are.
    ///
    /// # Errors
    /// [`IdTooLarge`](PagedKvError::IdTooLarge) when a block does not fit a `T`.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut source = cache.allocate_sequence(2)?;
    /// let mut rows = [(source.fork()?, 1)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// let mut copies: Vec<[i32; 2]> = Vec::new();
    /// assert_eq!(step.copies(&mut copies)?, 1);
    /// assert_eq!(copies, [[source.block_ids()[0].0 as i32, rows[0].0.block_ids()[0].0 as i32]]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn copies<T: KernelInt>(&self, out: &mut Vec<[T; 2]>) -> Result<usize> {
        let len = out.len();
        for (src, dst) in self.buffers.rows.iter().filter_map(|row| row.copy) {
            let pair = block_number(src).and_then(|src| Ok([src, block_number(dst)?]));
            let pair = pair.inspect_err(|_| out.truncate(len))?;
            out.push(pair);
        }
        Ok(out.len() - len)
    }

    /// Says that the keys and values of the first `num_tokens` tokens of a sequence are computed once
    /// this step completes: as [`CachedSequence::commit`], but published only then. Returns how many
    /// blocks wait for it. One atomic operation a block.
    ///
    /// # Errors
    /// [`CommitBeyondEnd`](PagedKvError::CommitBeyondEnd),
    /// [`TooManyOwners`](PagedKvError::TooManyOwners).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[7; 9]), &AdmitOptions::default())?;
    /// let mut step = cache.step();
    /// step.take_part(&mut sequence);
    /// assert_eq!(step.commit(&mut sequence, 9)?, 2);
    /// assert_eq!(cache.probe(&[7; 9]), 0);
    /// assert_eq!(step.complete(), 2);
    /// assert_eq!(cache.probe(&[7; 9]), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit(&mut self, sequence: &mut CachedSequence, num_tokens: usize) -> Result<usize> {
        refuse_beyond_end(sequence, num_tokens)?;
        let (sequence, naming) = sequence.parts_mut();
        let full = naming.full_blocks(sequence, num_tokens);
        let offered = naming.offered();
        let StepBuffers { ids, hashes, tokens, groups, .. } = &mut self.buffers;
        let told = naming.told(offered, sequence.block_size());
        let mut committed = Committed {
            end: ids.len(),
            end_of_tokens: tokens.len(),
            generation: naming.generation(),
            before: sequence.block_ids()[..offered].last().copied(),
            parent: told.parent,
            block_size: told.block_size,
            extra: told.extra.clone(),
            index: offered,
        };
        let mut refused = None;
        for at in offered..full {
            // One more owner: the block stays, and is not written any more but as a copy.
            let id = sequence.block_ids()[at];
            refused = self.pool.retain(id).err();
            if refused.is_some() {
                break;
            }
            ids.push(id);
            hashes.push(naming.hash(at));
            if naming.published().is_heard() {
                tokens.extend_from_slice(told.tokens_of(at - offered, &mut Vec::new()));
            }
        }
        let blocks = ids.len() - committed.end;
        (committed.end, committed.end_of_tokens) = (ids.len(), tokens.len());
        if blocks > 0 {
            groups.push(committed);
            naming.offer(offered + blocks);
            self.published.get_or_insert_with(|| naming.published().clone());
        }
        refused.map_or(Ok(blocks), Err)
    }

    /// Says which tokens of row `row` of this step were accepted: the first of those it grew by. The
    /// slots of the others are dropped, and the blocks that the accepted ones fill are published when
    /// the step completes. Returns how many blocks wait for it.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when there is no such row, when the sequence is
    /// not at the tokens that the row says (its earlier tokens are not all named, or a later step has
    /// grown it and slots would be dropped in the middle), or when more tokens are accepted than it grew
    /// by.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2]), &AdmitOptions::default())?;
    /// let mut rows = [(sequence, 5)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// // Of five drafts two were right.
    /// assert_eq!(step.settle(0, &mut rows[0].0, &[3, 4])?, 1);
    /// step.complete();
    /// assert_eq!(rows[0].0.num_tokens(), 4);
    /// assert_eq!(cache.probe(&[1, 2, 3, 4, 5]), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn settle(
        &mut self,
        row: usize,
        sequence: &mut CachedSequence,
        accepted: &[u32],
    ) -> Result<usize> {
        let refuse = |reason: String| Err(PagedKvError::InvalidConfig { parameter: "row", reason });
        let Some(grown) = self.buffers.rows.get(row) else {
            return refuse(format!("{row} of {}", self.buffers.rows.len()));
        };
        let &GrownRow { start_tokens, num_new_tokens, .. } = grown;
        let num_tokens = start_tokens + accepted.len();
        if accepted.len() > num_new_tokens {
            return refuse(format!("{} accepted of {num_new_tokens} tokens", accepted.len()));
        }
        let end = start_tokens + num_new_tokens;
        let (len, named) = (sequence.num_tokens(), sequence.parts_mut().1.names_up_to());
        if len < end || named.is_some_and(|named| named != start_tokens) {
            return refuse(format!("{len} tokens, {named:?} named, where {start_tokens} were"));
        }
        if accepted.len() < num_new_tokens {
            if len > end {
                return refuse(format!("grown to {len} tokens since, and {num_tokens} stay"));
            }
            sequence.truncate(num_tokens)?;
        }
        let (held, naming) = sequence.parts_mut();
        naming.name_tokens(held, accepted)?;
        self.commit(sequence, num_tokens)
    }

    /// The device is through: publishes what was committed, gives back what was let go of, and returns
    /// how many blocks can be matched that could not before.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// assert_eq!(cache.step().complete(), 0);
    /// ```
    pub fn complete(mut self) -> usize {
        self.publish()
    }

    /// [`complete`](Self::complete), and leaves its memory to the next step.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, StepBuffers};
    ///
    /// let (cache, mut buffers) = (PagedKvCache::new(4, 4, 1, 1), StepBuffers::default());
    /// assert_eq!(cache.step_in(&mut buffers).complete_into(&mut buffers), 0);
    /// ```
    pub fn complete_into(mut self, buffers: &mut StepBuffers) -> usize {
        let published = self.publish();
        self.end_commits();
        *buffers = std::mem::take(&mut self.buffers);
        published
    }

    /// The launch failed: every row, in the order of their numbers, is as it was before the step grew
    /// it, nothing is published, and what was let go of is given back. Of several steps that grew the
    /// same sequences the newest has to be aborted first.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when these are not the rows of the step, or one
    /// has been cut or trimmed since into what it had before; [`TooManyOwners`](PagedKvError::TooManyOwners). The step is dropped
    /// then, and no row has changed.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(3)?, 9)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// step.abort(&mut rows)?;
    /// assert_eq!(rows[0].0.num_tokens(), 3);
    /// assert_eq!(cache.free_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn abort<R: StepRow>(self, rows: &mut [(R, usize)]) -> Result<()> {
        let grown = &self.buffers.rows;
        let refuse = |reason| Err(PagedKvError::InvalidConfig { parameter: "rows", reason });
        if rows.len() != grown.len() {
            return refuse(format!("{}, of which the step has {}", rows.len(), grown.len()));
        }
        for ((row, _), grown) in rows.iter_mut().zip(grown) {
            let sequence = row.parts().0;
            if !self.is_of_pool(sequence) || !grown.can_be_undone(sequence) {
                return refuse(format!("{} tokens left of a row", sequence.num_tokens()));
            }
        }
        // The sources of copies get their owner back first: that alone can be refused.
        let sources: Vec<BlockId> =
            grown.iter().filter_map(|row| row.copy).map(|(src, _)| src).collect();
        for (done, &src) in sources.iter().enumerate() {
            if let Err(refusal) = self.pool.retain(src) {
                self.pool.give(&sources[..done]);
                return Err(refusal);
            }
        }
        for ((row, _), grown) in rows.iter_mut().zip(grown) {
            let (sequence, naming) = row.parts();
            sequence.restore(grown.start_tokens, grown.copy)?;
            if let Some(naming) = naming {
                naming.restore(grown.start_tokens, sequence.block_size(), grown.offered);
            }
        }
        Ok(())
    }

    fn publish(&mut self) -> usize {
        let StepBuffers { ids, hashes, tokens, groups, .. } = &self.buffers;
        let Some(published) = &self.published else {
            return 0;
        };
        let (mut count, mut start, mut start_of_tokens) = (0, 0, 0);
        for group in groups {
            let (ids, hashes) = (&ids[start..group.end], &hashes[start..group.end]);
            let told = || Told {
                parent: group.parent,
                tokens: [&tokens[start_of_tokens..group.end_of_tokens], &[]],
                block_size: group.block_size,
                extra: group.extra.clone(),
                index: group.index,
            };
            let Committed { before, generation, .. } = *group;
            // The step owns them too: none is private.
            let offer = Offer { ids, before, private_from: ids.len(), generation };
            count += published.publish(&self.pool, &offer, |at| hashes[at], told);
            (start, start_of_tokens) = (group.end, group.end_of_tokens);
        }
        count
    }

    /// Forgets what was committed.
    fn end_commits(&mut self) {
        self.pool.give(&self.buffers.ids);
        let StepBuffers { rows, batch, ids, hashes, tokens, groups } = &mut self.buffers;
        rows.clear();
        batch.clear();
        ids.clear();
        hashes.clear();
        tokens.clear();
        groups.clear();
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end_commits();
        self.pool.close_step(self.fence);
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("rows", &self.buffers.rows.len()).finish_non_exhaustive()
    }
}
