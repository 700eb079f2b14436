//! `CacheStats` and `SequenceInfo`: the numbers that a cache reports, as plain values.

use std::fmt;

use crate::id::{AdmissionEpoch, BlockId, GroupId, Medium, SeqId, Worker};

/// Counts since the cache was made, and the present use. They are of one moment if no operation runs.
///
/// Under load the counts are read within one call but not in one instant: `total_frees` never exceeds
/// `total_allocations`, and `blocks_used` never exceeds `blocks_total`. An allocation by id that loses a race
/// for its id may appear in both totals for a moment.
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(16, 4, 1, 1);
/// cache.allocate(SeqId(1), 9)?;
/// cache.free(SeqId(1))?;
/// let stats = cache.stats();
/// assert_eq!((stats.total_allocations, stats.total_frees), (3, 3));
/// assert_eq!((stats.peak_blocks_used, stats.blocks_used), (3, 0));
/// assert!(stats.to_string().contains("peak 3"));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct CacheStats {
    /// Blocks ever taken from the available ones.
    pub total_allocations: u64,
    /// Blocks ever returned to the available ones.
    pub total_frees: u64,
    /// Whole sequences evicted.
    pub total_evictions: u64,
    /// Ids of evicted sequences that their workers have not freed yet, so that a worker can still be
    /// informed. At most 65,536, the latest.
    pub evicted_ids: usize,
    /// Ids that were dropped to make place for later ones: they count as not found.
    pub evicted_ids_forgotten: u64,
    /// Sequences made by forking.
    pub total_forks: u64,
    /// The most blocks in use at one time. Exact in a pool of one home shard (under 1,024 blocks; under
    /// 2,048 where contents are kept). Else it is sampled: when it is read, and for each shard once in 32
    /// blocks times the number of shards, of the blocks that its magazine could not serve. It is then low by
    /// at most these blocks and one magazine (256 to 1,024 blocks) for each shard, and by the blocks that were
    /// released while a sampling thread was preempted. In a pool of fewer than 64 blocks a shard it is sampled
    /// each time that a magazine does not suffice.
    pub peak_blocks_used: usize,
    /// Blocks in use by sequences.
    pub blocks_used: usize,
    /// Blocks of the pool.
    pub blocks_total: usize,
    /// Sequences in the cache, handles not counted.
    pub num_sequences: usize,
    /// Tokens of the prompts that were admitted.
    pub prompt_tokens: u64,
    /// Tokens of these prompts that were cached.
    pub prompt_tokens_hit: u64,
    /// Tokens of prompts of one block or less, which cannot hit. A prompt of one block counts as able to hit if its
    /// options [allow a full hit](crate::AdmitOptions::allow_full_hit).
    pub prompt_tokens_too_short: u64,
    /// Blocks without an owner whose contents are still cached. They are available.
    pub blocks_idle: usize,
    /// Blocks of all [pins](crate::Retained::pin). A block that two pins have counts twice.
    pub blocks_pinned: usize,
    /// Blocks whose contents were reclaimed.
    pub blocks_reclaimed: u64,
    /// Events that were not emitted to the sink, because it panicked or was too slow. All contents were
    /// repeated to it instead; see [`EventSink`](crate::EventSink).
    pub events_dropped: u64,
    /// New requests that wait for room: admissions, allocations and reservations. Always 0 without the
    /// feature `async`.
    pub requests_waiting_new: usize,
    /// Requests of sequences in the cache that wait for room to grow. Always 0 without the feature `async`.
    pub requests_waiting_to_grow: usize,
    /// Steps that are open.
    pub steps_open: usize,
    /// Each group of layers, in the order of their numbers. Empty in a cache without groups.
    pub groups: Vec<GroupStats>,
    /// Each tier below the device, in order. Empty in a cache without tiers.
    pub tiers: Vec<TierStats>,
    /// Contents that tickets of tiers copy at the moment. A content is copied by one ticket at a time, whatever its tiers.
    pub contents_in_flight: usize,
    /// Blocks of the device that a failed copy may still write. Those of a tier: [`TierStats::slots_quarantined`].
    pub blocks_quarantined: usize,
    /// Admissions that were answered with [`Pending`](crate::TierAdmission::Pending).
    pub admissions_pending: u64,
}

impl CacheStats {
    /// Returns the tokens of admitted prompts that were loaded from tiers.
    ///
    /// ```
    /// assert_eq!(paged_kv::CacheStats::default().prompt_tokens_loaded(), 0);
    /// ```
    pub fn prompt_tokens_loaded(&self) -> u64 {
        self.tiers.iter().map(|tier| tier.prompt_tokens_loaded).sum()
    }

