//! Was this content computed before, and in which block? A fixed table of hints.
//!
//! ```text
//!   name ──> bucket: one cache line of 7 words, each (tag, block) or nothing, and a count of those
//!            that are in one of the next three buckets because this one was full
//! ```
//!
//! An entry says where a name was last seen. Whether it still is there, the block says: its word
//! and its full name, read after the block was acquired. So entries may be stale, and the table
//! takes no lock; the entry of a block that was reclaimed goes when the block gets its next name.
//! The table has three words a block, and each block one entry at most. A name that is not there is
//! told by one line, as most buckets never were full.
//!
//! Invariant: the table may forget, and never lies about what the caller then compares. It does not
//! know whether a block is idle or used.

use crate::id::BlockId;
use crate::pool::name::Name;
use crate::sync::{AtomicU64, Ordering};

/// Entries of a bucket.
const SLOTS: usize = 7;

/// Buckets in which an entry may be: its own, and those behind it, if the first are full.
const WINDOW: usize = 4;

/// Words of the table for each block.
const SLOTS_A_BLOCK: usize = 3;

/// A cache line.
#[repr(align(64))]
struct Bucket {
    slots: [AtomicU64; SLOTS],
    /// Entries that belong here and are further on.
    beyond: AtomicU64,
}

/// Where names were last seen.
pub(crate) struct PrefixIndex {
    buckets: Box<[Bucket]>,
    /// Bits of a name's spread that are looked at: all, but where a test wants collisions.
    bits: u64,
}

/// Where the entry of a name would be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    home: usize,
    tag: u64,
}

impl PrefixIndex {
    /// For a pool of so many blocks; of 0 blocks, it holds nothing.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let buckets = match num_blocks {
            0 => 0,
            _ => (num_blocks * SLOTS_A_BLOCK).div_ceil(SLOTS).max(WINDOW),
        };
        Self { buckets: (0..buckets).map(|_| Bucket::new()).collect(), bits: u64::MAX }
    }

    /// One that tells only 256 names apart.
    #[cfg(test)]
    pub(crate) fn of_8_bits(num_blocks: usize) -> Self {
        Self { bits: 0xff << 24, ..Self::new(num_blocks) }
    }

    /// True for a table that never holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Where `name` belongs, in a table that is not empty.
    #[inline]
    pub(crate) fn place(&self, name: Name) -> Place {
        let spread = name.spread() & self.bits;
        // The upper half of a product spreads 64 bits over any number of buckets.
        let home = ((u128::from(spread) * self.buckets.len() as u128) >> 64) as usize;
        Place { home, tag: spread & u64::from(u32::MAX) }
    }

    /// The first block at a place for which `fits` says yes.
    #[inline]
    pub(crate) fn find(
        &self,
        place: Place,
        mut fits: impl FnMut(BlockId) -> bool,
    ) -> Option<BlockId> {
        let bucket = &self.buckets[place.home];
        if let Some(id) = bucket.find(place.tag, &mut fits) {
            return Some(id);
        }
        if bucket.is_home_of_all() {
            return None;
        }
        self.beyond(place.home).find_map(|bucket| bucket.find(place.tag, &mut fits))
    }

    /// Notes that the block of that place is `id`. False, and forgotten, if there is no room.
    #[inline]
    pub(crate) fn insert(&self, place: Place, id: BlockId) -> bool {
        let entry = entry_of(place.tag, id);
        self.buckets[place.home].insert(entry) || self.insert_beyond(place.home, entry)
    }

    #[cold]
    fn insert_beyond(&self, home: usize, entry: u64) -> bool {
        // Relaxed: see `Bucket`. Counted first, so that what is there is counted.
        let count = &self.buckets[home].beyond;
        count.fetch_add(1, Ordering::Relaxed);
        let inserted = self.beyond(home).any(|bucket| bucket.insert(entry));
        if !inserted {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        inserted
    }

    /// Takes back what `insert` noted, if it is there.
    #[inline]
    pub(crate) fn remove(&self, place: Place, id: BlockId) {
        let entry = entry_of(place.tag, id);
        let bucket = &self.buckets[place.home];
        if bucket.replace(entry, 0) || bucket.is_home_of_all() {
            return;
        }
        if self.beyond(place.home).any(|bucket| bucket.replace(entry, 0)) {
            bucket.beyond.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// False if at most one entry is at a place.
    #[inline]
    pub(crate) fn may_have_two(&self, place: Place) -> bool {
        let bucket = &self.buckets[place.home];
        bucket.count(place.tag) > 1 || !bucket.is_home_of_all()
    }

    /// The other buckets in which an entry may be.
    fn beyond(&self, home: usize) -> impl Iterator<Item = &Bucket> {
        let len = self.buckets.len();
        (home + 1..home + WINDOW.min(len))
            .map(move |at| &self.buckets[if at < len { at } else { at - len }])
    }
}

// All accesses are Relaxed: entries are hints. The block's word orders what the finder does with one,
// by the exchange that acquires the block, and nothing is handed over with a slot that is empty.
impl Bucket {
    fn new() -> Self {
        Self { slots: std::array::from_fn(|_| AtomicU64::new(0)), beyond: AtomicU64::new(0) }
    }

    #[inline]
    fn find(&self, tag: u64, mut fits: impl FnMut(BlockId) -> bool) -> Option<BlockId> {
        self.slots.iter().find_map(|slot| {
            let entry = slot.load(Ordering::Relaxed);
            if entry >> 32 != tag {
                return None;
            }
            block_of(entry).filter(|&id| fits(id))
        })
    }

    #[inline]
    fn is_home_of_all(&self) -> bool {
        self.beyond.load(Ordering::Relaxed) == 0
    }

    #[inline]
    fn count(&self, tag: u64) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) >> 32 == tag).count()
    }

    #[inline]
    fn insert(&self, entry: u64) -> bool {
        self.replace(0, entry)
    }

    /// False if `old` is not here (any more).
    #[inline]
    fn replace(&self, old: u64, new: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == old
                && slot.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }
}

