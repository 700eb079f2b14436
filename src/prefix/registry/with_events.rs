//! Publishing with an event sink: one commit at a time, each with its events.
//!
//! Publishers exclude each other here, so that the copies of a content become known one after the other. The
//! module [`announcer`](crate::prefix::event_order) explains why the events are true.

use std::ops::Range;

use super::{Generation, MOST_COPIES, Moved, PublishedBlocks};
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::content_key::NewName;
use crate::prefix::announced_tree::Content;
use crate::prefix::event_order::{Announcer, Announcing};
use crate::prefix::{BlockHash, ExtraKeys};
use crate::sync::PlainArc;

/// The event context of a commit: the facts about its blocks that listeners get beside their hashes.
pub(crate) struct Told<'a> {
    /// The hash of the block before the first of them; `None` at the beginning of a prompt.
    pub(crate) parent: Option<BlockHash>,
    /// Their tokens and any after them, in two parts; none at all if they are not known.
    pub(crate) tokens: [&'a [u32]; 2],
    pub(crate) block_size: usize,
    /// Their extra keys, if they have any.
    pub(crate) extra: Option<PlainArc<ExtraKeys>>,
    /// Number of blocks before the first of them.
    pub(crate) index: usize,
}

/// The result of the offer of one block.
#[derive(Clone, Copy, Default)]
struct Offered {
    /// It got the name of its content.
    is_named: bool,
    /// No other block was cached under that name.
    is_new: bool,
    /// Enough other blocks hold its content.
    is_left_out: bool,
    /// Another block by which the announcer knows the content.
    known_by: Option<BlockId>,
}

impl PublishedBlocks {
    /// Does the work of `publish`, and emits the events.
    #[inline(never)]
    pub(super) fn publish_aloud(
        &self,
        announcer: &PlainArc<Announcer>,
        blocks: &Blocks,
        ids: &[BlockId],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: &Told<'_>,
    ) -> Option<usize> {
        announcer.announce(|announcing| {
            if generation != self.generation() {
                return None;
            }
            if !told.has_tokens() {
                announcing.expect_untold(ids.len());
            }
            let mut offered = vec![Offered::default(); ids.len()];
            let mut again = false;
            // From the end, as in `publish_all`.
            for (at, &id) in ids.iter().enumerate().rev() {
                let hash = hash_of(at);
                again |= blocks.was_reclaimed_of_late(generation.name_of(hash));
                offered[at] = self.offer(announcing, blocks, id, (hash, generation), &mut again);
            }
            self.note_offered(announcing, ids, &offered, hash_of, generation, told);
            self.count_left_out(offered.iter().filter(|offered| offered.is_left_out).count());
            Some(offered.iter().filter(|offered| offered.is_new).count())
        })
    }

    /// Gives the event sink the missing tokens of contents that were matched. Tokens are missing where the
    /// publisher knew hashes only. Costs one load if none are missing.
    pub(crate) fn tell_matched<'a>(
        &self,
        ids: &[BlockId],
        hash_of: impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: impl FnOnce() -> Told<'a>,
    ) {
        let Some(announcer) = self.announcer.as_ref().filter(|announcer| announcer.has_untold())
        else {
            return;
        };
        announcer.announce(|announcing| {
            if generation == self.generation() {
                let matched = |(at, &id): (usize, &BlockId)| Offered {
                    known_by: announcing.holds(id, hash_of(at)).then_some(id),
                    ..Offered::default()
                };
                let matched: Vec<_> = ids.iter().enumerate().map(matched).collect();
                self.note_offered(announcing, ids, &matched, &hash_of, generation, &told());
            }
        });
    }

    /// Notes the contents of offered blocks: each before those that follow it.
    fn note_offered(
        &self,
        announcing: &mut Announcing<'_>,
        ids: &[BlockId],
        offered: &[Offered],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: &Told<'_>,
    ) {
        let mut tokens = Vec::new();
        // The hash before the next block, and the home of that content if it was offered just now.
        let (mut parent, mut before) = (told.parent, None);
        for (at, (&id, offered)) in ids.iter().zip(offered).enumerate() {
            let hash = hash_of(at);
            let home_of_parent = |announcing: &Announcing<'_>| {
                before.or_else(|| self.home_of(announcing, parent?, generation))
            };
            let content = Content {
                hash,
                parent,
                tokens: told.tokens_of(at..at + 1, &mut tokens),
                extra: told.extra.as_ref(),
                index: told.index + at,
            };
            before = match offered.known_by {
                Some(other) => {
                    let home = announcing.home(other);
                    if offered.is_named {
                        announcing.add_copy(home, id);
                    }
                    if told.has_tokens() && !announcing.has_tokens(home) {
                        let parent = home_of_parent(announcing);
                        announcing.learn(home, &content, parent, told);
                    }
                    Some(home)
                }
                None if offered.is_named => {
                    let parent = home_of_parent(announcing);
                    announcing.store(id, &content, parent, told);
                    Some(id)
                }
                None => None,
            };
            parent = Some(hash);
        }
        announcing.tell_run(told);
    }

    /// Returns the home of a content, if it has one.
    fn home_of(
        &self,
        announcing: &Announcing<'_>,
        hash: BlockHash,
        generation: Generation,
    ) -> Option<BlockId> {
        let place = self.index.place(generation.name_of(hash));
        let holder = self.index.find(place, |id| announcing.holds(id, hash))?;
        Some(announcing.home(holder))
    }

    /// Does the work of `publish_one`, for the only publisher at a time.
    fn offer(
        &self,
        announcing: &Announcing<'_>,
        blocks: &Blocks,
        id: BlockId,
        (hash, generation): (BlockHash, Generation),
        again: &mut bool,
    ) -> Offered {
        let name = generation.name_of(hash);
        let to = self.index.place(name);
        // A block that the announcer knows and that is not cached is being reclaimed, and may be put back.
        let (mut known_by, mut cached, mut copies) = (None, None, 0);
        self.index.find(to, |other| {
            if announcing.holds(other, hash) {
                known_by = known_by.or(Some(other));
            }
            if blocks.is_cached_as(other, name) {
                cached = cached.or(Some(other));
                copies += 1;
            }
            false
        });
        let spare = cached.is_some();
        if let Some(other) = cached {
            *again |= blocks.is_again(other);
            let has_name = blocks.is_cached(id);
            if !has_name && blocks.is_idle(other) {
                blocks.matching().touch(other, name);
            }
            if has_name || copies >= MOST_COPIES {
                return Offered { known_by, is_left_out: !has_name, ..Offered::default() };
            }
        }
        let new = NewName { name, mark: generation.mark(), again: *again, spare };
        let from = self.index.place(blocks.named().name(id));
        let is_named = self.name(blocks, Moved { id, from, to, is_private: false }, new);
        Offered { is_named, is_new: is_named && !spare, is_left_out: false, known_by }
    }
}

impl Told<'_> {
    /// Returns true if the tokens are known.
    pub(super) fn has_tokens(&self) -> bool {
        self.tokens.iter().any(|part| !part.is_empty())
    }

    /// Returns the tokens of a range of the blocks, through `joined` if they are in both parts.
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

    /// Returns tokens that are not all in the first part.
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
