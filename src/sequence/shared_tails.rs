//! `SharedTails`: the last blocks that several rows of one batch share, so that one row does not copy.
//!
//! Each of the owners of a partly filled block copies it before it writes, except the last owner. If all
//! owners are rows of a batch that is planned in order, the last of these rows is that owner. The caller makes
//! all copies of the batch before any row is written.

use std::collections::HashMap;

use super::{AppendPlan, Sequence};
use crate::error::Result;
use crate::id::BlockId;

/// The number of planned owners of each shared last block.
#[derive(Debug, Default)]
pub(crate) struct SharedTails {
    planned: HashMap<BlockId, u32>,
}

impl SharedTails {
    /// Forgets all blocks, before a batch is planned.
    pub(crate) fn clear(&mut self) {
        self.planned.clear();
    }

    /// Plans the append of the next row. `sources` returns how many owners a block has only as the source of
    /// copies that are made before this batch is written.
    pub(crate) fn plan(
        &mut self,
        sequence: &Sequence,
        num_new_tokens: usize,
        sources: impl FnOnce(BlockId) -> u32,
    ) -> Result<AppendPlan> {
        let plan = sequence.plan_append(num_new_tokens)?;
        if !plan.copies() {
            return Ok(plan);
        }
        let tail = *sequence.block_ids().last().expect("a block that is copied is there");
        let planned = self.planned.entry(tail).or_insert_with(|| sources(tail));
        *planned += 1;
        let is_last = sequence.table().pool().has_only_owners(tail, *planned);
        Ok(if is_last { plan.in_place() } else { plan })
    }
}
