//! `DashMap`: the shipped map, each guard of which counts as one access.

use std::hash::{BuildHasher, Hash};

use dashmap::mapref::one::{Ref, RefMut};

use super::{Entry, Place, count_shared, shipped};

/// A map whose guards are counted; a walk counts one for each shard.
pub(crate) struct DashMap<K, V, S> {
    map: shipped::DashMap<K, V, S>,
    shards: u64,
}

impl<K: Eq + Hash, V, S: BuildHasher + Clone> DashMap<K, V, S> {
    pub(crate) fn with_capacity_and_hasher_and_shard_amount(
        capacity: usize,
        hasher: S,
        shards: usize,
    ) -> Self {
        let map =
            shipped::DashMap::with_capacity_and_hasher_and_shard_amount(capacity, hasher, shards);
        Self { map, shards: shards as u64 }
    }

    /// Returns the map, and counts one guard.
    fn touched(&self) -> &shipped::DashMap<K, V, S> {
        count_shared(Place::MapShard, 1);
        &self.map
    }

    /// Returns the map, and counts one guard for each shard.
    fn walked(&self) -> &shipped::DashMap<K, V, S> {
        count_shared(Place::MapShard, self.shards);
        &self.map
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.touched().contains_key(key)
    }

    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        self.touched().get(key)
    }

    pub(crate) fn get_mut(&self, key: &K) -> Option<RefMut<'_, K, V>> {
        self.touched().get_mut(key)
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        self.touched().entry(key)
    }

    pub(crate) fn remove_if(
        &self,
        key: &K,
        condition: impl FnOnce(&K, &V) -> bool,
    ) -> Option<(K, V)> {
        self.touched().remove_if(key, condition)
    }

    pub(crate) fn determine_map(&self, key: &K) -> usize {
        self.map.determine_map(key)
    }

    pub(crate) fn shards(&self) -> &[impl Sized] {
        self.map.shards()
    }

    pub(crate) fn iter(&self) -> <&shipped::DashMap<K, V, S> as IntoIterator>::IntoIter {
        self.walked().into_iter()
    }
}

impl<'a, K: Eq + Hash, V, S: BuildHasher + Clone> IntoIterator for &'a DashMap<K, V, S> {
    type Item = <Self::IntoIter as Iterator>::Item;
    type IntoIter = <&'a shipped::DashMap<K, V, S> as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
