//! `ContentKey`: the content key of a block, 128 bits on the cache line of the block's word.
//!
//! One owner at a time writes a key: the sole owner of a private block, or an owner between
//! `begin_key_change` and `end_key_change`. The key stays after the block is reclaimed, until the next key.
//! A thread that finds the block by an old key sees by the word that it is not cached.
//!
//! Invariant: while a block is cached and owned, its key does not change. This module compares keys
//! and does not compute them from contents.

use super::release_note::ReleaseNote;
use super::word::{BlockState, BlockWords, IdleBlock, KeyedBlock, WordsView};
use crate::id::BlockId;
use crate::sync::{AtomicU64, Ordering};

/// Odd numbers with pseudorandom bits.
const SPREAD: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93];

/// The content key of a block: equal keys stand for equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentKey(u128);

impl ContentKey {
    pub(crate) fn new(bits: u128) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u128 {
        self.0
    }

    /// Returns a number that is spread evenly for all sets of keys, and a tag of the key. Keys
    /// themselves may be unevenly spread, because callers that compute hashes themselves may give small
    /// numbers.
    #[inline]
    pub(crate) fn spread(self) -> (u64, u32) {
        let [low, high] = [self.0 as u64, (self.0 >> 64) as u64];
        let mixed = low ^ high.wrapping_mul(SPREAD[1]);
        // The upper bits of the lower half of a product depend on all bits, and so does its upper half.
        let product = u128::from(mixed) * u128::from(SPREAD[0]);
        (product as u64, (product >> 64) as u32)
    }
}

/// Bits of a mark in `key_version`. The bits above count how often a key was set.
const MARK: u32 = 12;

/// The generation number of a key, modulo 4,096. It distinguishes the keys of different generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    /// Returns the mark of the generation with this number.
    pub(crate) fn new(number: u64) -> Self {
        Self(number as u32 & ((1 << MARK) - 1))
    }
}

/// A key for a block, and the facts that are recorded with it.
#[derive(Clone, Copy)]
pub(crate) struct NewKey {
    pub(crate) key: ContentKey,
    pub(crate) mark: Mark,
    /// True if the content was asked for before.
    pub(crate) hot: bool,
    /// True if another block is cached under the key.
    pub(crate) spare: bool,
}

#[cfg(test)]
impl NewKey {
    /// Creates a key of which nothing else is known.
    pub(crate) fn only(key: ContentKey) -> Self {
        Self { key, mark: Mark::new(5), hot: false, spare: false }
    }
}

/// A borrowed view of the words and the keys of all blocks.
#[derive(Clone, Copy)]
pub(crate) struct KeyedView<'a>(&'a [KeyedBlock]);

impl<'a> KeyedView<'a> {
    #[inline]
    pub(crate) fn words(self) -> WordsView<'a> {
        WordsView::Keyed(self.0)
    }
}

