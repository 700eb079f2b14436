//! Which contents can be matched now? Blocks by the hash of their contents, for one set of weights.
//!
//! Publishing names a block and notes it in the index; matching looks a chain of hashes up, makes the
//! caller an owner of each block and compares its whole name, until the first that is not there.
//! A *generation* is mixed into every name: after a reset nothing of an earlier one matches, and what
//! is published late under an earlier one is never found.
//!
//! Invariant: of several blocks of one content one stays findable. It does not know sequences.

mod announced;

pub(crate) use self::announced::Told;
use super::hash::BlockHash;
use super::index::PrefixIndex;
use crate::event::announcer::Announcer;
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::free_list::Matching;
use crate::pool::name::Name;
use crate::sync::{AtomicU64, Ordering, PlainArc, fence};

/// Which weights a content was computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// The contents that can be matched.
pub(crate) struct PublishedBlocks {
    index: PrefixIndex,
    generation: AtomicU64,
    /// There only if somebody listens.
    announcer: Option<PlainArc<Announcer>>,
}

impl PublishedBlocks {
    /// For a pool of so many blocks; of 0 blocks, nothing is ever published.
    pub(crate) fn new(num_blocks: usize, announcer: Option<PlainArc<Announcer>>) -> Self {
        Self { index: PrefixIndex::new(num_blocks), generation: AtomicU64::new(0), announcer }
    }

    /// True if somebody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.announcer.is_some()
    }

    pub(crate) fn generation(&self) -> Generation {
        // Relaxed: the number alone tells contents apart, and guards nothing.
        Generation(self.generation.load(Ordering::Relaxed))
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
        let generation = self.generation();
        for &hash in hashes {
            let name = name_of(hash, generation);
            let found = self.index.find(self.index.place(name), |id| blocks.is_cached_as(id, name));
            let Some(id) = found else { break };
            probed.cached += 1;
            probed.idle += usize::from(blocks.is_idle(id));
        }
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
        for part in hashes.chunks(Matching::AT_MOST) {
            let mut matching = blocks.matching();
            for &hash in part {
                let name = name_of(hash, generation);
                match self.index.find(self.index.place(name), |id| matching.acquire(id, name)) {
                    Some(id) => out.push(id),
                    None => return,
                }
            }
        }
    }

    /// Lets `ids`, in the order of a sequence, be matched by the hashes of their contents, for one of
    /// their owners; those from `private_from` on are in nobody else's table unless their words say so.
    /// One whose content is cached in another block already stays as it is, and counts as a use of the
    /// other. What is `told` of them goes to who listens. Returns how many can be matched that could not
    /// before.
    pub(crate) fn publish<'a>(
        &self,
        blocks: &Blocks,
        ids: &[BlockId],
        private_from: usize,
        hash_of: impl Fn(usize) -> BlockHash,
        generation: Generation,
        told: impl FnOnce() -> Told<'a>,
    ) -> usize {
        if self.index.is_empty() {
            return 0;
        }
        if let Some(announcer) = &self.announcer {
            let told = &told();
            let published = self.publish_aloud(announcer, blocks, ids, &hash_of, generation, told);
            if let Some(published) = published {
                return published;
            }
            // Of an earlier generation: nobody finds it, so nobody is told.
        }
        let mut published = 0;
        // From the end: if a content has been asked for again, so have those before it.
        let mut again = false;
        for (at, &id) in ids.iter().enumerate().rev() {
            let name = name_of(hash_of(at), generation);
            again |= blocks.was_reclaimed_of_late(name);
            let is_private = at >= private_from;
            published += usize::from(self.publish_one(blocks, id, name, is_private, &mut again));
        }
        if published > 0 {
            // SeqCst: of two threads that publish one content at once, whoever is here second sees
            // all that the first wrote. Loom: of_two_publishers_of_one_content_one_stays.
            fence(Ordering::SeqCst);
            for (at, &id) in ids.iter().enumerate() {
                self.keep_one(blocks, id, name_of(hash_of(at), generation));
            }
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

    #[inline]
    fn publish_one(
        &self,
        blocks: &Blocks,
        id: BlockId,
        name: Name,
        is_private: bool,
        again: &mut bool,
    ) -> bool {
        let place = self.index.place(name);
        if let Some(other) = self.index.find(place, |other| blocks.is_cached_as(other, name)) {
            *again |= blocks.is_again(other);
            if other != id && blocks.is_idle(other) && blocks.matching().touch(other, name) {
                blocks.give(&[other]);
            }
            blocks.announce_room();
            return false;
        }
        let renamed = |old| self.index.remove(self.index.place(old), id);
        blocks.give_name(id, name, *again, is_private, renamed) && self.index.insert(place, id)
    }

    /// Of the blocks cached under `name` lets the one with the lowest id be found only. The others
    /// stay with their owners and are reclaimed after them.
    #[inline]
    fn keep_one(&self, blocks: &Blocks, id: BlockId, name: Name) {
        let place = self.index.place(name);
        if !self.index.may_have_two(place) || !blocks.is_cached_as(id, name) {
            return;
        }
        let is_other = |other| other != id && blocks.is_cached_as(other, name);
        if let Some(other) = self.index.find(place, is_other) {
            self.index.remove(place, id.max(other));
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
pub(super) fn name_of(hash: BlockHash, Generation(generation): Generation) -> Name {
    // Odd constants spread the generation over all bits; the first changes nothing.
    let mix = generation.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mask = u128::from(mix) << 64 | u128::from(mix.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    Name::new(hash.as_u128() ^ mask)
}

#[cfg(all(test, not(paged_kv_loom)))]
mod tests {
    use super::*;
    use crate::pool::{BlockPool, Keep, ReclaimPolicy};

    /// The index cannot tell most of them apart, and the window overflows.
    #[test]
    fn hashes_that_collide_in_the_index_never_match() {
        let pool =
            BlockPool::build(2_000, 1, Keep::Contents(ReclaimPolicy::Lru), false, None).unwrap();
        let mut published = PublishedBlocks::new(2_000, None);
        published.index = PrefixIndex::of_8_bits(2_000);
        let generation = published.generation();
        let hash = |n: u128| BlockHash::from_u128(n * 0x1234_5678_9abc_def1_0fed_cba9);
        let table = pool.allocate(1_000).unwrap();
        for (n, &id) in table.as_slice().iter().enumerate() {
            let hash_of = |_| hash(1 + n as u128);
            published.publish(pool.blocks(), &[id], 0, hash_of, generation, || unreachable!());
        }
        let mut found = 0;
        for n in 0..2_000 {
            let asked = [hash(1 + n as u128)];
            let mut ids = Vec::new();
            published.acquire(pool.blocks(), &asked, generation, &mut ids);
            found += ids.len();
            if let Some(id) = ids.first() {
                assert_eq!(Some(id), table.as_slice().get(n), "hash {n}");
            }
            assert_eq!(published.probe(pool.blocks(), &asked).cached, ids.len());
            drop(pool.table_of(ids));
        }
        assert!((20..1_000).contains(&found), "{found}: some are found, many forgotten");
        drop(table);
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    }
}
