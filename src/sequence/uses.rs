//! `SequenceUses`: the facts that the reclaim order gets of a sequence when it is released: the earlier uses of its
//! prompt, and the levels that the caller gave it. `Sequence` notes them beside its blocks when it is dropped,
//! whichever operation drops it.

use std::ops::Range;

use super::Sequence;
use super::retain::RetainedRanges;
use crate::id::BlockId;
use crate::pool::{Blocks, PromptUses, ReuseHint};
use crate::sync::PlainArc;

/// The facts that a sequence notes at its release.
#[derive(Clone, Debug, Default)]
pub(crate) struct SequenceUses {
    prompt: PromptUses,
    levels: Option<PlainArc<PromptLevels>>,
}

/// The levels of a prompt, of contents that were computed or matched after `resets` resets.
#[derive(Debug)]
pub(crate) struct PromptLevels {
    ranges: RetainedRanges,
    prompt_tokens: usize,
    resets: u64,
    block_size: usize,
}

impl PromptLevels {
    /// Notes the levels of blocks of the caller, each with its number in the sequence.
    pub(crate) fn note(&self, pool: &Blocks, blocks: impl Iterator<Item = (usize, BlockId)>) {
        let notes = blocks.filter_map(|(block, id)| {
            let note = self.ranges.note_at(block * self.block_size, self.prompt_tokens)?;
            Some((id, note))
        });
        pool.note_levels(notes, self.resets);
    }
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
        let (ranges, block_size) = (ranges.clone(), self.block_size);
        let levels = PromptLevels { ranges, prompt_tokens, resets, block_size };
        self.uses.get_or_insert_default().levels = Some(PlainArc::new(levels));
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
        if let Some(levels) = &uses.levels {
            self.note_levels_of(levels, 0..self.num_logical_blocks());
        }
    }

    /// Returns the levels of the prompt, if the caller gave any.
    #[inline]
    pub(crate) fn levels(&self) -> Option<&PlainArc<PromptLevels>> {
        self.uses.as_deref().and_then(|uses| uses.levels.as_ref())
    }

    /// Notes the levels of blocks that the sequence is about to release. `logical_blocks` are their numbers.
    #[inline]
    pub(super) fn note_levels(&self, logical_blocks: Range<usize>) {
        if let Some(levels) = self.levels() {
            self.note_levels_of(levels, logical_blocks);
        }
    }

    #[cold]
    fn note_levels_of(&self, levels: &PromptLevels, logical_blocks: Range<usize>) {
        let blocks = logical_blocks.filter_map(|block| Some((block, self.block_at(block)?)));
        levels.note(self.table.pool(), blocks);
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
