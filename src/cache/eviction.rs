//! What is given up when memory is short? Whole sequences, by the strategy's choice.
//!
//! One pass over the map gathers the candidates; a victim leaves the map only if nobody leases it
//! at that moment. The pass sees each shard at a moment of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;

use super::PagedKvCache;
use super::prospects::Prospects;
use super::slot::{Live, Slot, is_looking};
use crate::error::{PagedKvError, Result};
use crate::evict::{EvictionKey, EvictionStrategy};
use crate::id::{Owner, SeqId};
use crate::sync::{Arc, Backoff, Ordering};

/// Looks for a victim before it is said that there is none, while others evict, or take what was chosen.
const PATIENCE: usize = 10_000;

/// What [`PagedKvCache::evict_for`] evicted.
///
/// ```
/// use paged_kv::{Evicted, SeqId};
///
/// assert_ne!(Evicted { seq_id: SeqId(1), blocks: 2 }, Evicted { seq_id: SeqId(1), blocks: 3 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Who went.
    pub seq_id: SeqId,
    /// Blocks that freed: those that nobody else used.
    pub blocks: usize,
}

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
        self.select_victim().map(|key| key.seq_id)
    }

    fn select_victim(&self) -> Option<EvictionKey> {
        let mut first: Option<EvictionKey> = None;
        self.for_each_unleased(|id, live| {
            if let Some(key) = self.eviction_key(id, live) {
                first = Some(first.map_or(key, |first| first.min(key)));
            }
        });
        let first = first?;
        if self.frees_a_block(first.seq_id) {
            return Some(first);
        }
        let prospects = self.prospects(|_| true);
        let mut keys = self.eviction_keys(|_| true);
        keys.sort_unstable();
        keys.into_iter().find(|key| prospects.is_worth_evicting(key.seq_id))
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
        let mut backoff = Backoff::new();
        for _ in 0..PATIENCE {
            // Acquire: pairs with the additions in `evict_one`; what those gave back is seen.
            let over = self.evictions_over.load(Ordering::Acquire);
            let Some(victim) = self.select_victim() else {
                // Relaxed: what an eviction took out of the map was not found under the map's locks.
                if self.evictions_begun.load(Ordering::Relaxed) == over {
                    break;
                }
                // What is being evicted still owned what others share with it.
                backoff.wait();
                continue;
            };
            // It may have been freed or leased since it was chosen: then choose again.
            if self.evict_one(&victim, |_| ()).is_some() {
                return Ok(victim.seq_id);
            }
        }
        Err(PagedKvError::NothingToEvict)
    }

    /// Evicts until utilization is at most `threshold`, in one pass, or two if far more go than the
    /// blocks that are too many would suggest: `O(sequences + evicted * log(sequences))`. Returns who
    /// went, in order.
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
        let trimmed = self.trim_to_threshold(threshold);
        let need = self.used_block_count() as f64 - threshold * self.total_blocks() as f64;
        let mut order = self.in_order_of_eviction(need as usize, |_| true);
        let mut prospects = None;
        while self.utilization() > threshold {
            let Some(key) = order.next() else {
                let nothing = evicted.is_empty() && !trimmed;
                return if nothing { Err(PagedKvError::NothingToEvict) } else { Ok(evicted) };
            };
            let id = key.seq_id;
            let worth = self.frees_a_block(id)
                || prospects.get_or_insert_with(|| self.prospects(|_| true)).is_worth_evicting(id);
            if worth && self.evict_one(&key, |_| ()).is_some() {
                evicted.push(id);
            }
        }
        Ok(evicted)
    }

    /// Evicts sequences of `owner`, in the strategy's order, until that has freed `need` blocks or none
    /// of them is left that could free any. Appends to `out` who went and how many blocks each freed, and
    /// returns how many all did. (What an open step may touch is free when it ends.) Cost as
    /// [`evict_to_threshold`](Self::evict_to_threshold).
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) when none went.
    ///
    /// ```
    /// use paged_kv::{Evicted, Owner, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// for id in 0..4 {
    ///     cache.allocate(SeqId(id), 32)?;
    ///     cache.set_owner(SeqId(id), Owner(id as u32 % 2))?;
    /// }
    /// let mut out = Vec::new();
    /// assert_eq!(cache.evict_for(Owner(1), 1, &mut out)?, 2);
    /// assert_eq!(out, [Evicted { seq_id: SeqId(1), blocks: 2 }]);
    /// assert_eq!(cache.touch(SeqId(1)), Err(PagedKvError::SequenceEvicted(SeqId(1))));
    /// assert_eq!(cache.evict_for(Owner(2), 1, &mut out), Err(PagedKvError::NothingToEvict));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn evict_for(&self, owner: Owner, need: usize, out: &mut Vec<Evicted>) -> Result<usize> {
        let is_of_owner = |live: &Live| live.owner == Some(owner);
        let mut order = self.in_order_of_eviction(need, is_of_owner);
        let (mut prospects, mut evicted, mut freed) = (None, false, 0);
        while freed < need
            && let Some(key) = order.next()
        {
            let id = key.seq_id;
            let worth = self.frees_a_block(id)
                || prospects
                    .get_or_insert_with(|| self.prospects(is_of_owner))
                    .is_worth_evicting(id);
            let count = |live: &Live| live.sequence().table().num_blocks_freed();
            if worth && let Some(blocks) = self.evict_one(&key, count) {
                out.push(Evicted { seq_id: id, blocks });
                (evicted, freed) = (true, freed + blocks);
            }
        }
        if evicted || need == 0 { Ok(freed) } else { Err(PagedKvError::NothingToEvict) }
    }

    /// Trims by the strategy, in the order of eviction; true if that gave up anything.
    fn trim_to_threshold(&self, threshold: f64) -> bool {
        let EvictionStrategy::StreamingLLM { sink_tokens, window_tokens } = self.eviction_strategy
        else {
            return false;
        };
        let mut order = self.eviction_keys(|_| true);
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

    /// Takes a sequence out, if nobody leases it, and looks at it before it goes.
    fn evict_one<R>(&self, key: &EvictionKey, look: impl FnOnce(&Live) -> R) -> Option<R> {
        let id = key.seq_id;
        let note = || {
            if key.owner.is_some() {
                self.evicted.note(id);
            }
        };
        // Relaxed, and Release: see `evict`.
        self.evictions_begun.fetch_add(1, Ordering::Relaxed);
        let seen = self.take_out_if(id, Some(key.epoch), note).ok().map(|live| look(&live));
        self.evictions_over.fetch_add(1, Ordering::Release);
        let seen = seen?;
        self.evictions.add(1);
        self.tell_if_stalled();
        Some(seen)
    }

    /// Those of some in the order in which they go, to free `need` blocks: of one pass as many as that
    /// will take if they are like all others, and twice that. If all of those are gone, the others of
    /// another pass.
    fn in_order_of_eviction(
        &self,
        need: usize,
        is_one: impl Fn(&Live) -> bool,
    ) -> impl Iterator<Item = EvictionKey> {
        let blocks_a_sequence = self.used_block_count() / self.num_sequences().max(1);
        let most = (need / blocks_a_sequence.max(1)).saturating_mul(2).saturating_add(64);
        let first = self.first_eviction_keys(most, &is_one);
        let last = first.get(most - 1).copied();
        let others = last.into_iter().flat_map(move |last| {
            let mut keys = self.eviction_keys(&is_one);
            keys.retain(|key| *key > last);
            let mut heap: BinaryHeap<_> = keys.into_iter().map(Reverse).collect();
            iter::from_fn(move || heap.pop().map(|Reverse(key)| key))
        });
        first.into_iter().chain(others)
    }

    /// At most `most` of some, those that go first, in order.
    fn first_eviction_keys(&self, most: usize, is_one: impl Fn(&Live) -> bool) -> Vec<EvictionKey> {
        let mut first = BinaryHeap::new();
        self.for_each_unleased(|id, live| {
            let Some(key) = self.eviction_key(id, live).filter(|_| is_one(live)) else {
                return;
            };
            if first.len() < most {
                first.push(key);
            } else if let Some(mut last) = first.peek_mut().filter(|last| key < **last) {
                *last = key;
            }
        });
        first.into_sorted_vec()
    }

    fn eviction_keys(&self, is_one: impl Fn(&Live) -> bool) -> Vec<EvictionKey> {
        let mut keys = Vec::new();
        self.for_each_unleased(|id, live| {
            keys.extend(self.eviction_key(id, live).filter(|_| is_one(live)));
        });
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

    /// What evicting all unleased sequences of some would free.
    fn prospects(&self, is_one: impl Fn(&Live) -> bool) -> Prospects {
        // One at a time: an assessment holds the runs it counts, and another would count it. But
        // whoever holds a sequence's lock must not wait for one that may want it.
        let _alone = (!is_looking()).then(|| self.assessing.lock());
        let mut prospects = Prospects::default();
        self.for_each_unleased(|id, live| {
            if is_one(live) {
                prospects.add(id, live.sequence().table());
            }
        });
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
