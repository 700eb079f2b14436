//! May block n be used, and by whom? One `u32` word per block, in a fixed array.
//!
//! A word is a [`BlockState`]: a count of *owners* in its low 20 bits (private tables, runs and
//! pins, each one owner), four flags, and the *epoch* of a cached block, which each time it becomes
//! idle counts on. The transitions are pure functions of the value; [`WordsView`] only commits them.
//!
//! ```text
//!                  owners   cached     last release     reclaim
//!   Free           0        no         an assert        no
//!   Active         1 ..     no         Free             no
//!   Matchable      1 ..     yes        Idle, epoch + 1  no
//!   Idle           0        yes        an assert        Active, of one owner
//! ```
//!
//! Where contents are cached a block has a *name* beside its word, on the same cache line:
//! [`Name`](super::name::Name). It may be written only by who set the word's `naming` flag.
//!
//! Invariant: a block is in the free list exactly when its word says [`FREE`](BlockState::FREE),
//! and has an entry of its epoch among the idle ones when its word says that it is idle, for anyone who
//! looks while no home shard is claimed. (Other entries lead nowhere.)
//!
//! A word does not know where its block is, nor what it holds.

#[cfg(all(test, not(paged_kv_loom)))]
mod tests;

use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, bring_near};

/// The bits of a word that count owners.
const OWNERS: u32 = (1 << 20) - 1;

/// The block may be matched by its name.
const CACHED: u32 = 1 << 20;

/// An owner is writing the block's name.
const NAMING: u32 = 1 << 21;

/// The content was asked for again since the block is cached, or had come back by then.
const AGAIN: u32 = 1 << 22;

/// Another block was cached under the same name when this one was, and nobody has asked for this one
/// since.
const SPARE: u32 = 1 << 23;

/// Where the epoch begins, which takes the rest of the word.
const EPOCH: u32 = 24;

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

    /// One more owner. None for a block without one, free or idle, and for a full count.
    pub(crate) fn retain(self) -> Option<Self> {
        (1..MAX_OWNERS).contains(&self.owners()).then(|| Self(self.0 + 1))
    }

    /// One owner fewer. None for a block without one.
    pub(crate) fn release(self) -> Option<Self> {
        let left = (self.owners() > 0).then(|| Self(self.0 - 1))?;
        Some(if left.is_idle() { left.with_epoch(left.epoch().wrapping_add(1)) } else { left })
    }

    /// True for a block that its name may be matched by.
    pub(crate) fn is_cached(self) -> bool {
        self.0 & CACHED != 0
    }

    /// True for a cached block whose content was asked for again, or had come back when it was cached.
    pub(crate) fn is_again(self) -> bool {
        self.is_cached() && self.0 & AGAIN != 0
    }

    /// True for a cached block that nobody owns.
    /// True when so many own the block, and nothing else is said of it.
    pub(crate) fn has_only_owners(self, owners: u32) -> bool {
        self == Self(owners)
    }

    pub(crate) fn is_idle(self) -> bool {
        self.is_cached() && self.owners() == 0
    }

    /// True for a cached block that is one copy more of a content, and was not asked for since.
    pub(crate) fn is_spare(self) -> bool {
        self.is_cached() && self.0 & SPARE != 0
    }

    /// How often the block has become idle since it was cached, modulo 256.
    pub(crate) fn epoch(self) -> u8 {
        (self.0 >> EPOCH) as u8
    }

    /// One more owner, who came by the block's name, and may ask for it `again`: it is spare no more.
    /// None for a block that has none, and for a full count.
    fn acquire(self, again: bool) -> Option<Self> {
        let again = if again { AGAIN } else { 0 };
        let one_more = || Self(((self.0 + 1) | again) & !SPARE);
        (self.is_cached() && self.owners() < MAX_OWNERS).then(one_more)
    }

    /// Idle -> idle, in the next epoch, and spare no more. None unless it is.
    fn renew_idle(self) -> Option<Self> {
        let renewed = || Self(self.0 & !SPARE).with_epoch(self.epoch().wrapping_add(1));
        self.is_idle().then(renewed)
    }

    /// Idle -> one owner, who may write it once the reclaim is finished: until then it can be undone.
    /// None unless the block is idle, in `epoch`.
    fn reclaim(self, epoch: u8) -> Option<Self> {
        (self.is_idle() && self.epoch() == epoch).then_some(Self(1 | (self.0 & (AGAIN | SPARE))))
    }

    /// One owner whose reclaim is not finished -> idle, in the first epoch.
    fn undo_reclaim(self) -> Self {
        assert_eq!(self.owners(), 1, "who reclaims a block is its only owner");
        Self(CACHED | (self.0 & (AGAIN | SPARE)))
    }

    /// One of its owners begins to write its name. None if it has one, or is being given one.
    fn begin_naming(self) -> Option<Self> {
        assert!(self.owners() > 0, "a block is named by one of its owners");
        (self.0 & (CACHED | NAMING) == 0).then_some(Self(self.0 | NAMING))
    }

    /// The name is written: the block may be matched from now on. Its content may have come `again`,
    /// and the block may be `spare`.
    fn end_naming(self, again: bool, spare: bool) -> Option<Self> {
        let again = if again { AGAIN } else { 0 };
        let spare = if spare { SPARE } else { 0 };
        assert!(self.owners() > 0, "a block is named by one of its owners");
        (!self.is_cached()).then_some(Self((self.0 & !NAMING) | CACHED | again | spare))
    }

    /// Cached -> owned only. None unless it is cached.
    fn end_caching(self) -> Option<Self> {
        assert!(self.owners() > 0, "a name is taken back by one of the block's owners");
        self.is_cached().then_some(Self(self.owners()))
    }

    fn with_epoch(self, epoch: u8) -> Self {
        Self((self.0 & ((1 << EPOCH) - 1)) | (u32::from(epoch) << EPOCH))
    }
}

