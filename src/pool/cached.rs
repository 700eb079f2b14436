//! What can be done with a block that has a name? The pool's operations on cached blocks.

use super::Blocks;
use super::free_list::Matching;
use super::name::{Mark, Name, NamedView, NewName};
use crate::id::BlockId;

impl Blocks {
    /// Begins to acquire cached blocks.
    pub(crate) fn matching(&self) -> Matching<'_> {
        self.free.matching(&self.words)
    }

    /// True if the block is cached under `name` at a moment during the call.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, name: Name) -> bool {
        self.words.is_cached_as(id, name)
    }

    /// All of their words and names, for a loop over many.
    #[inline]
    pub(crate) fn named(&self) -> NamedView<'_> {
        self.words.named()
    }

    /// The name that a block of the caller's was given last, if that was with `mark`.
    pub(crate) fn last_name(&self, id: BlockId, mark: Mark) -> Option<Name> {
        self.words.named().last_name_with(id, mark)
    }

    /// True if nobody owns the block.
    pub(crate) fn is_idle(&self, id: BlockId) -> bool {
        self.words.state(id).is_idle()
    }

    /// True if the block's content was asked for again since it was cached.
    pub(crate) fn is_again(&self, id: BlockId) -> bool {
        self.words.state(id).is_again()
    }

    /// Names a block of the caller's; see `BlockWords::give_name`.
    pub(crate) fn give_name(
        &self,
        id: BlockId,
        new: NewName,
        is_private: bool,
        renamed: impl FnOnce(Name),
    ) -> bool {
        self.words.give_name(id, new, is_private, renamed)
    }

    /// Takes the name of a block of the caller's back; see `BlockWords::take_name_back`.
    pub(crate) fn take_name_back(&self, id: BlockId) {
        self.words.take_name_back(id);
    }

    /// True if the block has a name that it may be matched by.
    #[inline]
    pub(crate) fn is_cached(&self, id: BlockId) -> bool {
        self.words.state(id).is_cached()
    }

    /// True if what is called `name` was reclaimed of late, as far as the policy remembers that.
    pub(crate) fn was_reclaimed_of_late(&self, name: Name) -> bool {
        self.free.was_reclaimed_of_late(name)
    }
}
