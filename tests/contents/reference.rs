//! `Reference`: which contents should be found and reported, by a sequential model that knows the content
//! of each block.
//!
//! It reads from the cache which blocks a sequence has. The rest follows from the rules: a full block
//! that is committed holds its content, unless four other blocks do. It holds the content until it is
//! given to another owner.

use std::collections::{HashMap, HashSet};

use paged_kv::{BlockHash, BlockId, PagedKvCache, SeqId};

use crate::BLOCK_SIZE;

/// The most blocks that are cached under one content.
const MOST_COPIES: usize = 4;

#[derive(Clone)]
pub struct Sequence {
    pub tokens: Vec<u32>,
    /// True if the cache was given hashes only.
    pub is_hashed: bool,
    generation: u64,
    hashes: Vec<BlockHash>,
    blocks: Vec<BlockId>,
    offered: usize,
}

#[derive(Default)]
pub struct Reference {
    pub sequences: HashMap<u64, Sequence>,
    /// The content of each block.
    holds: HashMap<BlockId, BlockHash>,
    /// Contents whose tokens the cache knows.
    known: HashSet<BlockHash>,
    generation: u64,
}

impl Reference {
    fn copies(&self, hash: BlockHash) -> usize {
        self.holds.values().filter(|&&held| held == hash).count()
    }

    /// Reads the blocks that a sequence has now. Blocks that it did not have before hold nothing.
    fn learn_blocks(&mut self, cache: &PagedKvCache, id: u64, kept: usize) {
        let sequence = self.sequences.get_mut(&id).unwrap();
        let blocks = cache.get_sequence(SeqId(id)).unwrap().block_ids;
        for (at, &block) in blocks.iter().enumerate().skip(kept) {
            if sequence.blocks.get(at) != Some(&block) {
                self.holds.remove(&block);
            }
        }
        sequence.blocks = blocks;
        self.forget_unheld();
    }

    fn forget_unheld(&mut self) {
        let held: HashSet<BlockHash> = self.holds.values().copied().collect();
        self.known.retain(|hash| held.contains(hash));
    }

    pub fn admit(&mut self, cache: &PagedKvCache, id: u64, tokens: &[u32], is_hashed: bool) {
        let hashes = cache.prompt(tokens).hashes().to_vec();
        let hits = self.find(&hashes[..(tokens.len() - 1) / BLOCK_SIZE]);
        let (generation, blocks) = (self.generation, Vec::new());
        let tokens = tokens.to_vec();
        let offered = hits;
        let sequence = Sequence { tokens, is_hashed, generation, hashes, blocks, offered };
        self.sequences.insert(id, sequence);
        self.learn_blocks(cache, id, hits);
        let sequence = &self.sequences[&id];
        for (block, hash) in sequence.blocks.iter().zip(&sequence.hashes[..hits]) {
            assert_eq!(self.holds.get(block), Some(hash), "a hit holds what it was matched for");
        }
        if !is_hashed {
            self.known.extend(&sequence.hashes[..hits]);
        }
    }

    /// Returns how many contents can be found now and could not before.
    pub fn commit(&mut self, id: u64, num_tokens: usize) -> usize {
        let sequence = self.sequences.get_mut(&id).unwrap();
        let full = num_tokens.min(sequence.tokens.len()) / BLOCK_SIZE;
        let from = sequence.offered;
        sequence.offered = from.max(full);
        let sequence = sequence.clone();
        let mut new = 0;
        if sequence.generation == self.generation {
            // Blocks that were left out because their contents had enough copies are offered again.
            let is_left_out = |at: &usize| !self.holds.contains_key(&sequence.blocks[*at]);
            let again = if from < full { 0..from } else { 0..0 };
            let offered: Vec<usize> = again.filter(is_left_out).chain(from..full).collect();
            for at in offered {
                let (block, hash) = (sequence.blocks[at], sequence.hashes[at]);
                let copies = self.copies(hash);
                if copies < MOST_COPIES {
                    self.holds.entry(block).or_insert(hash);
                }
                new += usize::from(copies == 0);
                if !sequence.is_hashed {
                    self.known.insert(hash);
                }
            }
        }
        new
    }

    /// Appends tokens, which are computed and committed.
    pub fn append(&mut self, cache: &PagedKvCache, id: u64, tokens: &[u32]) {
        let sequence = self.sequences.get_mut(&id).unwrap();
        sequence.tokens.extend_from_slice(tokens);
        sequence.hashes = cache.prompt(&sequence.tokens).hashes().to_vec();
        let num_tokens = sequence.tokens.len();
        self.learn_blocks(cache, id, 0);
        self.commit(id, num_tokens);
    }

    pub fn truncate(&mut self, cache: &PagedKvCache, id: u64, num_tokens: usize) {
        let sequence = self.sequences.get_mut(&id).unwrap();
        if num_tokens < sequence.tokens.len() {
            sequence.tokens.truncate(num_tokens);
            sequence.hashes.truncate(num_tokens / BLOCK_SIZE);
            sequence.offered = sequence.offered.min(num_tokens / BLOCK_SIZE);
        }
        self.learn_blocks(cache, id, 0);
    }

    pub fn fork(&mut self, src: u64, dst: u64) {
        let fork = self.sequences[&src].clone();
        self.sequences.insert(dst, fork);
    }

    pub fn free(&mut self, id: u64) {
        self.sequences.remove(&id);
    }

    /// Notes that these blocks have a new owner.
    pub fn take(&mut self, blocks: &[BlockId]) {
        blocks.iter().for_each(|block| _ = self.holds.remove(block));
        self.forget_unheld();
    }

    pub fn reset(&mut self) {
        self.generation += 1;
        self.holds.clear();
        self.known.clear();
    }

    /// Returns how many contents of a chain are cached, from the first on.
    pub fn find(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|&&hash| self.copies(hash) > 0).count()
    }

    /// Returns how many contents of a chain a listener knows, from the first on.
    pub fn told(&self, hashes: &[BlockHash]) -> usize {
        let is_told = |hash: &&BlockHash| self.copies(**hash) > 0 && self.known.contains(*hash);
        hashes.iter().take_while(is_told).count()
    }
}