impl KeyedView<'_> {
    /// Returns true if `id` is the id of a block.
    #[inline]
    pub(crate) fn has(&self, id: BlockId) -> bool {
        id.index() < self.0.len()
    }

    /// Returns the share of the blocks that have owners, of at most `most` blocks at even distances.
    pub(crate) fn share_in_use(&self, most: usize) -> f64 {
        let (total, num) = (self.0.len(), most.min(self.0.len()));
        let id = |n: usize| BlockId((n * total / num) as u32);
        let used = (0..num).filter(|&n| self.words().state(id(n)).owners() > 0).count();
        used as f64 / num.max(1) as f64
    }

    /// Returns the key that the block was last given, 0 if none. The two halves belong to one key
    /// only if the key was not replaced during the call. For example, an owner of a cached block reads
    /// one key.
    #[inline]
    pub(crate) fn key(&self, id: BlockId) -> ContentKey {
        // Acquire: pairs with `store_key`; a thread that reads a part of a new key sees in the word
        // that the key is being written.
        // Loom: a_probe_never_reads_half_a_key.
        let half = |half: &AtomicU64| u128::from(half.load(Ordering::Acquire));
        let [low, high] = &self.0[id.index()].key;
        ContentKey(half(low) | half(high) << 64)
    }

    /// Returns the key that the block was last given, if any.
    pub(crate) fn last_key(&self, id: BlockId) -> Option<ContentKey> {
        (self.key_version(id) > 0).then(|| self.key(id))
    }

    /// Returns the key that the block was last given, if it was given with `mark`.
    pub(crate) fn last_key_with(&self, id: BlockId, mark: Mark) -> Option<ContentKey> {
        let is_marked = self.key_version(id) & ((1 << MARK) - 1) == mark.0;
        self.last_key(id).filter(|_| is_marked)
    }

    /// Returns the mark with which the block was last given a key.
    pub(super) fn last_mark(&self, id: BlockId) -> Mark {
        Mark(self.key_version(id) & ((1 << MARK) - 1))
    }

    /// Returns the number of times that the block was given a key, above the mark of the last key.
    /// The count wraps from 2^20 - 1 to 1, and so is 0 only for a block that never had a key. The
    /// publisher removes a block's old entry from the index by its last key.
    #[inline]
    pub(super) fn key_version(&self, id: BlockId) -> u32 {
        // Acquire: pairs with `store_key`; a thread that finds the same number before and after it read
        // the key has read one key.
        // Loom: a_probe_never_reads_half_a_key.
        self.0[id.index()].key_version.load(Ordering::Acquire)
    }

    /// Marks the epoch of an idle block with its present key, for the entry in an idle list; or removes that mark
    /// again, if the block has the same key. So an entry of an earlier content of the block, whose epochs count
    /// from the start too, is mostly stale: all but one in 256.
    #[inline]
    pub(in crate::pool) fn mark_epoch(&self, IdleBlock { id, epoch }: IdleBlock) -> IdleBlock {
        // An odd factor: the marks of successive keys have no small differences.
        let mark = (self.key_version(id) >> MARK).wrapping_mul(157) as u8;
        IdleBlock { id, epoch: epoch ^ mark }
    }

    /// Writes the key, for the owner that may write it.
    fn store_key(&self, id: BlockId, ContentKey(bits): ContentKey, mark: Mark) {
        let block = &self.0[id.index()];
        let count = block.key_version.load(Ordering::Relaxed) >> MARK;
        let count = if count == u32::MAX >> MARK { 1 } else { count + 1 };
        // Release: pairs with `key_version`; a thread that sees this number also sees that the block is
        // getting a key.
        block.key_version.store(count << MARK | mark.0, Ordering::Release);
        for (half, bits) in block.key.iter().zip([bits as u64, (bits >> 64) as u64]) {
            // Release: pairs with `key`.
            half.store(bits, Ordering::Release);
        }
    }

    /// Returns a guess of the block with the content that follows this block's.
    #[inline]
    pub(crate) fn follower(&self, id: BlockId) -> BlockId {
        // Relaxed: a guess, which the caller confirms by comparing keys.
        BlockId(self.0[id.index()].follower.load(Ordering::Relaxed))
    }

    /// Makes `follower` the guess after `id`.
    #[inline]
    pub(crate) fn set_follower(&self, id: BlockId, follower: BlockId) {
        // Relaxed: as in `follower`.
        self.0[id.index()].follower.store(follower.0, Ordering::Relaxed);
    }

    /// Returns the note of the block's last release.
    #[inline]
    pub(crate) fn note(&self, id: BlockId) -> ReleaseNote {
        // Relaxed: only the reclaim order depends on it.
        ReleaseNote::from_bits(self.0[id.index()].note.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_note(&self, id: BlockId, note: ReleaseNote) {
        // Relaxed: as in `note`.
        self.0[id.index()].note.store(note.bits(), Ordering::Relaxed);
    }

    /// Sets the note of a block that the caller owns, if the block is cached.
    pub(crate) fn note_if_cached(&self, id: BlockId, note: ReleaseNote) -> bool {
        let is_cached = self.words().state(id).is_cached();
        if is_cached {
            self.set_note(id, note);
        }
        is_cached
    }

    /// Returns the state of the block if it seems to be cached under `key`. A thread that acquires the
    /// block finds out whether it is.
    #[inline]
    pub(crate) fn seems_cached_as(&self, id: BlockId, key: ContentKey) -> Option<BlockState> {
        let state = self.words().state(id);
        (state.is_cached() && self.key(id) == key).then_some(state)
    }

    /// Returns the state of the block if it is cached under `key` at a moment during the call. Writes
    /// nothing.
    #[inline]
    pub(crate) fn state_as(&self, id: BlockId, key: ContentKey) -> Option<BlockState> {
        let key_version = self.key_version(id);
        let state = self.words().state(id);
        let has_key = state.is_cached() && self.key(id) == key;
        (has_key && self.key_version(id) == key_version).then_some(state)
    }
}

impl BlockWords {
    /// Returns the words and the keys for a loop over many blocks. The view is empty where blocks
    /// cannot have keys.
    #[inline]
    pub(crate) fn keyed(&self) -> KeyedView<'_> {
        KeyedView(&self.keyed)
    }

    /// Returns true if the block is cached under `key` at a moment during the call. Writes nothing.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, key: ContentKey) -> bool {
        self.keyed().state_as(id, key).is_some()
    }

    /// Gives a block a key, for one of its owners. `is_private` says that the block is in the private
    /// part of that owner's table. Calls `replaced` with the key that the block had before, if any. The
    /// block is matchable when this returns. Returns false if the block is cached already, or another
    /// owner is setting a key.
    #[inline]
    pub(crate) fn set_key(
        &self,
        id: BlockId,
        NewKey { key, mark, hot, spare }: NewKey,
        is_private: bool,
        replaced: impl FnOnce(ContentKey),
    ) -> bool {
        let keyed = self.keyed();
        let words = keyed.words();
        // If a private block has one owner, that owner is the caller. Owners by id set no key, so no
        // other thread must be excluded. But they may be counted while the key is set, so an exchange ends
        // it.
        // Loom: an_owner_by_id_beside_a_publication_stays_counted.
        let is_alone = is_private && words.state(id) == BlockState::SOLE;
        if !is_alone && !words.begin_key_change(id) {
            return false;
        }
        if let Some(old) = keyed.last_key(id) {
            replaced(old);
        }
        keyed.store_key(id, key, mark);
        words.end_key_change(id, hot, spare);
        true
    }

    /// Makes a block unmatchable by its key, for one of its owners. Owners that have matched it keep
    /// it, as a block without a key. Another thread may have uncached it since the key was set.
    pub(crate) fn clear_key(&self, id: BlockId) {
        self.view().try_end_caching(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a key for `id`. All 32-bit parts of these keys are different.
    fn key_of(id: BlockId) -> ContentKey {
        let part = |at: u128| (u128::from(id.0) + 1) << (32 * at + 8) | (at + 1) << (32 * at);
        ContentKey::new((0..4).map(part).sum())
    }

    fn key_version(words: &BlockWords, id: BlockId) -> u32 {
        words.keyed().key_version(id) >> MARK
    }

    /// Returns the words and ids of blocks 0 to 4, with one owner each.
    fn owned_blocks() -> (BlockWords, Vec<BlockId>) {
        let (words, ids) =
            (BlockWords::with_keys(5).unwrap(), (0..5).map(BlockId).collect::<Vec<_>>());
        ids.iter().for_each(|&id| words.view().occupy(id));
        (words, ids)
    }

    #[test]
    fn each_block_has_a_key_of_its_own_beside_its_word() {
        let (words, ids) = owned_blocks();
        for &id in &ids {
            assert_eq!(words.keyed().last_key(id), None);
            assert!(!words.is_cached_as(id, key_of(id)));
            assert!(words.set_key(id, NewKey::only(key_of(id)), true, |_| panic!("it has none")));
        }
        for &id in &ids {
            assert_eq!(words.keyed().last_key(id), Some(key_of(id)));
            assert!(words.is_cached_as(id, key_of(id)));
            assert!(!words.is_cached_as(id, ContentKey::new(7)), "{id} has another key");
            assert_eq!((words.state(id).owners(), key_version(&words, id)), (1, 1));
        }
    }

    #[test]
    fn the_share_in_use_is_that_of_the_blocks_that_are_looked_at() {
        let words = BlockWords::with_keys(8).unwrap();
        (0..3).for_each(|id| words.view().occupy(BlockId(id)));
        let share = |most| words.keyed().share_in_use(most);
        assert_eq!((share(9), share(8), share(4), share(0)), (0.375, 0.375, 0.5, 0.0));
    }

    #[test]
    fn a_block_that_has_a_key_gets_no_other() {
        let (words, ids) = owned_blocks();
        for (id, is_private) in [(ids[1], true), (ids[2], false)] {
            assert!(
                words.set_key(id, NewKey::only(key_of(id)), is_private, |_| panic!("it has none"))
            );
            for is_private in [true, false] {
                let other = NewKey::only(ContentKey::new(7));
                assert!(!words.set_key(id, other, is_private, |_| panic!("it is refused")));
            }
            assert!(words.is_cached_as(id, key_of(id)));
        }
    }

    #[test]
    fn a_block_that_several_own_can_get_a_key() {
        let (words, ids) = owned_blocks();
        words.retain(ids[0]).expect("a block in use");
        assert!(words.set_key(ids[0], NewKey::only(key_of(ids[0])), true, |_| {}));
        assert!(words.is_cached_as(ids[0], key_of(ids[0])));
        assert_eq!(words.state(ids[0]).owners(), 2);
    }

    #[test]
    fn the_key_of_a_reclaimed_block_stays_until_the_next() {
        let (words, ids) = owned_blocks();
        let (id, view) = (ids[3], words.view());
        assert!(words.set_key(id, NewKey::only(key_of(id)), true, |_| panic!("it has none")));
        let crate::pool::word::Released::Idle(left) = view.release_shared(id) else {
            panic!("a cached block without owners is idle");
        };
        assert!(view.reclaim(left.block));
        assert_eq!(words.keyed().key(id), key_of(id));
        assert!(!words.is_cached_as(id, key_of(id)), "the word says that it is not cached");
        let mut earlier = None;
        let next = NewKey { hot: true, ..NewKey::only(ContentKey::new(7)) };
        assert!(words.set_key(id, next, true, |key| earlier = Some(key)));
        assert_eq!((earlier, key_version(&words, id)), (Some(key_of(id)), 2));
        assert!(words.is_cached_as(id, ContentKey::new(7)) && words.state(id).is_hot());
    }

    #[test]
    fn a_block_that_got_very_many_keys_still_has_a_last_key() {
        let (words, ids) = owned_blocks();
        let (id, keyed) = (ids[3], words.keyed());
        let most = u32::MAX >> MARK;
        words.keyed[id.index()].key_version.store((most - 1) << MARK, Ordering::Relaxed);
        for count in [most, 1, 2] {
            keyed.store_key(id, key_of(id), Mark::new(5));
            assert_eq!((key_version(&words, id), keyed.last_key(id)), (count, Some(key_of(id))));
        }
    }

    #[test]
    fn a_key_is_known_by_the_mark_that_it_was_given_with() {
        let (words, ids) = owned_blocks();
        let (id, keyed) = (ids[3], words.keyed());
        for number in [0, 1, 4_095, 4_096, 4_097, u64::MAX] {
            assert_eq!(keyed.last_key_with(ids[0], Mark::new(number)), None, "it has none");
            keyed.store_key(id, key_of(id), Mark::new(number));
            let is_known = |number| keyed.last_key_with(id, Mark::new(number)).is_some();
            assert!(is_known(number) && !is_known(number ^ 1) && !is_known(number ^ 0x800));
        }
    }

    #[test]
    fn a_key_that_is_cleared_matches_no_more_and_leaves_the_owners() {
        let (words, ids) = owned_blocks();
        let id = ids[2];
        for spare in [false, true] {
            let hot = spare;
            assert!(words.set_key(
                id,
                NewKey { hot, spare, ..NewKey::only(key_of(id)) },
                true,
                |_| {}
            ));
            words.retain(id).expect("a block in use");
            words.clear_key(id);
            assert!(!words.is_cached_as(id, key_of(id)));
            assert_eq!(words.view().acquire(id, true), None);
            assert_eq!(words.view().release_shared(id), crate::pool::word::Released::Owned);
            assert_eq!(words.state(id), BlockState::SOLE);
        }
    }

    #[test]
    fn a_key_may_be_cleared_after_another_thread_uncached_the_block() {
        let (words, ids) = owned_blocks();
        assert!(words.set_key(ids[2], NewKey::only(key_of(ids[2])), true, |_| {}));
        assert!(words.view().try_end_caching(ids[2]));
        words.clear_key(ids[2]);
        assert_eq!(words.state(ids[2]), BlockState::SOLE);
    }

    #[test]
    fn keys_that_differ_in_a_bit_are_distinguished_and_spread() {
        let spreads: Vec<_> = (0..128).map(|bit| ContentKey::new(1 << bit).spread()).collect();
        let distinct: std::collections::HashSet<_> = spreads.iter().collect();
        assert!(distinct.len() >= 127, "{} of 128", distinct.len());
        let places = spreads.iter().map(|(spread, _)| spread >> 54);
        let places: std::collections::HashSet<_> = places.collect();
        assert!(places.len() > 100, "{} places of 1,024", places.len());
    }
}
