//! `Sequential`: a block manager in the simplest form, to compare the adapters with.

use std::collections::HashMap;
use std::ops::Range;

use crate::manager::BlockManager;

/// A block: its owners, and the tokens from the beginning up to its end if it is cached.
#[derive(Clone, Default)]
struct Block {
    owners: usize,
    content: Option<Vec<u32>>,
}

/// Blocks with counts, contents as whole token lists, and idle blocks in the order of their last use.
pub struct Sequential {
    block_size: usize,
    blocks: Vec<Block>,
    idle: Vec<usize>,
    requests: HashMap<u64, (Vec<usize>, Vec<u32>)>,
}

impl Sequential {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let blocks = vec![Block::default(); num_blocks];
        Self { block_size, blocks, idle: Vec::new(), requests: HashMap::new() }
    }

    /// Returns the block that holds the last of these tokens after all others.
    fn find(&self, content: &[u32]) -> Option<usize> {
        self.blocks.iter().position(|block| block.content.as_deref() == Some(content))
    }

    fn own(&mut self, block: usize) {
        self.blocks[block].owners += 1;
        self.idle.retain(|&idle| idle != block);
    }

    /// Takes a free block, or else the idle block that has not been used for the longest time.
    fn take(&mut self) -> Option<usize> {
        let free =
            self.blocks.iter().position(|block| block.owners == 0 && block.content.is_none());
        let block = free.or_else(|| self.idle.first().copied())?;
        self.blocks[block].content = None;
        self.own(block);
        Some(block)
    }

    fn release(&mut self, block: usize) {
        self.blocks[block].owners -= 1;
        if self.blocks[block].owners == 0 && self.blocks[block].content.is_some() {
            self.idle.push(block);
        }
    }

    /// Caches the full blocks of a request, each content once.
    fn publish(&mut self, request: u64) {
        let (table, tokens) = self.requests[&request].clone();
        for (at, &block) in table.iter().enumerate().take(tokens.len() / self.block_size) {
            let content = &tokens[..(at + 1) * self.block_size];
            if self.blocks[block].content.is_none() && self.find(content).is_none() {
                self.blocks[block].content = Some(content.to_vec());
            }
        }
    }
}

impl BlockManager for Sequential {
    fn admit(&mut self, request: u64, tokens: &[u32]) -> Option<usize> {
        let full = (1..=tokens.len() / self.block_size).map(|blocks| blocks * self.block_size);
        let hits: Vec<usize> = full.map_while(|end| self.find(&tokens[..end])).collect();
        let idle_hits = hits.iter().filter(|&&block| self.blocks[block].owners == 0).count();
        let new = tokens.len().div_ceil(self.block_size) - hits.len();
        if new + idle_hits > self.free_blocks() {
            return None;
        }
        hits.iter().for_each(|&block| self.own(block));
        let mut table = hits.clone();
        table.extend((0..new).map(|_| self.take().expect("counted above")));
        self.requests.insert(request, (table, tokens.to_vec()));
        self.publish(request);
        Some(hits.len() * self.block_size)
    }

    fn append(&mut self, request: u64, token: u32) -> Option<Vec<(u32, u32)>> {
        let (mut table, mut tokens) = self.requests[&request].clone();
        let mut copies = Vec::new();
        if tokens.len().is_multiple_of(self.block_size) {
            table.push(self.take()?);
        } else {
            let last = *table.last().expect("it has a partly filled block");
            if self.blocks[last].owners > 1 {
                let copy = self.take()?;
                copies.push((last as u32, copy as u32));
                self.release(last);
                *table.last_mut().expect("as above") = copy;
            }
        }
        tokens.push(token);
        self.requests.insert(request, (table, tokens));
        self.publish(request);
        Some(copies)
    }

    fn fork(&mut self, request: u64, second: u64) {
        let (table, tokens) = self.requests[&request].clone();
        table.iter().for_each(|&block| self.blocks[block].owners += 1);
        self.requests.insert(second, (table, tokens));
    }

    fn free(&mut self, request: u64) {
        let (table, _) = self.requests.remove(&request).expect("it was admitted");
        table.into_iter().rev().for_each(|block| self.release(block));
    }

    fn table(&self, request: u64) -> Vec<u32> {
        self.requests[&request].0.iter().map(|&block| block as u32).collect()
    }

    fn slots(&self, request: u64, tokens: Range<usize>) -> Vec<i64> {
        let table = &self.requests[&request].0;
        tokens
            .map(|at| (table[at / self.block_size] * self.block_size + at % self.block_size) as i64)
            .collect()
    }

    fn swap_out(&mut self, request: u64) -> Vec<u32> {
        let table = self.table(request);
        self.free(request);
        table
    }

    fn free_blocks(&self) -> usize {
        self.blocks.iter().filter(|block| block.owners == 0).count()
    }
}
