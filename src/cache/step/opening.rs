//! How does a step begin, and in what memory?

use std::fmt;

use super::growth::Growth;
use super::{Committed, GrownRow, Joined, Step};
use crate::cache::PagedKvCache;
use crate::id::BlockId;
use crate::prefix::BlockHash;

/// The memory of a step, to be used again by the next: see
/// [`step_in`](PagedKvCache::step_in).
///
/// ```
/// use paged_kv::{PagedKvCache, StepBuffers};
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// let mut buffers = StepBuffers::default();
/// for _ in 0..3 {
///     let step = cache.step_in(&mut buffers);
///     step.complete_into(&mut buffers);
/// }
/// ```
#[derive(Default)]
pub struct StepBuffers {
    pub(super) rows: Vec<GrownRow>,
    pub(super) growth: Growth,
    /// What was cached in blocks that rows grew into.
    pub(super) reclaimed: Vec<(BlockId, BlockHash)>,
    /// Blocks to be published, each owned once for that.
    pub(super) ids: Vec<BlockId>,
    pub(super) hashes: Vec<BlockHash>,
    /// Their tokens, where somebody listens.
    pub(super) tokens: Vec<u32>,
    /// Runs of them.
    pub(super) groups: Vec<Committed>,
}

/// How much of a batch grew in a step.
///
/// ```
/// use paged_kv::PagedKvCache;
///
/// let cache = PagedKvCache::new(2, 4, 1, 1);
/// let mut rows = [(cache.allocate_sequence(4)?, 1), (cache.allocate_sequence(0)?, 5)];
/// let mut step = cache.step();
/// let grown = step.grow_batch(&mut rows)?;
/// assert_eq!((grown.done, grown.short_by), (1, 2));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "rows from `done` on did not grow"]
pub struct Grown {
    /// Leading rows that grew.
    pub done: usize,
    /// Blocks that the next row would have needed besides those there were; 0 if all grew.
    pub short_by: usize,
}

impl PagedKvCache {
    /// Opens a step. Any number can be open at once: memory for 64 is there from the start, and about 280
    /// bytes for each further one stay for as long as the pool. Reads one word for each step that was ever
    /// open at once.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let (first, second) = (cache.step(), cache.step());
    /// second.complete();
    /// first.complete();
    /// ```
    pub fn step(&self) -> Step {
        self.step_in(&mut StepBuffers::default())
    }

    /// [`step`](Self::step) in memory that an ended one left; takes it out of `buffers`.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, StepBuffers};
    ///
    /// let mut buffers = StepBuffers::default();
    /// let step = PagedKvCache::new(4, 4, 1, 1).step_in(&mut buffers);
    /// step.complete_into(&mut buffers);
    /// ```
    pub fn step_in(&self, buffers: &mut StepBuffers) -> Step {
        let pool = self.pool.handle();
        let fence = pool.open_step();
        let (published, generation) = (None, self.published().generation());
        let (buffers, joined) = (std::mem::take(buffers), Joined::new());
        Step { pool, fence, buffers, joined, published, generation }
    }
}

impl fmt::Debug for StepBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepBuffers").finish_non_exhaustive()
    }
}
