//! `Shadow` and `Script`: the contents of each block and the tokens of each request. There are few
//! families of scripts, so that prompts share beginnings.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::BlockId;

use super::BLOCK_SIZE;
use super::common::random::Random;

/// The contents of all blocks, as the device would have computed them.
pub struct Shadow(Box<[AtomicU64]>);

impl Shadow {
    pub fn new(num_blocks: usize) -> Self {
        Self((0..num_blocks).map(|_| AtomicU64::new(0)).collect())
    }

    /// Computes a block that no other thread writes.
    pub fn write(&self, id: BlockId, content: u64) {
        self.0[id.0 as usize].store(content, Ordering::Relaxed);
    }

    #[track_caller]
    pub fn check(&self, id: BlockId, content: u64) {
        let holds = self.0[id.0 as usize].load(Ordering::Relaxed);
        assert_eq!(holds, content, "{id} holds what another request computed");
    }
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    family: u64,
    branch: u64,
}

impl Script {
    pub fn random(random: &mut Random) -> Self {
        Self { family: random.below(3) as u64, branch: random.below(4) as u64 }
    }

    /// Returns all scripts.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..3).flat_map(|family| (0..4).map(move |branch| Self { family, branch }))
    }

    /// Returns a number that stands for the tokens of a block and of all blocks before it.
    pub fn content(self, block: usize) -> u64 {
        let branch = if (block as u64) < self.branch { 0 } else { 1 + self.branch };
        1 + (self.family << 32 | branch << 24 | block as u64)
    }

    pub fn tokens(self, positions: std::ops::Range<usize>) -> Vec<u32> {
        let token = |at: usize| {
            let content = self.content(at / BLOCK_SIZE).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (content.wrapping_add((at % BLOCK_SIZE) as u64) >> 20) as u32
        };
        positions.map(token).collect()
    }
}
