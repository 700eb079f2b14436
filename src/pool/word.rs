//! `BlockState`: the value of a block's word, which says how many owners the block has and whether it
//! is cached. A pool has one `u32` word per block, in a fixed array.
//!
//! A word holds a count of *owners* in its low 20 bits, four flags, and the *epoch* of a cached block.
//! An owner is a table, a run or a count by id. The epoch is increased each time the block becomes
//! idle. The transitions are pure functions of the value; [`WordsView`] only commits them.
//!
//! ```text
//!                  owners   cached     last release     reclaim
//!   Free           0        no         an assert        no
//!   Active         1 ..     no         Free             no
//!   Active         1 ..     yes        Idle, epoch + 1  no
//!   Idle           0        yes        an assert        Active, of one owner
//!   Held           1        yes        Idle             no
//! ```
//!
//! A block is *held* while its only owner has acquired it from idle without using its content. It keeps its epoch, and
//! by that its place among the idle blocks. It is *passed* once a reclaim has removed its entry. A match ends both.
//!
//! Where contents are cached, a block has a *key* beside its word, on the same cache line:
//! [`ContentKey`](super::content_key::ContentKey). Only the owner that set the word's [`KEY_BUSY`] flag, or a sole owner,
//! may write it.
//!
//! Invariant, for a thread that reads while no other thread has a claim: a block is in the free list
//! exactly when its word says [`FREE`](BlockState::FREE). If its word says that it is idle, it has an
//! entry of its epoch among the idle blocks. (All other entries are stale.)
//!
//! A word says nothing of the place of its block, nor of the block's contents.

mod block_words;
#[cfg(test)]
mod tests;

pub(super) use self::block_words::KeyedBlock;
pub(crate) use self::block_words::{BlockWords, WordsView};
use crate::id::BlockId;

/// The bits of a word that count owners.
const OWNERS: u32 = (1 << 20) - 1;

/// A prompt may match the block by its key.
const CACHED: u32 = 1 << 20;

/// An owner is writing the block's key.
const KEY_BUSY: u32 = 1 << 21;

/// The content was asked for again since the block was cached, or had come back by then.
const HOT: u32 = 1 << 22;

/// Another block was cached under the same key when this one was, and no prompt has matched this one
/// since.
const SPARE: u32 = 1 << 23;

/// Of a cached block: it is held. The bit is shared with [`KEY_BUSY`], because the key of a cached block is not written.
const HELD: u32 = KEY_BUSY;

/// Of a held block: its entry among the idle blocks is gone. The bit is shared with [`SPARE`]: no held block is spare.
const PASSED: u32 = SPARE;

/// The lowest bit of the epoch, which takes the rest of the word.
const EPOCH: u32 = 24;

/// The most owners that a block can have. Few under test, so that tests reach the limit.
const MAX_OWNERS: u32 = if cfg!(test) { 64 } else { OWNERS };

/// The value of a block's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockState(u32);

impl BlockState {
    /// The block has no owner and no contents.
    pub(crate) const FREE: Self = Self(0);
    /// The block has one owner, which may write it.
    pub(crate) const SOLE: Self = Self(1);

    pub(crate) fn owners(self) -> u32 {
        self.0 & OWNERS
    }

    /// Adds an owner. Returns `None` for a block without owners (free or idle), and for a full count.
    pub(crate) fn retain(self) -> Option<Self> {
        (1..MAX_OWNERS).contains(&self.owners()).then(|| Self(self.0 + 1))
    }

    /// Removes an owner. Returns `None` for a block without owners.
    pub(crate) fn release(self) -> Option<Self> {
        let left = (self.owners() > 0).then(|| Self(self.0 - 1))?;
        // The last owner of a held block is its holder, which releases it by `release_held`.
        Some(if left.is_idle() { left.with_next_epoch() } else { left })
    }

    /// Returns true for a block that a prompt may match by its key.
    pub(crate) fn is_cached(self) -> bool {
        self.0 & CACHED != 0
    }

    /// Returns true for a cached block whose content was asked for again, or had come back when it was
    /// cached.
    pub(crate) fn is_hot(self) -> bool {
        self.is_cached() && self.0 & HOT != 0
    }

    /// Returns true if the word says only that the block has `owners` owners: no flag is set, and its epoch is 0.
    pub(crate) fn has_only_owners(self, owners: u32) -> bool {
        self == Self(owners)
    }

    /// Returns true for a cached block without owners.
    pub(crate) fn is_idle(self) -> bool {
        self.is_cached() && self.owners() == 0
    }

    /// Returns true for a cached block that is a further copy of a content and was not matched since.
    pub(crate) fn is_spare(self) -> bool {
        self.0 & (CACHED | SPARE | HELD) == CACHED | SPARE
    }

    fn is_held(self) -> bool {
        self.0 & (CACHED | HELD) == CACHED | HELD
    }

    /// Returns true if the block's entry of this epoch is of use: the block is idle, or may come back as it was.
    fn keeps_entry(self, epoch: u8) -> bool {
        let is_held = self.is_held() && self.0 & PASSED == 0;
        (self.is_idle() || is_held) && self.epoch() == epoch
    }

    /// Returns how often the block has become idle since it was cached, modulo 256.
    pub(crate) fn epoch(self) -> u8 {
        (self.0 >> EPOCH) as u8
    }

