//! `PagedKvCache`: the sequences of all scheduler threads in a map by id, over one block pool.
//!
//! A thin layer over [`Sequence`](crate::Sequence): each operation looks the id up, does the operation of
//! the handle, and notes the use. Every operation is linearizable per sequence. An operation that may take
//! long runs outside the map's locks; see [`entry`]. Such are a search for blocks, a caller's closure, and a
//! fork or truncation of a very long table.
//!
//! Invariants:
//!
//! - A thread with a map-shard lock takes no other map-shard lock. It may take the lock of `EvictedIds`,
//!   after which it takes none.
//! - A thread with a map-shard lock searches for no blocks and runs no caller's code.
//! - A thread that waits for a sequence's lock holds no other sequence's lock, except in a caller's
//!   closure.
//! - An operation that fails has changed nothing.
//! - An operation that may release blocks or change contents under its locks begins a
//!   [`Later`](crate::sync::Later) before it takes the first lock. Wakers and event sinks are called after
//!   it has released the last.

mod admission;
mod builder;
mod by_id;
mod entry;
mod eviction;
mod export;
mod inspect;
mod lease;
mod retention;
mod reuse;
mod rows;
mod sequence_counts;
mod step;
mod tiers;

pub use self::admission::Admission;
pub use self::admission::options::AdmitOptions;
pub use self::admission::prompt::Prompt;
pub use self::admission::reservation::Reservation;
pub use self::builder::{PagedKvCacheBuilder, Watermark};
use std::ops::RangeInclusive;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::thread::available_parallelism;

use self::entry::MapEntry;
use self::entry::map_hash::IdHash;
pub use self::eviction::Evicted;
use self::eviction::evicted_ids::EvictedIds;
pub use self::eviction::strategy::EvictionStrategy;
pub use self::inspect::snapshot::Snapshot;
pub use self::lease::Lease;
pub use self::retention::{CachePin, PinAnswer, Retained};
pub use self::reuse::cached_sequence::CachedSequence;
pub use self::reuse::computed::Computed;
pub use self::reuse::prefix_view::Prefix;
pub use self::rows::Row;
pub use self::rows::batch::{AppendBatch, append_batch};
pub use self::rows::lease_row::LeaseRow;
use self::sequence_counts::SequenceCounts;
pub use self::step::{AbortRefused, Aborted, Completed, Grown, Step, StepBuffers};
pub use self::tiers::load::{Load, LoadTicket, Loaded};
pub use self::tiers::namespace::Namespace;
pub use self::tiers::overwriting::Overwriting;
pub use self::tiers::restore::TierRestore;
pub use self::tiers::storing::StoreFrom;
pub use self::tiers::{LoadLimit, TierAdmission, Tiers};
use crate::counter::ShardedCounter;
use crate::id::{GroupId, SeqId};
use crate::pool::BlockPool;
use crate::pool::watermark::BlockWatermark;
#[cfg(feature = "async")]
use crate::pool::{Blocks, PoolHandle};
use crate::prefix::{HashAlgorithm, PublishedBlocks};
use crate::stats::GroupStats;
use crate::sync::{Arc, AtomicU64, CachePadded, DashMap, Mutex, PlainArc, thread_ordinal};
use crate::tier::TierState;

/// Shards of the map for each core. A thread that is descheduled while it holds a shard delays the requests of
/// that shard for a time slice. Those are sixteen neighbours, and the ids that the hash put into the same shard.
const MAP_SHARDS_A_CORE: usize = 64;

/// The fewest shards of the map, and the most: each takes 128 bytes.
const MAP_SHARDS: RangeInclusive<usize> = 256..=4096;

/// Returns the number of shards of the map: a power of two, many more than cores.
fn map_shards() -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    let shards = (MAP_SHARDS_A_CORE * cores).next_power_of_two();
    shards.clamp(*MAP_SHARDS.start(), *MAP_SHARDS.end())
}

/// References to the published blocks; each thread uses one of them.
const REFERENCES: usize = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 16 } else { 64 };

/// A reference to the published blocks that mostly one thread clones.
type Published = Arc<CachePadded<Arc<PublishedBlocks>>>;

/// Token counts of the prompts that were admitted.
struct ReuseCounts {
    asked: ShardedCounter,
    hit: ShardedCounter,
    too_short: ShardedCounter,
    /// For each group of a cache with groups: tokens that it made hits shorter by.
    lost: Box<[ShardedCounter]>,
}

