//! `BlockPool`: a fixed set of blocks, from which tables allocate and to which they release.

#[cfg(test)]
mod tests;

use std::fmt;

use super::accounting::{IdleTotals, Totals};
use super::cached::CachedCount;
use super::free_list::{FreeList, MAGAZINE};
use super::in_flight::InFlightSteps;
use super::owner_counts::OwnerCounts;
use super::pins::Pins;
#[cfg(feature = "async")]
use super::wait_queue::Waiters;
use super::word::BlockWords;
use super::{Blocks, Observers, PoolHandle, ReclaimPolicy, Retention};
use crate::clock::RecencyClock;
use crate::counter::ShardedCounter;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::id::BlockId;
#[cfg(feature = "async")]
use crate::sync::PlainArc;
use crate::sync::{Arc, thread_ordinal};
use std::ops::RangeInclusive;
use std::thread::available_parallelism;

/// The most blocks that a pool can have.
pub(crate) const MOST_BLOCKS: usize = u32::MAX as usize - 1;

/// Home shards for each core by default, as far as the pool has blocks for them: more threads than cores may
/// use it.
const SHARDS_A_CORE: usize = 4;

/// The most home shards by default on a machine of few cores, and of any.
const DEFAULT_SHARDS: RangeInclusive<usize> = 64..=256;

/// The most home shards that a pool can have.
const MOST_SHARDS: usize = 1024;

/// A fixed set of KV-cache blocks from which many threads allocate, and to which they release.
///
/// An allocation returns a [`BlockTable`](crate::BlockTable), which releases its blocks when dropped.
/// Threads may share a pool by reference, or in an `Arc`; tables keep it alive.
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

impl BlockPool {
    /// Creates a pool of the blocks `0..num_blocks`, all free. `O(num_blocks)`; about 12 bytes a block. A pool
    /// of 0 blocks refuses every block.
    ///
    /// # Panics
    /// If `num_blocks` is above `u32::MAX - 1`. [`PagedKvCache::builder`] returns an error instead.
    ///
    /// [`PagedKvCache::builder`]: crate::PagedKvCache::builder
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(1024);
    /// assert_eq!(pool.total_blocks(), 1024);
    /// assert!(paged_kv::BlockPool::new(0).allocate(1).is_err());
    /// ```
    pub fn new(num_blocks: usize) -> Self {
        let shards = default_shards(num_blocks);
        match Self::with_home_shards(num_blocks, shards) {
            Ok(pool) => pool,
            Err(refusal) => panic!("{refusal}"),
        }
    }

    /// Creates a pool as [`new`](Self::new) does, with `shards` home shards (rounded up to a power of two).
    ///
    /// By default there is one for each 512 blocks, rounded down to a power of two, and at most four for each
    /// core (64 on a machine of few cores, 256 on any). If there are at least as many shards as threads, threads
    /// rarely contend. Each shard may keep 256 free blocks, or up to 1,024 where all shards together keep at most
    /// half of the pool. Other threads take these only after the common depot is empty.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::with_home_shards(16, 4)?;
    /// assert_eq!(pool.allocate(16)?.len(), 16);
    /// assert!(paged_kv::BlockPool::with_home_shards(16, 0).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `num_blocks` is above `u32::MAX - 1`, or if `shards`
    /// is 0 or above 1024; [`OutOfHostMemory`](PagedKvError::OutOfHostMemory).
    pub fn with_home_shards(num_blocks: usize, shards: usize) -> Result<Self> {
        Self::build(num_blocks, shards, Retention::Nothing, false, Observers::default(), None)
    }

    /// Creates the pool of a cache. With `null_block`, block 0 is never allocated, and others are needed.
    /// `observers` learn of all blocks that are taken.
    pub(crate) fn build(
        num_blocks: usize,
        shards: usize,
        keep: Retention,
        null_block: bool,
        observers: Observers,
        layout: Option<GroupLayout>,
    ) -> Result<Self> {
        let first = u32::from(null_block);
        let refuse = |reason| Err(PagedKvError::InvalidConfig { parameter: "num_blocks", reason });
        if null_block && num_blocks < 2 {
            return refuse(format!("{num_blocks}, at least 2 needed"));
        }
        if num_blocks > MOST_BLOCKS {
            return refuse(format!("{num_blocks}, at most {MOST_BLOCKS} have ids"));
        }
        let shards = checked_shards(shards)?.next_power_of_two();
        let is_observed = observers.takes.is_some() || observers.overwrites.is_some();
        let blocks = Arc::new(Blocks {
            first,
            words: match keep {
                Retention::Nothing => BlockWords::new(num_blocks)?,
                Retention::Contents(_) | Retention::Levels(_) => BlockWords::with_keys(num_blocks)?,
            },
            free: FreeList::new(first, num_blocks - first as usize, shards, keep)?,
            owner_counts: OwnerCounts::new(num_blocks)?,
            in_flight: InFlightSteps::new(),
            observers: is_observed.then(|| Box::new(observers)),
            clock: RecencyClock::new(),
            cached: CachedCount::new(),
            pins: Pins::new(),
            undone: ShardedCounter::new(),
            #[cfg(feature = "async")]
            waiters: PlainArc::new(Waiters::new()),
        });
        let stripe = |_| PoolHandle::new(Arc::clone(&blocks), layout.as_ref());
        let stripes = (0..shards).map(stripe).collect();
        Ok(Self { blocks, stripes })
    }

