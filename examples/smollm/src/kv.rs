//! `KvStore`: the memory behind the blocks of one cache, each block behind a lock of its own.
//!
//! A block is one run of memory, `[layer][keys: head, dim, slot | values: head, slot, dim]`. So a copy on write
//! is one copy, and the scores of all slots of a block are summed lane by lane.
//!
//! No thread ever waits for a lock. A block that a step writes has one owner, so another step that uses it
//! at the same time is a fault of the cache: the locks find it, and the thread panics. All memory is NaN at the
//! start, and a block is NaN again when a step takes it for new tokens. So a read of a slot that was
//! never written shows in the logits.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::batch::GroupBatch;

/// The layout of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers whose keys and values are in the block.
    pub layers: usize,
    /// Heads of keys, and of values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of a block.
    pub block_size: usize,
}

impl KvShape {
    /// Returns the elements of a block.
    pub fn block_len(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * self.block_size
    }

    /// Returns the first element of the keys of a head: `[dim][slot]` from there.
    pub fn keys(&self, layer: usize, head: usize) -> usize {
        (2 * layer * self.kv_heads + head) * self.head_dim * self.block_size
    }

    /// Returns the first element of the values of a head: `[slot][dim]` from there.
    pub fn values(&self, layer: usize, head: usize) -> usize {
        self.keys(layer, self.kv_heads + head)
    }
}

/// The memory of all blocks of a cache.
pub struct KvStore {
    shape: KvShape,
    blocks: Vec<RwLock<Box<[f32]>>>,
}

enum Access<'a> {
    None,
    Read(RwLockReadGuard<'a, Box<[f32]>>),
    Write(RwLockWriteGuard<'a, Box<[f32]>>),
}

/// The blocks of one step, locked while its kernels run: those that it writes for itself, the others for
/// reading.
pub struct OpenBlocks<'a> {
    shape: KvShape,
    blocks: Vec<Access<'a>>,
}

impl KvStore {
    /// Creates the memory of `num_blocks` blocks, filled with NaN.
    pub fn new(shape: KvShape, num_blocks: usize) -> Self {
        let block = || RwLock::new(vec![f32::NAN; shape.block_len()].into_boxed_slice());
        Self { shape, blocks: (0..num_blocks).map(|_| block()).collect() }
    }

    /// Returns the layout of a block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Fills all blocks: with a number, so that a read of an unwritten slot shows as other bits only.
    pub fn fill(&self, number: f32) {
        (0..self.blocks.len() as u32).for_each(|id| self.write(id).fill(number));
    }

    /// Copies whole blocks, in order.
    pub fn copy(&self, copies: &[[u32; 2]]) {
        for &[source, destination] in copies {
            let source = self.read(source);
            self.write(destination).copy_from_slice(&source);
        }
    }

    /// Makes the copies of a step and locks its blocks: those of its slots for writing, the others of its tables
    /// for reading. Blocks that new tokens begin are NaN from now on.
    pub fn open(&self, batch: &GroupBatch) -> OpenBlocks<'_> {
        self.copy(&batch.copies);
        let mut blocks: Vec<Access<'_>> = self.blocks.iter().map(|_| Access::None).collect();
        for id in batch.written_blocks(self.shape.block_size) {
            let rows = batch.table.iter().filter(|&&cell| cell == id as i32).count();
            assert!(rows == 1, "block {id} is written, and is in {rows} tables of the step");
            blocks[id as usize] = Access::Write(self.write(id));
        }
        for &cell in &batch.table {
            let Ok(id) = u32::try_from(cell) else { continue };
            if let place @ Access::None = &mut blocks[id as usize] {
                *place = Access::Read(self.read(id));
            }
        }
        let mut open = OpenBlocks { shape: self.shape, blocks };
        batch.fresh.iter().for_each(|&id| open.block_mut(id as usize).fill(f32::NAN));
        open
    }

    fn read(&self, id: u32) -> RwLockReadGuard<'_, Box<[f32]>> {
        let guard = self.blocks[id as usize].try_read();
        guard.unwrap_or_else(|_| panic!("block {id} is read while another step writes it"))
    }

    fn write(&self, id: u32) -> RwLockWriteGuard<'_, Box<[f32]>> {
        let guard = self.blocks[id as usize].try_write();
        guard.unwrap_or_else(|_| panic!("block {id} is written while another step uses it"))
    }
}

impl OpenBlocks<'_> {
    /// Returns the layout of a block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns the elements of a block of the step.
    pub fn block(&self, id: usize) -> &[f32] {
        match &self.blocks[id] {
            Access::Read(block) => block,
            Access::Write(block) => block,
            Access::None => panic!("block {id} is not of this step"),
        }
    }

    fn block_mut(&mut self, id: usize) -> &mut [f32] {
        match &mut self.blocks[id] {
            Access::Write(block) => block,
            _ => panic!("block {id} is not written by this step"),
        }
    }

    /// Writes the keys and values of one token, all heads, into its slot.
    pub fn store(&mut self, layer: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let shape = self.shape;
        let (id, slot) = (slot / shape.block_size, slot % shape.block_size);
        let block = self.block_mut(id);
        let heads = keys.chunks_exact(shape.head_dim).zip(values.chunks_exact(shape.head_dim));
        for (head, (keys, values)) in heads.enumerate() {
            let start = shape.keys(layer, head) + slot;
            for (dim, &key) in keys.iter().enumerate() {
                block[start + dim * shape.block_size] = key;
            }
            let start = shape.values(layer, head) + slot * shape.head_dim;
            block[start..][..shape.head_dim].copy_from_slice(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> KvStore {
        KvStore::new(KvShape { layers: 1, kv_heads: 1, head_dim: 2, block_size: 4 }, 3)
    }

    fn batch(slots: &[i64], table: &[i32], stride: usize) -> GroupBatch {
        GroupBatch { slots: slots.into(), table: table.into(), stride, ..GroupBatch::default() }
    }

    #[test]
    fn steps_share_blocks_that_none_of_them_writes() {
        let store = store();
        let first = store.open(&batch(&[4], &[0, 1], 2));
        let second = store.open(&batch(&[8], &[0, 2], 2));
        assert!(first.block(0)[0].is_nan() && second.block(0)[0].is_nan());
    }

    #[test]
    #[should_panic(expected = "block 0 is written while another step uses it")]
    fn a_block_that_another_step_reads_is_not_written() {
        let store = store();
        let _first = store.open(&batch(&[4], &[0, 1], 2));
        store.open(&batch(&[3], &[0], 1));
    }

    #[test]
    #[should_panic(expected = "block 1 is read while another step writes it")]
    fn a_block_that_another_step_writes_is_not_read() {
        let store = store();
        let _first = store.open(&batch(&[4], &[0, 1], 2));
        store.open(&batch(&[8], &[1, 2], 2));
    }

    #[test]
    #[should_panic(expected = "block 0 is written, and is in 2 tables of the step")]
    fn a_block_of_two_rows_is_not_written() {
        store().open(&batch(&[3, 8], &[0, -1, 0, 2], 2));
    }
}
