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
    /// The age up to which LRU keeps contents, 0 if unknown.
    horizon: u32,
    /// Uses that are not yet added, and their number.
    run: Option<(FirstUse, u32)>,
    found: PromptUses,
}

/// The first use of a content after its release.
#[derive(Clone, Copy, PartialEq)]
struct FirstUse {
    class: usize,
    bucket: usize,
    by_lru: ByLru,
}

/// The outcome of a use by LRU.
#[derive(Clone, Copy, PartialEq)]
enum ByLru {
    /// The same, or it is not known.
    Same,
    /// A hit, though the content was reclaimed.
    Lost,
    /// No hit, though the content is cached.
    Gained,
}

impl<'a> PromptLook<'a> {
    pub(super) fn new(order: &'a HitDensity, line: &'a Line, num_tokens: usize) -> Self {
        let found = PromptUses { prompt_tokens: num_tokens, ..PromptUses::default() };
        let previous = ReleaseNote::NONE;
        let horizon = order.horizon.load(Ordering::Relaxed);
        let (now, latest, run) = (order.now(), None, None);
        Self { order, line, now, latest, previous, uses: 0, horizon, run, found }
    }

    /// Counts the use of a cached block, number `at` of the prompt.
    pub(crate) fn see_block(&mut self, at: usize, id: BlockId, blocks: KeyedView<'_>) {
        let note = blocks.note(id);
        if note.is_released() && !note.is_counted() {
            blocks.set_note(id, note.counted());
        }
        // Of equal notes that follow each other, only the number of the uses matters.
        if note == std::mem::replace(&mut self.previous, note) {
            if let Some((_, uses)) = &mut self.run {
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
        self.see(at, note, (1, ByLru::Gained));
    }

    /// Counts the use of a content that is not cached, number `at` of the prompt.
    pub(crate) fn see_missing(&mut self, at: usize, key: ContentKey) {
        self.previous = ReleaseNote::NONE;
        if let Some(note) = self.order.ghosts.take(key) {
            self.see(at, note, (SAMPLED, ByLru::Lost));
        }
    }

    /// Counts a use that stands for `weight` uses, and is by LRU another one only as given.
    fn see(&mut self, at: usize, note: ReleaseNote, (weight, by_lru): (u32, ByLru)) {
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
            let age = note.age(self.now);
            let differs = self.horizon > 0 && (age <= self.horizon) == (by_lru == ByLru::Lost);
            let by_lru = if differs { by_lru } else { ByLru::Same };
            self.count(FirstUse { class: note.class(), bucket: bucket(age), by_lru }, weight);
        }
    }

    fn count(&mut self, of: FirstUse, weight: u32) {
        match &mut self.run {
            Some((run, uses)) if *run == of => *uses += weight,
            _ => {
                self.add_run();
                self.run = Some((of, weight));
            }
        }
    }

    fn add_run(&mut self) {
        let Some((FirstUse { class, bucket, by_lru }, uses)) = self.run.take() else { return };
        let Some(hits) = self.line.hits.get(class) else { return };
        hits[bucket].fetch_add(uses, Ordering::Relaxed);
        let differing = match by_lru {
            ByLru::Same => return,
            ByLru::Lost => &self.line.lost,
            ByLru::Gained => &self.line.gained,
        };
        differing.fetch_add(uses, Ordering::Relaxed);
    }

    /// Ends the look after the prompt's first block. `hits` of the blocks are in use by the caller only since now.
    pub(crate) fn end(mut self, blocks: KeyedView<'_>, hits: usize) -> PromptUses {
        self.add_run();
        self.order.learn_if_due(blocks, hits);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::release_note::ReleaseMark;
    use crate::pool::word::BlockWords;
    use crate::sync::AtomicU32;

    #[test]
    fn a_use_that_lru_would_not_have_alike_is_counted_as_lost_or_gained() {
        let (words, key) = (BlockWords::with_keys(1).unwrap(), ContentKey::new(0));
        let mut order = HitDensity::new(320, 1).unwrap();
        order.asked.fetch_add(100 * order.step, Ordering::Relaxed);
        for (horizon, age, lost, gained) in
            [(0, 9, 0, 0), (20, 19, SAMPLED, 0), (20, 20, SAMPLED, 0), (20, 21, 0, 1)]
        {
            order.horizon = AtomicU32::new(horizon);
            let line = &order.lines[0];
            let before = [&line.lost, &line.gained].map(|count| count.load(Ordering::Relaxed));
            let note = ReleaseNote::new(ReleaseMark::new(100 - age, 0), 3, 1);
            order.ghosts.remember(key, note);
            words.keyed().set_note(BlockId(0), note);
            let mut look = PromptLook::new(&order, line, 32);
            look.see_missing(1, key);
            look.see_block(0, BlockId(0), words.keyed());
            look.add_run();
            let after = [&line.lost, &line.gained].map(|count| count.load(Ordering::Relaxed));
            assert_eq!(after, [before[0] + lost, before[1] + gained], "{horizon}, {age}");
        }
    }
}
