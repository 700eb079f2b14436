//! What are all the blocks, and who hands them out? The pool that tables own blocks of.
//!
//! [`BlockPool`] joins the words ([`state`]), the free ids ([`free_list`]) and their count
//! ([`capacity`]). Tables and runs hold a [`PoolHandle`], one of several stripes of the same
//! pool, so that making and dropping a table writes no line that all threads write.
//!
//! Invariant: the pool lives until the last block is back, because every owner of blocks holds a
//! handle. It does not know tokens, sequences or contents.

mod cached;
pub(crate) mod capacity;
pub(crate) mod fence;
pub(crate) mod free_list;
mod handle;
mod id_counts;
pub(crate) mod name;
mod observer;
pub(crate) mod reclaim;
mod room;
pub(crate) mod run;
pub(crate) mod state;
#[cfg(test)]
mod tests;
#[cfg(feature = "async")]
pub(crate) mod waiters;
pub(crate) mod watermark;

use std::fmt;

use self::capacity::{IdleTotals, Totals};
use self::fence::Fences;
use self::free_list::{FreeList, MAGAZINE};
pub(crate) use self::handle::PoolHandle;
use self::id_counts::IdCounts;
pub(crate) use self::observer::TakeObserver;
pub(crate) use self::reclaim::Keep;
pub use self::reclaim::ReclaimPolicy;
use self::state::{BlockState, BlockWords};
#[cfg(feature = "async")]
pub use self::waiters::Fairness;
#[cfg(feature = "async")]
use self::waiters::Waiters;
use crate::clock::RecencyClock;
use crate::counter::ShardedCounter;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
#[cfg(feature = "async")]
use crate::sync::PlainArc;
use crate::sync::{Arc, thread_ordinal};

/// The most blocks a pool can have.
pub(crate) const MOST_BLOCKS: usize = u32::MAX as usize - 1;

/// The most home shards a pool has by default.
const DEFAULT_SHARDS: usize = 64;

/// The most home shards a pool can have.
const MOST_SHARDS: usize = 1024;

/// A fixed set of KV-cache blocks that many threads allocate from and release to.
///
/// Blocks come as [`BlockTable`](crate::BlockTable)s, which give them back when dropped. A pool may be shared by
/// reference, or behind an `Arc`; tables keep it alive.
///
/// ```
/// use paged_kv::{BlockPool, PagedKvError};
///
/// let pool = BlockPool::new(8);
/// let table = pool.allocate(6)?;
/// assert_eq!(pool.free_block_count(), 2);
/// assert_eq!(
///     pool.allocate(3).unwrap_err(),
///     PagedKvError::OutOfMemory { requested: 3, available: 2 },
/// );
/// drop(table);
/// assert_eq!(pool.free_block_count(), 8);
/// # Ok::<(), PagedKvError>(())
/// ```
pub struct BlockPool {
    blocks: Arc<Blocks>,
    stripes: Box<[PoolHandle]>,
}

/// What all handles of a pool share.
pub(crate) struct Blocks {
    /// The lowest id handed out: 1 when block 0 is kept back, else 0.
    first: u32,
    words: BlockWords,
    free: FreeList,
    id_counts: IdCounts,
    fences: Fences,
    observer: Option<Box<dyn TakeObserver>>,
    /// Orders the uses of the sequences of a cache.
    clock: RecencyClock,
    /// Blocks that were taken for a new sequence and given back because it was refused after all.
    undone: ShardedCounter,
    #[cfg(feature = "async")]
    waiters: PlainArc<Waiters>,
}

impl BlockPool {
    /// A pool of the blocks `0..num_blocks`, all free. `O(num_blocks)`; some 12 bytes a block.
    ///
    /// # Panics
    /// If `num_blocks` is 0 or above `u32::MAX - 1`. [`PagedKvCache::builder`] refuses instead.
    ///
    /// [`PagedKvCache::builder`]: crate::PagedKvCache::builder
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(1024);
    /// assert_eq!(pool.total_blocks(), 1024);
    /// ```
    pub fn new(num_blocks: usize) -> Self {
        let shards = default_shards(num_blocks);
        match Self::with_home_shards(num_blocks, shards) {
            Ok(pool) => pool,
            Err(refusal) => panic!("{refusal}"),
        }
    }

    /// As [`new`](Self::new), over `shards` home shards (rounded up to a power of two).
    ///
    /// By default there is one for each 512 blocks, up to 64. More of them than threads keep the
    /// threads out of each other's way; each may keep up to 256 free blocks that other threads
    /// take only once the common depot is empty.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::with_home_shards(16, 4)?;
    /// assert_eq!(pool.allocate(16)?.len(), 16);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `num_blocks` is 0 or above `u32::MAX - 1`, or if
    /// `shards` is 0 or above 1024; [`OutOfHostMemory`](PagedKvError::OutOfHostMemory).
    pub fn with_home_shards(num_blocks: usize, shards: usize) -> Result<Self> {
        Self::build(num_blocks, shards, Keep::Nothing, false, None)
    }

