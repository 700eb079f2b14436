//! `Name`: the content key of a block, 128 bits on the cache line of the block's word.
//!
//! One owner at a time writes a name: the sole owner of a private block, or an owner between
//! `begin_naming` and `end_naming`. The name stays after the block is reclaimed, until the next naming.
//! A thread that finds the block by an old name sees by the word that it is not cached.
//!
//! Invariant: while a block is cached and owned, its name does not change. This module compares names
//! and does not compute them from contents.

use super::word::{BlockState, BlockWords, NamedBlock, WordsView};
use crate::id::BlockId;
use crate::sync::{AtomicU64, Ordering};

/// Odd numbers with pseudorandom bits.
const SPREAD: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93];

/// The content key of a block: equal names stand for equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name(u128);

impl Name {
    pub(crate) fn new(bits: u128) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u128 {
        self.0
    }

    /// Returns a number that is spread evenly for all sets of names, and a tag of the name. Names
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

/// Bits of a mark in `renames`. The bits above count how often the block was named.
const MARK: u32 = 12;

/// The number of the time (generation) at which a name was given, modulo 4,096. It distinguishes the
/// names of different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    /// Returns the mark of the time with this number.
    pub(crate) fn new(number: u64) -> Self {
        Self(number as u32 & ((1 << MARK) - 1))
    }
}

/// A name for a block, and the facts that are recorded with it.
#[derive(Clone, Copy)]
pub(crate) struct NewName {
    pub(crate) name: Name,
    pub(crate) mark: Mark,
    /// True if the content was asked for before.
    pub(crate) again: bool,
    /// True if another block is cached under the name.
    pub(crate) spare: bool,
}

#[cfg(test)]
impl NewName {
    /// Creates a name of which nothing else is known.
    pub(crate) fn only(name: Name) -> Self {
        Self { name, mark: Mark::new(5), again: false, spare: false }
    }
}

/// A borrowed view of the words and the names of all blocks.
#[derive(Clone, Copy)]
pub(crate) struct NamedView<'a>(&'a [NamedBlock]);

impl<'a> NamedView<'a> {
    #[inline]
    pub(crate) fn words(self) -> WordsView<'a> {
        WordsView::Named(self.0)
    }
}

impl NamedView<'_> {
    /// Returns true if `id` is the id of a block.
    #[inline]
    pub(crate) fn has(&self, id: BlockId) -> bool {
        id.index() < self.0.len()
    }

    /// Returns the name that the block was last given, 0 if none. The two halves belong to one name
    /// only if the block was not renamed during the call. For example, an owner of a cached block reads
    /// one name.
    #[inline]
    pub(crate) fn name(&self, id: BlockId) -> Name {
        // Acquire: pairs with `set_name`; a thread that reads a part of a new name sees in the word
        // that the name is being written.
        // Loom: a_probe_never_reads_half_a_name.
        let half = |half: &AtomicU64| u128::from(half.load(Ordering::Acquire));
        let [low, high] = &self.0[id.index()].name;
        Name(half(low) | half(high) << 64)
    }

    /// Returns the name that the block was last given, if any.
    pub(crate) fn last_name(&self, id: BlockId) -> Option<Name> {
        (self.renames(id) > 0).then(|| self.name(id))
    }

    /// Returns the name that the block was last given, if it was given with `mark`.
    pub(crate) fn last_name_with(&self, id: BlockId, mark: Mark) -> Option<Name> {
        let is_marked = self.renames(id) & ((1 << MARK) - 1) == mark.0;
        self.last_name(id).filter(|_| is_marked)
    }

    /// Returns the number of times that the block was given a name, above the mark of the last name.
    /// The count wraps from 2^20 - 1 to 1, and so is 0 only for a block that never had a name. The
    /// publisher removes a block's old entry from the index by its last name.
    #[inline]
    fn renames(&self, id: BlockId) -> u32 {
        // Acquire: pairs with `set_name`; a thread that finds the same number before and after it read
        // the name has read one name.
        // Loom: a_probe_never_reads_half_a_name.
        self.0[id.index()].renames.load(Ordering::Acquire)
    }

    /// Writes the name, for the owner that may write it.
    fn set_name(&self, id: BlockId, Name(bits): Name, mark: Mark) {
        let block = &self.0[id.index()];
        let count = block.renames.load(Ordering::Relaxed) >> MARK;
        let count = if count == u32::MAX >> MARK { 1 } else { count + 1 };
        // Release: pairs with `renames`; a thread that sees this number also sees that the block is
        // being named.
        block.renames.store(count << MARK | mark.0, Ordering::Release);
        for (half, bits) in block.name.iter().zip([bits as u64, (bits >> 64) as u64]) {
            // Release: pairs with `name`.
            half.store(bits, Ordering::Release);
        }
    }

    /// Returns a guess of the block with the content that follows this block's.
    #[inline]
    pub(crate) fn follower(&self, id: BlockId) -> BlockId {
        // Relaxed: a guess, which the caller confirms by comparing names.
        BlockId(self.0[id.index()].follower.load(Ordering::Relaxed))
    }

    /// Makes `follower` the guess after `id`.
    #[inline]
    pub(crate) fn set_follower(&self, id: BlockId, follower: BlockId) {
        // Relaxed: as in `follower`.
        self.0[id.index()].follower.store(follower.0, Ordering::Relaxed);
    }

    /// Returns the state of the block if it seems to be cached under `name`. A thread that acquires the
    /// block finds out whether it is.
    #[inline]
    pub(crate) fn seems_cached_as(&self, id: BlockId, name: Name) -> Option<BlockState> {
        let state = self.words().state(id);
        (state.is_cached() && self.name(id) == name).then_some(state)
    }

    /// Returns the state of the block if it is cached under `name` at a moment during the call. Writes
    /// nothing.
    #[inline]
    pub(crate) fn state_as(&self, id: BlockId, name: Name) -> Option<BlockState> {
        let renames = self.renames(id);
        let state = self.words().state(id);
        let is_called = state.is_cached() && self.name(id) == name;
        (is_called && self.renames(id) == renames).then_some(state)
    }
}

