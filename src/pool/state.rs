//! May block n be used, and by whom? One `u32` word per block, in a fixed array.
//!
//! A word is a [`BlockState`]: a count of *owners* in its low 28 bits (private tables, runs and
//! pins, each one owner) and four bits kept for flags. The transitions are pure functions of the
//! value; [`WordsView`] only commits them.
//!
//! Invariant: a block is in the free list exactly when its word says [`FREE`](BlockState::FREE),
//! for anyone who looks while no home shard is claimed.
//!
//! A word does not know where its block is, nor what it holds.

use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// The bits of a word that count owners.
const OWNERS: u32 = (1 << 28) - 1;

/// The most owners one block can have. Few under test, where the limit has to be met.
const MAX_OWNERS: u32 = if cfg!(test) { 64 } else { OWNERS };

/// The value of a block's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockState(u32);

impl BlockState {
    /// Nobody owns the block.
    pub(crate) const FREE: Self = Self(0);
    /// One owner: the block may be written by it.
    pub(crate) const SOLE: Self = Self(1);

    pub(crate) fn owners(self) -> u32 {
        self.0 & OWNERS
    }

    /// One more owner. None for a free block and for a full count.
    pub(crate) fn retain(self) -> Option<Self> {
        (1..MAX_OWNERS).contains(&self.owners()).then(|| Self(self.0 + 1))
    }

    /// One owner fewer. None for a free block.
    pub(crate) fn release(self) -> Option<Self> {
        (self.owners() > 0).then(|| Self(self.0 - 1))
    }
}

/// The words of all blocks of a pool.
pub(crate) struct BlockWords {
    words: Box<[AtomicU32]>,
    /// True once anyone has counted by id: owners may then appear that no owner made.
    counted_by_id: AtomicBool,
}

/// How many of each block's owners are counts by id: what a release by id may take off.
pub(crate) struct IdCounts {
    counts: Box<[AtomicU32]>,
}

impl IdCounts {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self { counts: (0..num_blocks).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Counts an owner that the block's word has counted already.
    pub(crate) fn add(&self, id: BlockId) {
        // Relaxed: pairs with nothing. A release by id that may rely on it comes after this call.
        self.counts[id.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back one count, before the block's word does. `None` if there is none left.
    pub(crate) fn remove(&self, id: BlockId) -> Option<()> {
        let count = &self.counts[id.index()];
        // Relaxed: of two racing releases the atomicity lets one pass; the word orders the rest.
        let removed =
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        removed.ok().map(|_| ())
    }
}

impl BlockWords {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            words: (0..num_blocks).map(|_| AtomicU32::new(BlockState::FREE.0)).collect(),
            counted_by_id: AtomicBool::new(false),
        }
    }

    /// Announces owners that no owner made, before they appear.
    pub(crate) fn expect_counts_by_id(&self) {
        // Relaxed: what this call does not happen before may come first all the same.
        self.counted_by_id.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_counted_by_id(&self) -> bool {
        // Relaxed: pairs with nothing; see `expect_counts_by_id`.
        self.counted_by_id.load(Ordering::Relaxed)
    }

    /// The words for a loop over many blocks: where they are is then known in registers, and not
    /// read anew after each word written.
    #[inline]
    pub(crate) fn view(&self) -> WordsView<'_> {
        WordsView(&self.words)
    }

    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        self.view().state(id)
    }

    /// One more owner. Refused (`None`) for a free block and for a full count.
    pub(crate) fn retain(&self, id: BlockId) -> Option<()> {
        // Relaxed: the caller already may use the block, so nothing is handed over here.
        self.view().transition(id, Ordering::Relaxed, BlockState::retain).map(|_| ())
    }
}

/// The words of all blocks, at hand.
#[derive(Clone, Copy)]
pub(crate) struct WordsView<'a>(&'a [AtomicU32]);

