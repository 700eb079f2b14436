//! `PagedKvCache::step`: opens a step in the memory of an ended one; and the values that a step returns.

use std::fmt;

use super::growth::Growth;
use super::{Committed, GrownRow, RowCopy, Step};
use crate::cache::PagedKvCache;
use crate::cache::rows::locked::LockMemory;
use crate::groups::GroupLayout;
use crate::id::BlockId;
use crate::pool::in_flight::InFlightStep;
use crate::prefix::{BlockHash, Generation, Overwritten};
use crate::sequence::{GroupCopy, Sequence};

/// The memory of a step. [`Completed`] and [`Aborted`](crate::Aborted) return it, for the next step. (The
/// pool of its last step stays referenced until it is dropped.)
///
/// ```
/// use paged_kv::{PagedKvCache, StepBuffers};
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// let mut buffers = StepBuffers::default();
/// for _ in 0..3 {
///     let step = cache.step(buffers);
///     buffers = step.complete().buffers;
/// }
/// ```
#[derive(Default)]
pub struct StepBuffers {
    pub(super) rows: Vec<GrownRow>,
    pub(super) growth: Growth,
    pub(super) copies: Vec<RowCopy>,
    /// Cached contents of blocks that rows grew into.
    pub(super) overwritten: Vec<Overwritten>,
    /// Blocks to be published; the step owns each once for that.
    pub(super) ids: Vec<BlockId>,
    pub(super) hashes: Vec<BlockHash>,
    /// Their tokens, if there is an event sink.
    pub(super) tokens: Vec<u32>,
    /// Groups of consecutive blocks among them.
    pub(super) groups: Vec<Committed>,
    /// Locks of the rows of leases.
    pub(super) locks: LockMemory,
}

/// The outcome of a growth: the number of rows that grew.
///
/// ```
/// use paged_kv::PagedKvCache;
///
/// let cache = PagedKvCache::new(2, 4, 1, 1);
/// let mut rows = [(cache.allocate_sequence(4)?, 1), (cache.allocate_sequence(0)?, 5)];
/// let mut step = cache.step(Default::default());
/// let grown = step.grow(&mut rows)?;
/// assert_eq!((grown.grown_rows, grown.missing_blocks, grown.stride), (1, 2, 2));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "rows from `grown_rows` on did not grow"]
#[non_exhaustive]
pub struct Grown {
    /// Number of rows that grew; these are the first ones.
    pub grown_rows: usize,
    /// Number of blocks that were missing for the next row; 0 if all rows grew.
    pub missing_blocks: usize,
    /// Blocks of the longest row that grew, trimmed ones included: the number of columns that a block table
    /// of these rows needs.
    pub stride: usize,
}

/// The outcome of a step that completed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completed {
    /// Number of blocks that became matchable.
    pub published: usize,
    /// The memory of the step, for the next one.
    pub buffers: StepBuffers,
}

impl StepBuffers {
    /// Lists the copies that are pending in a row's groups, those of earlier growth included.
    pub(super) fn list_copies(
        &mut self,
        sequence: &mut Sequence,
        row: Option<usize>,
        step: InFlightStep,
    ) {
        let copies = &mut self.copies;
        if copies.is_empty() && !sequence.has_pending_copies() {
            return;
        }
        if row.is_some() {
            // Those that it brought when it joined. A destination that is not in its table is the source of another.
            let mut sources = Vec::new();
            for listed in copies.iter_mut().rev().filter(|listed| listed.row.is_none()) {
                let GroupCopy { group, src, dst, .. } = listed.copy;
                if sources.contains(&dst) || sequence.has_block(group, dst) {
                    listed.row = row;
                    sources.push(src);
                }
            }
        }
        for mut copy in sequence.take_held_copies() {
            copy.join_step(step);
            // Copies to a block and from it come in any order, so both are made from the first.
            let first = copies.iter().find(|earlier| earlier.copy.dst == copy.src);
            let src = first.map_or(copy.src, |first| first.src);
            copies.push(RowCopy { row, src, copy });
        }
    }
}

impl PagedKvCache {
    /// Opens a step, in the memory of an ended one or in `StepBuffers::default()`. Any number can be open
    /// at the same time. Memory for 64 is there from the start; each further one takes about 280 bytes, for
    /// as long as the pool lives. Reads one word for each step that was ever open at the same
    /// time.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, StepBuffers};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let first = cache.step(StepBuffers::default());
    /// let second = cache.step(StepBuffers::default());
    /// second.complete();
    /// first.complete();
    /// ```
    pub fn step(&self, buffers: StepBuffers) -> Step {
        let pool = self.pool.handle();
        let in_flight = pool.open_step();
        let (published, generation) = (None, self.published().generation());
        let overwrites = self.published().overwrites().cloned();
        let generations = pool.layout().map(|layout| self.generations(layout, generation));
        Step { pool, in_flight, buffers, published, generation, generations, overwrites }
    }

    #[cold]
    fn generations(&self, layout: &GroupLayout, generation: Generation) -> Box<[Generation]> {
        layout.ids().map(|group| self.published().of_group(generation, group)).collect()
    }
}

impl fmt::Debug for StepBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepBuffers").finish_non_exhaustive()
    }
}
