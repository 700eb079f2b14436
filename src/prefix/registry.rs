//! `PublishedBlocks`: the contents that can be matched, by the hash of each block, for one set of weights.
//!
//! Publishing keys a block and adds it to the index. Matching looks up a chain of hashes, makes the caller
//! an owner of each block and compares its whole key. It ends at the first block that is not cached.
//!
//! A *generation* is mixed into every key. After a reset no block of an earlier generation matches. A block
//! that is offered late under an earlier generation is not published, or never found.
//!
//! Several blocks may hold one content: each gets a key and is added to the index, up to four. A block published while
//! another was cached is *spare*: unless a match asks for it, it is reclaimed before all others. Further
//! copies get no key; a later commit may offer them again.
//!
//! Invariant: at rest every block that is cached under a key of this generation is found by that key, in
//! use or idle. (Two threads that find no room in the same 24 buckets of the index at the same time may lose
//! one entry.)

mod chain;
mod joint_match;
mod levels;
mod lookup;
#[cfg(test)]
mod tests;
mod with_events;

use std::panic::RefUnwindSafe;

use self::chain::Trail;
pub(crate) use self::joint_match::{Below, GroupHits, Sought, TO_LOAD};
pub(crate) use self::with_events::EventContext;
use super::event_order::EventOrder;
use super::generation::{Generation, Generations};
use super::hash::BlockHash;
use super::index::{BucketSlot, PrefixIndex};
use super::overwrites::{Overwrites, Overwritten};
use crate::error::Result;
use crate::id::{BlockId, GroupId};
use crate::pool::Blocks;
use crate::pool::content_key::{ContentKey, NewKey};
use crate::sync::{AtomicU64, Ordering, PlainArc};

/// Blocks that are published in one batch.
const AT_ONCE: usize = 64;

/// The most blocks cached under one key; several threads that key copies at the same time may exceed it.
/// More copies would fill the buckets that other keys need.
const MOST_COPIES: usize = 4;

/// Blocks to publish. The caller owns each of them.
#[derive(Clone, Copy)]
pub(crate) struct PublishRequest<'a> {
    /// The blocks, in the order of a sequence.
    pub(crate) ids: &'a [BlockId],
    /// The block before them in the sequence.
    pub(crate) before: Option<BlockId>,
    /// From this index on the blocks are in no other table unless their words count other owners.
    pub(crate) private_from: usize,
    /// The generation in which they were computed.
    pub(crate) generation: Generation,
}

/// A block that gets a key.
#[derive(Clone, Copy)]
struct Moved {
    id: BlockId,
    /// The place of its entry under its old key, if it has one.
    from: BucketSlot,
    /// The place of its new entry.
    to: BucketSlot,
    /// True if it is only in the table of the owner that keys it.
    is_private: bool,
}

/// The result of an offer of one block.
enum Outcome {
    /// Its content can be matched, and could not before.
    New,
    /// It got a key, under which another block is cached.
    Copied,
    /// It got no key: it has one, or the index has no room.
    Passed,
    /// Enough other blocks hold its content.
    LeftOut,
}

/// The contents that can be matched.
pub(crate) struct PublishedBlocks {
    index: PrefixIndex,
    generations: Generations,
    /// Steps that ended without publishing the contents committed through them.
    failed_steps: AtomicU64,
    /// Copies of contents that got no key, because there were enough.
    left_out: AtomicU64,
    /// Present only with an event sink.
    event_order: Option<PlainArc<EventOrder>>,
    /// Present only with an observer of overwritten contents.
    overwrites: Option<PlainArc<Overwrites>>,
}

// A panic of the event sink is caught, and the order of events is repaired: see `EventSink`.
impl RefUnwindSafe for PublishedBlocks {}

