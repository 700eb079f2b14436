//! `KeptTokens`: the tokens of the announced contents, by block.
//!
//! Blocks of several groups may differ in size; each has the place of the largest.
//!
//! A cache has room for `blocks * block_size` tokens, which may be far more than it ever holds. So the memory
//! comes in segments of a few blocks. A segment is allocated when one of its blocks gets its first tokens.
//!
//! Invariant: a segment is empty, or has `block_size` tokens for each of its blocks.

use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;

/// The most tokens of a segment, unless one block has more.
const SEGMENT_TOKENS: usize = 1 << 14;

pub(crate) struct KeptTokens {
    segments: Box<[Box<[u32]>]>,
    blocks_a_segment: usize,
    block_size: usize,
}

impl KeptTokens {
    /// Creates a store for the tokens of the blocks `0..num_blocks`, without any tokens.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Result<Self> {
        let blocks_a_segment = (SEGMENT_TOKENS / block_size).max(1);
        let segments = array_of(num_blocks.div_ceil(blocks_a_segment), Box::default)?;
        Ok(Self { segments, blocks_a_segment, block_size })
    }

    /// Stores the tokens of a block, at most `block_size`.
    pub(crate) fn store(&mut self, id: BlockId, tokens: &[u32]) {
        let (segment, start) = self.place(id);
        self.allocate(segment);
        self.segments[segment][start..start + tokens.len()].copy_from_slice(tokens);
    }

    /// Returns the `num_tokens` tokens that were stored for a block.
    pub(crate) fn get(&self, id: BlockId, num_tokens: usize) -> &[u32] {
        if num_tokens == 0 {
            return &[];
        }
        let (segment, start) = self.place(id);
        &self.segments[segment][start..start + num_tokens]
    }

    /// Copies the tokens of `old` to `new`.
    pub(crate) fn copy(&mut self, old: BlockId, new: BlockId) {
        let ((from, start), (to, new_start)) = (self.place(old), self.place(new));
        let range = start..start + self.block_size;
        self.allocate(to);
        match self.segments.get_disjoint_mut([from, to]) {
            Ok([from, to]) => {
                to[new_start..new_start + self.block_size].copy_from_slice(&from[range]);
            }
            Err(_) => self.segments[from].copy_within(range, new_start),
        }
    }

    /// Returns the segment of a block and the position of its first token there.
    #[inline]
    fn place(&self, id: BlockId) -> (usize, usize) {
        let (segment, block) =
            (id.index() / self.blocks_a_segment, id.index() % self.blocks_a_segment);
        (segment, block * self.block_size)
    }

    #[inline]
    fn allocate(&mut self, segment: usize) {
        if self.segments[segment].is_empty() {
            // The size of one content that the caller has in memory, or at most `SEGMENT_TOKENS`.
            self.segments[segment] = vec![0; self.blocks_a_segment * self.block_size].into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_tokens_of_its_own() {
        for (num_blocks, block_size) in [(1, 1), (3, 5_000), (40, 5_000), (3, 20_000), (99, 16)] {
            let mut kept = KeptTokens::new(num_blocks, block_size).unwrap();
            let tokens = |id: u32| vec![id + 7; block_size];
            let ids = 0..num_blocks as u32;
            ids.clone().rev().for_each(|id| kept.store(BlockId(id), &tokens(id)));
            assert!(ids.clone().all(|id| kept.get(BlockId(id), block_size) == tokens(id)));
            for old in ids.clone() {
                let new = (old * 7 + 1) % num_blocks as u32;
                kept.copy(BlockId(old), BlockId(new));
                assert_eq!(kept.get(BlockId(new), block_size), tokens(old));
                kept.store(BlockId(new), &tokens(new));
            }
            assert!(ids.clone().all(|id| kept.get(BlockId(id), block_size) == tokens(id)));
        }
    }

    #[test]
    fn memory_is_allocated_for_stored_tokens_only() {
        let mut kept = KeptTokens::new(1_000, 1_000).unwrap();
        kept.store(BlockId(999), &[7; 1_000]);
        let held: usize = kept.segments.iter().map(|segment| segment.len()).sum();
        assert!((1_000..=SEGMENT_TOKENS).contains(&held), "{held}");
        assert_eq!(KeptTokens::new(8, 1 << 60).unwrap().blocks_a_segment, 1);
    }
}
