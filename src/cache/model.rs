//! What of the cache does the model checker reach? Who may come in above the watermark, and whether
//! what is leased may go; in a build with `--cfg paged_kv_loom` only, in which this is the cache.
//!
//! The map is not in that build: a lock stands for that of its shard.

mod leases;
mod room;

use self::leases::Leases;
use self::room::{Asking, Gate};
use crate::error::Result;
use crate::pool::BlockPool;
use crate::sync::Mutex;
use crate::table::BlockTable;

/// A pool of which new tables leave some room.
pub struct GatedPool {
    /// Its blocks.
    pub pool: BlockPool,
    gate: Gate,
}

/// A table that may be leased, and evicted if it is not.
pub struct LeasedTable {
    leases: Leases,
    table: Mutex<Option<BlockTable>>,
}

impl GatedPool {
    /// All free.
    pub fn new(num_blocks: usize, shards: usize, watermark: usize) -> Self {
        let pool = BlockPool::with_home_shards(num_blocks, shards);
        Self { pool, gate: Gate { watermark } }
    }

    /// As a reservation comes by its blocks.
    ///
    /// # Errors
    /// If less than the watermark were left.
    pub fn allocate(&self, num_blocks: usize) -> Result<BlockTable> {
        let blocks = self.pool.blocks();
        self.gate.refuse(blocks, num_blocks, Asking::AtOnce)?;
        let table = self.pool.allocate(num_blocks)?;
        if num_blocks == 0 || self.gate.leaves_enough(blocks) {
            return Ok(table);
        }
        drop(table);
        Err(self.gate.lost(blocks, num_blocks))
    }
}

impl LeasedTable {
    /// Not leased.
    pub fn new(table: BlockTable) -> Self {
        Self { leases: Leases::none(), table: Mutex::new(Some(table)) }
    }

    /// One more lease, if it is still there.
    pub fn lease(&self) -> bool {
        let table = self.table.lock();
        if table.is_some() {
            self.leases.begin();
        }
        table.is_some()
    }

    /// One lease fewer.
    pub fn end_lease(&self) {
        self.leases.end();
    }

    /// The table, unless it is leased or gone.
    pub fn evict(&self) -> Option<BlockTable> {
        let mut table = self.table.lock();
        if self.leases.count() > 0 { None } else { table.take() }
    }
}