impl ReuseCounts {
    fn new(groups: usize) -> Self {
        let [asked, hit, too_short] = std::array::from_fn(|_| ShardedCounter::new());
        let lost = (0..groups).map(|_| ShardedCounter::new()).collect();
        Self { asked, hit, too_short, lost }
    }

    fn of_groups(&self) -> Vec<GroupStats> {
        let groups = self.lost.iter().zip(0..);
        let stats = groups.map(|(lost, number)| GroupStats {
            group: GroupId(number),
            prompt_tokens_lost: lost.sum(),
        });
        stats.collect()
    }
}

/// A paged KV cache that many scheduler threads share.
///
/// All operations take `&self`: share the cache through an `Arc`, or lend it to scoped threads.
///
/// ```
/// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
///
/// // 8 blocks of 16 tokens; 4 KV heads of 64 elements.
/// let cache = PagedKvCache::new(8, 16, 4, 64);
/// cache.allocate(SeqId(1), 40)?; // a prompt: 3 blocks
/// cache.fork(SeqId(1), SeqId(2))?; // a second sample of it: 0 blocks
/// let append = cache.append(SeqId(2), 1)?; // its first token: copy-on-write
/// assert!(append.copy.is_some());
/// assert_eq!(cache.used_block_count(), 4);
///
/// let refused = cache.allocate(SeqId(3), 1000).unwrap_err();
/// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 63, available: 4 });
/// assert_eq!(cache.evict()?, SeqId(1)); // the least recently used
/// cache.free(SeqId(2))?;
/// # drop(append);
/// assert_eq!(cache.used_block_count(), 0);
/// # Ok::<(), PagedKvError>(())
/// ```
pub struct PagedKvCache {
    pool: BlockPool,
    sequences: DashMap<SeqId, MapEntry, IdHash>,
    /// The entries of `sequences`, which is not locked to read them.
    sequence_counts: SequenceCounts,
    /// Ids of evicted sequences whose worker has not been informed.
    evicted: EvictedIds,
    evictions: ShardedCounter,
    /// Evictions begun and evictions ended: see `evict`.
    evictions_begun: AtomicU64,
    evictions_over: AtomicU64,
    /// Held by the thread that assesses which evictions free a block.
    assessing: Mutex<()>,
    /// Several references; each thread uses one of them, as it uses one of the pool's stripes.
    published: Box<[Published]>,
    reuse: ReuseCounts,
    /// The tiers below the device, if the cache has any.
    tiers: Option<PlainArc<TierState>>,
    /// Blocks that new sequences leave for sequences that grow.
    watermark: BlockWatermark,
    hash_algorithm: HashAlgorithm,
    /// True if an event sink or an observer learns of blocks that are taken.
    is_observed: bool,
    block_size: usize,
    /// Tokens that one hash covers: `block_size` without groups.
    hash_unit: usize,
    block_bytes: usize,
    eviction_strategy: EvictionStrategy,
    eviction_threshold: f64,
}

// Every panic leaves the cache consistent: see the guide's page on panics.
impl UnwindSafe for PagedKvCache {}
impl RefUnwindSafe for PagedKvCache {}

/// # Create
impl PagedKvCache {
    /// Creates a cache of `num_blocks` blocks of `block_size` tokens. `num_heads` and `head_dim` are used
    /// for the memory figures only.
    ///
    /// # Panics
    /// If a size is 0, `num_blocks` is above `u32::MAX - 1`, or the bytes of all blocks overflow. The
    /// message names the parameter. [`builder`](Self::builder) returns an error instead.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(1024, 16, 8, 128);
    /// assert_eq!(cache.total_blocks(), 1024);
    /// ```
    pub fn new(num_blocks: usize, block_size: usize, num_heads: usize, head_dim: usize) -> Self {
        let builder = Self::builder()
            .num_blocks(num_blocks)
            .block_size(block_size)
            .num_heads(num_heads)
            .head_dim(head_dim);
        match builder.build() {
            Ok(cache) => cache,
            Err(refusal) => panic!("{refusal}"),
        }
    }

