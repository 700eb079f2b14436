//! Admission in a cache with groups of layers: the joint hit, new blocks for all groups, and blocks that are held for
//! growth.

use super::options::AdmitOptions;
use super::prompt::Prompt;
use crate::cache::PagedKvCache;
use crate::error::Result;
use crate::groups::GroupLayout;
use crate::prefix::{Generation, GroupHits, Sought};
use crate::sequence::Sequence;
use crate::sync::Arc;

impl PagedKvCache {
    /// Returns the groups of the cache, if it has any.
    #[inline]
    pub(crate) fn layout(&self) -> Option<&Arc<GroupLayout>> {
        self.pool.layout()
    }

    /// Returns the tokens of the shortest hit.
    #[inline]
    pub(super) fn shortest_hit(&self) -> usize {
        self.layout().map_or(self.block_size, |layout| layout.alignment())
    }

    /// Returns the blocks that a new sequence of `num_tokens` tokens needs.
    pub(crate) fn blocks_for(&self, num_tokens: usize) -> usize {
        match self.layout() {
            None => num_tokens.div_ceil(self.block_size),
            Some(layout) => layout.new_blocks(0, num_tokens),
        }
    }

    /// Returns the blocks that an admission without hits takes, new and held ones.
    pub(crate) fn required_without_hits(&self, prompt: &Prompt, options: &AdmitOptions) -> usize {
        let num_tokens = options.room_for(prompt, 0);
        let Some(layout) = self.layout() else {
            let owned = num_tokens.div_ceil(self.block_size);
            return owned + options.blocks_held_without_groups(owned, self.block_size);
        };
        let held = options.held_length(layout);
        let required = layout.groups().iter().map(|kind| {
            let new = kind.new_blocks(0, num_tokens);
            held.map_or(new, |(length, chunk)| {
                new.max(kind.most_blocks(length.max(num_tokens), chunk, layout.max_rewind()))
            })
        });
        required.fold(0, usize::saturating_add)
    }

    /// Returns the contents that a match of the prompt looks for.
    pub(in crate::cache) fn sought<'a>(
        &self,
        layout: &'a GroupLayout,
        prompt: &'a Prompt,
        options: &AdmitOptions,
    ) -> Sought<'a> {
        let hashes = prompt.hashes();
        // A prompt that is known by its hashes may name any length.
        let most = options.most_cached_tokens(prompt);
        let most = most.min(hashes.len().saturating_mul(layout.unit()));
        Sought { layout, hashes, most }
    }

    /// Returns at least as many blocks as an admission takes.
    #[cold]
    pub(super) fn most_in_groups(
        &self,
        layout: &GroupLayout,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> usize {
        let most = options.room_for(prompt, options.most_cached_tokens(prompt));
        let held = options.held_length(layout).map_or(0, |(length, chunk)| {
            let held = |kind: &crate::groups::LayerGroup| {
                kind.most_blocks(length, chunk, layout.max_rewind())
            };
            layout.groups().iter().map(held).fold(0, usize::saturating_add)
        });
        // After a hit, a state needs its source and a new block.
        let states = layout.groups().iter().filter(|kind| kind.is_state()).count();
        layout.new_blocks(0, most).saturating_add(states).saturating_add(held)
    }

    /// Returns the number of blocks that an admission would take now, new and held ones, and of idle hits.
    #[cold]
    pub(super) fn required_in_groups(
        &self,
        layout: &GroupLayout,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> (usize, usize) {
        let blocks = self.pool.blocks();
        let hits = self.published().probe_groups(blocks, self.sought(layout, prompt, options));
        let (start, num_tokens) = (hits.hit.length, options.room_for(prompt, hits.hit.length));
        let held = options.held_length(layout);
        let required = hits.ids.iter().zip(layout.groups()).map(|(ids, kind)| {
            let new = kind.new_blocks(start, num_tokens);
            let held = held.map_or(0, |(length, chunk)| {
                let most = kind.most_blocks(length.max(num_tokens), chunk, layout.max_rewind());
                // See `Sequence::hold_for_growth`.
                let hits = match kind.is_full() {
                    true => ids.len(),
                    false => ids.iter().filter(|&&id| blocks.is_idle(id)).count(),
                };
                most.saturating_sub(hits + new)
            });
            new.saturating_add(held)
        });
        (required.fold(0, usize::saturating_add), hits.num_idle(blocks))
    }

    /// Returns the joint hit of the prompt, in tokens.
    #[cold]
    pub(in crate::cache) fn probe_joint(&self, layout: &GroupLayout, prompt: &Prompt) -> usize {
        let sought = self.sought(layout, prompt, &AdmitOptions::default());
        self.published().probe_groups(self.pool.blocks(), sought).hit.length
    }

    /// Acquires the joint hit of the prompt.
    pub(super) fn acquire_joint(
        &self,
        layout: &GroupLayout,
        prompt: &Prompt,
        options: &AdmitOptions,
        generation: Generation,
    ) -> GroupHits {
        let blocks = self.pool.blocks();
        let sought = self.sought(layout, prompt, options);
        let hits = self.published().acquire_groups(blocks, sought, generation);
        if hits.hit.length > 0 {
            blocks.announce_contents();
        }
        hits
    }

    /// Takes the blocks that the options hold for the growth of a sequence.
    #[cold]
    pub(super) fn hold_for_growth(
        &self,
        sequence: &mut Sequence,
        options: &AdmitOptions,
    ) -> Result<()> {
        let layout = sequence.layout().expect("a sequence that holds blocks has groups");
        match options.held_length(layout) {
            Some((length, chunk)) => sequence.hold_for_growth(length, chunk),
            None => Ok(()),
        }
    }
}
