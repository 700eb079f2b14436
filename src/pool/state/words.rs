//! Where are the words of a pool, and how do they change? [`WordsView`] commits the transitions of
//! [`BlockState`], each with the ordering that it needs.
//!
//! It does not know which transition is right when: its callers do.

use super::{BlockState, IdleBlock, Left, LeftIdle, SPARE, WasIdle};
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, bring_near};

/// A block that can have a name: two of them to a cache line.
#[repr(align(32))]
pub(crate) struct NamedBlock {
    pub(super) word: AtomicU32,
    /// How often the block was given a name, and the mark of the last.
    pub(in crate::pool) renames: AtomicU32,
    /// The lower half first.
    pub(in crate::pool) name: [AtomicU64; 2],
    /// The block whose content came next, where this one's was computed last.
    pub(in crate::pool) follower: AtomicU32,
}

impl NamedBlock {
    fn new() -> Self {
        let [word, renames, follower] = std::array::from_fn(|_| AtomicU32::new(0));
        let name = std::array::from_fn(|_| AtomicU64::new(0));
        Self { word, renames, name, follower }
    }
}

/// The words of all blocks of a pool.
pub(crate) struct BlockWords {
    /// Of blocks without names: 4 bytes a block.
    bare: Box<[AtomicU32]>,
    /// Of blocks that can have names: 32 bytes a block. One of the two is empty.
    pub(in crate::pool) named: Box<[NamedBlock]>,
    /// True once anyone has counted by id: owners may then appear that no owner made.
    counted_by_id: AtomicBool,
}

impl BlockWords {
    /// Words of blocks without names.
    pub(crate) fn new(num_blocks: usize) -> Result<Self> {
        Ok(Self {
            bare: array_of(num_blocks, || AtomicU32::new(0))?,
            named: Box::new([]),
            counted_by_id: AtomicBool::new(false),
        })
    }

    /// Words of blocks that can have names.
    pub(crate) fn with_names(num_blocks: usize) -> Result<Self> {
        let named = array_of(num_blocks, NamedBlock::new)?;
        Ok(Self { named, ..Self::new(0)? })
    }

    /// True if blocks can have names.
    pub(crate) fn have_names(&self) -> bool {
        !self.named.is_empty()
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
        if self.have_names() { WordsView::Named(&self.named) } else { WordsView::Bare(&self.bare) }
    }

    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        self.view().state(id)
    }

    /// Adds an owner. Refused, with the state that refused it, for a block without an owner and for a
    /// full count.
    pub(crate) fn retain(&self, id: BlockId) -> Result<(), BlockState> {
        // Relaxed: the caller already may use the block, so nothing is handed over here.
        self.view().attempt(id, Ordering::Relaxed, BlockState::retain).map(|_| ())
    }
}

