//! `Request`: an owned admitted request, to check that a matched block holds the content that its hash
//! promises.
//!
//! A request checks the blocks that hit, computes and publishes the others, appends, forks, and is truncated
//! and trimmed. All its blocks hold the contents of its script, also partly filled ones. So every matched,
//! copied or shared block can be checked at any time.

use paged_kv::{AdmitOptions, BlockId, CachedSequence};

use super::random::Random;
use super::shared::{Ground, count};
use super::token_stream::{BLOCKS_MOST, Script};

pub struct Request<'a> {
    ground: &'a Ground,
    sequence: CachedSequence,
    script: Script,
    /// An upper bound of the resets before its admission: its contents are of no later weights.
    updates: u64,
}

impl<'a> Request<'a> {
    /// Admits a request, checks the blocks that hit, computes the others and publishes them. Returns `None`
    /// if there is no room.
    pub fn new(ground: &'a Ground, random: &mut Random) -> Option<Self> {
        let cache = &ground.cache;
        let script = Script::new(ground.families, cache.block_size(), random);
        let num_tokens = 1 + random.below(BLOCKS_MOST * cache.block_size());
        let prompt = cache.prompt(&script.tokens(0..num_tokens));
        if random.one_in(4) {
            expect_cached(ground, cache.prefix().probe(&prompt), num_tokens);
        }
        let most = if random.one_in(4) { random.below(num_tokens) } else { num_tokens };
        let options = AdmitOptions::default().max_cached_tokens(most);
        let resets = ground.resets_done();
        let (sequence, admission) = ground.fair(cache.admit_sequence(&prompt, &options))?;
        expect_cached(ground, admission.cached_tokens, num_tokens);
        let hits = admission.cached_tokens / cache.block_size();
        count(&ground.tally.admissions, 1);
        count(&ground.tally.hit_blocks, hits);
        let mut request = Self { ground, sequence, script, updates: ground.resets_begun() };
        for (block, &id) in request.sequence.block_ids()[..hits].iter().enumerate() {
            ground.cells.check_match(id, script.content(block), resets);
        }
        // The first part of the prompt is published before the block in which it ends is computed.
        let part = random.below(num_tokens + 1);
        (hits..part / cache.block_size()).for_each(|block| request.compute(block));
        request.commit(part, hits);
        let rest = hits.max(part / cache.block_size())..request.sequence.num_logical_blocks();
        rest.for_each(|block| request.compute(block));
        request.commit(num_tokens, hits);
        Some(request)
    }

    /// Performs one random operation, and checks all blocks. Returns the fork, if the operation made one.
    pub fn step(&mut self, random: &mut Random) -> Option<Self> {
        let size = self.ground.cache.block_size();
        let mut fork = None;
        match random.below(8) {
            0 => fork = self.fork(),
            1 => {
                let end = random.below(self.sequence.num_tokens() + 1);
                self.ground.fair(self.sequence.truncate(end));
            }
            2 if random.one_in(4) => {
                let (sink, window) = (random.below(2 * size + 1), random.below(8 * size));
                self.ground.granted(self.sequence.apply_streaming_llm(sink, window));
            }
            3 => self.say(random.below(2 * size), random.below(4)),
            _ => self.say(1 + random.below(4), 0),
        }
        self.check();
        fork
    }

    /// Commits `num_tokens` tokens, whose first `hits` blocks hit. Checks that it publishes only full blocks
    /// that did not hit.
    fn commit(&mut self, num_tokens: usize, hits: usize) {
        let published = self.ground.granted(self.sequence.commit(num_tokens)).unwrap_or(0);
        let most = (num_tokens / self.ground.cache.block_size()).saturating_sub(hits);
        self.ground.expect(published <= most, || {
            format!("{published} blocks are published of {num_tokens} tokens, {hits} of which hit")
        });
    }

    fn fork(&mut self) -> Option<Self> {
        let sequence = self.ground.granted(self.sequence.fork())?;
        let Self { ground, script, updates, .. } = *self;
        Some(Self { ground, sequence, script, updates })
    }

    /// Appends `num_tokens` tokens of the script and `num_drafts` drafts, then truncates the drafts: all are
    /// rejected.
    fn say(&mut self, num_tokens: usize, num_drafts: usize) {
        let size = self.ground.cache.block_size();
        let start = self.sequence.num_tokens();
        let (end, drafted) = (start + num_tokens, start + num_tokens + num_drafts);
        if start == drafted || drafted > 2 * BLOCKS_MOST * size {
            return;
        }
        let Some(append) = self.ground.fair(self.sequence.append(drafted - start)) else { return };
        let mut taken = self.sequence.block_ids()[append.new_blocks.clone()].to_vec();
        if let Some(copy) = &append.copy {
            self.ground.cells.check(copy.src, self.script.content(start / size));
            taken.push(copy.dst);
        }
        for block in start / size..drafted.div_ceil(size) {
            match self.sequence.block_at(block) {
                Some(id) if taken.contains(&id) => self.compute(block),
                Some(id) => self.ground.expect_sole(id),
                None => self.ground.find(format_args!("block {block} was written and is a gap")),
            }
        }
        drop(append);
        self.ground.granted(self.sequence.commit(&self.script.tokens(start..end)));
        if num_drafts > 0 {
            self.ground.fair(self.sequence.truncate(end));
        }
    }

    /// Computes a block that no other sequence owns; a gap is skipped.
    fn compute(&mut self, block: usize) {
        if let Some(id) = self.sequence.block_at(block) {
            compute(self.ground, id, self.script.content(block), self.updates);
        }
    }

    fn check(&self) {
        for block in 0..self.sequence.num_logical_blocks() {
            if let Some(id) = self.sequence.block_at(block) {
                self.ground.cells.check(id, self.script.content(block));
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.check();
    }
}

/// Writes a block as its only owner.
pub fn compute(ground: &Ground, id: BlockId, content: u64, updates: u64) {
    ground.expect_sole(id);
    ground.cells.write_as_sole(id, content, updates);
}

/// Checks that only whole blocks were cached, and never the last token.
pub fn expect_cached(ground: &Ground, cached_tokens: usize, num_tokens: usize) {
    let whole = cached_tokens.is_multiple_of(ground.cache.block_size());
    ground.expect(whole && cached_tokens < num_tokens, || {
        format!("{cached_tokens} tokens are cached of a prompt of {num_tokens}")
    });
}
