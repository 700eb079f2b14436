//! Operations of [`Blocks`] on cached blocks: those that have a name by which a prompt can match them.

use super::Blocks;
use super::free_list::Matching;
use super::name::{Mark, Name, NamedView, NewName};
use crate::id::BlockId;

impl Blocks {
    /// Claims a shard, to acquire cached blocks under that claim.
    pub(crate) fn matching(&self) -> Matching<'_> {
        self.free.matching(&self.words)
    }

    /// Returns true if the block is cached under `name` at a moment during the call.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, name: Name) -> bool {
        self.words.is_cached_as(id, name)
    }

    /// Returns the words and names of all blocks, for a loop over many blocks.
    #[inline]
    pub(crate) fn named(&self) -> NamedView<'_> {
        self.words.named()
    }

    /// Returns the name that was last given to a block of the caller, if it was given with `mark`.
    pub(crate) fn last_name(&self, id: BlockId, mark: Mark) -> Option<Name> {
        self.words.named().last_name_with(id, mark)
    }

    /// Returns true if the block is cached and has no owner.
    pub(crate) fn is_idle(&self, id: BlockId) -> bool {
        self.words.state(id).is_idle()
    }

    /// Returns true if the block's content was asked for again since it was cached, or had come back by
    /// then.
    pub(crate) fn is_again(&self, id: BlockId) -> bool {
        self.words.state(id).is_again()
    }

    /// Gives a name to a block of the caller; see `BlockWords::give_name`.
    pub(crate) fn give_name(
        &self,
        id: BlockId,
        new: NewName,
        is_private: bool,
        renamed: impl FnOnce(Name),
    ) -> bool {
        self.words.give_name(id, new, is_private, renamed)
    }

    /// Takes back the name of a block of the caller; see `BlockWords::take_name_back`.
    pub(crate) fn take_name_back(&self, id: BlockId) {
        self.words.take_name_back(id);
    }

    /// Returns true if a prompt may match the block by its name.
    #[inline]
    pub(crate) fn is_cached(&self, id: BlockId) -> bool {
        self.words.state(id).is_cached()
    }

    /// Returns true if the content with this `name` was recently reclaimed, as far as the policy
    /// remembers that.
    pub(crate) fn was_reclaimed_of_late(&self, name: Name) -> bool {
        self.free.was_reclaimed_of_late(name)
    }
}
