//! `Script`: the tokens of a request, and the content that each of its blocks must have.
//!
//! Tokens follow from a few numbers, so that requests share prefixes. Scripts of one family are equal up to
//! the block in which they branch. Like a hash, a block's content covers its tokens and all tokens before
//! them. Two scripts have the same content at a block exactly if they are equal up to its end.

use std::ops::Range;

use super::random::Random;

/// The most blocks of a prompt.
pub const BLOCKS_MOST: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    family: u64,
    branch: u64,
    block_size: usize,
}

impl Script {
    pub fn new(families: usize, block_size: usize, random: &mut Random) -> Self {
        let family = random.below(families) as u64;
        Self { family, branch: random.below(8) as u64, block_size }
    }

    /// Returns the content of a block: not zero, and without the bit that marks tags.
    pub fn content(&self, block: usize) -> u64 {
        let block = block as u64;
        let branch = if block < self.branch { 0 } else { 1 + self.branch };
        1 + (self.family << 32 | branch << 24 | block)
    }

    pub fn tokens(&self, positions: Range<usize>) -> Vec<u32> {
        let token = |position: usize| {
            let content = self.content(position / self.block_size);
            let offset = (position % self.block_size) as u64;
            (content.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(offset) >> 20) as u32
        };
        positions.map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_equal_up_to_its_branches() {
        let script = |branch| Script { family: 3, branch, block_size: 4 };
        let (early, late) = (script(1), script(5));
        assert_eq!(early.content(0), late.content(0));
        assert_eq!(early.tokens(0..4), late.tokens(0..4));
        for block in 1..8 {
            assert_ne!(early.content(block), late.content(block));
            let positions = 4 * block..4 * block + 4;
            assert_ne!(early.tokens(positions.clone()), late.tokens(positions));
        }
    }
}
