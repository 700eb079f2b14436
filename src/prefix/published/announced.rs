//! How are contents published where somebody listens? As always, but one commit at a time, and told.
//!
//! Publishers exclude each other here, so there never are two copies to choose from. Why what is told
//! is true, [`announcer`](crate::event::announcer) says.

use std::ops::Range;

use super::{Generation, PublishedBlocks, name_of};
use crate::event::announcer::{Announcer, Announcing};
use crate::event::tree::Content;
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::name::Name;
use crate::prefix::{BlockHash, ExtraKeys};
use crate::sync::PlainArc;

/// What listeners are told of the blocks of a commit beside their names.
pub(crate) struct Told<'a> {
    /// What comes before the first of them; `None` at the beginning of a prompt.
    pub(crate) parent: Option<BlockHash>,
    /// Their tokens and any behind, in two parts; none at all if they are not known.
    pub(crate) tokens: [&'a [u32]; 2],
    pub(crate) block_size: usize,
    /// What else they depend on, if on anything.
    pub(crate) extra: Option<PlainArc<ExtraKeys>>,
    /// Blocks before the first of them.
    pub(crate) index: usize,
}

/// What became of one block that was offered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offered {
    /// Nothing: its content is found elsewhere, or cannot be.
    Passed,
    /// Its content is found in it.
    Published,
    /// So it is, and no more in this block, which is being reclaimed.
    Rehoused(BlockId),
}

impl PublishedBlocks {
    /// As `publish`, told to who listens.
    #[inline(never)]
    pub(super) fn publish_aloud(
        &self,
        announcer: &Announcer,
        blocks: &Blocks,
        ids: &[BlockId],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: &Told<'_>,
    ) -> usize {
        announcer.announce(|announcing| {
            if generation != self.generation() {
                return 0;
            }
            self.publish_next(announcing, blocks, ids, hash_of, generation, told)
        })
    }

    fn publish_next(
        &self,
        announcing: &mut Announcing<'_>,
        blocks: &Blocks,
        ids: &[BlockId],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: &Told<'_>,
    ) -> usize {
        let name = |at| name_of(hash_of(at), generation);
        let mut offered = vec![Offered::Passed; ids.len()];
        let mut again = false;
        // From the end, as `publish`.
        for (at, &id) in ids.iter().enumerate().rev() {
            again |= blocks.was_reclaimed_of_late(name(at));
            let is_home = |other| announcing.is_home_of(other, hash_of(at));
            offered[at] = self.offer(blocks, id, name(at), &mut again, is_home);
        }
        let mut tokens = Vec::new();
        // What comes before the next one, and the home of it where it was offered just now.
        let (mut parent, mut before) = (told.parent, None);
        for (at, (&id, &offered)) in ids.iter().zip(&offered).enumerate() {
            let hash = hash_of(at);
            match offered {
                Offered::Passed => {}
                Offered::Rehoused(old) => announcing.rehouse(old, id),
                Offered::Published => {
                    let home = before.or_else(|| {
                        let hash = parent?;
                        let is_home = |id| announcing.is_home_of(id, hash);
                        self.index.find(self.index.place(name_of(hash, generation)), is_home)
                    });
                    let content = Content {
                        hash,
                        parent,
                        tokens: told.tokens_of(at..at + 1, &mut tokens),
                        extra: told.extra.as_ref(),
                        index: told.index + at,
                    };
                    announcing.store(id, &content, home, told);
                }
            }
            parent = Some(hash);
            before = (offered != Offered::Passed).then_some(id);
        }
        announcing.tell_run(told);
        offered.iter().filter(|&&offered| offered != Offered::Passed).count()
    }

    /// As `publish_one`, for the only publisher of the name. `is_home` says where it is believed to be.
    fn offer(
        &self,
        blocks: &Blocks,
        id: BlockId,
        name: Name,
        again: &mut bool,
        is_home: impl Fn(BlockId) -> bool,
    ) -> Offered {
        let mut leaving = None;
        let place = self.index.place(name);
        let found = self.index.find(place, |other| {
            let cached = blocks.is_cached_as(other, name);
            if !cached && is_home(other) {
                leaving = Some(other);
            }
            cached
        });
        if let Some(other) = found {
            *again |= blocks.is_again(other);
            if other != id && blocks.is_idle(other) {
                blocks.matching().touch(other, name);
            }
            return Offered::Passed;
        }
        let renamed = |old| self.index.remove(self.index.place(old), id);
        let named = blocks.give_name(id, name, *again, false, renamed);
        if !(named && self.note(blocks, place, id, name)) {
            return Offered::Passed;
        }
        let Some(old) = leaving else {
            return Offered::Published;
        };
        // If it is put back, it is not to be found as well.
        self.index.remove(place, old);
        Offered::Rehoused(old)
    }
}

impl Told<'_> {
    /// The tokens of some of the blocks; by way of `joined` if they are in both parts.
    #[inline(always)]
    pub(crate) fn tokens_of<'a>(
        &'a self,
        blocks: Range<usize>,
        joined: &'a mut Vec<u32>,
    ) -> &'a [u32] {
        let [first, _] = self.tokens;
        let tokens = blocks.start * self.block_size..blocks.end * self.block_size;
        first.get(tokens.clone()).unwrap_or_else(|| self.later_tokens(tokens, joined))
    }

    /// Those that are not all in the first part.
    #[inline(never)]
    fn later_tokens<'a>(
        &'a self,
        Range { start, end }: Range<usize>,
        joined: &'a mut Vec<u32>,
    ) -> &'a [u32] {
        let [first, second] = self.tokens;
        if first.is_empty() && second.is_empty() {
            return &[];
        }
        if start >= first.len() {
            return &second[start - first.len()..end - first.len()];
        }
        joined.clear();
        joined.extend_from_slice(&first[start..]);
        joined.extend_from_slice(&second[..end - first.len()]);
        joined
    }
}
