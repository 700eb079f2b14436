//! Which contents can be matched now? Blocks by the hash of their contents, for one set of weights.
//!
//! Publishing names a block and notes it in the index; matching looks a chain of hashes up, makes the
//! caller an owner of each block and compares its whole name, until the first that is not there.
//! A *generation* is mixed into every name: after a reset nothing of an earlier one matches, and what
//! is offered late under an earlier one is not published, or never found.
//!
//! Invariant: of several blocks that get one name at once, one stays findable as long as it is cached.
//! (Once it is reclaimed the others are not found, and go like any idle block.) It does not know
//! sequences.

mod announced;
#[cfg(all(test, not(paged_kv_loom)))]
mod tests;
mod trail;

pub(crate) use self::announced::Told;
use self::trail::Trail;
use super::hash::BlockHash;
use super::index::{Place, PrefixIndex};
use crate::event::announcer::Announcer;
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::free_list::Matching;
use crate::pool::name::Name;
use crate::sync::{AtomicU64, Ordering, PlainArc, fence};

/// Which weights a content was computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    /// What the block's content was published as, for its new owner. What was published in another
    /// generation comes under a hash that nothing has.
    pub(crate) fn last_hash(self, blocks: &Blocks, id: BlockId) -> Option<BlockHash> {
        blocks.last_name(id).map(|name| BlockHash::from_u128(name.bits() ^ self.mask()))
    }

    /// Odd constants spread it over all bits; the first changes nothing.
    fn mask(self) -> u128 {
        let mix = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        u128::from(mix) << 64 | u128::from(mix.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }
}

/// Blocks that are published in one go.
const AT_ONCE: usize = 64;

/// Blocks to publish, for one of their owners.
#[derive(Clone, Copy)]
pub(crate) struct Offer<'a> {
    /// In the order of a sequence.
    pub(crate) ids: &'a [BlockId],
    /// The block before them there.
    pub(crate) before: Option<BlockId>,
    /// From here on they are in nobody else's table unless their words say so.
    pub(crate) private_from: usize,
    /// Under which they were computed.
    pub(crate) generation: Generation,
}

/// A block that gets a name.
struct Moved {
    id: BlockId,
    /// Where it may be noted under the name it had.
    from: Place,
    /// Where it will be noted.
    to: Place,
}

/// The contents that can be matched.
pub(crate) struct PublishedBlocks {
    index: PrefixIndex,
    generation: AtomicU64,
    /// Steps that ended without publishing what was committed through them.
    failed_steps: AtomicU64,
    /// There only if somebody listens.
    announcer: Option<PlainArc<Announcer>>,
}

impl PublishedBlocks {
    /// For a pool of so many blocks; of 0 blocks, nothing is ever published.
    pub(crate) fn new(num_blocks: usize, announcer: Option<PlainArc<Announcer>>) -> Self {
        Self {
            index: PrefixIndex::new(num_blocks),
            generation: AtomicU64::new(0),
            failed_steps: AtomicU64::new(0),
            announcer,
        }
    }

