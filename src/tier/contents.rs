//! `TierContents`: the slots of one tier, and the contents that are ready in them.

use super::quarantine::Quarantine;
use super::use_counts::UseCounts;
use super::{Medium, Tier};
use crate::array::refuse_beyond_memory;
use crate::counter::ShardedCounter;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::pool::content_key::ContentKey;
use crate::pool::{
    BlockPool, Observers, ReclaimPolicy, Retention, TakeObserver, default_shards_of_cache,
};
use crate::prefix::event_order::in_tiers::TierEvents;
use crate::prefix::{BlockHash, EventContext, Generation, PublishRequest, PublishedBlocks};
use crate::stats::TierStats;
use crate::table::BlockTable;

/// Bytes that a slot takes in the pool and in the index.
const SLOT_BYTES: usize = 80;

/// The slots of a tier and the index of their contents.
pub(crate) struct TierContents {
    medium: Medium,
    exclusive: bool,
    pool: BlockPool,
    published: PublishedBlocks,
    uses: UseCounts,
    /// Present only with an event sink.
    events: Option<TierEvents>,
    pub(crate) counts: TierCounts,
}

/// Blocks that were copied, since the cache was created.
pub(crate) struct TierCounts {
    pub(crate) stored: ShardedCounter,
    /// Those of `stored` whose source was another tier.
    pub(crate) stored_from_tiers: ShardedCounter,
    pub(crate) loaded: ShardedCounter,
    /// Tokens of prompts that were loaded.
    pub(crate) tokens_loaded: ShardedCounter,
    pub(crate) failed: ShardedCounter,
    /// Contents that were to be stored and were not.
    pub(crate) dropped: ShardedCounter,
}

