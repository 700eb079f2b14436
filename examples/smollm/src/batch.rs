//! `Batch`: the input of one forward pass, in the form in which `paged-kv` exports a step.

use std::collections::BTreeSet;

/// The tokens of all rows of a step, one row after the other, and where their keys and values are.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The position of each token in its sequence.
    pub positions: Vec<usize>,
    /// The row of each token.
    pub rows: Vec<usize>,
    /// The variant of the weights of each token's row.
    pub variants: Vec<u32>,
    /// Indices of the tokens whose logits are wanted.
    pub wanted: Vec<usize>,
    /// One entry a group of layers.
    pub groups: Vec<GroupBatch>,
}

/// The exports of one group's step.
#[derive(Clone, Debug, Default)]
pub struct GroupBatch {
    /// The slot of each token.
    pub slots: Vec<i64>,
    /// The block table: `stride` cells a row, -1 where there is no block.
    pub table: Vec<i32>,
    /// Cells of a row of the table.
    pub stride: usize,
    /// Copies on write, to be made before any slot is written.
    pub copies: Vec<[u32; 2]>,
    /// Blocks that the new tokens begin: nothing in them is computed.
    pub fresh: Vec<u32>,
}

impl GroupBatch {
    /// Returns the blocks of one row.
    pub fn table_of(&self, row: usize) -> &[i32] {
        &self.table[row * self.stride..][..self.stride]
    }

    /// Returns true if a block of one row is the destination of a copy.
    pub fn copies_for(&self, row: usize) -> bool {
        let table = self.table_of(row);
        self.copies.iter().any(|copy| table.contains(&(copy[1] as i32)))
    }

    /// Returns the blocks that the slots are in.
    pub fn written_blocks(&self, block_size: usize) -> BTreeSet<u32> {
        let block = |&slot: &i64| {
            let slot = u64::try_from(slot).expect("a token that is computed has a slot");
            (slot / block_size as u64) as u32
        };
        self.slots.iter().map(block).collect()
    }
}
