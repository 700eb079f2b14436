//! `BlockManager`, the calls of an engine, and its two adapters.

use std::collections::HashMap;
use std::ops::Range;

use paged_kv::export::{Gaps, slots};
use paged_kv::{
    AdmitOptions, BlockHash, BlockHasher, BlockId, CachedSequence, ExtraKeys, HashAlgorithm,
    PagedKvCache, Prompt,
};

/// The calls of an engine's scheduler. `None` means that there is no room, and that nothing has changed.
pub trait BlockManager {
    /// Begins a request and returns how many of its tokens are cached. All tokens of full blocks may hit; the
    /// engine computes the last token again by itself.
    fn admit(&mut self, request: u64, tokens: &[u32]) -> Option<usize>;

    /// Adds a computed token. Returns the blocks to copy before it is written, as pairs of source and target.
    fn append(&mut self, request: u64, token: u32) -> Option<Vec<(u32, u32)>>;

    /// Begins a second request with the tokens of the first.
    fn fork(&mut self, request: u64, second: u64);

    /// Ends a request. Its full blocks stay cached.
    fn free(&mut self, request: u64);

    /// Returns the blocks of a request, in order.
    fn table(&self, request: u64) -> Vec<u32>;

    /// Returns the slots of some tokens: `block * block_size + offset`.
    fn slots(&self, request: u64, tokens: Range<usize>) -> Vec<i64>;

    /// Ends a request and returns its blocks, whose contents the engine copies to the host before its next call.
    fn swap_out(&mut self, request: u64) -> Vec<u32>;

    fn free_blocks(&self) -> usize;
}

/// Requests as owned sequences. The cache hashes the tokens.
pub struct ByHandles {
    cache: PagedKvCache,
    requests: HashMap<u64, CachedSequence>,
}

impl ByHandles {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let builder =
            PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size).home_shards(1);
        Self { cache: builder.build().expect("a cache of that shape"), requests: HashMap::new() }
    }
}

impl BlockManager for ByHandles {
    fn admit(&mut self, request: u64, tokens: &[u32]) -> Option<usize> {
        let (prompt, options) =
            (self.cache.prompt(tokens), AdmitOptions::default().allow_full_hit());
        let (mut sequence, admission) = self.cache.admit_sequence(&prompt, &options).ok()?;
        // A real engine commits when the keys and values of each chunk are computed.
        sequence.commit(tokens.len()).expect("it has slots");
        self.requests.insert(request, sequence);
        Some(admission.cached_tokens)
    }

    fn append(&mut self, request: u64, token: u32) -> Option<Vec<(u32, u32)>> {
        let sequence = self.requests.get_mut(&request)?;
        let append = sequence.append(1).ok()?;
        let copies = append.copy.iter().map(|copy| (copy.src.0, copy.dst.0)).collect();
        sequence.commit(&[token]).expect("it has a slot");
        Some(copies)
    }

    fn fork(&mut self, request: u64, second: u64) {
        let sequence = self.requests.get_mut(&request).expect("it was admitted");
        let fork = sequence.fork().expect("far fewer than 2^20 - 1 owners");
        self.requests.insert(second, fork);
    }

    fn free(&mut self, request: u64) {
        self.requests.remove(&request);
    }

    fn table(&self, request: u64) -> Vec<u32> {
        self.requests[&request].block_ids().iter().map(|id| id.0).collect()
    }

    fn slots(&self, request: u64, tokens: Range<usize>) -> Vec<i64> {
        let mut out = vec![0; tokens.len()];
        slots(&self.requests[&request], tokens, Gaps::Show, &mut out)
            .expect("the tokens have slots");
        out
    }

    fn swap_out(&mut self, request: u64) -> Vec<u32> {
        let blocks = self.table(request);
        self.free(request);
        blocks
    }

    fn free_blocks(&self) -> usize {
        self.cache.free_block_count()
    }
}

/// The engine's own table of a request: its blocks, counted by id, and its hashes.
struct OwnTable {
    blocks: Vec<BlockId>,
    num_tokens: usize,
    hasher: BlockHasher,
    hashes: Vec<BlockHash>,
}

/// Requests as tables of the engine. The cache matches, allocates, counts and publishes blocks.
pub struct ByBlocks {
    cache: PagedKvCache,
    requests: HashMap<u64, OwnTable>,
}