impl PublishedBlocks {
    /// Creates the contents of a pool of `num_blocks` blocks. For 0 blocks no content is ever published.
    pub(crate) fn new(
        num_blocks: usize,
        event_order: Option<PlainArc<EventOrder>>,
        overwrites: Option<PlainArc<Overwrites>>,
    ) -> Result<Self> {
        Ok(Self {
            index: PrefixIndex::new(num_blocks)?,
            generations: Generations::new(),
            failed_steps: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            event_order,
            overwrites,
        })
    }

    /// Returns the records of contents that may be overwritten, if an observer learns of these.
    pub(crate) fn overwrites(&self) -> Option<&PlainArc<Overwrites>> {
        self.overwrites.as_ref()
    }

    /// Events that were noted and could not be delivered.
    pub(crate) fn events_dropped(&self) -> u64 {
        self.event_order.as_ref().map_or(0, |event_order| event_order.events_dropped())
    }

    /// Returns true if there is an event sink.
    pub(crate) fn has_event_sink(&self) -> bool {
        self.event_order.is_some()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generations.current()
    }

    /// Returns the same generation for the contents of a group.
    #[inline]
    pub(crate) fn of_group(&self, generation: Generation, group: GroupId) -> Generation {
        self.generations.of_group(generation, group)
    }

    /// Steps that ended without publishing the contents committed through them.
    #[inline]
    pub(crate) fn failed_steps(&self) -> u64 {
        // Relaxed: a thread that commits again has learned of the failure, and by that of this count.
        self.failed_steps.load(Ordering::Relaxed)
    }

    /// Counts a step that ended without publishing the contents committed through it.
    pub(crate) fn count_failed_step(&self) {
        // Relaxed: as in `failed_steps`.
        self.failed_steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes when copies of contents are left out. A sequence that was admitted since and saw no change has
    /// no such copy.
    pub(crate) fn left_out(&self) -> u64 {
        // Relaxed: the commit that left out a copy of a sequence comes before that sequence's next commit.
        self.left_out.load(Ordering::Relaxed)
    }

    fn count_left_out(&self, copies: usize) {
        if copies > 0 {
            // Relaxed: as in `left_out`.
            self.left_out.fetch_add(copies as u64, Ordering::Relaxed);
        }
    }

    /// Returns true if `id`, which the caller owns, is published under `hash`.
    pub(crate) fn is_published(
        &self,
        blocks: &Blocks,
        id: BlockId,
        hash: BlockHash,
        generation: Generation,
    ) -> bool {
        // Without prefix reuse, blocks have no keys.
        !self.index.is_empty() && blocks.is_cached_as(id, generation.key_of(hash))
    }

    /// Begins a new generation, and returns its number: no block that was published before can be matched.
    pub(crate) fn reset(&self, blocks: &Blocks) -> u64 {
        if let Some(overwrites) = &self.overwrites {
            overwrites.reset();
        }
        let advance = || blocks.reset_levels(|| self.generations.advance());
        let mut number = 0;
        match &self.event_order {
            None => number = advance(),
            Some(event_order) => event_order.announce(|events| {
                number = advance();
                events.clear(number);
            }),
        }
        blocks.announce_publication();
        number
    }

    /// Emits the events of all cached contents again.
    pub(crate) fn announce_all(&self) {
        if let Some(event_order) = &self.event_order {
            event_order.announce(|events| events.repeat());
        }
    }

    /// Publishes blocks under their hashes and returns how many contents became matchable.
    ///
    /// A content that another block already holds counts as a use of that block. The offered block becomes a
    /// spare copy, or gets no key if there are enough copies. Blocks of an earlier generation stay as they
    /// are, because no match would find them. `context` gives the event context of all blocks for the event
    /// sink.
    pub(crate) fn publish<'a>(
        &self,
        blocks: &Blocks,
        offer: &PublishRequest<'_>,
        hash_of: impl Fn(usize) -> BlockHash,
        context: impl Fn() -> EventContext<'a>,
    ) -> usize {
        let Some(published) = self.publish_all(blocks, offer, &hash_of, &context) else {
            return 0;
        };
        if let Some(overwrites) = &self.overwrites {
            let EventContext { group, parent, .. } = context();
            self.record(overwrites, blocks, offer, &hash_of, (group, parent));
        }
        blocks.keep_max_cached();
        // Also for copies alone: a waiting prompt may now find a copy in use instead of an idle one, and then
        // needs less.
        blocks.announce_publication();
        published
    }