#[inline]
fn entry_of(tag: u64, id: BlockId) -> u64 {
    // One more than the id: no entry is 0.
    (tag << 32) | u64::from(id.0 + 1)
}

#[inline]
fn block_of(entry: u64) -> Option<BlockId> {
    (entry as u32).checked_sub(1).map(BlockId)
}

#[cfg(all(test, not(paged_kv_loom)))]
mod tests {
    use super::*;

    fn name(n: u64) -> Name {
        Name::new(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn a_table_of_as_many_names_as_blocks_forgets_none() {
        let index = PrefixIndex::new(100_000);
        assert!((0..100_000).all(|n| index.insert(index.place(name(n + 1)), BlockId(n as u32))));
        for n in 0..100_000 {
            assert_eq!(
                index.find(index.place(name(n + 1)), |id| id.0 == n as u32),
                Some(BlockId(n as u32))
            );
        }
    }

    #[test]
    fn what_was_removed_is_not_found() {
        let index = PrefixIndex::new(4);
        assert!(index.insert(index.place(name(1)), BlockId(0)));
        index.remove(index.place(name(1)), BlockId(1)); // another block's entry
        assert_eq!(index.find(index.place(name(1)), |_| true), Some(BlockId(0)));
        index.remove(index.place(name(1)), BlockId(0));
        assert_eq!(index.find(index.place(name(1)), |_| true), None);
    }

    #[test]
    fn entries_beyond_a_full_bucket_are_found_and_removed() {
        let index = PrefixIndex::of_8_bits(100);
        let full =
            (1..).take(SLOTS * WINDOW).map(|n| (index.place(name(256 * n)), BlockId(n as u32)));
        let place = index.place(name(256));
        let at_home = Place { home: place.home, tag: place.tag };
        for (_, id) in full.clone() {
            assert!(index.insert(at_home, id));
        }
        assert!(!index.insert(at_home, BlockId(99)), "the window is full");
        for (_, id) in full {
            assert_eq!(index.find(at_home, |found| found == id), Some(id));
            index.remove(at_home, id);
            assert_eq!(index.find(at_home, |found| found == id), None);
        }
        assert!(index.buckets[at_home.home].is_home_of_all(), "none is left to be counted");
    }
}
