//! `Step`: one step of the scheduler on the device, from its launch to its end.
//!
//! ```text
//!   cache.step(Default::default()) ── grow ── copies, tables, slots ── launch ┄┄ accept, commit ── complete
//!                                                       └┄┄ abort, or dropped
//! ```
//!
//! Sequences of the step may release blocks while it is open: by a drop, a free, a truncation, a trim, an
//! eviction, or as the source of a copy. These blocks return to the pool when the step ends; until then
//! `pool::in_flight` holds them. Blocks that are committed through the step are published when it completes.
//!
//! Invariant: a sequence joins a step before it grows, so every block that the step's kernels may touch is
//! held until the step ends. A step does not know other steps.

mod abort;
mod accept;
mod buffers;
mod export;
mod growth;
mod publish;

use std::fmt;

pub use self::abort::{AbortRefused, Aborted};
pub use self::buffers::{Completed, Grown, StepBuffers};
use self::publish::Committed;
use super::Published;
use super::rows::{Row, look, update};
use crate::error::{PagedKvError, Result};
use crate::export::{KernelInt, block_number};
use crate::id::{BlockId, Identity};
use crate::pool::PoolHandle;
use crate::pool::in_flight::InFlightStep;
use crate::prefix::overwrites::Overwrites;
use crate::prefix::{Generation, Overwritten};
use crate::sequence::{GroupCopy, Sequence};
use crate::sync::PlainArc;

/// A step of the scheduler that the device may be executing. Any number may be open at the same time. They
/// end in any order, on any thread.
///
/// Opening and ending a step takes four atomic operations if no block was released. Otherwise ending it
/// takes time in proportion to the released blocks.
///
/// ```
/// use paged_kv::PagedKvCache;
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// let mut sequence = cache.allocate_sequence(8)?;
/// let mut step = cache.step(Default::default());
/// step.join(&mut sequence)?;
/// drop(sequence); // the request was cancelled, while a kernel reads its blocks
/// assert_eq!(cache.free_block_count(), 2);
/// step.complete();
/// assert_eq!(cache.free_block_count(), 4);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[must_use = "a step that is dropped publishes nothing"]
pub struct Step {
    pool: PoolHandle,
    in_flight: InFlightStep,
    buffers: StepBuffers,
    /// The target of the publication, while a commit is not published.
    published: Option<Published>,
    /// The generation of the hashes that `overwritten` returns.
    generation: Generation,
    /// Of a cache with groups: the generation of each.
    generations: Option<Box<[Generation]>>,
    /// The records of the cache's contents, if it keeps any.
    overwrites: Option<PlainArc<Overwrites>>,
}

/// A row that grew.
struct GrownRow {
    /// Tokens before it grew.
    start_tokens: usize,
    num_new_tokens: usize,
    copy: Option<(BlockId, BlockId)>,
    /// The sequence of the map, if it is a row of a lease.
    identity: Option<Identity>,
    /// The newest step that it had joined before.
    before: InFlightStep,
}

/// A copy of a group's block that a row needs.
struct RowCopy {
    /// The number of the row; `None` if the sequence only joined before it was listed.
    row: Option<usize>,
    /// The block to copy from: that of the copy, or of an earlier copy of the step to that block.
    src: BlockId,
    copy: GroupCopy,
}

