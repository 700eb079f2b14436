//! `PrefixIndex`: a fixed table of hints that maps a key to the block that held it last.
//!
//! ```text
//!   key ──> bucket: half a cache line of 3 words, each (tag, block) or nothing, and a count of
//!            those that are in one of the buckets behind because this one was full
//! ```
//!
//! An entry gives the block in which a key was last seen. The block itself confirms it: its word and its
//! full key are read after it was acquired. So entries may be stale, and the table takes no lock. The entry
//! of a reclaimed block is removed when the block gets its next key. The table has 24 buckets for 25 blocks,
//! and at most one entry a block.
//!
//! A miss reads one bucket unless that bucket has overflowed: 97 % of the buckets have not overflowed after a first
//! fill, 92 % in a table of as many keys as blocks that change all the time. An insert fails only when the home bucket and
//! the 23 after it are full (below 1 in 10^13).
//!
//! Entries of a bucket are compared without branches, because the matching position is unpredictable.
//!
//! Invariant: the table may forget a key, but a wrong entry never passes the caller's comparison.

use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::content_key::ContentKey;
use crate::sync::{AtomicU64, Ordering, prefetch};

/// Entries of a bucket.
const SLOTS: usize = 3;

/// Buckets that may hold an entry: its home bucket, and those after it if the first are full.
const WINDOW: usize = 24;

/// The bit of a bucket's last word at which the reach begins; below it is the count.
const REACH: u32 = 32;
const COUNT: u64 = (1 << REACH) - 1;

/// Half a cache line.
#[repr(align(32))]
struct Bucket {
    /// The entries, and after them the count of entries that belong here and are in a later bucket.
    words: [AtomicU64; SLOTS + 1],
}

/// The table of keys and the blocks in which they were last seen.
pub(crate) struct PrefixIndex {
    buckets: Box<[Bucket]>,
    /// The bits of a key's spread and mark that are used, for a test that wants collisions.
    #[cfg(test)]
    bits: u64,
}

/// The table, for a loop over many keys.
#[derive(Clone, Copy)]
pub(crate) struct IndexView<'a> {
    buckets: &'a [Bucket],
    #[cfg(test)]
    bits: u64,
}

/// The home bucket and the tag of a key's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketSlot {
    home: u32,
    pub(super) tag: u32,
}

impl BucketSlot {
    /// A placeholder that is no key's place.
    pub(crate) const ANY: Self = Self { home: 0, tag: 0 };

    #[inline]
    pub(super) fn home(self) -> usize {
        self.home as usize
    }
}

impl PrefixIndex {
    /// Creates a table for a pool of `num_blocks` blocks. For 0 blocks it holds no entries.
    pub(crate) fn new(num_blocks: usize) -> Result<Self> {
        let buckets = num_blocks - num_blocks / 25;
        let buckets = if num_blocks == 0 { 0 } else { buckets.max(WINDOW) };
        Ok(Self {
            buckets: array_of(buckets, Bucket::new)?,
            #[cfg(test)]
            bits: u64::MAX,
        })
    }

    /// Creates a table that distinguishes only 8 keys.
    #[cfg(test)]
    pub(crate) fn of_3_bits(num_blocks: usize) -> Self {
        Self { bits: 0x7 << 61, ..Self::new(num_blocks).expect("there is memory") }
    }

    /// Returns each entry's bucket, tag and block.
    #[cfg(test)]
    pub(super) fn entries(&self) -> Vec<(usize, u32, BlockId)> {
        let entries_of = |(at, bucket): (usize, &Bucket)| {
            let entries = bucket.words[..SLOTS].iter().map(|slot| slot.load(Ordering::Relaxed));
            let entry = |bits| block_of(bits).map(|id| (at, (bits >> 32) as u32, id));
            entries.filter_map(entry).collect::<Vec<_>>()
        };
        self.buckets.iter().enumerate().flat_map(entries_of).collect()
    }

    /// Returns a bucket's count of entries that belong there and are in a later bucket.
    #[cfg(test)]
    pub(super) fn counted_beyond(&self, at: usize) -> u64 {
        self.buckets[at].beyond().load(Ordering::Relaxed) & COUNT
    }

