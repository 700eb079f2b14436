//! `Kvbm` and `ByGuard`: kvbm-logical, behind the traits of the rig.
//!
//! It runs in its fastest configuration for this work: LRU, no frequency tracking, and batches wherever its
//! API has them. Its sequence hashes are computed beforehand, as ours are. A block is a guard that releases
//! itself when dropped. The last guard is dropped first, so that it also reclaims tails before heads.

use std::collections::HashMap;

use kvbm_logical::blocks::BlockRegistry;
use kvbm_logical::{BlockManager, ImmutableBlock, MutableBlock, SequenceHash};
use paged_kv::Prompt;

use crate::rig::pools::Pool;
use crate::rig::prompts::{LIVE, Server};

/// The kind of memory of the blocks: there is one.
#[derive(Clone)]
pub struct Tier;

/// Its block manager.
pub struct Kvbm(BlockManager<Tier>);

impl Kvbm {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let manager = BlockManager::builder()
            .block_count(num_blocks)
            .block_size(block_size)
            .registry(BlockRegistry::builder().build())
            .with_lru_backend()
            .build();
        Self(manager.expect("the configuration is one of its own examples"))
    }
}

impl Pool for Kvbm {
    type Batch = Vec<MutableBlock<Tier>>;
    type Fork = ();

    fn batch(&self) -> Self::Batch {
        Vec::new()
    }
    #[inline]
    fn allocate(&self, n: usize, batch: &mut Self::Batch) {
        *batch = self.0.allocate_blocks(n).expect("room for every batch");
    }
    #[inline]
    fn release(&self, batch: &mut Self::Batch) {
        batch.clear();
    }
    fn fork(&self, _: &mut Self::Batch, _: &mut ()) {
        unreachable!("blocks that are not registered have one owner");
    }
    fn release_fork(&self, _: &mut ()) {}
}

/// The sequence hashes of each prompt.
pub struct Names(HashMap<usize, Box<[SequenceHash]>>);

impl Names {
    pub fn new(prompts: &[Prompt]) -> Self {
        let names = |prompt: &Prompt| {
            let words = prompt.hashes().iter().map(|hash| hash.event_hash());
            let parents = std::iter::once(None).chain(words.clone().map(Some));
            let name = |((word, parent), at)| SequenceHash::new(word, parent, at);
            (address(prompt), words.zip(parents).zip(0..).map(name).collect())
        };
        Self(prompts.iter().map(names).collect())
    }

    fn of(&self, prompt: &Prompt) -> &[SequenceHash] {
        &self.0[&address(prompt)]
    }
}

/// Returns an address that identifies a prompt as long as the prompt lives.
fn address(prompt: &Prompt) -> usize {
    prompt.hashes().as_ptr().addr()
}

/// A scheduler that keeps its guards.
pub struct ByGuard<'a> {
    kvbm: &'a Kvbm,
    names: &'a Names,
    rows: Vec<Row>,
}

/// One request.
#[derive(Default)]
struct Row {
    matched: Vec<ImmutableBlock<Tier>>,
    registered: Vec<ImmutableBlock<Tier>>,
    open: Vec<MutableBlock<Tier>>,
    num_tokens: usize,
}

impl<'a> ByGuard<'a> {
    pub fn new(kvbm: &'a Kvbm, names: &'a Names) -> Self {
        Self { kvbm, names, rows: (0..LIVE).map(|_| Row::default()).collect() }
    }
}

impl Server for ByGuard<'_> {
    fn admit(&mut self, row: usize, prompt: &Prompt) -> usize {
        let (manager, row) = (&self.kvbm.0, &mut self.rows[row]);
        let (names, block_size) = (self.names.of(prompt), manager.block_size());
        row.num_tokens = prompt.num_tokens();
        row.matched = manager.match_blocks(names);
        let hits = row.matched.len();
        let num_new = row.num_tokens.div_ceil(block_size) - hits;
        let mut blocks = manager.allocate_blocks(num_new).expect("room for every request");
        row.open = blocks.split_off(names.len() - hits);
        let stage = |(block, &name): (MutableBlock<Tier>, _)| {
            block.stage(name, block_size).unwrap_or_else(|_| panic!("the block is of that size"))
        };
        let staged = blocks.into_iter().zip(&names[hits..]).map(stage).collect();
        row.registered = manager.register_blocks(staged);
        hits
    }

    fn append(&mut self, row: usize, num_tokens: usize) {
        let (manager, row) = (&self.kvbm.0, &mut self.rows[row]);
        row.num_tokens += num_tokens;
        let len = row.matched.len() + row.registered.len() + row.open.len();
        let needed = row.num_tokens.div_ceil(manager.block_size());
        if needed > len {
            let blocks = manager.allocate_blocks(needed - len).expect("room for every request");
            row.open.extend(blocks);
        }
    }

    fn free(&mut self, row: usize) {
        let Row { matched, registered, open, .. } = std::mem::take(&mut self.rows[row]);
        open.into_iter().rev().for_each(drop);
        registered.into_iter().rev().for_each(drop);
        matched.into_iter().rev().for_each(drop);
    }
}