    /// Records the published ones of the offered blocks of a group, of which the first follows `parent`.
    #[cold]
    fn record(
        &self,
        overwrites: &Overwrites,
        blocks: &Blocks,
        offer: &PublishRequest<'_>,
        hash_of: &impl Fn(usize) -> BlockHash,
        (group, mut parent): (GroupId, Option<BlockHash>),
    ) {
        for (at, &id) in offer.ids.iter().enumerate() {
            let hash = hash_of(at);
            if self.is_published(blocks, id, hash, offer.generation) {
                overwrites.record(Overwritten { block: id, group, hash, parent }, offer.generation);
            }
            parent = Some(hash);
        }
    }

    /// Does the work of [`publish`](Self::publish) without waking a waiter. Returns `None` if no content can
    /// have changed.
    fn publish_all<'a>(
        &self,
        blocks: &Blocks,
        offer: &PublishRequest<'_>,
        hash_of: &impl Fn(usize) -> BlockHash,
        context: &impl Fn() -> EventContext<'a>,
    ) -> Option<usize> {
        let PublishRequest { ids, before, private_from, generation } = *offer;
        if self.index.is_empty() {
            return None;
        }
        if let Some(event_order) = &self.event_order {
            return self.publish_with_events(
                event_order,
                blocks,
                ids,
                hash_of,
                generation,
                &context(),
            );
        }
        if !self.generations.is_current(generation) {
            return None;
        }
        let (keyed, index) = (blocks.keyed(), self.index.view());
        let first = before.zip(ids.first().copied());
        let others = ids.windows(2).map(|pair| (pair[0], pair[1]));
        first.into_iter().chain(others).for_each(|(id, next)| keyed.set_follower(id, next));
        let (mut published, mut copied, mut left_out) = (0, 0, 0);
        // From the end: if a content has been asked for again, so have the contents before it.
        let (mut hot, mut end) = (false, ids.len());
        for part in ids.rchunks(AT_ONCE) {
            let start = end - part.len();
            // Compute the places of the new and of the old keys. An old place is used only if
            // this thread sets the block's key; then no other thread set one in between. Compute all places
            // first, then load them back to back, so that the cache misses overlap.
            let (mut places, mut were) = ([BucketSlot::ANY; AT_ONCE], [BucketSlot::ANY; AT_ONCE]);
            let (places, were) = (&mut places[..part.len()], &mut were[..part.len()]);
            for (at, (place, was)) in places.iter_mut().zip(were.iter_mut()).enumerate() {
                *place = index.place(generation.key_of(hash_of(start + at)));
                *was = index.place(keyed.key(part[at]));
            }
            self.index.prefetch(places.iter().chain(were.iter()));
            for (at, &id) in part.iter().enumerate().rev() {
                let key = generation.key_of(hash_of(start + at));
                hot |= blocks.was_recently_reclaimed(key);
                let new = NewKey { key, mark: generation.mark(), hot, spare: false };
                let is_private = start + at >= private_from;
                let moved = Moved { id, from: were[at], to: places[at], is_private };
                match self.publish_one(blocks, moved, new, &mut hot) {
                    Outcome::New => published += 1,
                    Outcome::Copied => copied += 1,
                    Outcome::Passed => {}
                    Outcome::LeftOut => left_out += 1,
                }
            }
            end = start;
        }
        blocks.count_cached(published + copied);
        self.count_left_out(left_out);
        Some(published)
    }

    /// Returns the number of blocks that can be found under `hash`.
    #[cfg(paged_kv_loom)]
    pub(crate) fn copies(&self, blocks: &Blocks, hash: BlockHash) -> usize {
        let key = self.generation().key_of(hash);
        self.count_copies(blocks, self.index.place(key), key, usize::MAX)
    }

    fn trail<'a>(&'a self, blocks: &'a Blocks, generation: Generation) -> Trail<'a> {
        // With an event sink, no block may be found that the index does not have.
        let follows = self.event_order.is_none();
        Trail::new(self.index.view(), blocks.keyed(), generation, follows)
    }

    /// Publishes one block under its new key.
    // Once in each loop that publishes.
    #[inline(always)]
    fn publish_one(&self, blocks: &Blocks, moved: Moved, new: NewKey, hot: &mut bool) -> Outcome {
        let is_cached = |other| blocks.is_cached_as(other, new.key);
        match self.index.find(moved.to, is_cached) {
            None if self.key(blocks, moved, new) => Outcome::New,
            None => Outcome::Passed,
            Some(other) => {
                *hot |= blocks.is_hot(other);
                self.publish_copy(blocks, moved, new, other)
            }
        }
    }

    /// Publishes a block under its new key, under which `other` is cached. This counts as a use of `other`.
    #[cold]
    fn publish_copy(&self, blocks: &Blocks, moved: Moved, new: NewKey, other: BlockId) -> Outcome {
        if blocks.is_cached(moved.id) {
            return Outcome::Passed;
        }
        let is_left_out = self.count_copies(blocks, moved.to, new.key, MOST_COPIES) == MOST_COPIES;
        let spare = !self.use_again(blocks, other, new.key, is_left_out);
        if is_left_out {
            return Outcome::LeftOut;
        }
        match self.key(blocks, moved, NewKey { spare, ..new }) {
            true => {
                blocks.copy_level(other, moved.id);
                Outcome::Copied
            }
            false => Outcome::Passed,
        }
    }

    /// Counts a use of an idle block by a caller that has its content in another block, which gets the same key unless
    /// it `is_left_out`. Returns true if that block takes its place in the reclaim order.
    fn use_again(&self, blocks: &Blocks, id: BlockId, key: ContentKey, is_left_out: bool) -> bool {
        if !blocks.is_idle(id) {
            return false;
        }
        let mut matching = blocks.matching();
        if !is_left_out && matching.replace_idle(id, key) {
            return true;
        }
        matching.touch(id, key);
        false
    }

    /// Returns how many blocks are cached under `key`, counting up to `most`.
    fn count_copies(
        &self,
        blocks: &Blocks,
        place: BucketSlot,
        key: ContentKey,
        most: usize,
    ) -> usize {
        let mut copies = 0;
        self.index.find(place, |id| {
            copies += usize::from(blocks.is_cached_as(id, key));
            copies == most
        });
        copies
    }

    /// Sets the key of a block and adds it to the index. Returns false, without a new key, if the block has a key or
    /// the index has no room for it.
    #[inline]
    fn key(&self, blocks: &Blocks, moved: Moved, new: NewKey) -> bool {
        let Moved { id, from, to, is_private } = moved;
        let replaced = |_| self.index.remove(from, id);
        if !blocks.set_key(id, new, is_private, replaced) {
            return false;
        }
        let is_noted = self.index.insert(to, id) || self.note_for_another(blocks, to, id);
        if !is_noted {
            blocks.clear_key(id);
        }
        is_noted
    }

    /// Adds an entry where there is no room, in place of a stale one. A content that was often reclaimed may
    /// have left entries of many blocks that got no other key since.
    #[cold]
    fn note_for_another(&self, blocks: &Blocks, place: BucketSlot, id: BlockId) -> bool {
        let keyed = blocks.keyed();
        let belongs = |other| self.index.place(keyed.key(other)) == place;
        let is_stale = |other| other != id && !(blocks.is_cached(other) && belongs(other));
        self.index.find(place, is_stale).is_some_and(|other| {
            self.index.remove(place, other);
            self.index.insert(place, id)
        })
    }
}
