//! Look-ups of a chain of hashes: probes, which write nothing, and acquisitions of the blocks that are cached.

use super::{AT_ONCE, BucketSlot, Generation, PublishedBlocks};
use crate::groups::MOST_GROUPS;
use crate::id::{BlockId, GroupId};
use crate::pool::content_key::Mark;
use crate::pool::free_list::Matching;
use crate::pool::{BlockPool, Blocks, PromptUses};
use crate::prefix::hash::BlockHash;

/// The result of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// Blocks that are cached.
    pub(crate) cached: usize,
    /// Those of them that no table owns.
    pub(crate) idle: usize,
}

impl PublishedBlocks {
    /// Makes the contents of `hashes` unmatchable, copies included, wherever they are cached. Returns the number
    /// of blocks that were cached.
    pub(crate) fn forget(
        &self,
        blocks: &Blocks,
        hashes: &[BlockHash],
        generation: Generation,
    ) -> usize {
        let mut forgotten = 0;
        if self.index.is_empty() {
            return forgotten;
        }
        for &hash in hashes {
            let (key, mut ids) = (generation.key_of(hash), Vec::new());
            self.index.find(self.index.place(key), |id| {
                ids.extend(blocks.is_cached_as(id, key).then_some(id));
                false
            });
            // Compared with the key again: a block may have been reclaimed since.
            forgotten += blocks.uncache(&ids, |matching, id| matching.acquire(id, key));
        }
        forgotten
    }

    /// Returns true if the content is cached. Acquires and writes nothing.
    pub(crate) fn has(&self, blocks: &Blocks, hash: BlockHash, generation: Generation) -> bool {
        let key = generation.key_of(hash);
        let is_cached = |id| blocks.is_cached_as(id, key);
        !self.index.is_empty() && self.index.find(self.index.place(key), is_cached).is_some()
    }

    /// Returns how many of `hashes`, from the first on, are cached. Acquires and writes nothing.
    pub(crate) fn probe(&self, blocks: &Blocks, hashes: &[BlockHash]) -> Probed {
        let mut probed = Probed::default();
        if self.index.is_empty() {
            return probed;
        }
        let keyed = blocks.keyed();
        let fits = move |id, key| keyed.state_as(id, key);
        self.trail(blocks, self.generation()).follow(hashes, fits, |_, state| {
            probed.cached += 1;
            probed.idle += usize::from(state.is_idle());
        });
        probed
    }

    /// Does as [`probe`](Self::probe), for hashes of which some may be equal: counts an idle block once.
    pub(crate) fn probe_distinct(&self, blocks: &Blocks, hashes: &[BlockHash]) -> Probed {
        let mut probed = Probed::default();
        if self.index.is_empty() {
            return probed;
        }
        let (keyed, mut idle) = (blocks.keyed(), Vec::new());
        let fits = move |id, key| keyed.state_as(id, key);
        self.trail(blocks, self.generation()).follow(hashes, fits, |id, state| {
            probed.cached += 1;
            idle.extend(state.is_idle().then_some(id));
        });
        idle.sort_unstable();
        idle.dedup();
        probed.idle = idle.len();
        probed
    }

    /// Returns the idle blocks whose contents can be matched. Reads every block once there was a reset; contents from
    /// 4,096 resets ago may count as present ones then.
    pub(crate) fn num_idle(&self, pool: &BlockPool) -> usize {
        let generation = self.generation();
        if generation.number() == 0 {
            return pool.idle_totals().idle;
        }
        let group = |group: usize| self.of_group(generation, GroupId(group as u8));
        let marks: [Mark; MOST_GROUPS] = std::array::from_fn(|at| group(at).mark());
        pool.blocks().num_idle_with(&marks)
    }

