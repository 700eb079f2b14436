//! `SequenceUses`: the facts that the reclaim order gets of a sequence when it is released: the earlier uses of its
//! prompt, and the levels and the hint that the caller gave it. `Sequence` notes them beside its blocks when it is
//! dropped, whichever operation drops it. An open step has them too, for blocks that it publishes after that.

use std::ops::Range;
use std::{fmt, iter};

use super::Sequence;
use super::retain::RetainedRanges;
use crate::id::BlockId;
use crate::pool::{Blocks, LevelNote, PromptUses, ReleaseMark, ReleasedPrompt, ReuseHint};
use crate::sync::{AtomicU8, AtomicU64, Ordering, PlainArc, fence};

/// The release of a sequence that is not released yet.
const NOT_RELEASED: u64 = u64::MAX;

/// The facts that a sequence notes at its release.
pub(crate) struct SequenceUses {
    prompt: PromptUses,
    levels: Option<PromptLevels>,
    /// The number of the hint.
    hint: AtomicU8,
    /// The length at the release and, in the lower half, the bits of its mark; or [`NOT_RELEASED`].
    release: AtomicU64,
}

/// The levels of a prompt, of contents that were computed or matched after reset number `resets`.
#[derive(Clone, Debug)]
struct PromptLevels {
    ranges: RetainedRanges,
    prompt_tokens: usize,
    resets: u64,
    block_size: usize,
}

impl PromptLevels {
    fn level_of(&self, block: usize) -> Option<LevelNote> {
        self.ranges.note_at(block * self.block_size, self.prompt_tokens)
    }

    /// Notes the levels of blocks of the caller, each with its number in the sequence.
    fn note(&self, pool: &Blocks, blocks: impl Iterator<Item = (usize, BlockId)>) {
        let notes = blocks.filter_map(|(block, id)| Some((id, self.level_of(block)?)));
        pool.note_levels(notes, self.resets);
    }
}

// All accesses are Relaxed: only the reclaim order depends on them.
impl SequenceUses {
    fn new(prompt: PromptUses, levels: Option<PromptLevels>, hint: u8) -> Self {
        let (hint, release) = (AtomicU8::new(hint), AtomicU64::new(NOT_RELEASED));
        Self { prompt, levels, hint, release }
    }

    fn hint(&self) -> ReuseHint {
        match self.hint.load(Ordering::Relaxed) {
            0 => ReuseHint::Unknown,
            1 => ReuseHint::BackSoon,
            _ => ReuseHint::Closed,
        }
    }

    fn set_hint(&self, hint: ReuseHint) {
        let number = match hint {
            ReuseHint::Unknown => 0,
            ReuseHint::BackSoon => 1,
            ReuseHint::Closed => 2,
        };
        self.hint.store(number, Ordering::Relaxed);
    }

    /// Notes the release beside those of the blocks that are cached.
    fn note_release<'a>(
        &self,
        pool: &Blocks,
        parts: impl Iterator<Item = (usize, &'a [BlockId])>,
        before: Option<BlockId>,
        release: u64,
    ) {
        let (uses, hint, num_tokens) = (&self.prompt, self.hint(), (release >> 32) as usize);
        let mark = ReleaseMark::from_bits(release as u32);
        pool.note_release(parts, &ReleasedPrompt { uses, hint, num_tokens, mark, before });
    }

    /// Returns the level that the caller gave a block of the sequence.
    pub(crate) fn level_of(&self, block: usize) -> Option<LevelNote> {
        self.levels.as_ref().and_then(|levels| levels.level_of(block))
    }

    /// Returns true if the caller gave levels.
    pub(crate) fn has_levels(&self) -> bool {
        self.levels.is_some()
    }

    /// Notes the facts beside blocks that a step has just published, if the sequence was released before. `first` is the
    /// number of blocks of the sequence before these, and `before` the last of those.
    #[cold]
    pub(crate) fn note_published(
        &self,
        pool: &Blocks,
        (first, ids): (usize, &[BlockId]),
        before: Option<BlockId>,
    ) {
        if let Some(levels) = &self.levels {
            levels.note(pool, (first..).zip(ids.iter().copied()));
        }
        // SeqCst: pairs with the fence in `Sequence::note_release`. Either this thread sees the release, or that one sees
        // that the blocks are cached.
        fence(Ordering::SeqCst);
        match self.release.load(Ordering::Relaxed) {
            NOT_RELEASED => {}
            release => self.note_release(pool, iter::once((first, ids)), before, release),
        }
    }
}

