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

#[cfg(test)]
mod tests;
mod words;

pub(super) use self::words::NamedBlock;
pub(crate) use self::words::{BlockWords, WordsView};
use crate::id::BlockId;

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
