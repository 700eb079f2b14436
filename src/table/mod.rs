//! `BlockTable`: the ordered blocks of one owner.
//!
//! ```text
//!   ids      [ B0 B1 B2 │ B5 B6 │ B9 B7 ]
//!              run 1      run 2   private
//!            └── shared_len = 5 ─┘
//! ```
//!
//! Invariants: the run chain owns the blocks `ids[..shared_len]`; the table itself owns each later block by
//! the block's word. Every id is resident. Only a private block with one owner may be written.
//!
//! A table counts blocks, not tokens.

mod cut;
mod pin;

use std::fmt;
use std::ops::Range;

use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::pool::in_flight::InFlightStep;
use crate::pool::in_flight::coming::num_blocks_given_up;
use crate::pool::watermark::NewBlocks;
use crate::pool::{BlockPool, PoolHandle};
use crate::sync::Arc;

use self::cut::retain_all;
pub(crate) use self::pin::BlockPin;
pub(crate) use crate::pool::shared_run::SharedRun;

/// An owned, ordered list of blocks. Dropping it releases its blocks; those without another owner become
/// free.
///
/// ```
/// use paged_kv::{BlockPool, PagedKvError};
///
/// let pool = BlockPool::new(4);
/// let mut table = pool.allocate(2)?;
/// let fork = table.fork(2)?;
/// assert_eq!(table.as_slice(), fork.as_slice());
/// assert_eq!(pool.used_block_count(), 2);
///
/// assert_eq!(table.grow(1)?, 2..3);
/// let refused = table.grow(2).unwrap_err();
/// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 2, available: 1 });
///
/// drop((table, fork));
/// assert_eq!(pool.used_block_count(), 0);
/// # Ok::<(), PagedKvError>(())
/// ```
pub struct BlockTable {
    ids: Vec<BlockId>,
    shared: Option<Arc<SharedRun>>,
    shared_len: usize,
    /// The newest step that this table joined.
    step: InFlightStep,
    pool: PoolHandle,
}

impl BlockPool {
    /// Allocates a table of `n` blocks that no other owner has, or none.
    ///
    /// Cost: one claim of the thread's home shard and `O(n)` copied ids. See [`guide::blocking`] for the
    /// threads that it may wait for when the home shard is short.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::PagedKvError::OutOfMemory) when at some moment during the call
    /// fewer than `n` blocks were free.
    ///
    /// [`guide::blocking`]: crate::guide::blocking
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(3)?;
    /// assert_eq!(table.as_slice().len(), 3);
    /// assert!(pool.allocate(2).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate(&self, n: usize) -> Result<BlockTable> {
        let mut table = BlockTable::new(self.handle());
        table.grow(n)?;
        Ok(table)
    }
}

impl BlockPool {
    /// Creates a table of blocks that the caller owns by their words.
    pub(crate) fn table_of(&self, ids: Vec<BlockId>) -> BlockTable {
        BlockTable::of_owned(ids, self.handle())
    }

    /// Creates a table that is one more owner of each of `ids`, all or none. They need other owners.
    pub(crate) fn hold(&self, ids: &[BlockId]) -> Result<BlockTable> {
        for &id in ids {
            self.blocks().check(id)?;
        }
        let pool = self.handle();
        pool.expect_counts_by_id();
        retain_all(&pool, ids)?;
        Ok(self.table_of(ids.to_vec()))
    }
}

impl crate::pool::Blocks {
    /// Returns a table that is one more owner of each of `ids`, which have other owners; all or none. No owner by id is
    /// counted.
    pub(crate) fn hold_again(&self, ids: &[BlockId], pool: PoolHandle) -> Result<BlockTable> {
        retain_all(&pool, ids)?;
        Ok(BlockTable::of_owned(ids.to_vec(), pool))
    }
}

impl BlockTable {
    /// Creates a table without blocks.
    pub(crate) fn new(pool: PoolHandle) -> Self {
        Self::of_owned(Vec::new(), pool)
    }

