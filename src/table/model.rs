//! How does the model checker open a step? By the fences that steps of the cache use, in a build with
//! `--cfg paged_kv_loom` only.

use super::BlockTable;
use crate::pool::fence::Fence;
use crate::pool::{BlockPool, PoolHandle};

/// A step that is open until it is dropped.
pub struct OpenStep {
    pool: PoolHandle,
    fence: Fence,
}

impl OpenStep {
    /// A new one.
    ///
    /// # Panics
    /// If two are open.
    pub fn new(pool: &BlockPool) -> Self {
        let pool = pool.handle();
        let fence = pool.open_step().expect("two steps can be open");
        Self { pool, fence }
    }

    /// Has a table take part.
    pub fn take_part(&self, table: &mut BlockTable) {
        table.take_part(self.fence);
    }
}

impl Drop for OpenStep {
    fn drop(&mut self) {
        self.pool.close_step(self.fence);
    }
}