impl TierContents {
    pub(super) fn new(tier: &Tier, events: Option<TierEvents>) -> Result<Self> {
        if tier.slots == 0 {
            let reason = "0 slots, at least 1 needed".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "tier", reason });
        }
        refuse_beyond_memory::<u8>(tier.slots.saturating_mul(SLOT_BYTES))?;
        let shards = default_shards_of_cache(tier.slots, ReclaimPolicy::default());
        let keep = Retention::Contents(ReclaimPolicy::default());
        let takes = events.clone().map(|events| Box::new(events) as Box<dyn TakeObserver>);
        let observers = Observers { takes, overwrites: None };
        let [stored, stored_from_tiers, loaded, tokens_loaded, failed, dropped] =
            std::array::from_fn(|_| ShardedCounter::new());
        let counts =
            TierCounts { stored, stored_from_tiers, loaded, tokens_loaded, failed, dropped };
        Ok(Self {
            medium: tier.medium,
            exclusive: tier.exclusive,
            uses: UseCounts::new(tier.slots, tier.from_use)?,
            pool: BlockPool::build(tier.slots, shards, keep, false, observers, None)?,
            published: PublishedBlocks::new(tier.slots, None, None)?,
            events,
            counts,
        })
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Returns the generation of the tier's keys, if it has the number of the device's generation. The two differ while
    /// a reset is under way.
    pub(crate) fn generation_like(&self, of_device: Generation) -> Option<Generation> {
        let generation = self.published.generation();
        (generation.number() == of_device.number()).then_some(generation)
    }

    /// Counts that a content was to be stored. Returns true if that was often enough.
    pub(crate) fn count_use(&self, key: ContentKey) -> bool {
        self.uses.count(key)
    }

    /// Returns the generation of the keys of a group.
    pub(crate) fn of_group(&self, generation: Generation, group: GroupId) -> Generation {
        self.published.of_group(generation, group)
    }

    /// Pins the slots of `hashes`, from the first on, until one is not ready. Appends them to `out`.
    pub(crate) fn pin(&self, hashes: &[BlockHash], generation: Generation, out: &mut Vec<BlockId>) {
        self.published.acquire(self.pool.blocks(), hashes, generation, out);
    }

    /// Returns how many of `hashes`, from the first on, are ready.
    pub(crate) fn probe(&self, hashes: &[BlockHash]) -> usize {
        self.published.probe(self.pool.blocks(), hashes).cached
    }

    /// Returns true if the content is ready. Its slot does not become younger.
    pub(crate) fn has(&self, hash: BlockHash, generation: Generation) -> bool {
        self.published.has(self.pool.blocks(), hash, generation)
    }

    /// Returns true if a slot of the caller is ready with this content.
    pub(crate) fn holds(&self, slot: BlockId, hash: BlockHash, generation: Generation) -> bool {
        self.pool.blocks().is_cached_as(slot, generation.key_of(hash))
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Returns the number of slots that can be taken.
    pub(crate) fn room(&self) -> usize {
        self.pool.free_block_count()
    }

    /// Takes `n` slots to write to, or none. Ready contents may be given up for them, the least recently used first.
    pub(crate) fn take(&self, n: usize) -> Option<BlockTable> {
        self.pool.allocate(n).ok()
    }

    /// Returns a table that owns `ids`, which the caller owns by their words.
    pub(crate) fn table_of(&self, ids: Vec<BlockId>) -> BlockTable {
        self.pool.table_of(ids)
    }

    /// Makes contents of a group ready that have been copied to `ids`, unless a reset came after `generation`. Returns how
    /// many the tier did not have.
    pub(crate) fn publish(
        &self,
        group: GroupId,
        ids: &[BlockId],
        hashes: &[BlockHash],
        generation: Generation,
    ) -> usize {
        let generation = self.of_group(generation, group);
        let Some(events) = &self.events else {
            return self.publish_unannounced(group, ids, hashes, generation);
        };
        let mut published = 0;
        events.publish(group, generation, || {
            published = self.publish_unannounced(group, ids, hashes, generation);
            let blocks = self.pool.blocks();
            let contents = ids.iter().copied().zip(hashes.iter().copied());
            let is_published =
                |&(id, hash): &_| self.published.is_published(blocks, id, hash, generation);
            contents.filter(is_published).collect()
        });
        published
    }

    fn publish_unannounced(
        &self,
        group: GroupId,
        ids: &[BlockId],
        hashes: &[BlockHash],
        generation: Generation,
    ) -> usize {
        let request = PublishRequest { ids, before: None, private_from: 0, generation };
        let context = || EventContext {
            group,
            parent: None,
            tokens: [&[]; 2],
            block_size: 1,
            extra: None,
            index: 0,
        };
        self.published.publish(self.pool.blocks(), &request, |at| hashes[at], context)
    }

    /// Makes contents of the caller's slots unmatchable.
    pub(crate) fn forget(&self, ids: &[BlockId]) {
        self.pool.blocks().uncache(ids, |matching, id| matching.acquire_any(id));
    }

    pub(super) fn reset(&self) {
        self.published.reset(self.pool.blocks());
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.pool.validate()
    }

    /// Returns the counts of the tier, whose slots have so many bytes.
    pub(super) fn stats(&self, block_bytes: usize, quarantine: &Quarantine) -> TierStats {
        // Read the part before the whole.
        let blocks_stored_from_tiers = self.counts.stored_from_tiers.sum();
        let (stored, loaded) = (self.counts.stored.sum(), self.counts.loaded.sum());
        TierStats {
            medium: Some(self.medium),
            slots_total: self.pool.total_blocks(),
            slots_ready: self.published.num_idle(&self.pool),
            slots_used: self.pool.used_block_count(),
            slots_quarantined: quarantine.len_in(&self.pool.handle()),
            blocks_stored: stored,
            blocks_stored_from_tiers,
            blocks_loaded: loaded,
            bytes_stored: stored * block_bytes as u64,
            bytes_loaded: loaded * block_bytes as u64,
            prompt_tokens_loaded: self.counts.tokens_loaded.sum(),
            copies_failed: self.counts.failed.sum(),
            stores_dropped: self.counts.dropped.sum(),
        }
    }
}
