//! What is given up when memory is short? Whole sequences, by the strategy's choice.
//!
//! One pass over the map gathers the candidates; a victim leaves the map only if nobody leases it
//! at that moment. The pass sees each shard at a moment of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::PagedKvCache;
use super::prospects::Prospects;
use super::slot::{Live, Slot, is_looking};
use crate::error::{PagedKvError, Result};
use crate::evict::{EvictionKey, EvictionStrategy};
use crate::id::SeqId;
use crate::sync::Arc;

impl PagedKvCache {
    /// True when utilization is at or above the eviction threshold.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1).with_eviction_threshold(0.5);
    /// assert!(!cache.needs_eviction());
    /// cache.allocate(SeqId(1), 32)?;
    /// assert!(cache.needs_eviction());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn needs_eviction(&self) -> bool {
        self.utilization() >= self.eviction_threshold
    }

    /// The sequence that [`evict`](Self::evict) would take now. `O(sequences)`; if the first one
    /// would free nothing by itself, `O(blocks)` besides.
    ///
    /// Passed over are leased sequences, and those of whose blocks none would be free even if
    /// every unleased sequence went (leased ones or handles use them too).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// assert_eq!(cache.select_eviction_target(), None);
    /// cache.allocate(SeqId(1), 16)?;
    /// assert_eq!(cache.select_eviction_target(), Some(SeqId(1)));
    /// let _lease = cache.lease(&[SeqId(1)])?;
    /// assert_eq!(cache.select_eviction_target(), None);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn select_eviction_target(&self) -> Option<SeqId> {
        let mut first: Option<EvictionKey> = None;
        self.for_each_unleased(|id, live| {
            if let Some(key) = self.eviction_key(id, live) {
                first = Some(first.map_or(key, |first| first.min(key)));
            }
        });
        let first = first?;
        if self.frees_a_block(first.seq_id) {
            return Some(first.seq_id);
        }
        let prospects = self.prospects();
        let mut keys = self.eviction_keys();
        keys.sort_unstable();
        keys.into_iter().map(|key| key.seq_id).find(|&id| prospects.is_worth_evicting(id))
    }

    /// Removes one whole sequence, chosen by the strategy, and says which. Cost as
    /// [`select_eviction_target`](Self::select_eviction_target).
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) when
    /// [`select_eviction_target`](Self::select_eviction_target) finds none.
    ///
    /// ```
    /// use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let strategy = EvictionStrategy::LongestFirst;
    /// let cache = PagedKvCache::new(8, 16, 1, 1).with_eviction_strategy(strategy);
    /// cache.allocate(SeqId(1), 16)?;
    /// cache.allocate(SeqId(2), 48)?;
    /// assert_eq!(cache.evict(), Ok(SeqId(2)));
    /// assert_eq!(cache.evict(), Ok(SeqId(1)));
    /// assert_eq!(cache.evict(), Err(PagedKvError::NothingToEvict));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn evict(&self) -> Result<SeqId> {
        loop {
            let victim = self.select_eviction_target().ok_or(PagedKvError::NothingToEvict)?;
            // It may have been freed or leased since it was chosen: then choose again.
            if self.evict_one(victim) {
                return Ok(victim);
            }
        }
    }

    /// Evicts until utilization is at most `threshold`, in one pass however many go:
    /// `O(sequences + evicted * log(sequences))`. Returns who went, in order.
    ///
    /// Under [`EvictionStrategy::StreamingLLM`] sequences are trimmed first, least recently used
    /// first, and whole ones go only if that was not enough.
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) when utilization is above the threshold
    /// and nothing at all could be given up; [`InvalidConfig`](PagedKvError::InvalidConfig) when
    /// `threshold` is not a number.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(10, 16, 1, 1);
    /// for id in 0..10 {
    ///     cache.allocate(SeqId(id), 16)?;
    /// }
    /// assert_eq!(cache.evict_to_threshold(0.8)?, [SeqId(0), SeqId(1)]);
    /// assert_eq!(cache.evict_to_threshold(0.8)?, []);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn evict_to_threshold(&self, threshold: f64) -> Result<Vec<SeqId>> {
        if threshold.is_nan() {
            let reason = "not a number".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "threshold", reason });
        }
        let mut evicted = Vec::new();
        if self.utilization() <= threshold {
            return Ok(evicted);
        }
        let keys = self.eviction_keys();
        let trimmed = self.trim_to_threshold(&keys, threshold);
        let mut heap: BinaryHeap<_> = keys.into_iter().map(Reverse).collect();
        let mut prospects = None;
        while self.utilization() > threshold {
            let Some(Reverse(key)) = heap.pop() else {
                let nothing = evicted.is_empty() && !trimmed;
                return if nothing { Err(PagedKvError::NothingToEvict) } else { Ok(evicted) };
            };
            let id = key.seq_id;
            let worth = self.frees_a_block(id)
                || prospects.get_or_insert_with(|| self.prospects()).is_worth_evicting(id);
            if worth && self.evict_one(id) {
                evicted.push(id);
            }
        }
        Ok(evicted)
    }

    /// Trims by the strategy, in the order of eviction; true if that gave up anything.
    fn trim_to_threshold(&self, keys: &[EvictionKey], threshold: f64) -> bool {
        let EvictionStrategy::StreamingLLM { sink_tokens, window_tokens } = self.eviction_strategy
        else {
            return false;
        };
        let mut order = keys.to_vec();
        order.sort_unstable();
        let mut trimmed = false;
        for key in order {
            if self.utilization() <= threshold {
                break;
            }
            let given_up = self.apply_streaming_llm(key.seq_id, sink_tokens, window_tokens);
            trimmed |= given_up.is_ok_and(|tokens| tokens > 0);
        }
        trimmed
    }

    fn evict_one(&self, id: SeqId) -> bool {
        let evicted = self.take_out(id).map(drop).is_ok();
        if evicted {
            self.evictions.add(1);
            self.tell_if_stalled();
        }
        evicted
    }

    fn eviction_keys(&self) -> Vec<EvictionKey> {
        let mut keys = Vec::new();
        self.for_each_unleased(|id, live| keys.extend(self.eviction_key(id, live)));
        keys
    }

    /// `None` for a sequence without blocks, which no eviction could free.
    fn eviction_key(&self, id: SeqId, live: &Live) -> Option<EvictionKey> {
        let has_blocks = live.sequence().num_blocks() > 0;
        has_blocks.then(|| self.eviction_strategy.key(&live.candidate(id)))
    }

    /// True if evicting this sequence alone surely frees a block: the usual case.
    fn frees_a_block(&self, id: SeqId) -> bool {
        self.look(id, |sequence| Ok(sequence.table().frees_a_block())).unwrap_or(false)
    }

    fn prospects(&self) -> Prospects {
        // One at a time: an assessment holds the runs it counts, and another would count it. But
        // whoever holds a sequence's lock must not wait for one that may want it.
        let _alone = (!is_looking()).then(|| self.assessing.lock());
        let mut prospects = Prospects::default();
        self.for_each_unleased(|id, live| prospects.add(id, live.sequence().table()));
        prospects.judge();
        prospects
    }

    /// Shows every sequence that nobody leases, those that are in use by another thread last.
    fn for_each_unleased(&self, mut look: impl FnMut(SeqId, &Live)) {
        let mut in_use = Vec::new();
        for entry in &self.sequences {
            match entry.value() {
                Slot::Owned(live) => look(*entry.key(), live),
                Slot::Shared(shared) if shared.leases() > 0 => {}
                // Not under the shard's lock: whoever is at it may be waiting for blocks.
                Slot::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        for (id, shared) in in_use {
            if let Some(live) = &*shared.read() {
                look(id, live);
            }
        }
    }
}
