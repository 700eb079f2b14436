//! `PromptUses`: the blocks of a prompt that earlier requests had, counted when the prompt is admitted ([`PromptLook`]), and
//! the classes that follow from these at the release ([`ReleasedPrompt`]).

use super::super::noted_ghosts::SAMPLED;
use super::prices::bucket;
use super::{BACK_SOON, CLOSED, HitDensity, LENGTHS, LONGER_THAN, Line, ReuseHint, SHARED};
use crate::id::BlockId;
use crate::pool::content_key::{ContentKey, KeyedView};
use crate::pool::release_note::{ReleaseMark, ReleaseNote};
use crate::sync::Ordering;

/// The blocks at the beginning of a prompt that earlier requests had. A sequence keeps it until its release.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptUses {
    /// Blocks that different conversations share.
    shared: u32,
    /// Blocks that another conversation goes on from.
    branched: u32,
    /// Blocks that at least two earlier requests had.
    twice: u32,
    /// Blocks that an earlier request had.
    once: u32,
    prompt_tokens: usize,
}

/// The facts of a sequence that decide the classes of its blocks.
pub(crate) struct ReleasedPrompt<'a> {
    pub(crate) uses: &'a PromptUses,
    pub(crate) hint: ReuseHint,
    /// The length of the sequence at its release.
    pub(crate) num_tokens: usize,
}

impl HitDensity {
    /// Counts a prompt of `num_tokens` tokens that asks for `blocks` blocks, and begins to count its uses of these.
    pub(crate) fn look_at_prompt(&self, blocks: usize, num_tokens: usize) -> PromptLook<'_> {
        let line = self.line();
        line.prompts.fetch_add(1, Ordering::Relaxed);
        self.advance(line, blocks as u64);
        let found = PromptUses { prompt_tokens: num_tokens, ..PromptUses::default() };
        PromptLook { order: self, line, now: self.now(), latest: None, uses: 0, run: None, found }
    }
}

impl ReleasedPrompt<'_> {
    /// Returns the class, the uses and the end of the blocks that are released as the one at `at` is.
    pub(super) fn class(&self, at: usize) -> (usize, u32, usize) {
        let Self { uses, hint, num_tokens } = *self;
        let answer = num_tokens.saturating_sub(uses.prompt_tokens);
        let length = LONGER_THAN.iter().filter(|&&least| answer > least).count();
        let [twice, once] = [uses.twice, uses.once].map(|end| end as usize);
        let shared = match hint {
            ReuseHint::Unknown => uses.shared,
            // A hint for this conversation does not hold for another.
            ReuseHint::BackSoon | ReuseHint::Closed => uses.shared.max(uses.branched),
        } as usize;
        let (uses, end) = match at {
            _ if at < twice => (3, twice),
            _ if at < once => (2, once),
            _ => (1, usize::MAX),
        };
        if at < shared {
            return (SHARED, uses, end.min(shared));
        }
        let class = match hint {
            ReuseHint::Unknown => LENGTHS * (uses as usize - 1) + length,
            ReuseHint::BackSoon => BACK_SOON + length,
            ReuseHint::Closed => CLOSED,
        };
        (class, uses, end)
    }
}

/// The count of the uses that a prompt makes, from its last block to its first.
pub(crate) struct PromptLook<'a> {
    order: &'a HitDensity,
    line: &'a Line,
    now: u32,
    /// The release of the last block that was found.
    latest: Option<ReleaseMark>,
    /// The most uses of a block that was found.
    uses: u32,
    /// Uses that are not yet added: the class, the bucket and their number.
    run: Option<(usize, usize, u32)>,
    found: PromptUses,
}

impl PromptLook<'_> {
    /// Counts the use of a cached block, number `at` of the prompt.
    pub(crate) fn see_block(&mut self, at: usize, id: BlockId, blocks: KeyedView<'_>) {
        let note = blocks.note(id);
        if note.is_released() && !note.is_counted() {
            blocks.set_note(id, note.counted());
        }
        // The block that followed at that release is still cached, and the prompt does not have its content.
        if self.latest.is_none()
            && note.is_released()
            && !note.is_last()
            && blocks.note(blocks.follower(id)).mark() == note.mark()
        {
            self.found.branched = at as u32 + 1;
        }
        self.see(at, note, 1);
    }

    /// Counts the use of a content that is not cached, number `at` of the prompt.
    pub(crate) fn see_missing(&mut self, at: usize, key: ContentKey) {
        if let Some(note) = self.order.ghosts.take(key) {
            self.see(at, note, SAMPLED);
        }
    }

    fn see(&mut self, at: usize, note: ReleaseNote, weight: u32) {
        // A request that is not yet released computed the block.
        if !note.is_released() {
            return;
        }
        let found = &mut self.found;
        let end = at as u32 + 1;
        self.uses = self.uses.max(note.uses());
        found.once = found.once.max(end);
        if self.uses > 1 {
            found.twice = found.twice.max(end);
        }
        let latest = *self.latest.get_or_insert(note.mark());
        if note.class() == SHARED || note.mark() != latest {
            found.shared = found.shared.max(end);
        }
        if !note.is_counted() {
            self.count(note.class(), bucket(note.age(self.now)), weight);
        }
    }

    fn count(&mut self, class: usize, bucket: usize, weight: u32) {
        match &mut self.run {
            Some((of_class, of_bucket, uses)) if (*of_class, *of_bucket) == (class, bucket) => {
                *uses += weight;
            }
            _ => {
                self.add_run();
                self.run = Some((class, bucket, weight));
            }
        }
    }

    fn add_run(&mut self) {
        if let Some((class, bucket, uses)) = self.run.take()
            && let Some(count) = self.line.hits.get(class).map(|hits| &hits[bucket])
        {
            count.fetch_add(uses, Ordering::Relaxed);
        }
    }

    /// Ends the look after the prompt's first block.
    pub(crate) fn end(mut self) -> PromptUses {
        self.add_run();
        self.order.learn_if_due();
        self.found
    }
}