impl fmt::Debug for SequenceUses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequenceUses")
            .field("prompt", &self.prompt)
            .field("levels", &self.levels)
            .field("hint", &self.hint())
            .finish_non_exhaustive()
    }
}

impl Sequence {
    /// Notes facts of the prompt with which the sequence was admitted: its earlier uses, and its levels, of contents from
    /// after reset number `resets`.
    #[cold]
    pub(crate) fn set_uses(
        &mut self,
        uses: Option<PromptUses>,
        levels: Option<&RetainedRanges>,
        prompt_tokens: usize,
        resets: u64,
    ) {
        let block_size = self.block_size;
        let of_ranges = |ranges: &RetainedRanges| PromptLevels {
            ranges: ranges.clone(),
            prompt_tokens,
            resets,
            block_size,
        };
        let uses = SequenceUses::new(uses.unwrap_or_default(), levels.map(of_ranges), 0);
        self.uses = Some(PlainArc::new(uses));
    }

    /// Notes the caller's hint for the release of this sequence. Without effect in pools without a
    /// learned order.
    pub(crate) fn set_reuse_hint(&mut self, hint: ReuseHint) {
        if self.table.pool().density().is_some() {
            let none = || PlainArc::new(SequenceUses::new(PromptUses::default(), None, 0));
            self.uses.get_or_insert_with(none).set_hint(hint);
        }
    }

    /// Returns the facts that the sequence notes at its release, if there are any.
    #[inline]
    pub(crate) fn uses(&self) -> Option<&PlainArc<SequenceUses>> {
        self.uses.as_ref()
    }

    /// Returns the same uses for a fork.
    #[inline]
    pub(super) fn uses_of_fork(&self) -> Option<PlainArc<SequenceUses>> {
        #[cold]
        fn copy(uses: &SequenceUses) -> PlainArc<SequenceUses> {
            let hint = uses.hint.load(Ordering::Relaxed);
            PlainArc::new(SequenceUses::new(uses.prompt.clone(), uses.levels.clone(), hint))
        }
        self.uses.as_deref().map(copy)
    }

    #[cold]
    #[inline(never)]
    fn note_release(&self, uses: &SequenceUses) {
        let pool = self.table.pool();
        if let Some(density) = pool.density() {
            // A longer answer than this is in the class of the longest in any case.
            let num_tokens = self.num_tokens.min(u32::MAX as usize - 1) as u64;
            let release = num_tokens << 32 | u64::from(density.next_mark().bits());
            uses.release.store(release, Ordering::Relaxed);
            // SeqCst: as in `SequenceUses::note_published`.
            fence(Ordering::SeqCst);
            uses.note_release(pool, self.resident_parts(), None, release);
        }
        self.note_levels_of(uses, 0..self.num_logical_blocks());
    }

    /// Returns the resident blocks between gaps, with the number of blocks before each part.
    fn resident_parts(&self) -> impl Iterator<Item = (usize, &[BlockId])> {
        let (ids, gaps) = (self.table.as_slice(), self.gaps.as_slice());
        let starts = iter::once(0).chain(gaps.iter().map(|gap| gap.end));
        let ends = gaps.iter().map(|gap| gap.start).chain([usize::MAX]);
        let mut rest = ids;
        starts.zip(ends).map(move |(start, end)| {
            let (part, after) = rest.split_at((end - start).min(rest.len()));
            rest = after;
            (start, part)
        })
    }

    /// Notes the levels of blocks that the sequence is about to release. `logical_blocks` are their numbers.
    #[inline]
    pub(super) fn note_levels(&self, logical_blocks: impl FnOnce() -> Range<usize>) {
        if let Some(uses) = &self.uses {
            self.note_levels_of(uses, logical_blocks());
        }
    }

    #[cold]
    fn note_levels_of(&self, uses: &SequenceUses, logical_blocks: Range<usize>) {
        if let Some(levels) = &uses.levels {
            let blocks = logical_blocks.filter_map(|block| Some((block, self.block_at(block)?)));
            levels.note(self.table.pool(), blocks);
        }
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