    /// Adds an owner that matched the block by its key, so that the block is no longer spare. With
    /// `hot` the content counts as asked for again. Returns `None` for a block that is not cached,
    /// and for a full count.
    fn acquire(self, hot: bool) -> Option<Self> {
        let hot = if hot { HOT } else { 0 };
        let one_more = || Self(((self.0 + 1) | hot) & !(SPARE | HELD));
        (self.is_cached() && self.owners() < MAX_OWNERS).then(one_more)
    }

    /// Adds an owner that does not use the content: an idle block is then held. Returns `None` as
    /// [`acquire`](Self::acquire) does.
    fn hold(self) -> Option<Self> {
        let is_first = self.is_idle() && !self.is_spare();
        if is_first { Some(Self((self.0 + 1) | HELD)) } else { self.acquire(false) }
    }

    /// Removes the holder of a held block. The block then is idle: since the same epoch, unless it was passed. If it was
    /// retained by its id, it has an owner and is held no more. Returns `None` for a block that is not held.
    fn release_held(self) -> Option<Self> {
        let left = self.is_held().then(|| Self((self.0 - 1) & !(HELD | PASSED)))?;
        let is_passed = left.is_idle() && self.0 & PASSED != 0;
        Some(if is_passed { left.with_next_epoch() } else { left })
    }

    /// Notes for a held block that its entry of this epoch is gone. Returns `None` for other blocks.
    fn pass(self, epoch: u8) -> Option<Self> {
        (self.is_held() && self.epoch() == epoch).then_some(Self(self.0 | PASSED))
    }

    /// Begins the next epoch of an idle block, which is then no longer spare. Returns `None` unless the
    /// block is idle.
    fn renew_idle(self) -> Option<Self> {
        let renewed = || Self(self.0 & !SPARE).with_next_epoch();
        self.is_idle().then(renewed)
    }

    /// Begins the next epoch of an idle block, which is spare from then on. Returns `None` unless the block is idle.
    fn renew_as_spare(self) -> Option<Self> {
        let renewed = || Self(self.0 | SPARE).with_epoch(self.epoch().wrapping_add(1));
        self.is_idle().then(renewed)
    }

    /// Gives an idle block one owner, which may write the block after the reclaim is finished. Until
    /// then the reclaim can be undone. Returns `None` unless the block is idle, in `epoch`.
    fn reclaim(self, epoch: u8) -> Option<Self> {
        (self.is_idle() && self.epoch() == epoch).then_some(Self(1 | (self.0 & (HOT | SPARE))))
    }

    /// Turns a block with one owner and an unfinished reclaim back into an idle one, in epoch 0.
    fn undo_reclaim(self) -> Self {
        assert_eq!(self.owners(), 1, "who reclaims a block is its only owner");
        Self(CACHED | (self.0 & (HOT | SPARE)))
    }

    /// Gives one of the owners the right to write the block's key. Returns `None` if the block has a
    /// key by which it may be matched, or another owner is writing one.
    fn begin_key_change(self) -> Option<Self> {
        assert!(self.owners() > 0, "a key is set by one of the block's owners");
        (self.0 & (CACHED | KEY_BUSY) == 0).then_some(Self(self.0 | KEY_BUSY))
    }

    /// Makes the block matchable, after its key is written. With `hot` its content counts as asked
    /// for again; with `spare` another block is cached under the key.
    fn end_key_change(self, hot: bool, spare: bool) -> Option<Self> {
        let hot = if hot { HOT } else { 0 };
        let spare = if spare { SPARE } else { 0 };
        assert!(self.owners() > 0, "a key is set by one of the block's owners");
        (!self.is_cached()).then_some(Self((self.0 & !KEY_BUSY) | CACHED | hot | spare))
    }

    /// Turns a cached block into one that is owned only. Returns `None` unless the block is cached.
    fn end_caching(self) -> Option<Self> {
        assert!(self.owners() > 0, "a key is taken back by one of the block's owners");
        self.is_cached().then_some(Self(self.owners()))
    }

    fn with_next_epoch(self) -> Self {
        self.with_epoch(self.epoch().wrapping_add(1))
    }

    fn with_epoch(self, epoch: u8) -> Self {
        Self((self.0 & ((1 << EPOCH) - 1)) | (u32::from(epoch) << EPOCH))
    }
}

/// The state of a block after a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// The block has other owners.
    Owned,
    /// The block has no owner and is free.
    Free,
    /// The block has no owner and keeps its contents.
    Idle(ReleasedIdle),
}

/// The state of a block after a release by an owner that did not use its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheld {
    /// The block is idle as it was before, with the same entry.
    InPlace,
    /// The block is idle, and its entry was removed meanwhile.
    Passed(ReleasedIdle),
    /// The block was used or uncached meanwhile, or had an owner before.
    Used(Released),
}

/// A block that has just become idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleasedIdle {
    pub(crate) block: IdleBlock,
    /// The content was asked for again since the block was cached, or had come back by then.
    pub(crate) hot: bool,
    /// Another block was cached under the same key when this one was, and no prompt has matched this
    /// one since.
    pub(crate) spare: bool,
}

impl ReleasedIdle {
    fn new(id: BlockId, idle: BlockState) -> Self {
        let block = IdleBlock { id, epoch: idle.epoch() };
        Self { block, hot: idle.is_hot(), spare: idle.0 & SPARE != 0 }
    }
}

/// A block that became idle, and the epoch in which it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleBlock {
    pub(crate) id: BlockId,
    pub(crate) epoch: u8,
}

/// True for a block that had no owner before it was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WasIdle(pub(super) bool);
