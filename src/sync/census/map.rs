//! `DashMap`: the shipped map, each guard of which counts as one access.

use std::hash::{BuildHasher, Hash};
use std::panic::Location;

use dashmap::mapref::one::{Ref, RefMut};

use super::coherence::{Access, Site, access_key, access_line, new_lines};
use super::{Entry, Place, count_shared, shipped};

/// Lines of a shard, whose lock is padded.
const SHARD: usize = 2;

/// A map whose guards are counted; a walk counts one for each shard.
pub(crate) struct DashMap<K, V, S> {
    map: shipped::DashMap<K, V, S>,
    shards: usize,
    lines: Option<usize>,
}

impl<K: Eq + Hash, V, S: BuildHasher + Clone> DashMap<K, V, S> {
    pub(crate) fn with_capacity_and_hasher_and_shard_amount(
        capacity: usize,
        hasher: S,
        shards: usize,
    ) -> Self {
        let map =
            shipped::DashMap::with_capacity_and_hasher_and_shard_amount(capacity, hasher, shards);
        Self { map, shards, lines: new_lines(shards * SHARD) }
    }

    /// Returns the map, and counts one guard for a key.
    fn touched(
        &self,
        key: &K,
        access: Access,
        caller: &'static Location<'static>,
    ) -> &shipped::DashMap<K, V, S> {
        count_shared(Place::MapShard, 1);
        self.lock(self.map.determine_map(key), caller);
        if let Some(first) = self.lines {
            let of_map = (first as u64).rotate_left(40);
            let key = self.map.hasher().hash_one(key) ^ of_map;
            access_key(key, access, Site::of(caller), Place::MapShard);
        }
        &self.map
    }

    /// Returns the map, and counts one guard for each shard.
    fn walked(&self, caller: &'static Location<'static>) -> &shipped::DashMap<K, V, S> {
        count_shared(Place::MapShard, self.shards as u64);
        (0..self.shards).for_each(|shard| self.lock(shard, caller));
        &self.map
    }

    /// Notes the write of a shard's lock.
    fn lock(&self, shard: usize, caller: &'static Location<'static>) {
        if let Some(first) = self.lines {
            let line = first + shard * SHARD;
            access_line(line, Access::Write, Site::of(caller), Place::MapShard);
        }
    }

    #[track_caller]
    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.touched(key, Access::Read, Location::caller()).contains_key(key)
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        self.touched(key, Access::Read, Location::caller()).get(key)
    }

    #[track_caller]
    pub(crate) fn get_mut(&self, key: &K) -> Option<RefMut<'_, K, V>> {
        self.touched(key, Access::Write, Location::caller()).get_mut(key)
    }

    #[track_caller]
    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        self.touched(&key, Access::Write, Location::caller()).entry(key)
    }

    #[track_caller]
    pub(crate) fn remove_if(
        &self,
        key: &K,
        condition: impl FnOnce(&K, &V) -> bool,
    ) -> Option<(K, V)> {
        self.touched(key, Access::Write, Location::caller()).remove_if(key, condition)
    }

    pub(crate) fn determine_map(&self, key: &K) -> usize {
        self.map.determine_map(key)
    }

    pub(crate) fn shards(&self) -> &[impl Sized] {
        self.map.shards()
    }

    #[track_caller]
    pub(crate) fn iter(&self) -> <&shipped::DashMap<K, V, S> as IntoIterator>::IntoIter {
        self.walked(Location::caller()).into_iter()
    }
}

impl<'a, K: Eq + Hash, V, S: BuildHasher + Clone> IntoIterator for &'a DashMap<K, V, S> {
    type Item = <Self::IntoIter as Iterator>::Item;
    type IntoIter = <&'a shipped::DashMap<K, V, S> as IntoIterator>::IntoIter;

    #[track_caller]
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
