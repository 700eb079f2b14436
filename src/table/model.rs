//! How does the model checker open a step? By the fences that steps of the cache use, in a build with
//! `--cfg paged_kv_loom` only.

use super::BlockTable;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::fence::Fence;
use crate::pool::fence::coming::Coming;
use crate::pool::{BlockPool, PoolHandle};

/// A step that is open until it is dropped.
pub struct OpenStep {
    pool: PoolHandle,
    fence: Fence,
}

impl OpenStep {
    /// A new one.
    pub fn new(pool: &BlockPool) -> Self {
        let pool = pool.handle();
        let fence = pool.open_step();
        Self { pool, fence }
    }

    /// Has a table take part.
    pub fn take_part(&self, table: &mut BlockTable) {
        table.take_part(self.fence);
    }
}

impl OpenStep {
    /// As an append does that copies on write: a new block in the place of the last one, which others own
    /// too. The step holds that for the table. Returns the new one.
    ///
    /// # Errors
    /// As [`BlockTable::grow`].
    ///
    /// # Panics
    /// If the table is empty.
    pub fn copy_tail(&self, table: &mut BlockTable) -> Result<BlockId> {
        self.take_part(table);
        let new = table.grow(1)?.start;
        drop(table.replace(new - 1, new));
        Ok(table.as_slice()[new - 1])
    }

    /// As a step does whose launch failed: the table has `src` again in the place of `dst`.
    ///
    /// # Errors
    /// As `Blocks::retain`.
    pub fn abort(self, table: &mut BlockTable, src: BlockId, dst: BlockId) -> Result<()> {
        self.pool.retain(src)?;
        table.put_back(dst, src);
        Ok(())
    }
}

/// As an eviction counts: blocks in use, but for those that only open steps own.
pub fn blocks_in_use(pool: &BlockPool) -> usize {
    Coming::new().in_use(pool.blocks())
}

impl Drop for OpenStep {
    fn drop(&mut self) {
        self.pool.close_step(self.fence);
    }
}
