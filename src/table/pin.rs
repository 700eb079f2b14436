//! `BlockPin`: one owner of one block, outside any table.

use std::fmt;

use crate::id::BlockId;
use crate::pool::PoolHandle;
use crate::pool::in_flight::InFlightStep;

/// One owner of one block, outside any table. Dropping it releases the block.
#[repr(C)]
pub(crate) struct BlockPin {
    id: BlockId,
    step: InFlightStep,
    pool: PoolHandle,
}

impl BlockPin {
    /// Creates an owner that the caller has counted in the block's word.
    #[inline]
    pub(super) fn new(id: BlockId, step: InFlightStep, pool: PoolHandle) -> Self {
        Self { id, step, pool }
    }

    pub(crate) fn id(&self) -> BlockId {
        self.id
    }

    /// Lets the block be held until `step` ends, if it is released before.
    pub(crate) fn join_step(&mut self, step: InFlightStep) {
        self.step = self.step.max(step);
    }
}

impl Drop for BlockPin {
    fn drop(&mut self) {
        self.pool.release_after(self.step, &[self.id]);
    }
}

impl fmt::Debug for BlockPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockPin").field(&self.id).finish()
    }
}