/// What a release left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Others own the block.
    Owned,
    /// Nobody does, and it is free.
    Free,
    /// Nobody does, and its contents stay.
    Idle(LeftIdle),
}

/// A block that has just become idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeftIdle {
    pub(crate) block: IdleBlock,
    /// Its content was asked for again since it was cached, or had come back by then.
    pub(crate) again: bool,
    /// Another block was cached under its name when it was, and nobody has asked for it since.
    pub(crate) spare: bool,
}

impl LeftIdle {
    fn new(id: BlockId, idle: BlockState) -> Self {
        let block = IdleBlock { id, epoch: idle.epoch() };
        Self { block, again: idle.is_again(), spare: idle.is_spare() }
    }
}

/// A block that became idle, in which of its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleBlock {
    pub(crate) id: BlockId,
    pub(crate) epoch: u8,
}

impl IdleBlock {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.id.0) | u64::from(self.epoch) << 32
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self { id: BlockId(bits as u32), epoch: (bits >> 32) as u8 }
    }
}

/// True for a block that nobody owned before it was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WasIdle(pub(super) bool);

/// A block that can have a name: two of them to a cache line.
#[repr(align(32))]
pub(crate) struct NamedBlock {
    word: AtomicU32,
    /// How often the block was given a name, and the mark of the last.
    pub(super) renames: AtomicU32,
    /// The lower half first.
    pub(super) name: [AtomicU64; 2],
    /// The block whose content came next, where this one's was computed last.
    pub(super) follower: AtomicU32,
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
    pub(super) named: Box<[NamedBlock]>,
    /// True once anyone has counted by id: owners may then appear that no owner made.
    counted_by_id: AtomicBool,
}

