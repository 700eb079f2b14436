//! What is a block's content called? 128 bits beside the block's word.
//!
//! A name is written by one owner at a time, who is alone with the block or is between `begin_naming`
//! and `end_naming`, and stays after the block is reclaimed until the next naming: who finds the block
//! by an old name sees by the word that it is not cached.
//!
//! Invariant: while a block is cached and owned its name does not change. A name does not know what
//! it is a name of; 0 is no name.

use super::state::{BlockState, BlockWords, WordsView};
use crate::id::BlockId;
use crate::sync::Ordering;

/// What a block's content is called. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name(u128);

impl Name {
    pub(crate) fn new(bits: u128) -> Self {
        Self(bits.max(1))
    }

    /// 64 bits that any name chooses evenly: callers that hash themselves may give small numbers.
    #[inline]
    pub(crate) fn spread(self) -> u64 {
        let (high, low) = ((self.0 >> 64) as u64, self.0 as u64);
        let mixed = (low ^ high.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 32) ^ high).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}

impl WordsView<'_> {
    /// The name that the block was given last. Whole only if the block was not renamed meanwhile, as
    /// when the caller owns it.
    pub(crate) fn name(&self, id: BlockId) -> Option<Name> {
        // Acquire: pairs with `set_name`; who reads a part of a new name sees in the word that it is
        // being written. Loom: a_probe_never_reads_half_a_name.
        let words = self.name_words(id).iter();
        let bits =
            words.rev().fold(0, |bits, word| bits << 32 | u128::from(word.load(Ordering::Acquire)));
        (bits != 0).then_some(Name(bits))
    }

    /// How often the block was given a name.
    fn renames(&self, id: BlockId) -> u32 {
        // Acquire: pairs with `set_name`; a reader who finds the same number before and after it read
        // the name has read one name. Loom: a_probe_never_reads_half_a_name.
        self.rename_word(id).load(Ordering::Acquire)
    }

    /// Writes the name, for who began the naming.
    fn set_name(&self, id: BlockId, name: Name) {
        let renames = self.rename_word(id);
        // Release: pairs with `renames`; who sees this number sees that the block is being named.
        renames.store(renames.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        for (part, word) in self.name_words(id).iter().enumerate() {
            // Release: pairs with `name`.
            word.store((name.0 >> (32 * part)) as u32, Ordering::Release);
        }
    }
}

impl BlockWords {
    /// True if the block is cached under `name` at a moment during the call. Writes nothing.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, name: Name) -> bool {
        let words = self.view();
        let renames = words.renames(id);
        words.state(id).is_cached() && words.name(id) == Some(name) && words.renames(id) == renames
    }

    /// Names a block, for one of its owners, in whose table alone it may be (`is_private`); it may be
    /// matched as soon as this returns. Calls `renamed` in between with the name it had, if any. The
    /// content may have come `again`. False if the block is cached already, or is being named by
    /// another owner.
    pub(crate) fn give_name(
        &self,
        id: BlockId,
        name: Name,
        again: bool,
        is_private: bool,
        renamed: impl FnOnce(Name),
    ) -> bool {
        let words = self.view();
        // Of a private block with one owner that owner is the caller, and others (who count by id)
        // name nothing: then there is nobody to keep out.
        let is_alone = is_private && words.state(id) == BlockState::SOLE;
        if !is_alone && !words.begin_naming(id) {
            return false;
        }
        if let Some(old) = words.name(id) {
            renamed(old);
        }
        words.set_name(id, name);
        words.end_naming(id, again);
        true
    }
}
