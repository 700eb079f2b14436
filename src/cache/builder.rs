//! `PagedKvCacheBuilder`: the parameters of a cache, checked before anything is built.
//!
//! The builder returns an error where [`PagedKvCache::new`] panics.

mod checks;
mod contents;
mod groups;
mod listeners;
mod pins;
mod tiers;

use self::checks::{Checked, invalid};
use self::groups::Groups;
use self::listeners::{Observed, Sink};
use self::tiers::TierSettings;
use super::PagedKvCache;
use super::eviction::strategy::EvictionStrategy;
use crate::error::Result;
use crate::groups::LayerGroup;
#[cfg(feature = "async")]
use crate::pool::Fairness;
use crate::pool::watermark::BlockWatermark;
use crate::pool::{BlockPool, Observers, ReclaimPolicy, TakeObserver};
use crate::prefix::event_order::EventOrder;
use crate::prefix::event_order::claimed_sink::ClaimedSink;
use crate::prefix::event_order::taken::Taken;
use crate::prefix::kv_event::EventSink;
use crate::prefix::overwrites::{Overwrites, Overwritten};
use crate::prefix::{HashAlgorithm, PublishedBlocks};
use crate::sync::PlainArc;

/// Default utilization at which a cache reports that it needs eviction.
const DEFAULT_THRESHOLD: f64 = 0.9;

/// Builds a [`PagedKvCache`], and refuses invalid parameters.
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
    prefix_reuse: bool,
    reclaim_policy: ReclaimPolicy,
    retention_levels: bool,
    hash_algorithm: HashAlgorithm,
    event_sink: Option<Sink>,
    overwrite_observer: Option<Observed>,
    watermark: Watermark,
    pin_budget: Watermark,
    groups: Groups,
    tiers: TierSettings,
    #[cfg(feature = "async")]
    fairness: Fairness,
}