    /// The pool of a cache. With `null_block` block 0 is never handed out. What is taken is told to
    /// `observer`.
    pub(crate) fn build(
        num_blocks: usize,
        shards: usize,
        keep: Keep,
        null_block: bool,
        observer: Option<Box<dyn TakeObserver>>,
    ) -> Result<Self> {
        let first = u32::from(null_block);
        let refuse = |reason| Err(PagedKvError::InvalidConfig { parameter: "num_blocks", reason });
        if num_blocks <= first as usize {
            return refuse(format!("{num_blocks}, at least {} needed", first + 1));
        }
        if num_blocks > MOST_BLOCKS {
            return refuse(format!("{num_blocks}, at most {MOST_BLOCKS} have ids"));
        }
        let shards = checked_shards(shards)?.next_power_of_two();
        let blocks = Arc::new(Blocks {
            first,
            words: match keep {
                Keep::Nothing => BlockWords::new(num_blocks)?,
                Keep::Contents(_) => BlockWords::with_names(num_blocks)?,
            },
            free: FreeList::new(first, num_blocks - first as usize, shards, keep)?,
            id_counts: IdCounts::new(num_blocks)?,
            fences: Fences::new(),
            observer,
            clock: RecencyClock::new(),
            undone: ShardedCounter::new(),
            #[cfg(feature = "async")]
            waiters: PlainArc::new(Waiters::new()),
        });
        let stripes = (0..shards).map(|_| PoolHandle::new(Arc::clone(&blocks))).collect();
        Ok(Self { blocks, stripes })
    }

    /// One more owner for `id`: for a scheduler across an FFI that counts by id.
    ///
    /// The caller must know the block to be owned while it calls: by itself, or by a table that
    /// it keeps alive. One atomic operation.
    ///
    /// # Errors
    /// [`BlockNotFound`](PagedKvError::BlockNotFound) when the block has no owner (it is free, or
    /// cached and idle) or is not of this pool,
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) when its count is full.
    ///
    /// ```
    /// use paged_kv::{BlockId, BlockPool, PagedKvError};
    ///
    /// let pool = BlockPool::new(4);
    /// let table = pool.allocate(1)?;
    /// let id = table.as_slice()[0];
    /// pool.retain(id)?;
    /// drop(table);
    /// assert_eq!(pool.used_block_count(), 1);
    /// pool.release(id)?;
    /// assert_eq!(pool.release(id), Err(PagedKvError::BlockNotFound(id)));
    /// assert_eq!(pool.retain(BlockId(9)), Err(PagedKvError::BlockNotFound(BlockId(9))));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn retain(&self, id: BlockId) -> Result<()> {
        self.blocks.check(id)?;
        self.blocks.words.expect_counts_by_id();
        self.blocks.retain(id)?;
        self.blocks.id_counts.add(id);
        Ok(())
    }

    /// Takes back what one [`retain`](Self::retain) gave. The block is free when its last owner
    /// has left.
    ///
    /// # Errors
    /// [`BlockNotFound`](PagedKvError::BlockNotFound) when no `retain` of the block is left (it
    /// was released before; what a table owns is the table's to release), or when it is not of
    /// this pool.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(1)?;
    /// let id = table.as_slice()[0];
    /// pool.retain(id)?;
    /// pool.release(id)?;
    /// assert!(pool.release(id).is_err()); // the other owner is the table
    /// drop(table);
    /// assert_eq!(pool.used_block_count(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn release(&self, id: BlockId) -> Result<()> {
        self.blocks.check(id)?;
        self.blocks.id_counts.remove(id).ok_or(PagedKvError::BlockNotFound(id))?;
        self.blocks.give(&[id]);
        Ok(())
    }

    /// Owners of `id`: tables, shared runs and [`retain`](Self::retain)s. 0 for a free block.
    ///
    /// A run that several forks share is one owner.
    ///
    /// # Errors
    /// [`BlockNotFound`](PagedKvError::BlockNotFound) when the block is not of this pool.
    ///
    /// ```
    /// use paged_kv::BlockId;
    ///
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(1)?;
    /// assert_eq!(pool.owners(table.as_slice()[0])?, 1);
    /// assert!(pool.owners(BlockId(4)).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn owners(&self, id: BlockId) -> Result<u32> {
        self.blocks.check(id)?;
        Ok(self.blocks.words.state(id).owners())
    }

    /// Blocks that can be handed out.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// assert_eq!(pool.total_blocks(), 4);
    /// ```
    pub fn total_blocks(&self) -> usize {
        self.blocks.free.total()
    }

    /// Blocks that are free now. Under load a count of a moment near the call.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(3)?;
    /// assert_eq!(pool.free_block_count(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn free_block_count(&self) -> usize {
        self.total_blocks() - self.used_block_count()
    }

    /// Blocks that somebody owns now. Under load a count of a moment near the call.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(3)?;
    /// assert_eq!(pool.used_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn used_block_count(&self) -> usize {
        self.blocks.free.used()
    }

    /// Compares the free list with every block's word: exact also while other threads work,
    /// who wait for it meanwhile. `O(blocks)`.
    ///
    /// # Errors
    /// [`Inconsistent`](PagedKvError::Inconsistent) with the first fault found, and
    /// [`OutOfHostMemory`](PagedKvError::OutOfHostMemory) for two bytes a block.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(64);
    /// let table = pool.allocate(7)?;
    /// pool.validate()?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn validate(&self) -> Result<()> {
        self.blocks.free.audit(self.blocks.first, &self.blocks.words)
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    pub(crate) fn idle_totals(&self) -> IdleTotals {
        self.blocks.free.idle_totals()
    }

    /// Without the blocks that were taken for sequences that were refused after all.
    pub(crate) fn totals(&self) -> Totals {
        // First: blocks that are undone after this read are in the totals too, if only for a moment.
        let undone = self.blocks.undone.sum();
        let Totals { taken, given } = self.blocks.free.totals();
        Totals { taken: taken.saturating_sub(undone), given: given.saturating_sub(undone) }
    }

    pub(crate) fn peak(&self) -> usize {
        self.blocks.free.peak()
    }

    pub(crate) fn forks(&self) -> u64 {
        self.stripes.iter().map(PoolHandle::forks).sum()
    }

    pub(crate) fn count_fork(&self) {
        self.stripe().count_fork();
    }

    /// The handle of the calling thread's stripe.
    #[inline]
    pub(crate) fn handle(&self) -> PoolHandle {
        self.stripe().clone()
    }

    #[inline]
    fn stripe(&self) -> &PoolHandle {
        &self.stripes[thread_ordinal() & (self.stripes.len() - 1)]
    }
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockPool")
            .field("total_blocks", &self.total_blocks())
            .field("used_blocks", &self.used_block_count())
            .finish_non_exhaustive()
    }
}

