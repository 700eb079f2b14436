//! `DashMap`: a map of two shards, each with its own lock, in place of the crate `dashmap`.
//!
//! The shipped map walks shard by shard, and so does this one: a walk reads odd and even ids at different
//! moments. Its shards hold their entries in order of insertion. Its hash is the number itself, because the
//! shipped hash is seeded at random and executions of a model must be repeatable.
//!
//! A guard holds the shard's lock and the position of its entry, which nothing moves while the guard exists.

use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Fewer shards than ship, so that ids share one; more than one, so that not all do.
const SHARDS: usize = 2;

/// A map in shards.
pub(crate) struct DashMap<K, V, S> {
    shards: [RwLock<ShardEntries<K, V>>; SHARDS],
    hasher: PhantomData<fn() -> S>,
}

type ShardEntries<K, V> = Vec<(K, V)>;

/// A hasher that returns the hashed number itself.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
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

impl<K: Eq + Hash, V, S> DashMap<K, V, S> {
    pub(crate) fn with_capacity_and_hasher_and_shard_amount(
        _capacity: usize,
        _hasher: S,
        _shards: usize,
    ) -> Self {
        let shards = std::array::from_fn(|_| RwLock::new(Vec::new()));
        Self { shards, hasher: PhantomData }
    }

    fn shard(&self, key: &K) -> &RwLock<ShardEntries<K, V>> {
        &self.shards[self.determine_map(key)]
    }

    pub(crate) fn determine_map(&self, key: &K) -> usize {
        let mut number = IdHasher::default();
        key.hash(&mut number);
        number.finish() as usize % SHARDS
    }

    pub(crate) fn shards(&self) -> &[RwLock<ShardEntries<K, V>>] {
        &self.shards
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        let entries = self.shard(key).read();
        let place = place_of(&entries, key)?;
        Some(Ref { entries, place })
    }

    pub(crate) fn get_mut(&self, key: &K) -> Option<RefMut<'_, K, V>> {
        let entries = self.shard(key).write();
        let place = place_of(&entries, key)?;
        Some(RefMut { entries, place })
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        let entries = self.shard(&key).write();
        match place_of(&entries, &key) {
            Some(place) => Entry::Occupied(RefMut { entries, place }),
            None => Entry::Vacant(Vacant { entries, key }),
        }
    }

    pub(crate) fn remove_if(
        &self,
        key: &K,
        condition: impl FnOnce(&K, &V) -> bool,
    ) -> Option<(K, V)> {
        let mut entries = self.shard(key).write();
        let place = place_of(&entries, key)?;
        let (key, value) = &entries[place];
        condition(key, value).then(|| entries.remove(place))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = RefMulti<'_, K, V>> {
        self.into_iter()
    }
}

fn place_of<K: Eq, V>(entries: &ShardEntries<K, V>, key: &K) -> Option<usize> {
    entries.iter().position(|(other, _)| other == key)
}

impl<'a, K: Eq + Hash, V, S> IntoIterator for &'a DashMap<K, V, S> {
    type Item = RefMulti<'a, K, V>;
    type IntoIter = Box<dyn Iterator<Item = RefMulti<'a, K, V>> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        // A shard is locked when the walk reaches it, and unlocked before the next shard is locked.
        Box::new(self.shards.iter().flat_map(|shard| {
            let entries = Rc::new(shard.read());
            let len = entries.len();
            (0..len).map(move |place| RefMulti { entries: Rc::clone(&entries), place })
        }))
    }
}

/// An entry for reading.
pub(crate) struct Ref<'a, K, V> {
    entries: RwLockReadGuard<'a, ShardEntries<K, V>>,
    place: usize,
}

/// An entry for writing.
pub(crate) struct RefMut<'a, K, V> {
    entries: RwLockWriteGuard<'a, ShardEntries<K, V>>,
    place: usize,
}

/// An entry of a walk. Its shard stays locked while the walk is in that shard.
pub(crate) struct RefMulti<'a, K, V> {
    entries: Rc<RwLockReadGuard<'a, ShardEntries<K, V>>>,
    place: usize,
}

/// The position of a key, with its shard locked.
pub(crate) enum Entry<'a, K, V> {
    /// The key is in the map.
    Occupied(#[allow(dead_code, reason = "it holds the lock")] RefMut<'a, K, V>),
    /// The key is not in the map.
    Vacant(Vacant<'a, K, V>),
}

/// The position of a key that is not in the map.
pub(crate) struct Vacant<'a, K, V> {
    entries: RwLockWriteGuard<'a, ShardEntries<K, V>>,
    key: K,
}

impl<K, V> Vacant<'_, K, V> {
    pub(crate) fn insert(mut self, value: V) {
        self.entries.push((self.key, value));
    }
}

impl<K, V> Deref for Ref<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.entries[self.place].1
    }
}

impl<K, V> Deref for RefMut<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.entries[self.place].1
    }
}

impl<K, V> DerefMut for RefMut<'_, K, V> {
    fn deref_mut(&mut self) -> &mut V {
        &mut self.entries[self.place].1
    }
}

impl<K, V> RefMulti<'_, K, V> {
    pub(crate) fn key(&self) -> &K {
        &self.entries[self.place].0
    }

    pub(crate) fn value(&self) -> &V {
        &self.entries[self.place].1
    }
}