/// Blocks that a cache keeps for running sequences to grow: see
/// [`watermark`](PagedKvCacheBuilder::watermark).
///
/// ```
/// use paged_kv::{PagedKvCache, Watermark};
///
/// let builder = PagedKvCache::builder().num_blocks(100);
/// assert!(builder.clone().watermark(Watermark::Share(0.01)).build()?.reserve(100).is_err());
/// assert!(builder.watermark(Watermark::Blocks(100)).build().is_err()); // leaves none
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Watermark {
    /// A number of blocks.
    Blocks(usize),
    /// A share of all blocks, within 0 and 1, rounded up to whole blocks. vLLM's default is 0.01.
    Share(f64),
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
            prefix_reuse: true,
            reclaim_policy: ReclaimPolicy::default(),
            retention_levels: false,
            hash_algorithm: HashAlgorithm::default(),
            event_sink: None,
            overwrite_observer: None,
            watermark: Watermark::Blocks(0),
            pin_budget: pins::DEFAULT_BUDGET,
            groups: Groups::default(),
            tiers: TierSettings::default(),
            #[cfg(feature = "async")]
            fairness: Fairness::default(),
        }
    }

    /// Sets the number of blocks of the engine's KV tensor, `1..=u32::MAX - 1`. Has no default.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).build()?;
    /// assert_eq!(cache.total_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_blocks(self, num_blocks: usize) -> Self {
        Self { num_blocks, ..self }
    }

    /// Sets the tokens of a block, by default 16.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).block_size(32).build()?;
    /// assert_eq!(cache.block_size(), 32);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_size(self, block_size: usize) -> Self {
        Self { block_size, ..self }
    }

    /// Sets the number of KV heads of a layer, for the memory figures.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).num_heads(3).build()?;
    /// assert_eq!(cache.block_memory_bytes(), 2 * 16 * 3 * 1 * 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_heads(self, num_heads: usize) -> Self {
        Self { num_heads, ..self }
    }

    /// Sets the number of elements of a head, for the memory figures.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).head_dim(64).build()?;
    /// assert_eq!(cache.block_memory_bytes(), 2 * 16 * 1 * 64 * 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn head_dim(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// Sets the bytes of one block in all layers. The default is `2 (K and V) * block_size * num_heads *
    /// head_dim * 2 bytes`: f16, one layer. Set it for several layers, MLA or fp8.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).block_bytes(1 << 20).build()?;
    /// assert_eq!(cache.total_memory_bytes(), 8 << 20);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_bytes(self, block_bytes: usize) -> Self {
        Self { block_bytes: Some(block_bytes), ..self }
    }

    /// Sets the strategy that selects the sequence to evict, by default [`EvictionStrategy::LRU`].
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

    /// Sets the utilization from which [`needs_eviction`](PagedKvCache::needs_eviction) returns true:
    /// within 0 and 1, by default 0.9.
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

    /// Reserves block 0 if true, so that padded rows of a batch may write to it. There is then one block
    /// fewer to allocate. By default false.
    ///
    /// ```
    /// use paged_kv::{BlockId, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(4).null_block(true).build()?;
    /// assert_eq!(cache.total_blocks(), 3);
    /// cache.allocate(SeqId(1), 3 * 16)?;
    /// assert!(!cache.get_sequence(SeqId(1)).unwrap().block_ids.contains(&BlockId(0)));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn null_block(self, null_block: bool) -> Self {
        Self { null_block, ..self }
    }

    /// Sets the number of home shards of the pool, rounded up to a power of two; see
    /// [`BlockPool::with_home_shards`]. From 2,048 blocks on, a cache with prefix reuse has one for each 256. Each
    /// takes about 11 KB there, and all together keep at most a quarter of the blocks in larger magazines.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::builder().num_blocks(8).home_shards(4).build()?;
    /// assert_eq!(cache.free_block_count(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn home_shards(self, home_shards: usize) -> Self {
        Self { home_shards: Some(home_shards), ..self }
    }

    /// Keeps the contents of blocks matchable after their last owner has released them if true, the
    /// default. Without reuse a block takes about 12 bytes of memory instead of 88, and admissions by
    /// tokens hit no block.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).prefix_reuse(false).build()?;
    /// cache.admit(SeqId(1), &[7; 40])?;
    /// cache.commit(SeqId(1), 40)?;
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 40])), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn prefix_reuse(self, prefix_reuse: bool) -> Self {
        Self { prefix_reuse, ..self }
    }

    /// Sets the policy that selects the cached contents to reclaim first when free blocks run out, by
    /// default [`ReclaimPolicy::Lru`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, ReclaimPolicy};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// assert!(builder.reclaim_policy(ReclaimPolicy::TwoQueue).build().is_ok());
    /// ```
    pub fn reclaim_policy(self, reclaim_policy: ReclaimPolicy) -> Self {
        Self { reclaim_policy, ..self }
    }

    /// Sets the algorithm that hashes the tokens of blocks, by default [`HashAlgorithm::default`]: fast,
    /// with a key that is random for each process.
    ///
    /// ```
    /// use paged_kv::{HashAlgorithm, PagedKvCache};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// let cache = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 }).build()?;
    /// assert_eq!(cache.prompt(&[7; 40]).hashes().len(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn hash_algorithm(self, hash_algorithm: HashAlgorithm) -> Self {
        Self { hash_algorithm, ..self }
    }

    /// Reports to `sink` which blocks can be matched, from the first commit on. This takes about 100 bytes
    /// of memory a block, and the block's tokens. Commits, resets, and allocations that reclaim contents
    /// take one lock. Without a sink there is no such cost.
    ///
    /// A sink receives the events of one cache at a time: [`build`](Self::build) refuses a sink that
    /// another cache uses. The sink is free again once that cache and all its sequences, tables, steps, rows
    /// of leases, `StepBuffers` and `AppendBatch`es are dropped. The next cache then begins with an
    /// [`AllBlocksCleared`](crate::KvEvent::AllBlocksCleared).
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use paged_kv::{EventSink, KvEvent, PagedKvCache};
    ///
    /// struct Deaf;
    ///
    /// impl EventSink for Deaf {
    ///     fn on_event(&self, _: &KvEvent<'_>) {}
    /// }
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// assert!(builder.event_sink(Arc::new(Deaf)).build().is_ok());
    /// ```
    pub fn event_sink(self, sink: PlainArc<dyn EventSink>) -> Self {
        Self { event_sink: Some(Sink(sink)), ..self }
    }

    /// Calls `observer` with all cached contents that an operation overwrites, for a caller that copies them to
    /// another tier. These blocks are matched no more (a copy in another block may still be), and the operation has
    /// not returned: the blocks still hold their keys and values. No lock or claim is held, so the observer may call
    /// the cache. It is called once for each allocation that reclaims contents, and not with contents from before a reset.
    ///
    /// A step does not call it: [`Step::overwritten`](crate::Step::overwritten) collects the contents, which
    /// the caller copies before the step's kernels run. Contents that [`Prefix`](crate::Prefix) forgets or uncaches,
    /// also because of its limit, are not reported. If the observer panics, the operation has changed
    /// nothing but the reclaimed contents, and the panic goes on to the caller.
    ///
    /// Takes 40 bytes of memory a block. Appends by id that need a block look the id up twice more. Without an
    /// observer there is no such cost.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    ///
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let count = Arc::new(AtomicUsize::new(0));
    /// let seen = Arc::clone(&count);
    /// let builder = PagedKvCache::builder().num_blocks(2).block_size(4);
    /// let builder = builder.overwrite_observer(move |lost| {
    ///     seen.fetch_add(lost.len(), Ordering::Relaxed); // here: copy each block to its slot in the host's memory
    /// });
    /// let cache = builder.build()?;
    /// cache.admit(SeqId(1), &[7; 8])?;
    /// cache.commit(SeqId(1), 8)?;
    /// cache.free(SeqId(1))?;
    /// cache.allocate(SeqId(2), 8)?;
    /// assert_eq!(count.load(Ordering::Relaxed), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn overwrite_observer(
        self,
        observer: impl Fn(&[Overwritten]) + Send + Sync + 'static,
    ) -> Self {
        Self { overwrite_observer: Some(Observed(PlainArc::new(observer))), ..self }
    }

    /// Keeps blocks for running sequences to grow, by default 0. New sequences and reservations that would
    /// leave fewer blocks are refused, or wait. Appends may use the blocks.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId, Watermark};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = builder.watermark(Watermark::Blocks(2)).build()?;
    /// cache.allocate(SeqId(1), 16)?;
    /// let refused = cache.allocate(SeqId(2), 12);
    /// assert_eq!(refused, Err(PagedKvError::OutOfMemory { requested: 3, available: 2 }));
    /// assert!(cache.append(SeqId(1), 16).is_ok());
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn watermark(self, watermark: Watermark) -> Self {
        Self { watermark, ..self }
    }

    /// Sets the order in which requests that wait for room are served, by default [`Fairness::Fifo`].
    ///
    /// ```
    /// use paged_kv::{Fairness, PagedKvCache};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// assert!(builder.fairness(Fairness::Bypass { at_most: 4 }).build().is_ok());
    /// ```
    #[cfg(feature = "async")]
    pub fn fairness(self, fairness: Fairness) -> Self {
        Self { fairness, ..self }
    }

    /// Builds the cache, with all blocks free. `O(num_blocks)`.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::PagedKvError::InvalidConfig) names the first invalid parameter: a size of
    /// 0, more than `u32::MAX - 1` blocks, more than 1024 home shards, a threshold outside 0..=1, no
    /// priority level, a watermark that leaves no block, slots that do not fit a `u64`, bytes that do not
    /// fit a `usize`, or an event sink that another cache uses.
    /// [`OutOfHostMemory`](crate::PagedKvError::OutOfHostMemory): the allocator refuses memory for so many
    /// blocks, about 88 bytes each.
    ///
    /// ```
    /// let builder = paged_kv::PagedKvCache::builder();
    /// assert!(builder.clone().num_blocks(8).build().is_ok());
    /// let refused = builder.build().unwrap_err();
    /// assert_eq!(refused.to_string(), "invalid num_blocks: 0, at least 1 needed");
    /// ```
    pub fn build(self) -> Result<PagedKvCache> {
        let Checked { block_bytes, shards, watermark, pin_budget, layout } = self.check()?;
        let (keep, indexed) = self.checked_contents(layout.as_ref())?;
        let sink = self.event_sink.clone().filter(|_| self.prefix_reuse);
        self.refuse_beyond_memory(sink.is_some())?;
        let event_order = match sink {
            Some(Sink(sink)) => {
                let Some(sink) = ClaimedSink::claim(sink) else {
                    return invalid("event_sink", "another cache uses this sink".to_owned());
                };
                let alone = LayerGroup::Full { block_size: self.block_size };
                let groups = layout.as_ref().map_or([alone].into(), |all| all.groups().into());
                let tiers = self.media_and_slots();
                Some(PlainArc::new(EventOrder::new(sink, self.num_blocks, groups, &tiers)?))
            }
            None => None,
        };
        let overwrites = match self.overwrite_observer.clone().filter(|_| self.prefix_reuse) {
            Some(Observed(observer)) => {
                Some(PlainArc::new(Overwrites::new(self.num_blocks, observer)?))
            }
            None => None,
        };
        let takes =
            event_order.clone().map(|order| Box::new(Taken(order)) as Box<dyn TakeObserver>);
        let observers = Observers { takes, overwrites: overwrites.clone().map(|all| all as _) };
        let null_block = self.null_block;
        let pool = BlockPool::build(self.num_blocks, shards, keep, null_block, observers, layout)?;
        pool.blocks().pins().set_budget(pin_budget);
        #[cfg(feature = "async")]
        pool.blocks().waiters().set_fairness(self.fairness);
        let mut cache = PagedKvCache::from_parts(
            pool,
            PublishedBlocks::new(indexed, event_order.clone(), overwrites)?,
            self.hash_algorithm,
            self.first_block_size(),
            block_bytes,
            self.eviction_strategy,
            self.eviction_threshold,
        );
        cache.watermark = BlockWatermark::new(watermark);
        cache.tiers = self.built_tiers(event_order.as_ref())?;
        if let Some(event_order) = event_order {
            event_order.begin();
        }
        Ok(cache)
    }
}