impl BlockWords {
    /// Returns the words and the names for a loop over many blocks. The view is empty where blocks
    /// cannot have names.
    #[inline]
    pub(crate) fn named(&self) -> NamedView<'_> {
        NamedView(&self.named)
    }

    /// Returns true if the block is cached under `name` at a moment during the call. Writes nothing.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, name: Name) -> bool {
        self.named().state_as(id, name).is_some()
    }

    /// Gives a block a name, for one of its owners. `is_private` says that the block is in the private
    /// part of that owner's table. Calls `renamed` with the name that the block had before, if any. The
    /// block is matchable when this returns. Returns false if the block is cached already, or another
    /// owner is naming it.
    #[inline]
    pub(crate) fn give_name(
        &self,
        id: BlockId,
        NewName { name, mark, again, spare }: NewName,
        is_private: bool,
        renamed: impl FnOnce(Name),
    ) -> bool {
        let named = self.named();
        let words = named.words();
        // If a private block has one owner, that owner is the caller. Owners by id name no block, so no
        // other thread must be excluded. But they may be counted during the naming, so an exchange ends
        // it.
        // Loom: an_owner_by_id_beside_a_publication_stays_counted.
        let is_alone = is_private && words.state(id) == BlockState::SOLE;
        if !is_alone && !words.begin_naming(id) {
            return false;
        }
        if let Some(old) = named.last_name(id) {
            renamed(old);
        }
        named.set_name(id, name, mark);
        words.end_naming(id, again, spare);
        true
    }

    /// Makes a block unmatchable by its name, for one of its owners. Owners that have matched it keep
    /// it, as a block without a name.
    pub(crate) fn take_name_back(&self, id: BlockId) {
        self.view().end_caching(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a name for `id`. All 32-bit parts of these names are different.
    fn name_of(id: BlockId) -> Name {
        let part = |at: u128| (u128::from(id.0) + 1) << (32 * at + 8) | (at + 1) << (32 * at);
        Name::new((0..4).map(part).sum())
    }

    fn renames(words: &BlockWords, id: BlockId) -> u32 {
        words.named().renames(id) >> MARK
    }

    /// Returns the words and ids of blocks 0 to 4, with one owner each.
    fn owned_blocks() -> (BlockWords, Vec<BlockId>) {
        let (words, ids) =
            (BlockWords::with_names(5).unwrap(), (0..5).map(BlockId).collect::<Vec<_>>());
        ids.iter().for_each(|&id| words.view().occupy(id));
        (words, ids)
    }

    #[test]
    fn each_block_has_a_name_of_its_own_beside_its_word() {
        let (words, ids) = owned_blocks();
        for &id in &ids {
            assert_eq!(words.named().last_name(id), None);
            assert!(!words.is_cached_as(id, name_of(id)));
            assert!(
                words.give_name(id, NewName::only(name_of(id)), true, |_| panic!("it has none"))
            );
        }
        for &id in &ids {
            assert_eq!(words.named().last_name(id), Some(name_of(id)));
            assert!(words.is_cached_as(id, name_of(id)));
            assert!(!words.is_cached_as(id, Name::new(7)), "{id} is not called that");
            assert_eq!((words.state(id).owners(), renames(&words, id)), (1, 1));
        }
    }

    #[test]
    fn a_block_that_has_a_name_gets_no_other() {
        let (words, ids) = owned_blocks();
        for (id, is_private) in [(ids[1], true), (ids[2], false)] {
            assert!(
                words.give_name(id, NewName::only(name_of(id)), is_private, |_| panic!(
                    "it has none"
                ))
            );
            for is_private in [true, false] {
                let other = NewName::only(Name::new(7));
                assert!(!words.give_name(id, other, is_private, |_| panic!("it is refused")));
            }
            assert!(words.is_cached_as(id, name_of(id)));
        }
    }

    #[test]
    fn a_block_that_several_own_can_be_named() {
        let (words, ids) = owned_blocks();
        words.retain(ids[0]).expect("a block in use");
        assert!(words.give_name(ids[0], NewName::only(name_of(ids[0])), true, |_| {}));
        assert!(words.is_cached_as(ids[0], name_of(ids[0])));
        assert_eq!(words.state(ids[0]).owners(), 2);
    }

    #[test]
    fn the_name_of_a_reclaimed_block_stays_until_the_next() {
        let (words, ids) = owned_blocks();
        let (id, view) = (ids[3], words.view());
        assert!(words.give_name(id, NewName::only(name_of(id)), true, |_| panic!("it has none")));
        let crate::pool::word::Left::Idle(left) = view.release_shared(id) else {
            panic!("a cached block without owners is idle");
        };
        assert!(view.reclaim(left.block));
        assert_eq!(words.named().name(id), name_of(id));
        assert!(!words.is_cached_as(id, name_of(id)), "the word says that it is not cached");
        let mut earlier = None;
        let next = NewName { again: true, ..NewName::only(Name::new(7)) };
        assert!(words.give_name(id, next, true, |name| earlier = Some(name)));
        assert_eq!((earlier, renames(&words, id)), (Some(name_of(id)), 2));
        assert!(words.is_cached_as(id, Name::new(7)) && words.state(id).is_again());
    }

    #[test]
    fn a_block_that_was_named_very_often_still_has_a_last_name() {
        let (words, ids) = owned_blocks();
        let (id, named) = (ids[3], words.named());
        let most = u32::MAX >> MARK;
        words.named[id.index()].renames.store((most - 1) << MARK, Ordering::Relaxed);
        for count in [most, 1, 2] {
            named.set_name(id, name_of(id), Mark::new(5));
            assert_eq!((renames(&words, id), named.last_name(id)), (count, Some(name_of(id))));
        }
    }

    #[test]
    fn a_name_is_known_by_the_mark_that_it_was_given_with() {
        let (words, ids) = owned_blocks();
        let (id, named) = (ids[3], words.named());
        for number in [0, 1, 4_095, 4_096, 4_097, u64::MAX] {
            assert_eq!(named.last_name_with(ids[0], Mark::new(number)), None, "it has none");
            named.set_name(id, name_of(id), Mark::new(number));
            let is_known = |number| named.last_name_with(id, Mark::new(number)).is_some();
            assert!(is_known(number) && !is_known(number ^ 1) && !is_known(number ^ 0x800));
        }
    }

    #[test]
    fn a_name_that_is_taken_back_matches_no_more_and_leaves_the_owners() {
        let (words, ids) = owned_blocks();
        let id = ids[2];
        for spare in [false, true] {
            let again = spare;
            assert!(words.give_name(
                id,
                NewName { again, spare, ..NewName::only(name_of(id)) },
                true,
                |_| {}
            ));
            words.retain(id).expect("a block in use");
            words.take_name_back(id);
            assert!(!words.is_cached_as(id, name_of(id)));
            assert_eq!(words.view().acquire(id, true), None);
            assert_eq!(words.view().release_shared(id), crate::pool::word::Left::Owned);
            assert_eq!(words.state(id), BlockState::SOLE);
        }
    }

    #[test]
    fn names_that_differ_in_a_bit_are_told_apart_and_spread() {
        let spreads: Vec<_> = (0..128).map(|bit| Name::new(1 << bit).spread()).collect();
        let distinct: std::collections::HashSet<_> = spreads.iter().collect();
        assert!(distinct.len() >= 127, "{} of 128", distinct.len());
        let places = spreads.iter().map(|(spread, _)| spread >> 54);
        let places: std::collections::HashSet<_> = places.collect();
        assert!(places.len() > 100, "{} places of 1,024", places.len());
    }
}
