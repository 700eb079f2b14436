//! Where is request r? The sequences of all scheduler threads, by id.
//!
//! A thin layer over [`Sequence`](crate::Sequence): look the id up, do the handle's operation, note the use. Every
//! operation is linearizable per sequence. What may take long (a search for blocks, a caller's
//! closure, a fork or truncation of a very long table) happens outside the map's locks; see
//! [`slot`].
//!
//! Invariants: no map lock is held while another is taken, while a thread searches for blocks, or
//! while the caller's code runs (but that of the evicted ids, behind which none is taken); whoever waits for a sequence's lock holds no other sequence's, but
//! for a caller's closure; an operation that fails has changed nothing. An operation under whose locks
//! blocks can come back or contents can change begins a [`Later`](crate::sync::Later) before it takes the first of them:
//! wakers and event sinks are called once the last of them is left.

mod access;
mod admission;
mod admit_options;
mod audit;
pub(crate) mod batch;
mod builder;
mod cached_sequence;
mod commit;
mod computed;
mod evicted_ids;
mod eviction;
mod exports;
mod forks;
mod id_hash;
mod inspect;
mod lease;
mod leases;
mod locked_rows;
mod naming;
mod operations;
mod prefix_view;
mod prompt;
mod prospects;
mod reservation;
mod rows;
mod slot;
mod stall;
mod step;
#[cfg(feature = "async")]
mod waiting;

pub use self::admission::Admission;
pub use self::admit_options::AdmitOptions;
pub use self::batch::{AppendBatch, append_batch};
pub use self::builder::{PagedKvCacheBuilder, Watermark};
pub use self::cached_sequence::CachedSequence;
pub use self::computed::Computed;
use self::evicted_ids::EvictedIds;
pub use self::eviction::Evicted;
use self::id_hash::IdHash;
pub use self::lease::{Lease, LeaseRow};
pub use self::prefix_view::Prefix;
pub use self::prompt::Prompt;
pub use self::reservation::Reservation;
pub use self::rows::Row;
use self::slot::Slot;
pub use self::step::{AbortRefused, Aborted, Completed, Grown, Step, StepBuffers};
use crate::counter::ShardedCounter;
use crate::evict::EvictionStrategy;
use crate::id::SeqId;
use crate::pool::BlockPool;
use crate::pool::watermark::BlockWatermark;
#[cfg(feature = "async")]
use crate::pool::{Blocks, PoolHandle};
use crate::prefix::{HashAlgorithm, PublishedBlocks};
use crate::sync::{Arc, AtomicU64, CachePadded, DashMap, Mutex, thread_ordinal};

/// Shards of the map. Many more than cores, because a thread that is descheduled inside one holds
/// up the requests of that shard for a time slice: sixteen neighbours, and whom the hash put beside
/// them.
const MAP_SHARDS: usize = 256;

/// References to the published blocks among which the threads choose.
const REFERENCES: usize = 16;

/// A reference to the published blocks that mostly one thread clones.
type Published = Arc<CachePadded<Arc<PublishedBlocks>>>;

/// Tokens of the prompts admitted.
struct ReuseCounts {
    asked: ShardedCounter,
    hit: ShardedCounter,
    too_short: ShardedCounter,
}

impl ReuseCounts {
    fn new() -> Self {
        let [asked, hit, too_short] = std::array::from_fn(|_| ShardedCounter::new());
        Self { asked, hit, too_short }
    }
}

/// A paged KV cache that many scheduler threads share.
///
/// All operations take `&self`: put it behind an `Arc`, or lend it to scoped threads.
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
    sequences: DashMap<SeqId, Slot, IdHash>,
    /// Ids of evicted sequences whose worker has not been informed.
    evicted: EvictedIds,
    evictions: ShardedCounter,
    /// Evictions that began and that are over: see `evict`.
    evictions_begun: AtomicU64,
    evictions_over: AtomicU64,
    /// Held by whoever assesses the prospects of evictions.
    assessing: Mutex<()>,
    /// One of several references for each thread, as the pool's stripes are.
    published: Box<[Published]>,
    reuse: ReuseCounts,
    /// Blocks that new sequences leave to those that grow.
    watermark: BlockWatermark,
    hash_algorithm: HashAlgorithm,
    /// True if an event sink is told what is stored and removed.
    is_heard: bool,
    block_size: usize,
    block_bytes: usize,
    eviction_strategy: EvictionStrategy,
    eviction_threshold: f64,
}

/// # Create
impl PagedKvCache {
    /// A cache of `num_blocks` blocks of `block_size` tokens. Heads and head size are for the
    /// memory figures only.
    ///
    /// # Panics
    /// If a size is 0, `num_blocks` is above `u32::MAX - 1`, or the bytes of all blocks overflow:
    /// the message names the parameter. [`builder`](Self::builder) refuses instead.
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

    /// All parameters by name, refused with an error where they make no sense.
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
        let (is_heard, published) = (published.is_heard(), Arc::new(published));
        let reference = |_| Arc::new(CachePadded::new(Arc::clone(&published)));
        Self {
            published: (0..REFERENCES).map(reference).collect(),
            reuse: ReuseCounts::new(),
            watermark: BlockWatermark::default(),
            hash_algorithm,
            pool,
            sequences: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, MAP_SHARDS),
            evicted: EvictedIds::new(),
            evictions: ShardedCounter::new(),
            evictions_begun: AtomicU64::new(0),
            evictions_over: AtomicU64::new(0),
            assessing: Mutex::new(()),
            is_heard,
            block_size,
            block_bytes,
            eviction_strategy,
            eviction_threshold,
        }
    }

    /// The cache with another eviction strategy. `Priority { levels: 0 }` counts as one level.
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

    /// The cache with another eviction threshold, clamped to 0..=1. Not a number changes nothing.
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

    /// A stamp for a use of a sequence.
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
    fn a_sequence_that_somebody_looks_at_is_trimmed_and_freed_all_the_same() {
        let (cache, id) = (PagedKvCache::new(8, 4, 1, 1), SeqId(1));
        cache.allocate(id, 32).unwrap();
        // As one does who is about to look: a lock of its own, and no lease.
        let looked_at = cache.sequences.get_mut(&id).unwrap().share();
        assert_eq!(cache.apply_streaming_llm(id, 4, 8), Ok(20));
        assert_eq!(cache.get_sequence(id).unwrap().block_ids.len(), 3);
        assert_eq!(cache.free(id), Ok(()));
        assert!(looked_at.read().is_none(), "the sequence was taken out");
        assert_eq!(cache.apply_streaming_llm(id, 4, 8), Err(PagedKvError::SequenceNotFound(id)));
    }
}
