//! Who may be evicted, and in which order? The unleased sequences of the map, as candidates.
//!
//! One pass over the map gathers them; it sees each shard at a moment of its own. A candidate is known by
//! its id and its epoch: who acts on one checks both under the lock of the map shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;

use crate::cache::PagedKvCache;
use crate::cache::prospects::Prospects;
use crate::cache::slot::{Live, Looking, Slot};
use crate::evict::EvictionKey;
use crate::id::SeqId;
use crate::sync::Arc;

impl PagedKvCache {
    /// Those of some in the order in which they go, to free `need` blocks: of one pass as many as that
    /// will take if they are like all others, and twice that. If all of those are gone, the others of
    /// another pass.
    pub(super) fn in_order_of_eviction(
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

    pub(super) fn eviction_keys(&self, is_one: impl Fn(&Live) -> bool) -> Vec<EvictionKey> {
        let mut keys = Vec::new();
        self.for_each_unleased(|id, live| {
            keys.extend(self.eviction_key(id, live).filter(|_| is_one(live)));
        });
        keys
    }

    /// `None` for a sequence without blocks, which no eviction could free.
    pub(super) fn eviction_key(&self, id: SeqId, live: &Live) -> Option<EvictionKey> {
        let has_blocks = live.sequence().num_blocks() > 0;
        has_blocks.then(|| self.eviction_strategy.key(&live.candidate(id)))
    }

    /// True if evicting this sequence alone surely frees a block: the usual case.
    pub(super) fn frees_a_block(&self, key: &EvictionKey) -> bool {
        // Another sequence that has come under the id may answer: it is not taken out for that.
        self.look(key.seq_id, |sequence| Ok(sequence.table().frees_a_block())).unwrap_or(false)
    }

    /// What evicting all unleased sequences of some would free.
    pub(super) fn prospects(&self, is_one: impl Fn(&Live) -> bool) -> Prospects {
        // One at a time: an assessment holds the runs it counts, and another would count it. It waits for
        // no closure that looks at a sequence, so such a closure may wait for it.
        let alone = self.assessing.lock();
        let mut prospects = Prospects::default();
        self.for_each_unleased(|id, live| {
            if is_one(live) {
                prospects.add(id, live.epoch, live.sequence().table());
            }
        });
        let leftover = prospects.judge();
        drop(alone);
        drop(leftover);
        prospects
    }

    /// Shows every sequence that nobody leases, those that are in use by another thread last. Waits for
    /// no closure that looks at one: it may wait for the room that an eviction gives.
    pub(super) fn for_each_unleased(&self, mut look: impl FnMut(SeqId, &Live)) {
        let mut in_use = Vec::new();
        for entry in &self.sequences {
            match entry.value() {
                Slot::Owned(live) => look(*entry.key(), live),
                Slot::Shared(shared) if shared.leases() > 0 => {}
                // Not under the shard's lock: whoever is at it may be waiting for blocks.
                Slot::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        let _looking = Looking::begin();
        for (id, shared) in in_use {
            if let Some(live) = &*shared.read() {
                look(id, live);
            }
        }
    }
}