    /// Returns the tokens of admitted prompts that no medium had: those that are left of
    /// [`prompt_tokens`](Self::prompt_tokens) without the hits on the device and the tokens that were loaded. Tokens
    /// that are being loaded are among them.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(16, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 9)?;
    /// cache.admit(SeqId(2), &[7; 9])?; // 8 hit
    /// assert_eq!(cache.stats().prompt_tokens_computed(), 9 + 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn prompt_tokens_computed(&self) -> u64 {
        let cached = self.prompt_tokens_hit + self.prompt_tokens_loaded();
        self.prompt_tokens.saturating_sub(cached)
    }
}

/// The counts of one tier below the device.
///
/// ```
/// use paged_kv::{PagedKvCache, Tier};
///
/// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(16)).build()?;
/// assert_eq!(cache.stats().tiers[0].slots_ready, 0);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct TierStats {
    /// The memory of the tier.
    pub medium: Option<Medium>,
    /// All slots.
    pub slots_total: usize,
    /// Slots with a content that can be loaded, and that no ticket owns. After a reset, each slot is read for it.
    pub slots_ready: usize,
    /// Slots that tickets own: written, or read. Slots in quarantine are among them.
    pub slots_used: usize,
    /// Slots that a failed copy may still write.
    pub slots_quarantined: usize,
    /// Blocks that were copied to the tier, from the device or another tier.
    pub blocks_stored: u64,
    /// Those of them that came from another tier.
    pub blocks_stored_from_tiers: u64,
    /// Blocks that were copied from the tier to the device.
    pub blocks_loaded: u64,
    /// Bytes that were copied to the tier, if the cache knows the [bytes of a
    /// block](crate::PagedKvCacheBuilder::block_bytes).
    pub bytes_stored: u64,
    /// Bytes that were copied from the tier to the device.
    pub bytes_loaded: u64,
    /// Tokens of prompts that were loaded from the tier instead of computed. With groups of layers, all tokens of a load
    /// count for the lowest of its tiers.
    pub prompt_tokens_loaded: u64,
    /// Copies that were reported as failed, or whose ticket was dropped.
    pub copies_failed: u64,
    /// Contents that were to be stored when the tier had no slot for them, and those whose copies were skipped.
    pub stores_dropped: u64,
}

/// The counts of one group of layers.
///
/// ```
/// use paged_kv::{LayerGroup, PagedKvCache, SeqId};
///
/// let groups = [LayerGroup::Full { block_size: 4 }, LayerGroup::State { block_size: 4 }];
/// let cache = PagedKvCache::builder().num_blocks(16).groups(&groups).build()?;
/// cache.admit(SeqId(1), &[7; 10])?;
/// cache.commit(SeqId(1), 10)?; // no state is at a multiple of 4
/// assert_eq!(cache.admit(SeqId(2), &[7; 10])?.longest_group_hit, 8);
/// assert_eq!(cache.stats().groups[1].prompt_tokens_lost, 8);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct GroupStats {
    /// The group.
    pub group: GroupId,
    /// Tokens of prompts by which this group made hits shorter than the longest hit of a group alone; see
    /// [`Admission::limiting_group`](crate::Admission::limiting_group).
    pub prompt_tokens_lost: u64,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} blocks used (peak {}), {} sequences; {} blocks allocated, {} freed; \
             {} sequences forked, {} evicted",
            self.blocks_used,
            self.blocks_total,
            self.peak_blocks_used,
            self.num_sequences,
            self.total_allocations,
            self.total_frees,
            self.total_forks,
            self.total_evictions,
        )
    }
}

/// An owned snapshot of one sequence.
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(16, 4, 1, 1);
/// cache.allocate(SeqId(1), 9)?;
/// let info = cache.get_sequence(SeqId(1)).expect("it was just allocated");
/// assert_eq!((info.num_tokens, info.num_blocks(), info.access_count), (9, 3, 1));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SequenceInfo {
    /// The caller's id of it.
    pub seq_id: SeqId,
    /// Logical length in tokens, trimmed ones included.
    pub num_tokens: usize,
    /// Resident blocks, in order.
    pub block_ids: Vec<BlockId>,
    /// Uses so far: allocate, append and touch.
    pub access_count: u64,
    /// The priority that [`EvictionStrategy::Priority`](crate::EvictionStrategy::Priority) reads.
    pub priority: u32,
    /// The worker that evicts it and is informed of its eviction, if one is set.
    pub worker: Option<Worker>,
    /// Leases held on it.
    pub leases: u32,
    /// Named tokens of a sequence that was admitted by its tokens or hashes, else 0: see
    /// [`CachedSequence::num_named_tokens`](crate::CachedSequence::num_named_tokens).
    pub num_named_tokens: usize,
    /// Distinguishes this sequence from others of the same id. A fork has its own.
    pub epoch: AdmissionEpoch,
}

impl SequenceInfo {
    /// Returns the number of resident blocks.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 9)?;
    /// assert_eq!(cache.get_sequence(SeqId(1)).unwrap().num_blocks(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_blocks(&self) -> usize {
        self.block_ids.len()
    }
}
