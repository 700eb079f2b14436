//! What if the launch failed? Rows as they were before the step grew them, and nothing published.
//!
//! What can be refused is refused before any row changes.

use super::{GrowingRow, GrownRow, Step, StepRow};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::sequence::Sequence;

impl GrownRow {
    /// True if the sequence still has the tokens it had before, and the block that it wrote on from.
    fn can_be_undone(&self, sequence: &Sequence) -> bool {
        if sequence.num_tokens() < self.start_tokens {
            return false;
        }
        if self.start_tokens.is_multiple_of(sequence.block_size()) {
            return true;
        }
        let tail = sequence.block_at(self.start_tokens / sequence.block_size());
        tail.is_some() && self.copy.is_none_or(|(_, dst)| tail == Some(dst))
    }
}

impl Step {
    /// The launch failed: every row, in the order of their numbers, is as it was before the step grew
    /// it, nothing is published, and what was let go of is given back. Of several steps that grew the
    /// same sequences the newest has to be aborted first.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when these are not the rows of the step, or one
    /// has been cut or trimmed since into what it had before;
    /// [`TooManyOwners`](PagedKvError::TooManyOwners). The step is dropped then, and no row has changed.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(3)?, 9)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// step.abort(&mut rows)?;
    /// assert_eq!(rows[0].0.num_tokens(), 3);
    /// assert_eq!(cache.free_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn abort<R: StepRow>(self, rows: &mut [(R, usize)]) -> Result<()> {
        self.undo(rows)
    }

    pub(super) fn undo<R: GrowingRow>(self, rows: &mut [R]) -> Result<()> {
        let grown = &self.buffers.rows;
        let refuse = |reason| Err(PagedKvError::InvalidConfig { parameter: "rows", reason });
        if rows.len() != grown.len() {
            return refuse(format!("{}, of which the step has {}", rows.len(), grown.len()));
        }
        for (row, grown) in rows.iter_mut().zip(grown) {
            let is_of_row = row.epoch() == grown.epoch;
            let sequence = row.parts().0;
            if !is_of_row || !self.is_of_pool(sequence) || !grown.can_be_undone(sequence) {
                return refuse(format!("{} tokens left of a row", sequence.num_tokens()));
            }
        }
        // The sources of copies get their owner back first: that alone can be refused.
        let sources: Vec<BlockId> =
            grown.iter().filter_map(|row| row.copy).map(|(src, _)| src).collect();
        for (done, &src) in sources.iter().enumerate() {
            if let Err(refusal) = self.pool.retain(src) {
                self.pool.give(&sources[..done]);
                return Err(refusal);
            }
        }
        for (row, grown) in rows.iter_mut().zip(grown) {
            let (sequence, naming) = row.parts();
            sequence.restore(grown.start_tokens, grown.copy)?;
            if let Some(naming) = naming {
                naming.restore(grown.start_tokens, sequence.block_size(), grown.offered);
            }
        }
        Ok(())
    }
}