    /// Returns true for a table that never holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Returns a view that keeps the address of the buckets in registers.
    #[inline]
    pub(crate) fn view(&self) -> IndexView<'_> {
        IndexView {
            buckets: &self.buckets,
            #[cfg(test)]
            bits: self.bits,
        }
    }

    /// Returns the place of `key`, in a table that is not empty.
    #[inline]
    pub(crate) fn place(&self, key: ContentKey) -> BucketSlot {
        self.view().place(key)
    }

    /// Prefetches the buckets of `places`, before many entries are written one after the other.
    #[inline]
    pub(crate) fn prefetch<'a>(&self, places: impl Iterator<Item = &'a BucketSlot>) {
        let buckets = &self.buckets;
        // Relaxed: the values are not used.
        prefetch(places.map(|place| buckets[place.home()].beyond().load(Ordering::Relaxed)));
    }

    /// Returns the first block at a place for which `fits` returns true.
    #[inline]
    pub(crate) fn find(
        &self,
        place: BucketSlot,
        fits: impl FnMut(BlockId) -> bool,
    ) -> Option<BlockId> {
        self.view().find(place, fits)
    }

    /// Adds an entry for `id` at `place`. Returns false, and adds none, if there is no room.
    #[inline]
    pub(crate) fn insert(&self, place: BucketSlot, id: BlockId) -> bool {
        let entry = entry_of(place.tag, id);
        self.buckets[place.home()].insert(entry) || self.insert_beyond(place.home(), entry)
    }

    #[cold]
    fn insert_beyond(&self, home: usize, entry: u64) -> bool {
        let bucket = &self.buckets[home];
        (1..).zip(self.view().beyond(home, WINDOW)).any(|(distance, other)| {
            // Count first, so that every entry in a later bucket is counted.
            other.has_room() && {
                bucket.one_more_beyond(distance);
                other.insert(entry) || bucket.one_fewer_beyond()
            }
        })
    }

    /// Removes the entry of `id` at `place`, if it is there.
    #[inline]
    pub(crate) fn remove(&self, place: BucketSlot, id: BlockId) {
        let entry = entry_of(place.tag, id);
        let bucket = &self.buckets[place.home()];
        if !bucket.replace(entry, 0) && !bucket.is_home_of_all() {
            self.remove_beyond(place.home(), entry);
        }
    }

    #[cold]
    fn remove_beyond(&self, home: usize, entry: u64) {
        let bucket = &self.buckets[home];
        if self.view().beyond(home, bucket.reach()).any(|other| other.replace(entry, 0)) {
            bucket.one_fewer_beyond();
        }
    }
}

impl<'a> IndexView<'a> {
    #[inline]
    pub(crate) fn place(self, key: ContentKey) -> BucketSlot {
        let (spread, tag) = key.spread();
        #[cfg(test)]
        let (spread, tag) = (spread & self.bits, tag & self.bits as u32);
        // The upper half of a product spreads 64 bits over any number of buckets.
        let home = ((u128::from(spread) * self.buckets.len() as u128) >> 64) as u32;
        BucketSlot { home, tag }
    }

    #[inline]
    pub(crate) fn find(
        self,
        place: BucketSlot,
        mut fits: impl FnMut(BlockId) -> bool,
    ) -> Option<BlockId> {
        let bucket = &self.buckets[place.home()];
        if let Some(id) = bucket.find(place.tag, &mut fits) {
            return Some(id);
        }
        if bucket.is_home_of_all() {
            return None;
        }
        self.find_beyond(place, fits)
    }

    /// Takes `fits` by value, so that the values it reads stay in registers on the fast path.
    #[cold]
    #[inline(never)]
    fn find_beyond(
        self,
        place: BucketSlot,
        mut fits: impl FnMut(BlockId) -> bool,
    ) -> Option<BlockId> {
        let reach = self.buckets[place.home()].reach();
        self.beyond(place.home(), reach).find_map(|bucket| bucket.find(place.tag, &mut fits))
    }

    /// Returns the buckets after `home`: fewer than `reach`, or all.
    fn beyond(self, home: usize, reach: usize) -> impl Iterator<Item = &'a Bucket> {
        let (buckets, len) = (self.buckets, self.buckets.len());
        (home + 1..home + reach.min(len))
            .map(move |at| &buckets[if at < len { at } else { at - len }])
    }
}