impl ByBlocks {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let builder =
            PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size).home_shards(1);
        Self { cache: builder.build().expect("a cache of that shape"), requests: HashMap::new() }
    }

    fn take(&self, num_blocks: usize) -> Option<Vec<BlockId>> {
        let mut table = self.cache.pool().allocate(num_blocks).ok()?;
        Some(table.take_ids().expect("new blocks have one owner"))
    }

    fn release(&self, blocks: &[BlockId]) {
        // The tail first: it is reclaimed before the beginning, which more prompts share.
        for &block in blocks.iter().rev() {
            self.cache.pool().release(block).expect("this table counted it");
        }
    }

    /// Publishes the full blocks from `first` on.
    fn publish(&self, table: &OwnTable, first: usize) {
        let full = first..table.hashes.len();
        let parent = first.checked_sub(1).map(|before| table.hashes[before]);
        let (blocks, hashes) = (&table.blocks[full.clone()], &table.hashes[full]);
        self.cache.prefix().publish(blocks, hashes, parent).expect("this table owns them");
    }
}

impl BlockManager for ByBlocks {
    fn admit(&mut self, request: u64, tokens: &[u32]) -> Option<usize> {
        let block_size = self.cache.block_size();
        let mut hasher =
            BlockHasher::new(HashAlgorithm::default(), block_size, ExtraKeys::default());
        let mut hashes = Vec::new();
        hasher.extend(tokens, &mut hashes);
        // Asked before anything is matched: hits that are given back count as used.
        let (prompt, options) =
            (Prompt::from_hashes(&hashes, tokens.len()), AdmitOptions::default());
        let required = self.cache.required_blocks(&prompt, &options.allow_full_hit());
        if required.expect("a hash a full block") > self.cache.free_block_count() {
            return None;
        }
        let mut hits = self.cache.prefix().acquire(&hashes);
        let num_hits = hits.len();
        let new = self.take(tokens.len().div_ceil(block_size) - num_hits)?;
        let mut blocks = hits.take_ids().expect("far fewer than 2^20 - 1 owners");
        blocks.extend(new);
        let table = OwnTable { blocks, num_tokens: tokens.len(), hasher, hashes };
        self.publish(&table, num_hits);
        self.requests.insert(request, table);
        Some(num_hits * block_size)
    }

    fn append(&mut self, request: u64, token: u32) -> Option<Vec<(u32, u32)>> {
        let mut table = self.requests.remove(&request)?;
        let (mut copies, mut spent) = (Vec::new(), Vec::new());
        let last = table.blocks.last().copied();
        let is_shared = |id| self.cache.pool().owners(id).is_ok_and(|owners| owners > 1);
        let taken = if table.num_tokens.is_multiple_of(self.cache.block_size()) {
            self.take(1).map(|new| table.blocks.extend(new))
        } else if let Some(last) = last.filter(|&last| is_shared(last)) {
            self.take(1).map(|new| {
                copies.push((last.0, new[0].0));
                spent.push(last);
                *table.blocks.last_mut().expect("it has a last block") = new[0];
            })
        } else {
            Some(())
        };
        if taken.is_some() {
            let full = table.hashes.len();
            table.hasher.extend(&[token], &mut table.hashes);
            table.num_tokens += 1;
            self.publish(&table, full);
        }
        self.requests.insert(request, table);
        // An engine with a device releases the sources of copies after the copies are made.
        self.release(&spent);
        taken.map(|()| copies)
    }

    fn fork(&mut self, request: u64, second: u64) {
        let OwnTable { blocks, num_tokens, hasher, hashes } = &self.requests[&request];
        for &block in blocks {
            self.cache.pool().retain(block).expect("the first table owns it");
        }
        let (blocks, hashes) = (blocks.clone(), hashes.clone());
        let fork = OwnTable { blocks, num_tokens: *num_tokens, hasher: hasher.clone(), hashes };
        self.requests.insert(second, fork);
    }

    fn free(&mut self, request: u64) {
        if let Some(table) = self.requests.remove(&request) {
            self.release(&table.blocks);
        }
    }

    fn table(&self, request: u64) -> Vec<u32> {
        self.requests[&request].blocks.iter().map(|id| id.0).collect()
    }

    fn slots(&self, request: u64, tokens: Range<usize>) -> Vec<i64> {
        let (table, block_size) = (&self.requests[&request], self.cache.block_size());
        let slot =
            |at: usize| table.blocks[at / block_size].0 as usize * block_size + at % block_size;
        tokens.map(|at| slot(at) as i64).collect()
    }

    fn swap_out(&mut self, request: u64) -> Vec<u32> {
        let blocks = self.table(request);
        self.free(request);
        blocks
    }

    fn free_blocks(&self) -> usize {
        self.cache.free_block_count()
    }
}
