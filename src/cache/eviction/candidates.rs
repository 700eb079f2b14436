//! Candidates for eviction: the unleased sequences of the map, in the strategy's order.
//!
//! One pass over the map collects them; it reads each shard at a separate moment. A candidate is known by
//! its id and its epoch. A thread that acts on one checks both under the lock of the map shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;

use super::freeable::Freeable;
use super::strategy::EvictionKey;
use crate::cache::PagedKvCache;
use crate::cache::entry::{Looking, MapEntry, TrackedSequence};
use crate::id::SeqId;
use crate::sync::Arc;

impl PagedKvCache {
    /// Returns the sequences for which `is_one` is true, in the order of eviction, to free `need` blocks. A
    /// first pass keeps twice as many as that takes if they have the average number of blocks, and 64 more.
    /// After these, the iterator makes another pass for the others.
    pub(super) fn in_order_of_eviction(
        &self,
        need: usize,
        is_one: impl Fn(&TrackedSequence) -> bool,
    ) -> impl Iterator<Item = EvictionKey> {
        let blocks_a_sequence = self.pool.blocks().used() / self.num_sequences().max(1);
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

    /// Returns the first `most` sequences for which `is_one` is true, in the order of eviction.
    fn first_eviction_keys(
        &self,
        most: usize,
        is_one: impl Fn(&TrackedSequence) -> bool,
    ) -> Vec<EvictionKey> {
        let mut first = BinaryHeap::new();
        self.for_each_unleased(|id, tracked| {
            let Some(key) = self.eviction_key(id, tracked).filter(|_| is_one(tracked)) else {
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

    pub(super) fn eviction_keys(
        &self,
        is_one: impl Fn(&TrackedSequence) -> bool,
    ) -> Vec<EvictionKey> {
        let mut keys = Vec::new();
        self.for_each_unleased(|id, tracked| {
            keys.extend(self.eviction_key(id, tracked).filter(|_| is_one(tracked)));
        });
        keys
    }

    /// Returns `None` for a sequence without blocks, whose eviction would free none.
    pub(super) fn eviction_key(&self, id: SeqId, tracked: &TrackedSequence) -> Option<EvictionKey> {
        tracked.has_blocks().then(|| self.eviction_strategy.key(&tracked.candidate(id)))
    }

    /// Returns true if evicting this sequence alone surely frees a block: the usual case.
    pub(super) fn frees_a_block(&self, key: &EvictionKey) -> bool {
        // If another sequence has the id by now, the answer is about that one. Harmless: `evict_one`
        // compares epochs.
        self.look(key.seq_id, |sequence| Ok(sequence.frees_a_block())).unwrap_or(false)
    }

    /// Assesses which blocks would be free if all unleased sequences for which `is_one` is true were
    /// evicted.
    pub(super) fn freeable(&self, is_one: impl Fn(&TrackedSequence) -> bool) -> Freeable {
        // One assessment at a time: it holds the runs that it counts, and another would count these holds.
        // It waits for no closure that reads a sequence, so such a closure may wait for it.
        let alone = self.assessing.lock();
        let mut freeable = Freeable::default();
        self.for_each_unleased(|id, tracked| {
            if is_one(tracked) {
                let tables = tracked.sequence().tables();
                tables.for_each(|table| freeable.add(id, tracked.epoch, table));
            }
        });
        let leftover = freeable.judge();
        drop(alone);
        drop(leftover);
        freeable
    }

    /// Shows every unleased sequence; those that another thread uses come last. Does not wait for a closure
    /// that reads one, because the closure may wait for the room that an eviction frees.
    pub(super) fn for_each_unleased(&self, mut look: impl FnMut(SeqId, &TrackedSequence)) {
        let mut in_use = Vec::new();
        for entry in &self.sequences {
            match entry.value() {
                MapEntry::Owned(tracked) => look(*entry.key(), tracked),
                MapEntry::Shared(shared) if shared.leases() > 0 => {}
                // Not under the shard's lock: the thread that uses it may be waiting for blocks.
                MapEntry::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        let _looking = Looking::begin();
        for (id, shared) in in_use {
            if let Some(tracked) = &*shared.read() {
                look(id, tracked);
            }
        }
    }
}