// All accesses are Relaxed: entries are hints. The exchange that acquires the block orders the finder's later
// accesses. An empty slot hands over no data.
impl Bucket {
    fn new() -> Self {
        Self { words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    #[inline]
    fn find(&self, tag: u32, mut fits: impl FnMut(BlockId) -> bool) -> Option<BlockId> {
        let mut matches = self.mask(|entry| (entry >> 32) as u32 == tag);
        while matches != 0 {
            let slot = self.first(matches);
            if let Some(id) = block_of(slot.load(Ordering::Relaxed))
                && fits(id)
            {
                return Some(id);
            }
            matches &= matches - 1;
        }
        None
    }

    #[inline]
    fn is_home_of_all(&self) -> bool {
        self.beyond().load(Ordering::Relaxed) == 0
    }

    /// Returns the word that counts the entries that belong here and are in a later bucket. Its upper half is
    /// the end of the buckets that held such entries since the count was last 0.
    #[inline]
    fn beyond(&self) -> &AtomicU64 {
        &self.words[SLOTS]
    }

    fn reach(&self) -> usize {
        (self.beyond().load(Ordering::Relaxed) >> REACH) as usize
    }

    fn one_more_beyond(&self, distance: u64) {
        let more = |word: u64| {
            let (reach, count) = (word >> REACH, word & COUNT);
            Some((reach.max(distance + 1) << REACH) | (count + 1))
        };
        let _ = self.beyond().fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Returns false, for a caller that could not add the entry that it counted.
    fn one_fewer_beyond(&self) -> bool {
        let fewer = |word: u64| Some(if word & COUNT == 1 { 0 } else { word - 1 });
        let _ = self.beyond().fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        false
    }

    fn has_room(&self) -> bool {
        self.mask(|entry| entry == 0) != 0
    }

    /// Returns the word of the first entry in a mask that is not empty.
    #[inline]
    fn first(&self, mask: u32) -> &AtomicU64 {
        // The remainder shows the compiler that there is such a word.
        &self.words[mask.trailing_zeros() as usize % self.words.len()]
    }

    #[inline]
    fn insert(&self, entry: u64) -> bool {
        self.replace(0, entry)
    }

    /// Returns false if `old` is not here, or no longer.
    #[inline]
    fn replace(&self, old: u64, new: u64) -> bool {
        let mut matches = self.mask(|entry| entry == old);
        while matches != 0 {
            let slot = self.first(matches);
            if slot.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return true;
            }
            matches &= matches - 1;
        }
        false
    }

    /// Returns one bit for each entry, set where `is_meant` returns true.
    #[inline]
    fn mask(&self, is_meant: impl Fn(u64) -> bool) -> u32 {
        let bit = |at: usize| u32::from(is_meant(self.words[at].load(Ordering::Relaxed))) << at;
        bit(0) | bit(1) | bit(2)
    }
}

#[inline]
fn entry_of(tag: u32, id: BlockId) -> u64 {
    // One more than the id: no entry is 0.
    (u64::from(tag) << 32) | u64::from(id.0 + 1)
}

#[inline]
fn block_of(entry: u64) -> Option<BlockId> {
    (entry as u32).checked_sub(1).map(BlockId)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> ContentKey {
        ContentKey::new(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn a_table_of_as_many_keys_as_blocks_forgets_none() {
        let index = PrefixIndex::new(100_000).unwrap();
        assert!((0..100_000).all(|n| index.insert(index.place(key(n + 1)), BlockId(n as u32))));
        for n in 0..100_000 {
            assert_eq!(
                index.find(index.place(key(n + 1)), |id| id.0 == n as u32),
                Some(BlockId(n as u32))
            );
        }
    }

    #[test]
    fn few_buckets_have_entries_beyond_also_when_keys_change() {
        const BLOCKS: usize = if cfg!(miri) { 500 } else { 50_000 };
        let index = PrefixIndex::new(BLOCKS).unwrap();
        let place = |n: usize| index.place(key(n as u64 + 1));
        let beyond = || (0..index.buckets.len()).filter(|&at| index.counted_beyond(at) > 0).count();
        assert!((0..BLOCKS).all(|n| index.insert(place(n), BlockId(n as u32))));
        assert!(beyond() * 100 <= 3 * index.buckets.len(), "{}", beyond());
        let mut keys: Vec<usize> = (0..BLOCKS).collect();
        for n in BLOCKS..20 * BLOCKS {
            // A block chosen at random.
            let at = (key(n as u64).spread().0 % BLOCKS as u64) as usize;
            let old = std::mem::replace(&mut keys[at], n);
            index.remove(place(old), BlockId(at as u32));
            assert!(index.insert(place(n), BlockId(at as u32)));
        }
        assert!(beyond() * 100 <= 8 * index.buckets.len(), "{}", beyond());
        assert_eq!(index.entries().len(), BLOCKS);
    }

    #[test]
    fn a_removed_entry_is_not_found() {
        let index = PrefixIndex::new(4).unwrap();
        assert!(index.insert(index.place(key(1)), BlockId(0)));
        index.remove(index.place(key(1)), BlockId(1)); // another block's entry
        assert_eq!(index.find(index.place(key(1)), |_| true), Some(BlockId(0)));
        index.remove(index.place(key(1)), BlockId(0));
        assert_eq!(index.find(index.place(key(1)), |_| true), None);
    }

    #[test]
    fn entries_beyond_a_full_bucket_are_found_and_removed() {
        let index = PrefixIndex::of_3_bits(100);
        let full = (1..).take(SLOTS * WINDOW).map(|n| (index.place(key(n)), BlockId(n as u32)));
        let place = index.place(key(1));
        let at_home = BucketSlot { home: place.home, tag: place.tag };
        for (_, id) in full.clone() {
            assert!(index.insert(at_home, id));
        }
        assert!(!index.insert(at_home, BlockId(99)), "the window is full");
        for (_, id) in full {
            assert_eq!(index.find(at_home, |found| found == id), Some(id));
            index.remove(at_home, id);
            assert_eq!(index.find(at_home, |found| found == id), None);
        }
        assert!(index.buckets[at_home.home()].is_home_of_all(), "none is left to be counted");
    }
}
