//! `SequenceUses`: the facts that the reclaim order gets of a sequence when it is released: the earlier uses of its
//! prompt, and the levels that the caller gave it. `Sequence` notes them beside its blocks when it is dropped,
//! whichever operation drops it.

use super::Sequence;
use super::retain::RetainedRanges;
use crate::pool::{PromptUses, ReuseHint};

/// The facts that a sequence notes at its release.
#[derive(Clone, Debug, Default)]
pub(crate) struct SequenceUses {
    prompt: PromptUses,
    levels: Option<PromptLevels>,
}

/// The levels of a prompt, of contents that were computed or matched after `resets` resets.
#[derive(Clone, Debug)]
struct PromptLevels {
    ranges: RetainedRanges,
    prompt_tokens: usize,
    resets: u64,
}

impl Sequence {
    /// Notes the earlier uses of the prompt with which the sequence was admitted.
    pub(crate) fn set_uses(&mut self, uses: PromptUses) {
        self.uses.get_or_insert_default().prompt = uses;
    }

    /// Notes the caller's hint for the release of this sequence. Without effect in pools without a
    /// learned order.
    pub(crate) fn set_reuse_hint(&mut self, hint: ReuseHint) {
        if self.table.pool().density().is_some() {
            self.uses.get_or_insert_default().prompt.hint = hint;
        }
    }

    /// Notes the levels of the prompt with which the sequence was admitted, when there had been `resets` resets.
    #[cold]
    pub(crate) fn set_levels(
        &mut self,
        ranges: &RetainedRanges,
        prompt_tokens: usize,
        resets: u64,
    ) {
        let levels = PromptLevels { ranges: ranges.clone(), prompt_tokens, resets };
        self.uses.get_or_insert_default().levels = Some(levels);
    }

    /// Returns the same uses for a fork.
    #[inline]
    pub(super) fn uses_of_fork(&self) -> Option<Box<SequenceUses>> {
        #[cold]
        fn copy(uses: &SequenceUses) -> Box<SequenceUses> {
            Box::new(uses.clone())
        }
        self.uses.as_deref().map(copy)
    }

    #[cold]
    #[inline(never)]
    fn note_release(&self, uses: &SequenceUses) {
        self.table.pool().note_release(self.table.as_slice(), &uses.prompt, self.num_tokens);
        self.note_levels(uses);
    }

    /// Notes the levels of the blocks, if the caller gave any.
    pub(super) fn note_levels(&self, uses: &SequenceUses) {
        let Some(PromptLevels { ranges, prompt_tokens, resets }) = &uses.levels else { return };
        let notes = (0..self.num_logical_blocks()).filter_map(|block| {
            let note = ranges.note_at(block * self.block_size, *prompt_tokens)?;
            Some((self.block_at(block)?, note))
        });
        self.table.pool().note_levels(notes, *resets);
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
