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

mod abort;
mod by_id;
mod commits;
mod exports;
mod growth;
mod joined;
mod opening;
mod rows;

use std::fmt;

use self::commits::Committed;
use self::joined::Joined;
pub use self::opening::{Grown, StepBuffers};
pub use self::rows::StepRow;
pub(super) use self::rows::{GrowingRow, Identity, Parts};
use super::Published;
use super::naming::Naming;
use crate::error::{PagedKvError, Result};
use crate::export::{KernelInt, block_number};
use crate::id::BlockId;
use crate::pool::PoolHandle;
use crate::pool::fence::Fence;
use crate::prefix::{BlockHash, Generation};
use crate::sequence::Sequence;

/// A step of the scheduler that the device may be at. Any number may be open at once, and end in any
/// order, on any thread.
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
    joined: Joined,
    /// Where to publish, while something is committed and not published.
    published: Option<Published>,
    /// In which cached contents are called what `reclaimed` says.
    generation: Generation,
}

/// A row that grew.
struct GrownRow {
    /// Tokens before it grew.
    start_tokens: usize,
    num_new_tokens: usize,
    copy: Option<(BlockId, BlockId)>,
    /// Which sequence it is, of a row by id.
    identity: Option<Identity>,
    /// The newest step that it had taken part in before.
    before: Fence,
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
        _ = sequence.take_part(self.fence);
    }

    fn is_of_pool(&self, sequence: &Sequence) -> bool {
        sequence.table().pool().is_of_same_pool(&self.pool)
    }

    /// The one door for sequences that come into a step: only those of its own cache do.
    fn refuse_other_cache(&self, sequence: &Sequence) -> Result<()> {
        if self.is_of_pool(sequence) {
            return Ok(());
        }
        Err(PagedKvError::WrongCache { value: "row" })
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
        self.grow_rows(rows)
    }

    /// Cached contents that this step is about to overwrite: the blocks that its rows grew into and that
    /// were cached until then, and what they hold. For a tier below, which has to copy them before the
    /// kernels of the step are launched. (An admission takes blocks too, unless its first chunk is 0
    /// tokens and steps do the rest.) What was published before the last
    /// [`reset_prefix_cache`](crate::PagedKvCache::reset_prefix_cache) that came before this step is not
    /// among them. (Resets are told apart modulo 4,096: of a content that outlived exactly so many
    /// unused, the hash is one that nothing has.)
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
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// let (block, hash) = step.reclaimed()[0];
    /// assert_eq!(hash, prompt.hashes()[0]);
    /// assert!(rows[0].0.block_ids().contains(&block));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reclaimed(&self) -> &[(BlockId, BlockHash)] {
        &self.buffers.reclaimed
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

    /// Says which tokens of row `row` of this step were accepted: the first of those it grew by. The
    /// slots of the others are dropped, and the blocks that the accepted ones fill are published when
    /// the step completes. Returns how many blocks wait for it: none of a sequence without names.
    ///
    /// Some of the accepted tokens may be named already (a prompt's, with drafts behind it): they have
    /// to be the same.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when there is no such row, when the sequence is
    /// not at the tokens that the row says (its earlier tokens are not all named, or a later step has
    /// grown it and slots would be dropped in the middle), when more tokens are accepted than it grew
    /// by, or when one of them is named otherwise; [`WrongCache`](PagedKvError::WrongCache) for a
    /// sequence of another cache; [`TooManyOwners`](PagedKvError::TooManyOwners).
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
    pub fn settle<R: StepRow>(
        &mut self,
        row: usize,
        sequence: &mut R,
        accepted: &[u32],
    ) -> Result<usize> {
        self.settle_parts(row, sequence.parts(), accepted)
    }

    fn settle_parts(
        &mut self,
        row: usize,
        (sequence, mut naming): Parts<'_>,
        accepted: &[u32],
    ) -> Result<usize> {
        self.refuse_other_cache(sequence)?;
        let named = naming.as_deref().filter(|naming| naming.names_up_to().is_some());
        let num_tokens = self.accepted_length(row, sequence, named, accepted)?;
        let start_tokens = num_tokens - accepted.len();
        // Named, committed, and only then cut: what each of them did before can be undone.
        let was_named = named.map(Naming::num_named);
        if let (Some(naming), Some(named)) = (&mut naming, was_named)
            && named < num_tokens
        {
            naming.name_tokens(sequence, &accepted[named - start_tokens..])?;
        }
        let num_new_tokens = self.buffers.rows[row].num_new_tokens;
        if num_new_tokens == 0 {
            return Ok(0);
        }
        let cuts = accepted.len() < num_new_tokens;
        let settled = self.commit_and_cut((sequence, naming.as_deref_mut()), num_tokens, cuts);
        if let (Some(naming), Some(named), Err(_)) = (naming, was_named, &settled) {
            naming.forget_generated(named, sequence.block_size());
        }
        settled
    }

    /// Tokens of the sequence of row `row` when these of its tokens are accepted, if they may be.
    fn accepted_length(
        &self,
        row: usize,
        sequence: &Sequence,
        named: Option<&Naming>,
        accepted: &[u32],
    ) -> Result<usize> {
        let refuse = |reason: String| Err(PagedKvError::InvalidConfig { parameter: "row", reason });
        let Some(grown) = self.buffers.rows.get(row) else {
            return refuse(format!("{row} of {}", self.buffers.rows.len()));
        };
        let (start_tokens, end, len) = (grown.start_tokens, grown.end(), sequence.num_tokens());
        if accepted.len() > grown.num_new_tokens {
            let num_new_tokens = grown.num_new_tokens;
            return refuse(format!("{} accepted of {num_new_tokens} tokens", accepted.len()));
        }
        let unnamed = named.map(Naming::num_named).filter(|&named| named < start_tokens);
        if len < end || unnamed.is_some() {
            return refuse(format!("{len} tokens, {unnamed:?} named, where {start_tokens} were"));
        }
        if named.is_some_and(|named| !named.agrees_with(start_tokens, accepted)) {
            return refuse("a token that is accepted is named otherwise".to_owned());
        }
        let num_tokens = start_tokens + accepted.len();
        if num_tokens < end && len > end {
            return refuse(format!("grown to {len} tokens since, and {num_tokens} stay"));
        }
        Ok(num_tokens)
    }

    /// Commits the first `num_tokens` tokens and drops those behind, if it `cuts`: both or neither.
    fn commit_and_cut(
        &mut self,
        (sequence, mut naming): Parts<'_>,
        num_tokens: usize,
        cuts: bool,
    ) -> Result<usize> {
        let parts = (&mut *sequence, naming.as_deref_mut());
        let committed = self.commit_parts(parts, num_tokens)?;
        if !cuts {
            return Ok(committed);
        }
        let cut = sequence.truncate(num_tokens);
        match (&cut, naming) {
            (Ok(()), Some(naming)) => naming.forget_generated(num_tokens, sequence.block_size()),
            (Err(_), Some(naming)) if committed > 0 => {
                self.take_commit_back();
                naming.take_offer_back(naming.offered() - committed);
            }
            _ => {}
        }
        cut.map(|()| committed)
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

    /// Forgets what was committed. If it was not published, its sequences will offer it again.
    fn end_commits(&mut self) {
        if let Some(published) = self.published.take() {
            published.count_failed_step();
        }
        if !self.buffers.ids.is_empty() {
            self.pool.release_in_step(self.fence, 0);
        }
        let StepBuffers { rows, growth, reclaimed, ids, hashes, tokens, groups } =
            &mut self.buffers;
        rows.clear();
        growth.clear();
        reclaimed.clear();
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
