//! `Sources`: the blocks and slots that a store ticket reads, each with one owner here.

use super::{Place, TierId, TierState};
use crate::id::BlockId;
use crate::pool::PoolHandle;
use crate::pool::content_key::ContentKey;
use crate::pool::idle::AgedBlock;
use crate::table::BlockTable;

/// Owners of the blocks and slots that a ticket reads. They are given back when it is dropped.
pub(crate) struct Sources {
    /// Of blocks of the device.
    blocks: BlockTable,
    /// Of slots, by their tiers.
    slots: Vec<(TierId, BlockTable)>,
    /// Of idle blocks, which this copy does not make younger.
    unused: Vec<UnusedBlocks>,
}

impl Sources {
    /// Creates sources of blocks of the device, and of slots, which the caller owns by their words.
    pub(crate) fn new(blocks: BlockTable, slots: Vec<(TierId, BlockTable)>) -> Self {
        Self { blocks, slots, unused: Vec::new() }
    }

    /// Creates sources of idle blocks that come back as old as they were.
    pub(crate) fn unused(device: PoolHandle, unused: UnusedBlocks) -> Self {
        Self { unused: vec![unused], ..Self::new(BlockTable::new(device), Vec::new()) }
    }

    /// Gives the owners back.
    pub(super) fn clear(&mut self) {
        let empty = self.blocks.new_sibling();
        drop(std::mem::replace(&mut self.blocks, empty));
        self.slots.clear();
        self.unused.clear();
    }
}

/// Forgets the contents of slots that turned out not to hold them. The caller owns the slots.
pub(crate) fn forget_lost(lost: impl Iterator<Item = Place> + Clone, state: &TierState) {
    for (tier, id) in state.tiers.iter().zip(0..) {
        let slot_of = |place| match place {
            Place::Tier(slot) if slot.tier == TierId(id) => Some(BlockId(slot.slot)),
            _ => None,
        };
        let slots: Vec<BlockId> = lost.clone().filter_map(slot_of).collect();
        if !slots.is_empty() {
            tier.forget(&slots);
        }
    }
}

/// Idle blocks of a pool that have an owner here for a while. They come back as old as they were, unless they were used
/// meanwhile.
pub(crate) struct UnusedBlocks {
    pool: PoolHandle,
    /// The oldest first, each with its time.
    blocks: Vec<(BlockId, u64)>,
}

impl UnusedBlocks {
    pub(crate) fn new(pool: PoolHandle) -> Self {
        Self { pool, blocks: Vec::new() }
    }

    /// Acquires a block if it still has the content with this key.
    pub(crate) fn acquire(&mut self, block: AgedBlock, key: ContentKey) -> bool {
        let is_acquired = self.pool.acquire_unused(block, key);
        if is_acquired {
            self.blocks.push((block.id, block.time));
        }
        is_acquired
    }
}

impl Drop for UnusedBlocks {
    fn drop(&mut self) {
        if !self.blocks.is_empty() {
            self.pool.give_as_old(&self.blocks);
        }
    }
}