    /// Creates an empty table of the same pool.
    pub(crate) fn new_sibling(&self) -> Self {
        Self::new(self.pool.clone())
    }

    /// Creates a table of blocks that the caller owns by their words.
    pub(crate) fn of_owned(ids: Vec<BlockId>, pool: PoolHandle) -> Self {
        Self { ids, shared: None, shared_len: 0, step: InFlightStep::default(), pool }
    }

    /// Returns the private blocks, which the caller owns by their words from then on.
    pub(crate) fn into_owned_ids(mut self) -> Vec<BlockId> {
        self.ids.split_off(self.shared_len)
    }

    /// Returns the blocks, in order.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(3)?;
    /// assert_eq!(table.as_slice().len(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn as_slice(&self) -> &[BlockId] {
        &self.ids
    }

    /// Returns the number of blocks.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// assert_eq!(pool.allocate(3)?.len(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns true if the table has no blocks.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// assert!(pool.allocate(0)?.is_empty());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Appends `n` blocks that no other owner has, all or none, and returns their range. Cost as
    /// [`BlockPool::allocate`].
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::PagedKvError::OutOfMemory); the table is as it was.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let mut table = pool.allocate(1)?;
    /// assert_eq!(table.grow(3)?, 1..4);
    /// assert!(table.grow(1).is_err());
    /// assert_eq!(table.len(), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn grow(&mut self, n: usize) -> Result<Range<usize>> {
        let len = self.ids.len();
        if n > 0 {
            let reclaimed = self.pool.take(n, &mut self.ids)?;
            if reclaimed > 0 && self.pool.reports_overwrites() {
                self.report_overwritten(len, reclaimed);
            }
        }
        Ok(len..len + n)
    }

    /// Does the work of [`grow`](Self::grow). Returns how many of the new blocks, the last ones, were cached until now.
    #[cold]
    pub(crate) fn grow_reporting(&mut self, n: usize) -> Result<usize> {
        let len = self.ids.len();
        let reclaimed = self.pool.take(n, &mut self.ids)?;
        if reclaimed > 0 && self.pool.reports_overwrites() {
            self.report_overwritten(len, reclaimed);
        }
        Ok(reclaimed)
    }

    /// Reports the contents of the last `reclaimed` blocks. If the observer panics, all blocks from `len` on are
    /// given back, as if they had not been taken.
    #[cold]
    fn report_overwritten(&mut self, len: usize, reclaimed: usize) {
        struct GiveBack<'a>(&'a mut BlockTable, usize);
        impl Drop for GiveBack<'_> {
            fn drop(&mut self) {
                let Self(table, len) = self;
                table.undo_tail(*len);
            }
        }
        let guard = GiveBack(self, len);
        let reclaimed = &guard.0.ids[guard.0.len() - reclaimed..];
        guard.0.pool.report_overwritten(reclaimed);
        std::mem::forget(guard);
    }

    /// Gives the private blocks from `len` on back, as if they had not been taken.
    pub(crate) fn undo_tail(&mut self, len: usize) {
        let undone = self.len().saturating_sub(len);
        if undone > 0 {
            self.pool.count_undone(undone);
            self.give_tail(len);
        }
    }

    /// Does as [`grow_reporting`](Self::grow_reporting), and leaves the report to the caller.
    pub(crate) fn grow_over_cached(&mut self, n: usize) -> Result<usize> {
        if n == 0 { Ok(0) } else { self.pool.take(n, &mut self.ids) }
    }

    /// Reserves memory for an eighth more ids. A prompt is about to grow, and moving the whole table for its
    /// first new block costs more than the memory.
    pub(crate) fn reserve_for_growth(&mut self) {
        self.ids.reserve(self.ids.len() / 8 + 4);
    }

    /// Does the work of [`grow`](Self::grow) if that needs no search of other shards and no wait for another
    /// thread. Otherwise returns false, and the table is as it was.
    #[inline]
    pub(crate) fn try_grow_near(&mut self, n: usize) -> bool {
        n == 0 || self.pool.try_take_fast(n, &mut self.ids)
    }

    /// Moves the last `n` blocks of `stock`, which are private there, to the end of this table.
    pub(crate) fn grow_from(&mut self, stock: &mut BlockTable, n: usize) {
        assert!(self.pool.is_of_same_pool(&stock.pool), "tables of one pool exchange blocks");
        let rest = stock.len() - n;
        assert!(rest >= stock.shared_len, "only private blocks change tables");
        self.ids.extend(stock.ids.drain(rest..));
    }

    /// Creates a table of the same blocks. The first `full_blocks` become a shared run, at the cost of one
    /// count. Each later block (a partly filled tail) gets one more owner by its own word.
    ///
    /// Costs two counts of blocks for a tail of one block, whatever the length, and one reference to the
    /// pool. Copies `O(blocks)` ids.
    ///
    /// # Errors
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) when a tail block's count is full, and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `full_blocks` is more than the table has.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let mut table = pool.allocate(3)?;
    /// let fork = table.fork(2)?;
    /// assert_eq!(pool.owners(fork.as_slice()[0])?, 1); // the run
    /// assert_eq!(pool.owners(fork.as_slice()[2])?, 2); // both tables
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn fork(&mut self, full_blocks: usize) -> Result<BlockTable> {
        let len = self.len();
        if full_blocks > len {
            let reason = format!("{full_blocks} full blocks in a table of {len}");
            return Err(PagedKvError::InvalidConfig { parameter: "full_blocks", reason });
        }
        let frozen = full_blocks.max(self.shared_len);
        retain_all(&self.pool, &self.ids[frozen..])?;
        self.freeze(frozen);
        // A fork is made to grow: reserve as much memory as the source has.
        let mut ids = Vec::with_capacity(self.ids.capacity());
        ids.extend_from_slice(&self.ids);
        let shared = self.shared.clone();
        let (shared_len, step) = (self.shared_len, self.step);
        Ok(Self { ids, shared, shared_len, step, pool: self.pool.clone() })
    }

    /// Returns true if this table is the only owner of its block at `index`, and not by a run. Then it may
    /// write the block. Returns false if the table has no block there.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let mut table = pool.allocate(1)?;
    /// assert!(table.is_exclusive(0));
    /// let fork = table.fork(0)?;
    /// assert!(!table.is_exclusive(0));
    /// drop(fork);
    /// assert!(table.is_exclusive(0));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn is_exclusive(&self, index: usize) -> bool {
        index >= self.shared_len && self.ids.get(index).is_some_and(|&id| self.pool.is_sole(id))
    }

    /// Returns how many blocks have one owner.
    pub(crate) fn num_sole(&self) -> usize {
        self.ids.iter().filter(|&&id| self.pool.owners(id) == 1).count()
    }

    /// Returns how many blocks at the end only this table owns.
    pub(crate) fn num_sole_at_end(&self) -> usize {
        self.private().iter().rev().take_while(|&&id| self.pool.is_sole(id)).count()
    }

    /// Moves the private block `from` to the place of the private block `to`, and hands the owner of `to` to
    /// the caller. Blocks after `from` move up.
    pub(crate) fn replace(&mut self, to: usize, from: usize) -> BlockPin {
        assert!(self.shared_len <= to && to < from, "a private block takes an earlier one's place");
        let dst = self.ids.remove(from);
        let src = std::mem::replace(&mut self.ids[to], dst);
        BlockPin::new(src, self.step, self.pool.clone())
    }

    /// Returns one more owner of the block at `index`.
    pub(crate) fn pin(&self, index: usize) -> Result<BlockPin> {
        let id = self.ids[index];
        self.pool.retain(id)?;
        Ok(BlockPin::new(id, self.step, self.pool.clone()))
    }

    /// Puts `src` in the place of the last block, which is `dst`, and releases `dst`. The caller hands over
    /// an owner of `src`.
    pub(crate) fn put_back(&mut self, dst: BlockId, src: BlockId) {
        let last = self.ids.last_mut().filter(|id| **id == dst);
        *last.expect("the block that was copied is the last again") = src;
        self.pool.release_after(self.step, &[dst]);
    }

    pub(crate) fn pool(&self) -> &PoolHandle {
        &self.pool
    }

    /// Returns the newest run, which holds the others.
    pub(crate) fn newest_run(&self) -> Option<&Arc<SharedRun>> {
        self.shared.as_ref()
    }

    /// Returns the number of blocks at the beginning that runs own.
    pub(crate) fn shared_len(&self) -> usize {
        self.shared_len
    }

    /// Joins a step: from now on blocks that this table releases wait for the end of that step, too. Returns
    /// the newest step before.
    pub(crate) fn join_step(&mut self, step: InFlightStep) -> InFlightStep {
        let newest = self.step.max(step);
        std::mem::replace(&mut self.step, newest)
    }

    /// Makes `before` the newest step of this table again. The table joined a later step, and released no
    /// block since.
    pub(crate) fn leave_step(&mut self, before: InFlightStep) {
        self.step = before;
    }

    /// Returns the blocks that this table owns by their own words.
    pub(crate) fn private(&self) -> &[BlockId] {
        &self.ids[self.shared_len..]
    }

    /// Returns true if dropping this table alone surely frees a block. False may mean that a closer check is
    /// needed.
    pub(crate) fn frees_a_block(&self) -> bool {
        let is_sole = |&id: &BlockId| self.pool.owners(id) == 1;
        let sole_run = self.shared.as_ref().filter(|run| Arc::strong_count(run) == 1);
        self.private().iter().any(is_sole)
            || sole_run.is_some_and(|run| run.ids().iter().any(is_sole))
    }

    /// Returns the number of blocks that dropping this table would free if no other owner released any in the
    /// meantime.
    pub(crate) fn num_blocks_freed(&self) -> usize {
        let sole = |ids: &[BlockId]| ids.iter().filter(|&&id| self.pool.owners(id) == 1).count();
        let mut freed = sole(self.private());
        let mut run = self.shared.as_ref();
        while let Some(held) = run.filter(|run| Arc::strong_count(run) == 1) {
            freed += sole(held.ids());
            run = held.parent();
        }
        freed
    }

    /// Returns the same number, counting also the blocks that otherwise only open steps own. These become
    /// free when the steps end.
    pub(crate) fn num_blocks_given_up(&self) -> usize {
        let given_up = num_blocks_given_up(&self.pool, self.private(), self.newest_run());
        given_up.unwrap_or_else(|| self.num_blocks_freed())
    }

    /// Makes `ids[..end]` shared: puts the private blocks of them in a new run.
    fn freeze(&mut self, end: usize) {
        if end > self.shared_len {
            let ids = self.ids[self.shared_len..end].into();
            let run = SharedRun::new(ids, self.shared.take(), self.pool.clone());
            self.shared = Some(Arc::new(run));
            self.shared_len = end;
        }
    }
}

impl NewBlocks for BlockTable {
    fn num_blocks_freed(&self) -> usize {
        BlockTable::num_blocks_freed(self)
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        // The tail first, then the runs before it.
        if self.ids.len() > self.shared_len {
            self.pool.release_after(self.step, self.private());
        }
        if let Some(run) = self.shared.take() {
            match self.step.is_none() {
                true => drop(run),
                false => self.pool.release_run_after(self.step, run),
            }
        }
    }
}

impl fmt::Debug for BlockTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockTable")
            .field("ids", &self.ids)
            .field("shared_len", &self.shared_len)
            .finish_non_exhaustive()
    }
}
