//! The uses of a sequence's prompt, for the learned order of reclaim: `Sequence` writes notes beside its blocks when it
//! is dropped, whichever operation drops it.

use super::Sequence;
use crate::pool::{PromptUses, ReuseHint};

impl Sequence {
    /// Notes the earlier uses of the prompt with which the sequence was admitted.
    pub(crate) fn set_uses(&mut self, uses: PromptUses) {
        self.uses = Some(Box::new(uses));
    }

    /// Notes the caller's hint for the release of this sequence. Without effect in pools without a
    /// learned order.
    pub(crate) fn set_reuse_hint(&mut self, hint: ReuseHint) {
        if self.table.pool().density().is_some() {
            self.uses.get_or_insert_default().hint = hint;
        }
    }

    /// Returns the same uses for a fork.
    #[inline]
    pub(super) fn uses_of_fork(&self) -> Option<Box<PromptUses>> {
        #[cold]
        fn copy(uses: &PromptUses) -> Box<PromptUses> {
            Box::new(uses.clone())
        }
        self.uses.as_deref().map(copy)
    }

    #[cold]
    #[inline(never)]
    fn note_release(&self, uses: &PromptUses) {
        self.table.pool().note_release(self.table.as_slice(), uses, self.num_tokens);
    }
}

impl Drop for Sequence {
    #[inline]
    fn drop(&mut self) {
        if let Some(uses) = self.uses.take() {
            self.note_release(&uses);
        }
    }
}