/// The words of all blocks, at hand.
#[derive(Clone, Copy)]
pub(crate) enum WordsView<'a> {
    Bare(&'a [AtomicU32]),
    Named(&'a [NamedBlock]),
}

impl<'a> WordsView<'a> {
    #[inline]
    fn word(&self, id: BlockId) -> &'a AtomicU32 {
        match self {
            Self::Bare(words) => &words[id.index()],
            Self::Named(blocks) => &blocks[id.index()].word,
        }
    }

    /// To be called before many words are written one after the other.
    #[inline]
    pub(crate) fn bring_near(&self, ids: impl Iterator<Item = BlockId>) {
        // Relaxed: what is seen is not used.
        bring_near(ids.map(|id| u64::from(self.word(id).load(Ordering::Relaxed))));
    }

    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        // Acquire: pairs with the release half of the exchange in `release_shared`; whoever sees itself
        // the only owner left sees everything the others did with the block.
        // Loom: a_sole_owner_sees_the_others_leave.
        BlockState(self.word(id).load(Ordering::Acquire))
    }

    /// Free -> one owner, for a caller that took `id` off the free list and so is alone with it.
    #[inline]
    pub(crate) fn occupy(&self, id: BlockId) {
        let word = self.word(id);
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
        let word = self.word(id);
        // Acquire: as in `state`.
        let sole = BlockState(word.load(Ordering::Acquire)) == BlockState::SOLE;
        if sole {
            // Relaxed: the claim that the caller holds publishes it with the block.
            word.store(BlockState::FREE.0, Ordering::Relaxed);
        }
        sole
    }

    /// One owner fewer, where others may own the block, match it by its name or count it by id.
    pub(crate) fn release_shared(&self, id: BlockId) -> Left {
        // AcqRel: release, so that the last owner sees what this one did with the block; acquire,
        // because this one may be the last. Loom: last_release_sees_every_owner.
        let state = self.transition(id, Ordering::AcqRel, BlockState::release);
        match state.expect("a block is released once by each of its owners") {
            BlockState::FREE => Left::Free,
            idle if idle.is_idle() => Left::Idle(LeftIdle::new(id, idle)),
            _ => Left::Owned,
        }
    }

    /// One more owner of a block that is matched by its name, which is to be compared *after* this:
    /// the block keeps its name while it has an owner. `None` if the block is not cached (any
    /// more), else whether it was idle. The content may be asked for `again` thereby. For the holder
    /// of a claim.
    #[inline]
    pub(in crate::pool) fn acquire(&self, id: BlockId, again: bool) -> Option<WasIdle> {
        // Acquire: pairs with `end_naming`, for the name and for the contents behind it.
        // Loom: a_match_sees_what_was_published.
        let state = self.transition(id, Ordering::Acquire, |state| state.acquire(again))?;
        Some(WasIdle(state.owners() == 1))
    }

    /// Lets an idle block be as one that was just left. For the holder of a claim, who pushes its entry.
    pub(in crate::pool) fn renew_idle(&self, id: BlockId) -> Option<LeftIdle> {
        // Relaxed: nothing is handed over; who reclaims it sees what its users did through the word.
        let idle = self.transition(id, Ordering::Relaxed, BlockState::renew_idle)?;
        Some(LeftIdle::new(id, idle))
    }

    /// Makes the caller the only owner of a block that is idle since the epoch of `idle`, until it
    /// finishes the reclaim or undoes it. Else false: somebody has used it since.
    pub(in crate::pool) fn reclaim(&self, idle: IdleBlock) -> bool {
        // Acquire: pairs with the release half of the exchange in `release_shared`; the next owner
        // sees all that the last ones did. Loom: a_reclaimed_block_is_in_one_hand.
        let step = |state: BlockState| state.reclaim(idle.epoch);
        self.transition(idle.id, Ordering::Acquire, step).is_some()
    }

    /// Makes a block idle again that the caller has just reclaimed.
    pub(in crate::pool) fn undo_reclaim(&self, id: BlockId) -> LeftIdle {
        let word = self.word(id);
        // Relaxed: nobody else changes it.
        let idle = BlockState(word.load(Ordering::Relaxed)).undo_reclaim();
        // Release: as in `release_shared`; an acquirer may come at once.
        word.store(idle.0, Ordering::Release);
        LeftIdle::new(id, idle)
    }

    /// Gives up the contents of a block that the caller has just reclaimed. True if it was spare.
    #[inline]
    pub(in crate::pool) fn finish_reclaim(&self, id: BlockId) -> bool {
        let word = self.word(id);
        // Relaxed: as in `undo_reclaim`; whoever the block goes to comes by it through the caller.
        let seen = word.load(Ordering::Relaxed);
        if BlockState(seen) != BlockState::SOLE {
            word.store(BlockState::SOLE.0, Ordering::Relaxed);
        }
        seen & SPARE != 0
    }

    /// True if the block is idle since the epoch of `idle`.
    pub(in crate::pool) fn is_idle_since(&self, idle: IdleBlock) -> bool {
        let state = self.state(idle.id);
        state.is_idle() && state.epoch() == idle.epoch
    }

    /// The right to write the block's name, for one of its owners, until
    /// [`end_naming`](Self::end_naming). False if it has a name, or gets one from another owner.
    pub(in crate::pool) fn begin_naming(&self, id: BlockId) -> bool {
        // Relaxed: the name's words are written with Release after it; see `name`.
        self.transition(id, Ordering::Relaxed, BlockState::begin_naming).is_some()
    }

    /// The block may be matched from now on. Its content may have come `again`, and it may be `spare`.
    pub(in crate::pool) fn end_naming(&self, id: BlockId, again: bool, spare: bool) {
        // Release: pairs with `acquire` and `state`. Loom: a_match_sees_what_was_published.
        let step = |state: BlockState| state.end_naming(again, spare);
        let state = self.transition(id, Ordering::Release, step);
        assert!(state.is_some(), "a name is ended by who began it");
    }

    /// The block may not be matched any more, for one of its owners.
    pub(in crate::pool) fn end_caching(&self, id: BlockId) {
        // Relaxed: nothing is handed over; who has matched it is an owner already.
        let state = self.transition(id, Ordering::Relaxed, BlockState::end_caching);
        assert!(state.is_some(), "a name is taken back once, by who gave it");
    }

    /// Commits `step` and returns the new state, or `None` where `step` refuses.
    #[inline]
    #[cfg_attr(paged_kv_loom, track_caller)] // each caller's ordering is weakened by itself
    fn transition(
        &self,
        id: BlockId,
        order: Ordering,
        step: impl Fn(BlockState) -> Option<BlockState>,
    ) -> Option<BlockState> {
        self.attempt(id, order, step).ok()
    }

    /// Commits `step` and returns the new state, or else the state that `step` refuses.
    #[inline]
    #[cfg_attr(paged_kv_loom, track_caller)] // as in `transition`
    fn attempt(
        &self,
        id: BlockId,
        order: Ordering,
        step: impl Fn(BlockState) -> Option<BlockState>,
    ) -> Result<BlockState, BlockState> {
        let word = self.word(id);
        // Relaxed: only a guess, the exchange checks it.
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let next = step(BlockState(seen)).ok_or(BlockState(seen))?;
            match word.compare_exchange_weak(seen, next.0, order, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
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