    /// Counts the use of the contents of a prompt for the learned order of reclaim, if the pool has one. `hits` are the
    /// first of its blocks, which the caller has acquired. One lookup a block after these.
    #[cold]
    #[inline(never)]
    pub(crate) fn count_uses(
        &self,
        blocks: &Blocks,
        (hashes, num_tokens): (&[BlockHash], usize),
        hits: &[BlockId],
        generation: Generation,
    ) -> Option<PromptUses> {
        let mut look = blocks.density()?.look_at_prompt(hashes.len(), num_tokens);
        let (keyed, index) = (blocks.keyed(), self.index.view());
        let mut end = hashes.len();
        for part in hashes[hits.len()..].rchunks(AT_ONCE) {
            let start = end - part.len();
            let mut places = [BucketSlot::ANY; AT_ONCE];
            let places = &mut places[..part.len()];
            for (place, &hash) in places.iter_mut().zip(part) {
                *place = index.place(generation.key_of(hash));
            }
            self.index.prefetch(places.iter());
            for (at, &hash) in part.iter().enumerate().rev() {
                let key = generation.key_of(hash);
                let is_there = |id| keyed.seems_cached_as(id, key).is_some();
                match index.find(places[at], is_there) {
                    Some(id) => look.see_block(start + at, id, keyed),
                    None => look.see_missing(start + at, key),
                }
            }
            end = start;
        }
        for (at, &id) in hits.iter().enumerate().rev() {
            look.see_block(at, id, keyed);
        }
        Some(look.end(keyed, hits.len()))
    }

    /// Makes the caller an owner of the blocks of `hashes`, from the first on, until one is not cached.
    /// Appends them to `out`. Costs one exchange a block, and one claim for 128 blocks.
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
        let keyed = blocks.keyed();
        let mut trail = self.trail(blocks, generation);
        for part in hashes.chunks(Matching::AT_MOST) {
            // Read all of them first: an exchange delays later loads.
            let start = out.len();
            let fits = move |id, key| keyed.seems_cached_as(id, key);
            trail.follow(part, fits, |id, _| out.push(id));
            let mut matching = blocks.matching();
            self.acquire_found(&mut matching, part, generation, start, out);
            let has_released = matching.has_released();
            drop(matching);
            if has_released {
                blocks.announce_room();
            }
            if out.len() < start + part.len() {
                return;
            }
        }
    }

    /// Makes the caller an owner of the block of each of `hashes` that is cached. Appends the blocks to `out`. Costs as
    /// [`acquire`](Self::acquire).
    pub(crate) fn acquire_each(
        &self,
        blocks: &Blocks,
        hashes: &[BlockHash],
        generation: Generation,
        out: &mut Vec<Option<BlockId>>,
    ) {
        let keyed = blocks.keyed();
        for part in hashes.chunks(Matching::AT_MOST) {
            let start = out.len();
            // Read all of them first: an exchange delays later loads.
            out.extend(part.iter().map(|&hash| {
                let key = generation.key_of(hash);
                let seems_there = |id| keyed.seems_cached_as(id, key).is_some();
                self.index.find(self.index.place(key), seems_there)
            }));
            let mut matching = blocks.matching();
            for (&hash, found) in part.iter().zip(&mut out[start..]) {
                let key = generation.key_of(hash);
                if !found.is_some_and(|id| matching.acquire(id, key)) {
                    // Another copy may still be cached.
                    let place = self.index.place(key);
                    *found =
                        found.and_then(|_| self.index.find(place, |id| matching.acquire(id, key)));
                }
            }
            let has_released = matching.has_released();
            drop(matching);
            if has_released {
                blocks.announce_room();
            }
        }
    }

    /// Makes the caller an owner of the blocks `out[start..]`, which were found for `hashes`, or of others with
    /// the same contents. Truncates `out` at the first content that is not cached any more.
    fn acquire_found(
        &self,
        matching: &mut Matching<'_>,
        hashes: &[BlockHash],
        generation: Generation,
        start: usize,
        out: &mut Vec<BlockId>,
    ) {
        for (at, &hash) in (start..out.len()).zip(hashes) {
            let key = generation.key_of(hash);
            if matching.acquire(out[at], key) {
                continue;
            }
            match self.index.find(self.index.place(key), |id| matching.acquire(id, key)) {
                Some(id) => out[at] = id,
                None => return out.truncate(at),
            }
        }
    }
}
