//! What shape does a cache have? Its parameters, checked before anything is built.
//!
//! The builder refuses with an error what [`PagedKvCache::new`] refuses with a panic.

use super::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::evict::EvictionStrategy;
use crate::pool::{BlockPool, MOST_BLOCKS, default_shards};

/// Utilization at which a cache says that it needs eviction, unless told otherwise.
const DEFAULT_THRESHOLD: f64 = 0.9;

/// Bytes of one element of K or V, unless a block's bytes are given: f16.
const ELEMENT_BYTES: usize = 2;

/// Builds a [`PagedKvCache`], refusing what makes no sense.
///
/// ```
/// use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::builder()
///     .num_blocks(1024)
///     .block_size(16)
///     .num_heads(8)
///     .head_dim(128)
///     .with_eviction_strategy(EvictionStrategy::LongestFirst)
///     .build()?;
/// assert_eq!(cache.block_memory_bytes(), 2 * 16 * 8 * 128 * 2);
///
/// let refused = PagedKvCache::builder().num_blocks(0).block_size(16).block_bytes(1).build();
/// assert!(matches!(refused, Err(PagedKvError::InvalidConfig { parameter: "num_blocks", .. })));
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder builds nothing until `build` is called"]
pub struct PagedKvCacheBuilder {
    num_blocks: usize,
    block_size: usize,
    num_heads: usize,
    head_dim: usize,
    block_bytes: Option<usize>,
    eviction_strategy: EvictionStrategy,
    eviction_threshold: f64,
    null_block: bool,
    home_shards: Option<usize>,
}

impl PagedKvCacheBuilder {
    pub(super) fn new() -> Self {
        Self {
            num_blocks: 0,
            block_size: 16,
            num_heads: 1,
            head_dim: 1,
            block_bytes: None,
            eviction_strategy: EvictionStrategy::default(),
            eviction_threshold: DEFAULT_THRESHOLD,
            null_block: false,
            home_shards: None,
        }
    }