impl WordsView<'_> {
    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        // Acquire: pairs with the release half of the exchange in `release_shared`; whoever sees itself
        // the only owner left sees everything the others did with the block.
        // Loom: a_sole_owner_sees_the_others_leave.
        BlockState(self.0[id.index()].load(Ordering::Acquire))
    }

    /// Free -> one owner, for a caller that took `id` off the free list and so is alone with it.
    #[inline]
    pub(crate) fn occupy(&self, id: BlockId) {
        let word = &self.0[id.index()];
        // Relaxed: the caller holds the claim under which the block was freed, and the claim's
        // hand-over orders both accesses.
        if BlockState(word.load(Ordering::Relaxed)) != BlockState::FREE {
            free_but_owned(id);
        }
        word.store(BlockState::SOLE.0, Ordering::Relaxed);
    }

    /// Frees a block that the caller is the only owner of. Else false, and nothing has changed.
    ///
    /// A sole owner is alone with the word (nobody becomes an owner but through an owner), so a
    /// plain store does. Only counting by id can break that rule, if its caller is wrong about the
    /// block being owned: once anyone counts by id, [`release_shared`](Self::release_shared) is
    /// for all.
    #[inline]
    pub(crate) fn release_sole(&self, id: BlockId) -> bool {
        let word = &self.0[id.index()];
        // Acquire: as in `state`.
        let sole = BlockState(word.load(Ordering::Acquire)) == BlockState::SOLE;
        if sole {
            // Relaxed: the claim that the caller holds publishes it with the block.
            word.store(BlockState::FREE.0, Ordering::Relaxed);
        }
        sole
    }

    /// One owner fewer, where others may own the block or count it by id. True when it was the
    /// last.
    pub(crate) fn release_shared(&self, id: BlockId) -> bool {
        // AcqRel: release, so that the last owner sees what this one did with the block; acquire,
        // because this one may be the last. Loom: last_release_sees_every_owner.
        let state = self.transition(id, Ordering::AcqRel, BlockState::release);
        state.expect("a block is released once by each of its owners") == BlockState::FREE
    }

    /// Commits `step` and returns the new state, or `None` where `step` refuses.
    fn transition(
        &self,
        id: BlockId,
        order: Ordering,
        step: impl Fn(BlockState) -> Option<BlockState>,
    ) -> Option<BlockState> {
        let word = &self.0[id.index()];
        // Relaxed: only a guess, the exchange checks it.
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let next = step(BlockState(seen))?;
            match word.compare_exchange_weak(seen, next.0, order, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }
}

/// Out of line, and by value: a message that borrows `id` would have each block store it.
#[cold]
#[inline(never)]
fn free_but_owned(id: BlockId) -> ! {
    panic!("a block in the free list has no owner, {id} has");
}

#[cfg(all(test, not(paged_kv_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_free_block_can_be_neither_retained_nor_released() {
        assert_eq!(BlockState::FREE.retain(), None);
        assert_eq!(BlockState::FREE.release(), None);
    }

    #[test]
    fn a_full_count_is_refused() {
        let full = BlockState(MAX_OWNERS);
        assert_eq!(full.retain(), None);
        assert_eq!(BlockState(MAX_OWNERS - 1).retain(), Some(full));
    }

    #[test]
    fn retain_and_release_are_inverse() {
        for owners in 1..MAX_OWNERS {
            assert_eq!(
                BlockState(owners).retain().and_then(BlockState::release).unwrap().0,
                owners
            );
        }
    }

    #[test]
    #[should_panic(expected = "released once by each of its owners")]
    fn a_second_release_is_an_assert() {
        let words = BlockWords::new(1);
        words.view().occupy(BlockId(0));
        assert!(words.view().release_sole(BlockId(0)));
        assert!(!words.view().release_sole(BlockId(0)));
        words.view().release_shared(BlockId(0));
    }

    #[test]
    #[should_panic(expected = "in the free list has no owner")]
    fn occupying_an_owned_block_is_an_assert() {
        let words = BlockWords::new(1);
        words.view().occupy(BlockId(0));
        words.view().occupy(BlockId(0));
    }
}
