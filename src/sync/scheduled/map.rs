//! Which requests share a lock? A map of two shards, each a map of shuttle's under one lock.
//!
//! shuttle's `DashMap` is one lock over everything, so that a walk would see all sequences at one
//! moment. The map that ships walks shard by shard, and so does this one: odd and even ids are
//! seen at moments of their own.
//!
//! The shipped hash is seeded at random and plays no part: executions repeat.

use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

pub(crate) use shuttle_dashmap::Entry;
use shuttle_dashmap::{Ref, RefMulti, RefMut};

/// Fewer than ship, so that ids meet in one; more than one, so that not all do.
const SHARDS: usize = 2;

/// A map by shards.
pub(crate) struct DashMap<K, V, S> {
    shards: [shuttle_dashmap::DashMap<K, V>; SHARDS],
    hasher: PhantomData<fn() -> S>,
}

/// The number that is hashed, and nothing else.
#[derive(Default)]
struct Number(u64);

impl Hasher for Number {
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, &byte| sum.wrapping_add(byte.into()));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<K: Eq + Hash + Clone, V, S> DashMap<K, V, S> {
    pub(crate) fn with_capacity_and_hasher_and_shard_amount(
        _capacity: usize,
        _hasher: S,
        _shards: usize,
    ) -> Self {
        let shards = std::array::from_fn(|_| shuttle_dashmap::DashMap::new());
        Self { shards, hasher: PhantomData }
    }

    fn shard(&self, key: &K) -> &shuttle_dashmap::DashMap<K, V> {
        let mut number = Number::default();
        key.hash(&mut number);
        &self.shards[number.finish() as usize % SHARDS]
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.shard(key).contains_key(key)
    }

    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        self.shard(key).get(key)
    }

    pub(crate) fn get_mut(&self, key: &K) -> Option<RefMut<'_, K, V>> {
        self.shard(key).get_mut(key)
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        self.shard(&key).entry(key)
    }

    pub(crate) fn remove_if(
        &self,
        key: &K,
        condition: impl FnOnce(&K, &V) -> bool,
    ) -> Option<(K, V)> {
        self.shard(key).remove_if(key, condition)
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(shuttle_dashmap::DashMap::len).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = RefMulti<'_, K, V>> {
        self.into_iter()
    }
}

impl<'a, K: Eq + Hash + Clone, V, S> IntoIterator for &'a DashMap<K, V, S> {
    type Item = RefMulti<'a, K, V>;
    type IntoIter = Box<dyn Iterator<Item = RefMulti<'a, K, V>> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        // A shard is locked when the walk comes to it, and let go before the next one is.
        Box::new(self.shards.iter().flat_map(shuttle_dashmap::DashMap::iter))
    }
}