    /// Blocks of the engine's KV tensor, `1..=u32::MAX - 1`. Has no default.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).build()?;
    /// assert_eq!(cache.total_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_blocks(self, num_blocks: usize) -> Self {
        Self { num_blocks, ..self }
    }

    /// Tokens a block, by default 16.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).block_size(32).build()?;
    /// assert_eq!(cache.block_size(), 32);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_size(self, block_size: usize) -> Self {
        Self { block_size, ..self }
    }

    /// KV heads of a layer, for the memory figures.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).num_heads(3).build()?;
    /// assert_eq!(cache.block_memory_bytes(), 2 * 16 * 3 * 1 * 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_heads(self, num_heads: usize) -> Self {
        Self { num_heads, ..self }
    }

    /// Elements of a head, for the memory figures.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).head_dim(64).build()?;
    /// assert_eq!(cache.block_memory_bytes(), 2 * 16 * 1 * 64 * 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn head_dim(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// Bytes of one block in all layers, where `2 (K and V) * block_size * num_heads * head_dim *
    /// 2 bytes` (f16, one layer) does not say it: several layers, MLA, fp8.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).block_bytes(1 << 20).build()?;
    /// assert_eq!(cache.total_memory_bytes(), 8 << 20);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_bytes(self, block_bytes: usize) -> Self {
        Self { block_bytes: Some(block_bytes), ..self }
    }

    /// Which sequence is evicted first, by default [`EvictionStrategy::LRU`].
    ///
    /// ```
    /// use paged_kv::{EvictionStrategy, PagedKvCache};
    ///
    /// let levels = |levels| EvictionStrategy::Priority { levels };
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// assert!(builder.clone().with_eviction_strategy(levels(2)).build().is_ok());
    /// assert!(builder.with_eviction_strategy(levels(0)).build().is_err());
    /// ```
    pub fn with_eviction_strategy(self, eviction_strategy: EvictionStrategy) -> Self {
        Self { eviction_strategy, ..self }
    }

    /// Utilization from which [`needs_eviction`](PagedKvCache::needs_eviction) says yes: within
    /// 0 and 1, by default 0.9.
    ///
    /// ```
    /// let builder = paged_kv::PagedKvCache::builder().num_blocks(8);
    /// assert!(builder.clone().with_eviction_threshold(0.0).build()?.needs_eviction());
    /// assert!(builder.with_eviction_threshold(1.1).build().is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn with_eviction_threshold(self, eviction_threshold: f64) -> Self {
        Self { eviction_threshold, ..self }
    }

    /// Keeps block 0 back, so that padded rows of a batch may write to it. There is one block
    /// fewer to hand out.
    ///
    /// ```
    /// use paged_kv::{BlockId, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(4).with_null_block().build()?;
    /// assert_eq!(cache.total_blocks(), 3);
    /// cache.allocate(SeqId(1), 3 * 16)?;
    /// assert!(!cache.get_sequence(SeqId(1)).unwrap().block_ids.contains(&BlockId(0)));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn with_null_block(self) -> Self {
        Self { null_block: true, ..self }
    }

    /// Home shards of the pool, rounded up to a power of two; see
    /// [`BlockPool::with_home_shards`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).home_shards(4).build()?;
    /// assert_eq!(cache.free_block_count(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn home_shards(self, home_shards: usize) -> Self {
        Self { home_shards: Some(home_shards), ..self }
    }

    /// The cache, all blocks free. `O(num_blocks)`.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) names the first parameter that makes no
    /// sense: a size of 0, more than `u32::MAX - 1` blocks, more than 1024 home shards, a threshold
    /// outside 0..=1, no priority level, slots that do not fit a `u64`, or bytes a `usize`.
    ///
    /// ```
    /// let builder = paged_kv::PagedKvCache::builder();
    /// assert!(builder.clone().num_blocks(8).build().is_ok());
    /// let refused = builder.build().unwrap_err();
    /// assert_eq!(refused.to_string(), "invalid num_blocks: 0, at least 1 needed");
    /// ```
    pub fn build(self) -> Result<PagedKvCache> {
        for (parameter, value) in [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("block_bytes", self.block_bytes.unwrap_or(1)),
            ("home_shards", self.home_shards.unwrap_or(1)),
        ] {
            if value == 0 {
                return invalid(parameter, "0, at least 1 needed".to_owned());
            }
        }
        if self.num_blocks > MOST_BLOCKS {
            return invalid(
                "num_blocks",
                format!("{}, at most {MOST_BLOCKS} have ids", self.num_blocks),
            );
        }
        if !(0.0..=1.0).contains(&self.eviction_threshold) {
            return invalid(
                "eviction_threshold",
                format!("{} is not in 0..=1", self.eviction_threshold),
            );
        }
        if self.eviction_strategy == (EvictionStrategy::Priority { levels: 0 }) {
            return invalid("eviction_strategy", "0 priority levels, at least 1 needed".to_owned());
        }
        if (self.num_blocks as u64).checked_mul(self.block_size as u64).is_none() {
            return invalid("block_size", format!("{}: slots overflow 64 bits", self.block_size));
        }
        let block_bytes = self.checked_block_bytes()?;
        let shards = self.home_shards.unwrap_or_else(|| default_shards(self.num_blocks));
        let pool = BlockPool::build(self.num_blocks, shards, self.null_block)?;
        Ok(PagedKvCache::from_parts(
            pool,
            self.block_size,
            block_bytes,
            self.eviction_strategy,
            self.eviction_threshold,
        ))
    }

    fn checked_block_bytes(&self) -> Result<usize> {
        let elements = [self.num_heads, self.head_dim, 2, ELEMENT_BYTES]
            .into_iter()
            .try_fold(self.block_size, usize::checked_mul);
        let block_bytes = self.block_bytes.or(elements);
        match block_bytes.filter(|bytes| bytes.checked_mul(self.num_blocks).is_some()) {
            Some(bytes) => Ok(bytes),
            None => invalid("block_bytes", "the bytes of all blocks overflow".to_owned()),
        }
    }
}

fn invalid<T>(parameter: &'static str, reason: String) -> Result<T> {
    Err(PagedKvError::InvalidConfig { parameter, reason })
}
