//! `Generation`: the weights with which a content was computed, and its group of layers, as a part of every key.
//!
//! A key is a hash XOR the mask of its generation and group. A mask is a keyed function of the generation's number and
//! the group, and each cache has its own key. So callers that supply their own hashes know no hash that leads from one
//! generation to a key of another.
//!
//! Invariant: no caller can relate the masks of two generations of a cache.

use twox_hash::XxHash3_128;

use super::hash::BlockHash;
use crate::id::{BlockId, GroupId};
use crate::pool::Blocks;
use crate::pool::content_key::{ContentKey, Mark};
use crate::sync::{AtomicU64, Ordering};

/// The weights with which a content was computed, for one group of layers. Create it once a call: its mask costs some
/// nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    /// The number of the generation, and above it the number of the group.
    number: u64,
    mask: u128,
}

/// Bits of a generation's number.
const NUMBER: u32 = 56;

impl Generation {
    /// Returns the key of the content with hash `hash` in this generation.
    #[inline]
    pub(crate) fn key_of(self, hash: BlockHash) -> ContentKey {
        ContentKey::new(hash.as_u128() ^ self.mask)
    }

    /// Returns the hash under which the block was last published, for the block's new owner. Returns `None`
    /// if it was published in another generation: then the hash cannot be recovered from the key.
    pub(crate) fn last_hash(self, blocks: &Blocks, id: BlockId) -> Option<BlockHash> {
        let key = blocks.last_key(id, self.mark())?;
        Some(BlockHash::from_u128(key.bits() ^ self.mask))
    }

    /// Returns the number of resets before this generation.
    pub(crate) fn number(self) -> u64 {
        self.number & ((1 << NUMBER) - 1)
    }

    /// Returns the mark of the keys of this generation.
    pub(super) fn mark(self) -> Mark {
        // An odd factor: the marks of 31 groups differ.
        Mark::new(self.number ^ ((self.number >> NUMBER) * 131))
    }
}

/// The current generation, and the key of all masks.
pub(super) struct Generations {
    current: AtomicU64,
    key: [u64; 2],
}

impl Generations {
    /// Creates the first generation, under a key that is random for each cache.
    pub(super) fn new() -> Self {
        Self { current: AtomicU64::new(0), key: random_key() }
    }

    /// Returns true if no reset came after this generation.
    #[inline]
    pub(super) fn is_current(&self, generation: Generation) -> bool {
        // Relaxed: as in `current`.
        self.current.load(Ordering::Relaxed) == generation.number()
    }

    pub(super) fn current(&self) -> Generation {
        // Relaxed: the number alone separates contents, and guards nothing.
        self.generation(self.current.load(Ordering::Relaxed))
    }

    /// Begins the next generation, and returns its number.
    pub(super) fn advance(&self) -> u64 {
        // Relaxed: as in `current`.
        self.current.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn generation(&self, number: u64) -> Generation {
        // The first mask is 0. Before any reset no contents must be kept apart, and the bucket of a key does
        // not change from run to run.
        let mask = if number == 0 { 0 } else { self.keyed(number, GroupId(0)) };
        Generation { number, mask }
    }

    /// Returns the same generation for the contents of a group. Equal tokens have equal hashes in all groups, and
    /// other keys in each.
    #[inline]
    pub(super) fn of_group(&self, generation: Generation, group: GroupId) -> Generation {
        if group.index() == 0 {
            return generation;
        }
        let mask = self.keyed(generation.number(), group);
        Generation { number: generation.number() | u64::from(group.0) << NUMBER, mask }
    }

    fn keyed(&self, number: u64, group: GroupId) -> u128 {
        let [key, seed] = self.key;
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&key.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes[16] = group.0;
        XxHash3_128::oneshot_with_seed(seed, &bytes)
    }
}

#[cfg(not(any(paged_kv_loom, paged_kv_shuttle)))]
fn random_key() -> [u64; 2] {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new();
    [0_u8, 1].map(|half| random.hash_one(half))
}

/// Returns the same key in every execution, because a model checker repeats executions.
#[cfg(any(paged_kv_loom, paged_kv_shuttle))]
fn random_key() -> [u64; 2] {
    [0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_one_generation() {
        let generations = Generations::new();
        let hash = BlockHash::from_u128(7);
        let keys: std::collections::HashSet<ContentKey> =
            (0..1_000).map(|number| generations.generation(number).key_of(hash)).collect();
        assert_eq!(keys.len(), 1_000);
    }

    /// Neither the masks nor the differences of two of them.
    #[test]
    fn masks_of_two_caches_have_nothing_in_common() {
        let masks = |generations: &Generations| {
            let masks: Vec<u128> = (0..100).map(|n| generations.generation(n).mask).collect();
            let between = masks.windows(2).map(|pair| pair[0] ^ pair[1]).collect::<Vec<_>>();
            [masks[1..].to_vec(), between].concat()
        };
        let (one, other) = (masks(&Generations::new()), masks(&Generations::new()));
        assert!(one.iter().all(|mask| !other.contains(mask)));
        // Half of the bits are set, in each half of a mask.
        for half in [0, 64] {
            let ones: u32 = one.iter().map(|mask| ((mask >> half) as u64).count_ones()).sum();
            assert!((28..=36).contains(&(ones / one.len() as u32)), "{ones}");
        }
    }
}
