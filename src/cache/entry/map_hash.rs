//! `IdHash`: the hash of sequence ids, which selects a shard of the map.
//!
//! Engines number their requests consecutively, and a scheduler mostly works on requests of one age. So
//! neighbouring ids share a shard. A thread with a range of ids of its own then finds the shards that it
//! locks in its own core's cache, and meets few other threads there. Within a shard, and between ranges, a
//! hash spreads the ids. It is seeded at random for each cache, because ids may come from clients.
//!
//! The hash relies on the bits from which `DashMap` takes the shard: those below the seven highest. If that
//! changed, shards would still be selected evenly, but not by neighbourhood.

use std::hash::{BuildHasher, Hasher};

use crate::sync::{FastSeed, QualitySeed};

/// Consecutive ids that share a shard, as a power of two.
const NEIGHBOURS_LOG2: u32 = 4;

/// The bits that select the shard, of up to 2^16.
const SHARD_BITS: u64 = 0xFFFF << (64 - 7 - 16);

/// Hashes sequence ids for the map.
#[derive(Clone, Default)]
pub(in crate::cache) struct IdHash {
    of_id: FastSeed,
    /// Of better quality, because only a few bits in the middle are used.
    of_neighbourhood: QualitySeed,
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    #[inline]
    fn build_hasher(&self) -> IdHasher {
        IdHasher { seeds: self.clone(), hash: 0 }
    }
}

/// The unfinished hash of one id.
pub(in crate::cache) struct IdHasher {
    seeds: IdHash,
    hash: u64,
}

impl Hasher for IdHasher {
    #[inline]
    fn write_u64(&mut self, id: u64) {
        let of_id = self.seeds.of_id.hash_one(id);
        let of_neighbourhood = self.seeds.of_neighbourhood.hash_one(id >> NEIGHBOURS_LOG2);
        self.hash = (of_id & !SHARD_BITS) | (of_neighbourhood & SHARD_BITS);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.hash = self.seeds.of_neighbourhood.hash_one((self.hash, bytes));
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::id::SeqId;

    /// Returns the shard as `DashMap` computes it, for 256 shards.
    fn shard(hash: &IdHash, id: u64) -> u64 {
        (hash.hash_one(SeqId(id)) << 7) >> (64 - 8)
    }

    #[test]
    fn neighbours_share_a_shard_and_neighbourhoods_do_not() {
        let hash = IdHash::default();
        let shards =
            |from: u64| (from..from + 16).map(|id| shard(&hash, id)).collect::<HashSet<_>>();
        assert!((0..100).all(|range| shards(16 * range).len() == 1));
        let distinct: HashSet<u64> = (0..256).flat_map(|range| shards(16 * range)).collect();
        assert!(distinct.len() > 100, "256 ranges over 256 shards met {} of them", distinct.len());
    }

    /// Outside of the bits of the shard. The test does not claim that each of these bits is set evenly:
    /// that depends on the seed of the process.
    #[test]
    fn ids_of_one_shard_differ_elsewhere() {
        let hash = IdHash::default();
        let elsewhere = |id| hash.hash_one(SeqId(id)) & !SHARD_BITS;
        let hashes: HashSet<u64> = (0..16).map(elsewhere).collect();
        assert_eq!(hashes.len(), 16);
    }

    #[test]
    fn bytes_are_hashed_too() {
        let hash = IdHash::default();
        assert_eq!(hash.hash_one([1_u8, 2]), hash.hash_one([1_u8, 2]));
        assert_ne!(hash.hash_one([1_u8, 2]), hash.hash_one([2_u8, 1]));
    }

    /// The neighbourhood determines the bits of the shard, and the id itself determines all others.
    #[test]
    fn the_neighbourhood_decides_about_no_other_bit() {
        let hash = IdHash::default();
        for id in (0..4096).chain(u64::MAX - 64..=u64::MAX) {
            let hashed = hash.hash_one(SeqId(id));
            let of_neighbourhood = hash.of_neighbourhood.hash_one(id >> NEIGHBOURS_LOG2);
            assert_eq!(hashed & SHARD_BITS, of_neighbourhood & SHARD_BITS, "{id}");
            assert_eq!(hashed & !SHARD_BITS, hash.of_id.hash_one(id) & !SHARD_BITS, "{id}");
        }
    }

    #[test]
    fn two_caches_hash_differently() {
        let hashes = |hash: IdHash| (0..64).map(|id| hash.hash_one(SeqId(id))).collect::<Vec<_>>();
        assert_ne!(hashes(IdHash::default()), hashes(IdHash::default()));
    }
}
