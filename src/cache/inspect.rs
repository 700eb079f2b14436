//! Snapshots, counts and memory figures of the cache.
//!
//! Reading changes nothing, not even the order of eviction. Only pins after their deadlines are ended before their blocks
//! are shown as used.

pub(crate) mod audit;
pub(crate) mod snapshot;

use std::fmt;

use super::PagedKvCache;
use super::entry::{MapEntry, TrackedSequence};
use super::eviction::strategy::EvictionStrategy;
use crate::id::SeqId;
use crate::pool::BlockPool;
#[cfg(feature = "metrics")]
use crate::prefix::HashAlgorithm;
use crate::sequence::Sequence;
use crate::stats::{CacheStats, SequenceInfo};
use crate::sync::{Arc, Later};

/// # Sequences: snapshots
impl PagedKvCache {
    /// Returns a snapshot of a sequence, or `None` if the cache has none of that id. Takes one shard lock;
    /// `O(blocks)` copied ids.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.get_sequence(SeqId(1)).unwrap().num_blocks(), 2);
    /// assert_eq!(cache.get_sequence(SeqId(2)), None);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn get_sequence(&self, id: SeqId) -> Option<SequenceInfo> {
        let shared = match &*self.sequences.get(&id)? {
            MapEntry::Owned(tracked) if tracked.is_brief() => return Some(tracked.info(id, 0)),
            MapEntry::Owned(_) => None,
            MapEntry::Shared(shared) => Some(Arc::clone(shared)),
        };
        let shared = shared.or_else(|| Some(self.sequences.get_mut(&id)?.share()))?;
        let tracked = shared.read();
        tracked.as_ref().map(|tracked| tracked.info(id, shared.leases()))
    }

    /// Lets `read` read a sequence without a copy. Returns `None` if the cache has none of that id.
    ///
    /// No map lock is held while `read` runs, only the sequence's own. So `read` may use the cache, and may
    /// even read the same sequence again. A call that changes or removes this sequence waits for `read` to
    /// end; if `read` itself makes that call, it waits forever. Such calls are append, fork, truncate,
    /// trim, touch, set_priority and free of it, a batch with it, and an eviction that may choose it.
    /// `read` should not change other sequences either: two closures that change each other's sequences
    /// wait forever. Wakers and event sinks that calls in `read` trigger run after `read` has ended, or
    /// when it waits for room. If `read` panics, the sequence is unchanged and unlocked.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.with_sequence(SeqId(1), |sequence| sequence.num_blocks()), Some(2));
    /// assert_eq!(cache.with_sequence(SeqId(2), |sequence| sequence.num_blocks()), None);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn with_sequence<R>(&self, id: SeqId, read: impl FnOnce(&Sequence) -> R) -> Option<R> {
        // Calls in `read` may wake waiters whose wakers use this sequence.
        let _later = Later::begin();
        let shared = self.sequences.get_mut(&id)?.share();
        shared.show(read)
    }

    /// Returns the ids in the cache, in no order. Takes each shard lock once, one after the other.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(5), 0)?;
    /// assert_eq!(cache.sequence_ids(), [SeqId(5)]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn sequence_ids(&self) -> Vec<SeqId> {
        self.sequences.iter().map(|entry| *entry.key()).collect()
    }

    /// Returns the number of sequences in the cache, handles not counted. Takes no lock; reads one count
    /// of each map shard.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.num_sequences(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_sequences(&self) -> usize {
        self.sequence_counts.sum()
    }
}

