//! Publishing with an event sink: one commit at a time, each with its events.
//!
//! Publishers exclude each other here, so that the copies of a content become known one after the other. The
//! module [`event_order`](crate::prefix::event_order) explains why the events are true.

use std::ops::Range;

use super::{Generation, MOST_COPIES, Moved, PublishedBlocks};
use crate::id::{BlockId, GroupId};
use crate::pool::Blocks;
use crate::pool::content_key::NewKey;
use crate::prefix::announced_tree::Content;
use crate::prefix::event_order::{Announcing, EventOrder};
use crate::prefix::{BlockHash, ExtraKeys};
use crate::sync::PlainArc;

/// The event context of a commit: the facts about its blocks that the event sink gets beside their hashes.
pub(crate) struct EventContext<'a> {
    pub(crate) group: GroupId,
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
    /// It got the key of its content.
    got_key: bool,
    /// No other block was cached under that key.
    is_new: bool,
    /// Enough other blocks hold its content.
    is_left_out: bool,
    /// Another block by which the event order knows the content.
    known_by: Option<BlockId>,
}

impl PublishedBlocks {
    /// Does the work of `publish`, and emits the events.
    #[inline(never)]
    pub(super) fn publish_with_events(
        &self,
        event_order: &PlainArc<EventOrder>,
        blocks: &Blocks,
        ids: &[BlockId],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        context: &EventContext<'_>,
    ) -> Option<usize> {
        event_order.announce(|events| {
            if !self.generations.is_current(generation) {
                return None;
            }
            if !context.has_tokens() {
                events.expect_tokenless(ids.len());
            }
            let mut offered = vec![Offered::default(); ids.len()];
            let mut hot = false;
            // From the end, as in `publish_all`.
            for (at, &id) in ids.iter().enumerate().rev() {
                let hash = hash_of(at);
                hot |= blocks.was_recently_reclaimed(generation.key_of(hash));
                let content = (context.group, hash, generation);
                offered[at] = self.offer(events, blocks, id, content, &mut hot);
            }
            blocks.count_cached(offered.iter().filter(|offered| offered.got_key).count());
            self.note_offered(events, ids, &offered, hash_of, generation, context);
            self.count_left_out(offered.iter().filter(|offered| offered.is_left_out).count());
            Some(offered.iter().filter(|offered| offered.is_new).count())
        })
    }

    /// Returns true if the event sink may lack tokens of contents that were matched.
    pub(crate) fn lacks_tokens(&self) -> bool {
        self.event_order.as_ref().is_some_and(|event_order| event_order.has_tokenless())
    }

    /// Gives the event sink the missing tokens of contents that were matched. Tokens are missing where the
    /// publisher knew hashes only. Costs one load if none are missing.
    pub(crate) fn emit_matched<'a>(
        &self,
        ids: &[BlockId],
        hash_of: impl Fn(usize) -> BlockHash,
        generation: Generation,
        context: impl FnOnce() -> EventContext<'a>,
    ) {
        let Some(event_order) =
            self.event_order.as_ref().filter(|event_order| event_order.has_tokenless())
        else {
            return;
        };
        event_order.announce(|events| {
            if self.generations.is_current(generation) {
                let context = context();
                let matched = |(at, &id): (usize, &BlockId)| Offered {
                    known_by: events.holds(id, context.group, hash_of(at)).then_some(id),
                    ..Offered::default()
                };
                let matched: Vec<_> = ids.iter().enumerate().map(matched).collect();
                self.note_offered(events, ids, &matched, &hash_of, generation, &context);
            }
        });
    }

    /// Notes the contents of offered blocks: each before those that follow it.
    fn note_offered(
        &self,
        events: &mut Announcing<'_>,
        ids: &[BlockId],
        offered: &[Offered],
        hash_of: &impl Fn(usize) -> BlockHash,
        generation: Generation,
        context: &EventContext<'_>,
    ) {
        let mut tokens = Vec::new();
        let has_tree = events.has_tree(context.group);
        // The hash before the next block, and the primary of that content if it was offered just now.
        let (mut parent, mut before) = (context.parent.filter(|_| has_tree), None);
        for (at, (&id, offered)) in ids.iter().zip(offered).enumerate() {
            let hash = hash_of(at);
            let primary_of_parent = |events: &Announcing<'_>| {
                before.or_else(|| self.primary_of(events, (context.group, parent?), generation))
            };
            let content = Content {
                group: context.group,
                hash,
                parent,
                tokens: context.tokens_of(at..at + 1, &mut tokens),
                extra: context.extra.as_ref(),
                index: context.index + at,
            };
            before = match offered.known_by {
                Some(other) => {
                    let primary = events.primary(other);
                    if offered.got_key {
                        events.add_copy(primary, id);
                    }
                    if context.has_tokens() && !events.has_tokens(primary) {
                        let parent = primary_of_parent(events);
                        events.learn(primary, &content, parent, context);
                    }
                    Some(primary)
                }
                None if offered.got_key => {
                    let parent = primary_of_parent(events);
                    events.store(id, &content, parent, context);
                    Some(id)
                }
                None => None,
            };
            (parent, before) = if has_tree { (Some(hash), before) } else { (None, None) };
        }
        events.emit_pending(context);
    }

    /// Returns the primary of a content, if it has one.
    fn primary_of(
        &self,
        events: &Announcing<'_>,
        (group, hash): (GroupId, BlockHash),
        generation: Generation,
    ) -> Option<BlockId> {
        let place = self.index.place(generation.key_of(hash));
        let holder = self.index.find(place, |id| events.holds(id, group, hash))?;
        Some(events.primary(holder))
    }

    /// Does the work of `publish_one`, for the only publisher at a time.
    fn offer(
        &self,
        events: &Announcing<'_>,
        blocks: &Blocks,
        id: BlockId,
        (group, hash, generation): (GroupId, BlockHash, Generation),
        hot: &mut bool,
    ) -> Offered {
        let key = generation.key_of(hash);
        let to = self.index.place(key);
        // A block that the event order knows and that is not cached is being reclaimed, and may be put back.
        let (mut known_by, mut cached, mut copies) = (None, None, 0);
        self.index.find(to, |other| {
            if events.holds(other, group, hash) {
                known_by = known_by.or(Some(other));
            }
            if blocks.is_cached_as(other, key) {
                cached = cached.or(Some(other));
                copies += 1;
            }
            false
        });
        let (is_copy, mut spare) = (cached.is_some(), cached.is_some());
        if let Some(other) = cached {
            *hot |= blocks.is_hot(other);
            let has_key = blocks.is_cached(id);
            if !has_key {
                spare = !self.use_again(blocks, other, key, copies >= MOST_COPIES);
            }
            if has_key || copies >= MOST_COPIES {
                return Offered { known_by, is_left_out: !has_key, ..Offered::default() };
            }
        }
        let new = NewKey { key, mark: generation.mark(), hot: *hot, spare };
        let from = self.index.place(blocks.keyed().key(id));
        let got_key = self.key(blocks, Moved { id, from, to, is_private: false }, new);
        if let Some(other) = cached.filter(|_| got_key) {
            blocks.copy_level(other, id);
        }
        Offered { got_key, is_new: got_key && !is_copy, is_left_out: false, known_by }
    }
}

impl EventContext<'_> {
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