impl Step {
    /// Lets a sequence join the step: the blocks that it releases from now on are held until the step ends.
    /// [`grow`](Self::grow) and [`commit`](Self::commit) do so with their rows. Takes no atomic operation
    /// for a handle, and the sequence's own lock for a row of a lease. In a cache with groups,
    /// [`copies`](Self::copies) lists the copies of the sequence that are pending. If the step is aborted, they are
    /// pending again for a row that grew in it, and for another sequence they are still to be made.
    ///
    /// # Errors
    /// [`WrongCache`](PagedKvError::WrongCache) for a sequence of another cache, and
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) for a row of a lease whose sequence is gone.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut sequence = cache.allocate_sequence(8)?;
    /// let mut step = cache.step(Default::default());
    /// step.join(&mut sequence)?;
    /// sequence.truncate(4)?;
    /// assert_eq!(cache.free_block_count(), 2);
    /// step.complete();
    /// assert_eq!(cache.free_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn join<R: Row>(&mut self, row: &mut R) -> Result<()> {
        update(row, |(sequence, _), _| {
            self.refuse_other_cache(sequence)?;
            sequence.join_step(self.in_flight);
            self.buffers.list_copies(sequence, None, self.in_flight);
            Ok(())
        })
    }

    pub(super) fn pool(&self) -> &PoolHandle {
        &self.pool
    }

    /// Returns the generation in which the step began.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    fn is_of_pool(&self, sequence: &Sequence) -> bool {
        sequence.table().pool().is_of_same_pool(&self.pool)
    }

    /// Refuses a sequence of another cache; every sequence that joins a step passes here.
    fn refuse_other_cache(&self, sequence: &Sequence) -> Result<()> {
        if self.is_of_pool(sequence) {
            return Ok(());
        }
        Err(PagedKvError::WrongCache { value: "row" })
    }

    /// Grows as many of the first rows as there is room for, each by its number of tokens. Takes one
    /// allocation for all rows, which includes the blocks for copies on write. The rows join the step. They
    /// have numbers in it from 0 on, over all calls. Rows of leases are locked together, and count as used.
    ///
    /// # Errors
    /// As [`append_batch`](crate::append_batch()), except for a lack of room; nothing has grown then.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(4)?, 1), (cache.allocate_sequence(4)?, 1)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    /// assert_eq!(rows[1].0.num_tokens(), 5);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn grow<R: Row>(&mut self, rows: &mut [(R, usize)]) -> Result<Grown> {
        self.grow_rows(rows)
    }

    /// Returns the cached contents that this step is about to overwrite: blocks that its rows grew into and
    /// that were cached until then, with the hashes of their contents. A tier below has to copy them before
    /// the kernels of the step are launched. An admission takes blocks too, unless its first chunk is 0 tokens
    /// and steps grow the rest: an [`overwrite_observer`] learns of the contents of these blocks. The parents of
    /// the contents are known only in a cache with such an observer. Contents that were published before the last
    /// [`Prefix::reset`](crate::Prefix::reset) that preceded this step are not included; without an
    /// observer, nor are those published after a reset that came after the step's beginning. (Resets are
    /// distinguished modulo 4,096. If a content stayed unused through exactly that many resets, its hash is
    /// one that no content has.)
    ///
    /// [`overwrite_observer`]: crate::PagedKvCacheBuilder::overwrite_observer
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(2, 4, 1, 1);
    /// let prompt = cache.prompt(&[7; 5]);
    /// cache.admit(SeqId(1), &[7; 5])?;
    /// cache.commit(SeqId(1), 5)?;
    /// cache.free(SeqId(1))?;
    /// let mut rows = [(cache.allocate_sequence(0)?, 8)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// let lost = step.overwritten()[0];
    /// assert_eq!(lost.hash, prompt.hashes()[0]);
    /// assert!(rows[0].0.block_ids().contains(&lost.block));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn overwritten(&self) -> &[Overwritten] {
        &self.buffers.overwritten
    }

    /// Appends the copies that the device has to make before it writes, on write and of states: source and destination
    /// of each, by block. They may be made in any order. Returns the number of copies.
    ///
    /// # Errors
    /// [`IdTooLarge`](PagedKvError::IdTooLarge) if a block does not fit a `T`.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut source = cache.allocate_sequence(2)?;
    /// let mut rows = [(source.fork()?, 1)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// let mut copies: Vec<[i32; 2]> = Vec::new();
    /// assert_eq!(step.copies(&mut copies)?, 1);
    /// assert_eq!(copies, [[source.block_ids()[0].0 as i32, rows[0].0.block_ids()[0].0 as i32]]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn copies<T: KernelInt>(&self, out: &mut Vec<[T; 2]>) -> Result<usize> {
        let len = out.len();
        let of_rows = self.buffers.rows.iter().filter_map(|row| row.copy);
        let of_groups = self.buffers.copies.iter().map(|copy| (copy.src, copy.copy.dst));
        for (src, dst) in of_rows.chain(of_groups) {
            let pair = block_number(src).and_then(|src| Ok([src, block_number(dst)?]));
            let pair = pair.inspect_err(|_| out.truncate(len))?;
            out.push(pair);
        }
        Ok(out.len() - len)
    }

    /// Ends the step after the device has done its work. Publishes the committed blocks, and returns to the
    /// pool the blocks that were released during the step.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let first = cache.step(Default::default()).complete();
    /// assert_eq!(first.published, 0);
    /// let second = cache.step(first.buffers); // in the same memory
    /// # drop(second);
    /// ```
    pub fn complete(mut self) -> Completed {
        let published = self.publish();
        self.end_commits();
        Completed { published, buffers: std::mem::take(&mut self.buffers) }
    }

    /// Forgets the commits of the step. If they were not published, their sequences will offer the blocks
    /// again.
    fn end_commits(&mut self) {
        if let Some(published) = self.published.take() {
            published.count_failed_step();
        }
        if !self.buffers.ids.is_empty() {
            self.pool.release_in_step(self.in_flight, 0);
        }
        let StepBuffers {
            rows,
            growth,
            copies,
            overwritten,
            ids,
            hashes,
            tokens,
            groups,
            locks: _,
        } = &mut self.buffers;
        rows.clear();
        copies.clear();
        growth.clear();
        overwritten.clear();
        ids.clear();
        hashes.clear();
        tokens.clear();
        groups.clear();
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end_commits();
        self.pool.close_step(self.in_flight);
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("rows", &self.buffers.rows.len()).finish_non_exhaustive()
    }
}
