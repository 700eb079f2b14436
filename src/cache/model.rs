//! What of the cache does the model checker reach? Who may come in above the watermark, and whether
//! what is leased may go; in a build with `--cfg paged_kv_loom` only, in which this is the cache.
//!
//! The map is not in that build: a lock stands for that of its shard.

mod leases;

use self::leases::Leases;
use crate::error::Result;
use crate::pool::BlockPool;
use crate::pool::watermark::{Admit, BlockWatermark};
use crate::sync::Mutex;
use crate::table::BlockTable;

/// A pool of which new tables leave some room.
pub struct GatedPool {
    /// Its blocks.
    pub pool: BlockPool,
    watermark: BlockWatermark,
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
        Self { pool, watermark: BlockWatermark::new(watermark) }
    }

    /// As a reservation comes by its blocks.
    ///
    /// # Errors
    /// If less than the watermark were left.
    pub fn allocate(&self, num_blocks: usize) -> Result<BlockTable> {
        let allocate = || self.pool.allocate(num_blocks);
        self.watermark.take(self.pool.blocks(), num_blocks, Admit::Now, allocate)
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