    /// True if somebody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.announcer.is_some()
    }

    pub(crate) fn generation(&self) -> Generation {
        // Relaxed: the number alone tells contents apart, and guards nothing.
        Generation(self.generation.load(Ordering::Relaxed))
    }

    /// Steps that ended without publishing what was committed through them.
    #[inline]
    pub(crate) fn failed_steps(&self) -> u64 {
        // Relaxed: a thread that commits again was told of the failure, and that told it of this.
        self.failed_steps.load(Ordering::Relaxed)
    }

    /// Counts a step that ended without publishing what was committed through it.
    pub(crate) fn count_failed_step(&self) {
        // Relaxed: as in `failed_steps`.
        self.failed_steps.fetch_add(1, Ordering::Relaxed);
    }

    /// True if `id`, which the caller owns, is published under `hash`.
    pub(crate) fn is_published(
        &self,
        blocks: &Blocks,
        id: BlockId,
        hash: BlockHash,
        generation: Generation,
    ) -> bool {
        blocks.is_cached_as(id, name_of(hash, generation))
    }

    /// From now on nothing that was published matches.
    pub(crate) fn reset(&self) {
        // Relaxed: as in `generation`.
        let next = || self.generation.fetch_add(1, Ordering::Relaxed);
        match &self.announcer {
            None => drop(next()),
            Some(announcer) => announcer.announce(|announcing| {
                next();
                announcing.clear();
            }),
        }
    }

    /// Tells who listens everything once more.
    pub(crate) fn announce_again(&self) {
        if let Some(announcer) = &self.announcer {
            announcer.announce(|announcing| announcing.repeat());
        }
    }

    /// How many of `hashes`, from the first on, are cached. Holds and writes nothing.
    pub(crate) fn probe(&self, blocks: &Blocks, hashes: &[BlockHash]) -> Probed {
        let mut probed = Probed::default();
        if self.index.is_empty() {
            return probed;
        }
        let named = blocks.named();
        let fits = move |id, name| named.state_as(id, name);
        self.trail(blocks, self.generation()).follow(hashes, fits, |_, state| {
            probed.cached += 1;
            probed.idle += usize::from(state.is_idle());
        });
        probed
    }

    /// Makes the caller an owner of the blocks of `hashes`, from the first on, until one is not
    /// cached, and appends them to `out`. One exchange a block; one claim for 128 of them.
    pub(crate) fn acquire(
        &self,
        blocks: &Blocks,
        hashes: &[BlockHash],
        generation: Generation,
        out: &mut Vec<BlockId>,
    ) {
        if self.index.is_empty() {
            return;
        }
        let named = blocks.named();
        let mut trail = self.trail(blocks, generation);
        for part in hashes.chunks(Matching::AT_MOST) {
            // A look at all of them first: an exchange lets nothing that comes after it begin early.
            let start = out.len();
            let fits = move |id, name| named.seems_cached_as(id, name);
            trail.follow(part, fits, |id, _| out.push(id));
            let mut matching = blocks.matching();
            for (at, &hash) in (start..out.len()).zip(part) {
                let name = name_of(hash, generation);
                if matching.acquire(out[at], name) {
                    continue;
                }
                match self.index.find(self.index.place(name), |id| matching.acquire(id, name)) {
                    Some(id) => out[at] = id,
                    None => return out.truncate(at),
                }
            }
            if out.len() < start + part.len() {
                return;
            }
        }
    }

    /// Lets blocks be matched by the hashes of their contents. One whose content is cached in another
    /// block already stays as it is, and counts as a use of the other; all do of an earlier generation,
    /// which nobody would find. What is `told` of them goes to who listens. Returns how many can be
    /// matched that could not before.
    pub(crate) fn publish<'a>(
        &self,
        blocks: &Blocks,
        offer: &Offer<'_>,
        hash_of: impl Fn(usize) -> BlockHash,
        told: impl FnOnce() -> Told<'a>,
    ) -> usize {
        let Offer { ids, before, private_from, generation } = *offer;
        if self.index.is_empty() {
            return 0;
        }
        if let Some(announcer) = &self.announcer {
            return self.publish_aloud(announcer, blocks, ids, &hash_of, generation, &told());
        }
        if generation != self.generation() {
            return 0;
        }
        let (named, index) = (blocks.named(), self.index.view());
        let first = before.zip(ids.first().copied());
        let others = ids.windows(2).map(|pair| (pair[0], pair[1]));
        first.into_iter().chain(others).for_each(|(id, next)| named.set_follower(id, next));
        let mut published = 0;
        // From the end: if a content has been asked for again, so have those before it.
        let (mut again, mut end) = (false, ids.len());
        for part in ids.rchunks(AT_ONCE) {
            let start = end - part.len();
            // Where they will be noted, and where they are under the names that they had, which counts
            // only for a block that this thread then names: nobody else has named it until then. All
            // places first, then a look at each: the fewer instructions between two looks, the more of
            // them are on their way at once.
            let (mut places, mut were) = ([Place::ANY; AT_ONCE], [Place::ANY; AT_ONCE]);
            let (places, were) = (&mut places[..part.len()], &mut were[..part.len()]);
            for (at, (place, was)) in places.iter_mut().zip(were.iter_mut()).enumerate() {
                *place = index.place(name_of(hash_of(start + at), generation));
                *was = index.place(named.name(part[at]));
            }
            self.index.bring_near(places.iter().chain(were.iter()));
            let so_far = published;
            for (at, &id) in part.iter().enumerate().rev() {
                let name = name_of(hash_of(start + at), generation);
                again |= blocks.was_reclaimed_of_late(name);
                let is_private = start + at >= private_from;
                let moved = Moved { id, from: were[at], to: places[at] };
                let is_new = self.publish_one(blocks, moved, name, is_private, &mut again);
                published += usize::from(is_new);
            }
            if published > so_far {
                // SeqCst: of two threads that publish one content at once, whoever is here second
                // sees all that the first wrote. Loom: of_two_publishers_of_one_content_one_stays.
                fence(Ordering::SeqCst);
                for (at, &id) in part.iter().enumerate() {
                    let name = || name_of(hash_of(start + at), generation);
                    self.keep_one(blocks, id, places[at], name);
                }
            }
            end = start;
        }
        published
    }

    /// Blocks that can be found under `hash`.
    #[cfg(paged_kv_loom)]
    pub(super) fn copies(&self, blocks: &Blocks, hash: BlockHash) -> usize {
        let name = name_of(hash, self.generation());
        let mut copies = 0;
        let count = |id| {
            copies += usize::from(blocks.is_cached_as(id, name));
            false
        };
        self.index.find(self.index.place(name), count);
        copies
    }

    fn trail<'a>(&'a self, blocks: &'a Blocks, generation: Generation) -> Trail<'a> {
        // Where somebody listens, nothing is to be found that the index does not know.
        let follows = self.announcer.is_none();
        Trail::new(self.index.view(), blocks.named(), generation, follows)
    }

    #[inline]
    fn publish_one(
        &self,
        blocks: &Blocks,
        Moved { id, from, to }: Moved,
        name: Name,
        is_private: bool,
        again: &mut bool,
    ) -> bool {
        if let Some(other) = self.index.find(to, |other| blocks.is_cached_as(other, name)) {
            *again |= blocks.is_again(other);
            if other != id && blocks.is_idle(other) {
                blocks.matching().touch(other, name);
            }
            return false;
        }
        let renamed = |_| self.index.remove(from, id);
        blocks.give_name(id, name, *again, is_private, renamed) && self.note(blocks, to, id, name)
    }

    /// Notes that the content called `name` is in `id`.
    #[inline]
    fn note(&self, blocks: &Blocks, place: Place, id: BlockId, name: Name) -> bool {
        self.index.insert(place, id) || self.note_for_another(blocks, place, id, name)
    }

    /// Where there is no room: a content that was often reclaimed may have left entries of many blocks
    /// that got no other name since.
    #[cold]
    fn note_for_another(&self, blocks: &Blocks, place: Place, id: BlockId, name: Name) -> bool {
        let is_stale = |other| other != id && !blocks.is_cached_as(other, name);
        self.index.find(place, is_stale).is_some_and(|other| {
            self.index.remove(place, other);
            self.index.insert(place, id)
        })
    }

    /// Of the blocks cached under `name` lets the one with the lowest id be found only. The others
    /// stay with their owners and are reclaimed after them.
    #[inline]
    fn keep_one(&self, blocks: &Blocks, id: BlockId, place: Place, name: impl Fn() -> Name) {
        if self.index.may_have_two(place) {
            self.keep_one_of_two(blocks, id, place, name());
        }
    }

    #[cold]
    fn keep_one_of_two(&self, blocks: &Blocks, id: BlockId, place: Place, name: Name) {
        if !blocks.is_cached_as(id, name) {
            return;
        }
        let is_other = |other| other != id && blocks.is_cached_as(other, name);
        while let Some(other) = self.index.find(place, is_other) {
            self.index.remove(place, id.max(other));
            if id > other {
                return;
            }
        }
    }
}

/// What a look at the cache found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// Blocks that are cached.
    pub(crate) cached: usize,
    /// Those of them that nobody uses.
    pub(crate) idle: usize,
}

/// A hash, told apart from the same in other generations.
#[inline]
pub(super) fn name_of(hash: BlockHash, generation: Generation) -> Name {
    Name::new(hash.as_u128() ^ generation.mask())
}