    /// Returns a builder, which takes every parameter by name and refuses invalid ones with an error.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).block_bytes(4096).build()?;
    /// assert_eq!(cache.total_memory_bytes(), 8 * 4096);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn builder() -> PagedKvCacheBuilder {
        PagedKvCacheBuilder::new()
    }

    fn from_parts(
        pool: BlockPool,
        published: PublishedBlocks,
        hash_algorithm: HashAlgorithm,
        block_size: usize,
        block_bytes: usize,
        eviction_strategy: EvictionStrategy,
        eviction_threshold: f64,
    ) -> Self {
        let hasher = IdHash::default();
        let is_observed = published.has_event_sink() || published.overwrites().is_some();
        let published = Arc::new(published);
        let hash_unit = pool.layout().map_or(block_size, |layout| layout.unit());
        let sequences = DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, map_shards());
        let reference = |_| Arc::new(CachePadded::new(Arc::clone(&published)));
        Self {
            published: (0..REFERENCES).map(reference).collect(),
            reuse: ReuseCounts::new(pool.layout().map_or(0, |layout| layout.len())),
            tiers: None,
            watermark: BlockWatermark::default(),
            hash_algorithm,
            pool,
            sequence_counts: SequenceCounts::new(sequences.shards().len()),
            sequences,
            evicted: EvictedIds::new(),
            evictions: ShardedCounter::new(),
            evictions_begun: AtomicU64::new(0),
            evictions_over: AtomicU64::new(0),
            assessing: Mutex::new(()),
            is_observed,
            block_size,
            hash_unit,
            block_bytes,
            eviction_strategy,
            eviction_threshold,
        }
    }

    /// Returns the cache with another eviction strategy. `Priority { levels: 0 }` counts as one level.
    ///
    /// ```
    /// use paged_kv::{EvictionStrategy, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1).with_eviction_strategy(EvictionStrategy::LFU);
    /// assert_eq!(cache.eviction_strategy(), EvictionStrategy::LFU);
    /// ```
    pub fn with_eviction_strategy(mut self, strategy: EvictionStrategy) -> Self {
        self.eviction_strategy = strategy;
        self
    }

    /// Returns the cache with another eviction threshold, clamped to 0..=1. A NaN changes nothing.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1).with_eviction_threshold(-3.0);
    /// assert!(cache.needs_eviction()); // utilization 0 >= 0
    /// ```
    pub fn with_eviction_threshold(mut self, threshold: f64) -> Self {
        if !threshold.is_nan() {
            self.eviction_threshold = threshold.clamp(0.0, 1.0);
        }
        self
    }

    /// Returns a stamp for a use of a sequence.
    #[inline]
    fn stamp(&self) -> u64 {
        self.pool.blocks().clock().stamp()
    }

    #[cfg(feature = "async")]
    pub(crate) fn watermark(&self) -> BlockWatermark {
        self.watermark
    }

    #[cfg(feature = "async")]
    pub(crate) fn blocks(&self) -> &Blocks {
        self.pool.blocks()
    }

    #[cfg(feature = "async")]
    pub(crate) fn handle(&self) -> PoolHandle {
        self.pool.handle()
    }

    fn published(&self) -> &Published {
        &self.published[thread_ordinal() % REFERENCES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::PagedKvError;

    #[test]
    fn a_thread_with_a_map_shard_delays_no_statistics() {
        use std::sync::mpsc::channel;
        use std::time::Duration;

        let (cache, id) = (PagedKvCache::new(8, 4, 1, 1), SeqId(1));
        cache.allocate(id, 5).unwrap();
        let (send, receive) = channel();
        std::thread::scope(|scope| {
            let guard = cache.sequences.get_mut(&id).unwrap();
            let latest = cache.evicted.lock();
            let cache = &cache;
            scope.spawn(move || _ = send.send((cache.stats(), cache.num_sequences())));
            let read = receive.recv_timeout(Duration::from_secs(20));
            drop((guard, latest));
            let (stats, num_sequences) = read.expect("the statistics wait for no map shard");
            assert_eq!((stats.num_sequences, num_sequences), (1, 1));
        });
    }

    #[test]
    fn a_sequence_under_read_can_be_trimmed_and_freed() {
        let (cache, id) = (PagedKvCache::new(8, 4, 1, 1), SeqId(1));
        cache.allocate(id, 32).unwrap();
        // As a thread that is about to read it: the sequence has a lock of its own, and no lease.
        let looked_at = cache.sequences.get_mut(&id).unwrap().share();
        assert_eq!(cache.apply_streaming_llm(id, 4, 8), Ok(20));
        assert_eq!(cache.get_sequence(id).unwrap().block_ids.len(), 3);
        assert_eq!(cache.free(id), Ok(()));
        assert!(looked_at.read().is_none(), "the sequence was taken out");
        assert_eq!(cache.apply_streaming_llm(id, 4, 8), Err(PagedKvError::SequenceNotFound(id)));
    }
}
