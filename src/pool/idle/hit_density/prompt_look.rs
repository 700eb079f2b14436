//! `PromptLook`: the count of the uses that a prompt makes, from its last block to its first.

use super::prices::bucket;
use super::{HitDensity, Line, PromptUses, SHARED};
use crate::id::BlockId;
use crate::pool::content_key::{ContentKey, KeyedView};
use crate::pool::idle::noted_ghosts::SAMPLED;
use crate::pool::release_note::ReleaseNote;
use crate::sync::Ordering;

/// A prompt whose uses are being counted.
pub(crate) struct PromptLook<'a> {
    order: &'a HitDensity,
    line: &'a Line,
    now: u32,
    /// The note of the last block that was found.
    latest: Option<ReleaseNote>,
    /// The note of the last cached block, unless a content that is not cached came after it.
    previous: ReleaseNote,
    /// The most uses of a block that was found.
    uses: u32,
    /// Uses that are not yet added: the class, the bucket and their number.
    run: Option<(usize, usize, u32)>,
    found: PromptUses,
}

impl<'a> PromptLook<'a> {
    pub(super) fn new(order: &'a HitDensity, line: &'a Line, num_tokens: usize) -> Self {
        let found = PromptUses { prompt_tokens: num_tokens, ..PromptUses::default() };
        let previous = ReleaseNote::NONE;
        Self { order, line, now: order.now(), latest: None, previous, uses: 0, run: None, found }
    }

    /// Counts the use of a cached block, number `at` of the prompt.
    pub(crate) fn see_block(&mut self, at: usize, id: BlockId, blocks: KeyedView<'_>) {
        let note = blocks.note(id);
        if note.is_released() && !note.is_counted() {
            blocks.set_note(id, note.counted());
        }
        // Of equal notes that follow each other, only the number of the uses matters.
        if note == std::mem::replace(&mut self.previous, note) {
            if let Some((_, _, uses)) = &mut self.run {
                *uses += u32::from(!note.is_counted());
            }
            return;
        }
        // The block that followed at that release is still cached, and the prompt does not have its content.
        if self.latest.is_none()
            && note.is_released()
            && !note.is_last()
            && blocks.note(blocks.follower(id)).is_of_same_release(note)
        {
            self.found.branched = at as u32 + 1;
        }
        self.see(at, note, 1);
    }

    /// Counts the use of a content that is not cached, number `at` of the prompt.
    pub(crate) fn see_missing(&mut self, at: usize, key: ContentKey) {
        self.previous = ReleaseNote::NONE;
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
        let latest = *self.latest.get_or_insert(note);
        if note.class() == SHARED || !note.is_of_same_release(latest) {
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