    /// Adds an owner to `id`. It is for a scheduler across an FFI that counts by id.
    ///
    /// The block must have an owner for the whole call: the caller itself, or a table that the caller keeps
    /// alive. Two atomic read-modify-writes.
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
        self.blocks.owner_counts.add(id);
        Ok(())
    }

    /// Removes an owner that one [`retain`](Self::retain) added. The last owner that leaves makes the block
    /// free, or idle if it is cached.
    ///
    /// # Errors
    /// [`BlockNotFound`](PagedKvError::BlockNotFound) when no `retain` of the block is left, or when the
    /// block is not of this pool. An owner that is a table is released only by that table.
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
        self.blocks.owner_counts.remove(id).ok_or(PagedKvError::BlockNotFound(id))?;
        self.blocks.give(&[id]);
        Ok(())
    }

    /// Counts the owners of `id`: tables, shared runs and [`retain`](Self::retain)s. 0 for a free block.
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

    /// Returns the total number of blocks that can be allocated.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// assert_eq!(pool.total_blocks(), 4);
    /// ```
    pub fn total_blocks(&self) -> usize {
        self.blocks.free.total()
    }

    /// Counts the blocks that have no owner now. Under load, it is the count of a moment near the call. Ends the
    /// [pins](crate::Retained::pin) of a cache that are after their deadlines.
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

    /// Counts the blocks that have owners now. Under load, it is the count of a moment near the call. Ends the
    /// [pins](crate::Retained::pin) of a cache that are after their deadlines.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let table = pool.allocate(3)?;
    /// assert_eq!(pool.used_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn used_block_count(&self) -> usize {
        self.blocks.expire_pins();
        self.blocks.used()
    }

    /// Compares the free list with every block's word. It is exact also under load: other threads wait for it
    /// if they need a shard. `O(blocks)`.
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

    /// Returns the blocks taken and given, without those of sequences that were refused after all.
    pub(crate) fn totals(&self) -> Totals {
        // Read first: blocks that are undone after this read stay in the totals of this call.
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

    /// Returns a handle of the calling thread's stripe.
    #[inline]
    pub(crate) fn handle(&self) -> PoolHandle {
        self.stripe().clone()
    }

    /// Returns the groups of the cache, if it has any.
    #[inline]
    pub(crate) fn layout(&self) -> Option<&Arc<GroupLayout>> {
        self.stripe().layout()
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
            .field("used_blocks", &self.blocks.used())
            .finish_non_exhaustive()
    }
}

/// Returns `shards`, or refuses more home shards than a pool can have.
pub(crate) fn checked_shards(shards: usize) -> Result<usize> {
    let reason = match shards {
        0 => "0, at least 1 needed".to_owned(),
        _ if shards <= MOST_SHARDS => return Ok(shards),
        _ => format!("{shards}, at most {MOST_SHARDS} are of use"),
    };
    Err(PagedKvError::InvalidConfig { parameter: "home_shards", reason })
}

/// Blocks for each home shard where contents are kept. With this many for each thread the hit rates are near
/// those of one shard; see `tests/coherence/hit_rates.rs`.
const BLOCKS_A_SHARD: usize = 256;

/// The same with a learned order, which has a list for each class in each shard.
const BLOCKS_A_LEARNED_SHARD: usize = 2_048;

/// The least number of blocks for more than one home shard where contents are kept. Below, the reclaim order is exact.
const BLOCKS_FOR_SHARDS: usize = 2_048;

/// Returns the default number of home shards where contents are kept.
pub(crate) fn default_shards_of_cache(num_blocks: usize, policy: ReclaimPolicy) -> usize {
    let blocks_a_shard = match policy {
        ReclaimPolicy::HitDensity => BLOCKS_A_LEARNED_SHARD,
        _ => BLOCKS_A_SHARD,
    };
    if num_blocks < BLOCKS_FOR_SHARDS { 1 } else { shards_for(num_blocks / blocks_a_shard) }
}

/// Returns one home shard for each two magazines, so that shards hold at most half of the blocks.
pub(crate) fn default_shards(num_blocks: usize) -> usize {
    shards_for(num_blocks / (2 * MAGAZINE))
}

/// Returns `most` shards, or fewer: a power of two, not above the limit that the cores set.
fn shards_for(most: usize) -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    let limit = (SHARDS_A_CORE * cores).clamp(*DEFAULT_SHARDS.start(), *DEFAULT_SHARDS.end());
    1 << most.clamp(1, limit).ilog2()
}
