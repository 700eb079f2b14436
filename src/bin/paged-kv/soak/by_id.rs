//! `ById`: one worker's requests in the map, to check that the map keeps requests apart.
//!
//! The worker chooses the ids, and leases a request while it computes it. Between leases any thread may
//! evict the request. Other threads change these sequences only by eviction, so a sequence that is still
//! in the map holds the contents that were computed into it.

use paged_kv::{AdmitOptions, SeqId};

use super::random::Random;
use super::request::{compute, expect_cached};
use super::shared::{Ground, count};
use super::token_stream::{BLOCKS_MOST, Script};

/// The most requests that a worker remembers. It leaves older ones to eviction.
const REMEMBERED: usize = 8;

/// A request that its worker may revisit.
#[derive(Clone, Copy)]
struct Remembered {
    id: SeqId,
    script: Script,
    /// An upper bound of the resets before its admission: its contents are of no later weights.
    updates: u64,
}

/// The requests of one worker in the map.
pub struct ById<'a> {
    ground: &'a Ground,
    next_id: u64,
    remembered: Vec<Remembered>,
}

impl<'a> ById<'a> {
    /// Creates the requests of a worker. No other worker uses the ids from `first_id` on.
    pub fn new(ground: &'a Ground, first_id: u64) -> Self {
        Self { ground, next_id: first_id, remembered: Vec::new() }
    }

    pub fn step(&mut self, random: &mut Random) {
        if self.remembered.len() < REMEMBERED || random.one_in(4) {
            self.admit(random);
        } else {
            let request = self.remembered[random.below(REMEMBERED)];
            if self.revisit(request, random).is_none() {
                self.remembered.retain(|remembered| remembered.id != request.id);
            }
        }
    }

    /// Admits, computes and publishes a request under a lease. A request that was evicted before the lease is
    /// not remembered.
    fn admit(&mut self, random: &mut Random) -> Option<()> {
        let (ground, cache) = (self.ground, &self.ground.cache);
        let script = Script::new(ground.families, cache.block_size(), random);
        let num_tokens = 1 + random.below(BLOCKS_MOST * cache.block_size());
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let tokens = script.tokens(0..num_tokens);
        let options = AdmitOptions::default().priority(random.below(4) as u32);
        let resets = ground.resets_done();
        let admission = ground.fair(cache.admit_with(id, &cache.prompt(&tokens), &options))?;
        let updates = ground.resets_begun();
        expect_cached(ground, admission.cached_tokens, num_tokens);
        let lease = ground.fair(cache.lease(&[id]))?;
        let hits = admission.cached_tokens / cache.block_size();
        count(&ground.tally.admissions, 1);
        count(&ground.tally.hit_blocks, hits);
        for (block, block_id) in self.blocks(id)?.into_iter().enumerate() {
            let content = script.content(block);
            match block {
                _ if block < hits => ground.cells.check_match(block_id, content, resets),
                _ => compute(ground, block_id, content, updates),
            }
        }
        ground.granted(cache.commit(id, num_tokens));
        drop(lease);
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(Remembered { id, script, updates });
        Some(())
    }

    /// Checks a request, appends a few tokens, and ends it at random. Returns `None` if it ended or is gone.
    fn revisit(&mut self, request: Remembered, random: &mut Random) -> Option<()> {
        let Remembered { id, script, .. } = request;
        let (ground, cache) = (self.ground, &self.ground.cache);
        let lease = ground.fair(cache.lease(&[id]))?;
        for (block, block_id) in self.blocks(id)?.into_iter().enumerate() {
            ground.cells.check(block_id, script.content(block));
        }
        self.say(request, 1 + random.below(2 * cache.block_size()));
        match random.below(6) {
            0 => {
                ground.granted(cache.free_when_released(id));
                drop(lease);
                None
            }
            1 => {
                drop(lease);
                ground.fair(cache.free(id));
                None
            }
            2 => ground.fair(cache.touch(id)),
            3 => ground.fair(cache.set_priority(id, random.below(4) as u32)),
            _ => Some(()),
        }
    }

    /// Appends the next `num_tokens` tokens of the script, if there is room and the request is not too long.
    fn say(&self, request: Remembered, num_tokens: usize) -> Option<()> {
        let Remembered { id, script, updates } = request;
        let (ground, cache) = (self.ground, &self.ground.cache);
        let size = cache.block_size();
        let start = cache.get_sequence(id)?.num_tokens;
        let end = start + num_tokens;
        if end > 2 * BLOCKS_MOST * size {
            return None;
        }
        let append = ground.fair(cache.append(id, num_tokens))?;
        let blocks = self.blocks(id)?;
        let mut taken = blocks[append.new_blocks.clone()].to_vec();
        if let Some(copy) = &append.copy {
            ground.cells.check(copy.src, script.content(start / size));
            taken.push(copy.dst);
        }
        for (block, &block_id) in blocks.iter().enumerate().skip(start / size) {
            if taken.contains(&block_id) {
                compute(ground, block_id, script.content(block), updates);
            } else {
                ground.expect_sole(block_id);
            }
        }
        drop(append);
        ground.granted(cache.commit(id, &script.tokens(start..end))).map(drop)
    }

    /// Returns the blocks of a leased sequence, which must be in the map and has no gaps.
    fn blocks(&self, id: SeqId) -> Option<Vec<paged_kv::BlockId>> {
        let blocks = self.ground.cache.with_sequence(id, |sequence| sequence.block_ids().to_vec());
        self.ground.expect(blocks.is_some(), || format!("{id} is leased and is gone"));
        blocks
    }
}