impl Blocks {
    fn check(&self, id: BlockId) -> Result<()> {
        let index = id.0.checked_sub(self.first);
        if index.is_some_and(|index| (index as usize) < self.free.total()) {
            Ok(())
        } else {
            Err(PagedKvError::BlockNotFound(id))
        }
    }

    pub(crate) fn retain(&self, id: BlockId) -> Result<()> {
        self.words.retain(id).map_err(|refused| match refused.owners() {
            0 => PagedKvError::BlockNotFound(id),
            _ => PagedKvError::TooManyOwners(id),
        })
    }

    /// Refuses what [`retain`](Self::retain) would refuse now, of a block that the caller owns.
    pub(crate) fn check_retain(&self, id: BlockId) -> Result<()> {
        let has_room = self.words.state(id).retain().is_some();
        if has_room { Ok(()) } else { Err(PagedKvError::TooManyOwners(id)) }
    }

    /// Makes one owner of each of `ids`, which its word has counted, one that is counted by id.
    pub(crate) fn count_by_id(&self, ids: &[BlockId]) {
        self.words.expect_counts_by_id();
        ids.iter().for_each(|&id| self.id_counts.add(id));
    }

    /// Takes an owner off each of `ids`, the last first.
    #[inline]
    pub(crate) fn give(&self, ids: &[BlockId]) {
        self.free.give(ids, &self.words);
        self.announce_room();
    }

    /// Takes an owner off each of `ids`, which all have others. So no room appears, and no waiter is woken.
    #[cold]
    pub(crate) fn release_extra(&self, ids: &[BlockId]) {
        self.free.give(ids, &self.words);
    }

    /// True when `id` has one owner: whoever owns it may write it.
    #[inline]
    pub(crate) fn is_sole(&self, id: BlockId) -> bool {
        self.words.state(id) == BlockState::SOLE
    }

    /// True when `id` has so many owners and is not cached: the last of these may write it.
    pub(crate) fn has_only_owners(&self, id: BlockId, owners: u32) -> bool {
        self.words.state(id).has_only_owners(owners)
    }

    pub(crate) fn largest_id(&self) -> u32 {
        self.first + (self.free.total() - 1) as u32
    }

    /// True if a block can have owners that no table made.
    #[inline]
    pub(crate) fn is_counted_by_id(&self) -> bool {
        self.words.is_counted_by_id()
    }

    pub(crate) fn owners(&self, id: BlockId) -> u32 {
        self.words.state(id).owners()
    }
}

/// Refuses more home shards than there can be.
pub(crate) fn checked_shards(shards: usize) -> Result<usize> {
    if shards <= MOST_SHARDS {
        return Ok(shards);
    }
    let reason = format!("{shards}, at most {MOST_SHARDS} are of use");
    Err(PagedKvError::InvalidConfig { parameter: "home_shards", reason })
}

/// Blocks a home shard where contents are kept: what other shards' magazines hold free is not cached.
const BLOCKS_A_SHARD: usize = 1024;

/// As [`default_shards`], where contents are kept.
pub(crate) fn default_shards_of_cache(num_blocks: usize) -> usize {
    let shards = (num_blocks / BLOCKS_A_SHARD).clamp(1, DEFAULT_SHARDS);
    1 << shards.ilog2()
}

/// One home shard for each two magazines, so that shards hold at most half of the blocks.
pub(crate) fn default_shards(num_blocks: usize) -> usize {
    let shards = (num_blocks / (2 * MAGAZINE)).clamp(1, DEFAULT_SHARDS);
    1 << shards.ilog2()
}