impl BlockWords {
    /// Words of blocks without names.
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            bare: (0..num_blocks).map(|_| AtomicU32::new(0)).collect(),
            named: Box::new([]),
            counted_by_id: AtomicBool::new(false),
        }
    }

    /// Words of blocks that can have names.
    pub(crate) fn with_names(num_blocks: usize) -> Self {
        let named = (0..num_blocks).map(|_| NamedBlock::new()).collect();
        Self { named, ..Self::new(0) }
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
    pub(super) fn acquire(&self, id: BlockId, again: bool) -> Option<WasIdle> {
        // Acquire: pairs with `end_naming`, for the name and for the contents behind it.
        // Loom: a_match_sees_what_was_published.
        let state = self.transition(id, Ordering::Acquire, |state| state.acquire(again))?;
        Some(WasIdle(state.owners() == 1))
    }

    /// Lets an idle block be as one that was just left. For the holder of a claim, who pushes its entry.
    pub(super) fn renew_idle(&self, id: BlockId) -> Option<LeftIdle> {
        // Relaxed: nothing is handed over; who reclaims it sees what its users did through the word.
        let idle = self.transition(id, Ordering::Relaxed, BlockState::renew_idle)?;
        Some(LeftIdle::new(id, idle))
    }

    /// Makes the caller the only owner of a block that is idle since the epoch of `idle`, until it
    /// finishes the reclaim or undoes it. Else false: somebody has used it since.
    pub(super) fn reclaim(&self, idle: IdleBlock) -> bool {
        // Acquire: pairs with the release half of the exchange in `release_shared`; the next owner
        // sees all that the last ones did. Loom: a_reclaimed_block_is_in_one_hand.
        let step = |state: BlockState| state.reclaim(idle.epoch);
        self.transition(idle.id, Ordering::Acquire, step).is_some()
    }

    /// Makes a block idle again that the caller has just reclaimed.
    pub(super) fn undo_reclaim(&self, id: BlockId) -> LeftIdle {
        let word = self.word(id);
        // Relaxed: nobody else changes it.
        let idle = BlockState(word.load(Ordering::Relaxed)).undo_reclaim();
        // Release: as in `release_shared`; an acquirer may come at once.
        word.store(idle.0, Ordering::Release);
        LeftIdle::new(id, idle)
    }

    /// Gives up the contents of a block that the caller has just reclaimed. True if it was spare.
    #[inline]
    pub(super) fn finish_reclaim(&self, id: BlockId) -> bool {
        let word = self.word(id);
        // Relaxed: as in `undo_reclaim`; whoever the block goes to comes by it through the caller.
        let seen = word.load(Ordering::Relaxed);
        if BlockState(seen) != BlockState::SOLE {
            word.store(BlockState::SOLE.0, Ordering::Relaxed);
        }
        seen & SPARE != 0
    }

    /// True if the block is idle since the epoch of `idle`.
    pub(super) fn is_idle_since(&self, idle: IdleBlock) -> bool {
        let state = self.state(idle.id);
        state.is_idle() && state.epoch() == idle.epoch
    }

    /// The right to write the block's name, for one of its owners, until
    /// [`end_naming`](Self::end_naming). False if it has a name, or gets one from another owner.
    pub(super) fn begin_naming(&self, id: BlockId) -> bool {
        // Relaxed: the name's words are written with Release after it; see `name`.
        self.transition(id, Ordering::Relaxed, BlockState::begin_naming).is_some()
    }

    /// The block may be matched from now on. Its content may have come `again`, and it may be `spare`.
    pub(super) fn end_naming(&self, id: BlockId, again: bool, spare: bool) {
        // Release: pairs with `acquire` and `state`. Loom: a_match_sees_what_was_published.
        let step = |state: BlockState| state.end_naming(again, spare);
        let state = self.transition(id, Ordering::Release, step);
        assert!(state.is_some(), "a name is ended by who began it");
    }

    /// The block may not be matched any more, for one of its owners.
    pub(super) fn end_caching(&self, id: BlockId) {
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