/// # Figures
impl PagedKvCache {
    /// Returns the counts so far. Reads the counts of each home shard a few times, and those of each map
    /// shard and of each step's slot once. Takes no lock of a map shard or of a sequence, so it waits for no
    /// operation. Ends pins after their deadlines first. See [`CacheStats`] for the guarantees under load.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// cache.fork(SeqId(1), SeqId(2))?;
    /// let stats = cache.stats();
    /// assert_eq!((stats.total_allocations, stats.total_forks, stats.num_sequences), (2, 1, 2));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn stats(&self) -> CacheStats {
        self.pool.blocks().expire_pins();
        let totals = self.pool.totals();
        let idle = self.pool.idle_totals();
        let (evicted_ids, evicted_ids_forgotten) = self.evicted.counts();
        // Read the parts before the whole: other threads add to the whole first, so no part exceeds it.
        let (prompt_tokens_hit, prompt_tokens_too_short) =
            (self.reuse.hit.sum(), self.reuse.too_short.sum());
        let (requests_waiting_to_grow, requests_waiting_new) = self.pool.blocks().num_waiting();
        let mut stats = CacheStats {
            total_allocations: totals.taken,
            total_frees: totals.given,
            total_evictions: self.evictions.sum(),
            evicted_ids,
            evicted_ids_forgotten,
            total_forks: self.pool.forks(),
            peak_blocks_used: self.pool.peak(),
            blocks_used: totals.used().min(self.total_blocks()),
            blocks_total: self.total_blocks(),
            num_sequences: self.num_sequences(),
            prompt_tokens: self.reuse.asked.sum(),
            prompt_tokens_hit,
            prompt_tokens_too_short,
            blocks_idle: idle.idle,
            blocks_pinned: self.pool.blocks().pins().num_blocks(),
            blocks_reclaimed: idle.reclaimed,
            events_dropped: self.published().events_dropped(),
            requests_waiting_new,
            requests_waiting_to_grow,
            steps_open: self.pool.blocks().num_open_steps(),
            groups: self.reuse.of_groups(),
            ..CacheStats::default()
        };
        if let Some(tiers) = &self.tiers {
            tiers.write_stats(self.block_bytes, &self.pool.handle(), &mut stats);
        }
        stats
    }

    /// Returns the strategy by which [`evict`](Self::evict) selects a sequence.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 2, 64);
    /// assert_eq!(cache.eviction_strategy(), paged_kv::EvictionStrategy::LRU);
    /// ```
    pub fn eviction_strategy(&self) -> EvictionStrategy {
        self.eviction_strategy
    }

    /// Returns true if released blocks keep their contents for other prompts.
    #[cfg(feature = "metrics")]
    pub(crate) fn has_prefix_reuse(&self) -> bool {
        self.pool.blocks().keep_contents()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn hash_algorithm(&self) -> HashAlgorithm {
        self.hash_algorithm
    }

    /// Returns the tokens of a block.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 2, 64);
    /// assert_eq!(cache.block_size(), 4);
    /// ```
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Returns the number of blocks that can be allocated: all but the null block, if there is one.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 2, 64);
    /// assert_eq!(cache.total_blocks(), 8);
    /// ```
    pub fn total_blocks(&self) -> usize {
        self.pool.total_blocks()
    }

    /// Returns the number of blocks that are free now; see [`BlockPool::free_block_count`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.free_block_count(), 6);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn free_block_count(&self) -> usize {
        self.pool.free_block_count()
    }

    /// Returns the number of blocks in use now; see [`BlockPool::used_block_count`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.used_block_count(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn used_block_count(&self) -> usize {
        self.pool.used_block_count()
    }

    /// Returns blocks in use / total blocks, 0 to 1.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.utilization(), 0.25);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn utilization(&self) -> f64 {
        self.used_block_count() as f64 / self.total_blocks() as f64
    }

    /// Returns the bytes of the keys and values of one block.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 2, 64);
    /// assert_eq!(cache.block_memory_bytes(), 2 * 4 * 2 * 64 * 2);
    /// ```
    pub fn block_memory_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Returns the bytes of the keys and values of all blocks.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 2, 64);
    /// assert_eq!(cache.total_memory_bytes(), 8 * cache.block_memory_bytes());
    /// ```
    pub fn total_memory_bytes(&self) -> usize {
        self.block_bytes * self.total_blocks()
    }

    /// Returns the bytes of the keys and values of the blocks in use.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.used_memory_bytes(), 2 * cache.block_memory_bytes());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn used_memory_bytes(&self) -> usize {
        self.block_bytes * self.used_block_count()
    }

    /// Returns the pool, for handles and counts by id. The sequences' blocks come from the same pool.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let scratch = cache.pool().allocate(2)?;
    /// assert_eq!(cache.used_block_count(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }
}

impl TrackedSequence {
    fn info(&self, seq_id: SeqId, leases: u32) -> SequenceInfo {
        SequenceInfo {
            seq_id,
            num_tokens: self.sequence().num_tokens(),
            block_ids: self.sequence().block_ids().to_vec(),
            access_count: self.access_count,
            priority: self.priority,
            worker: self.worker,
            leases,
            num_named_tokens: self.num_named_tokens(),
            epoch: self.epoch,
        }
    }
}

impl fmt::Display for PagedKvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, total) = (self.pool.blocks().used(), self.total_blocks());
        let sequences = self.num_sequences();
        let (size, strategy) = (self.block_size, self.eviction_strategy);
        write!(
            f,
            "PagedKvCache: {used}/{total} blocks of {size} tokens used by {sequences} sequences, \
             {strategy}"
        )
    }
}

impl fmt::Debug for PagedKvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
