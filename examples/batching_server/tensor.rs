//! `Tensor`: the keys and values, one number per slot, in place of a device's memory.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::BlockId;

/// The slots of all blocks.
pub struct Tensor {
    slots: Box<[AtomicU64]>,
    block_size: usize,
}

// Relaxed: a worker writes slots that only its sequence owns, and publishes them through the cache.
impl Tensor {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            slots: (0..num_blocks * block_size).map(|_| AtomicU64::new(0)).collect(),
            block_size,
        }
    }

    /// Returns the slot of a position in a sequence with these blocks.
    pub fn slot(&self, blocks: &[BlockId], position: usize) -> &AtomicU64 {
        let block = blocks[position / self.block_size].0 as usize;
        &self.slots[block * self.block_size + position % self.block_size]
    }

    /// Copies a block for a copy-on-write.
    pub fn copy_block(&self, src: BlockId, dst: BlockId) {
        let range = |block: BlockId| {
            let start = block.0 as usize * self.block_size;
            &self.slots[start..start + self.block_size]
        };
        for (from, to) in range(src).iter().zip(range(dst)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
