//! What if the launch failed? Rows as they were before the step grew them, and nothing published.
//!
//! What can be refused is refused before any row changes.

use super::{GrowingRow, Step, StepRow};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;

impl Step {
    /// The launch failed: every row, in the order of their numbers, is as it was before the step grew
    /// it, nothing is published, and the blocks that were released return to the pool. Of several steps
    /// that grew the same sequences the newest has to be aborted first.
    ///
    /// # Errors
    /// As [`revert`](Self::revert). The step is dropped then, and no row has changed.
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
    pub fn abort<R: StepRow>(mut self, rows: &mut [(R, usize)]) -> Result<()> {
        self.revert(rows)
    }

    /// [`abort`](Self::abort), after which the step is open and has no rows: it can be dropped, leave its
    /// memory by [`complete_into`](Self::complete_into), or grow other rows. What was released stays
    /// held until it ends.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when these are not the rows of the step, or one
    /// has been cut or trimmed since into what it had before; [`WrongCache`](PagedKvError::WrongCache);
    /// [`TooManyOwners`](PagedKvError::TooManyOwners). The step and the rows are as they were.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(3)?, 9)];
    /// let mut step = cache.step();
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// assert!(step.revert(&mut rows[..0]).is_err());
    /// step.revert(&mut rows)?;
    /// assert_eq!(rows[0].0.num_tokens(), 3);
    /// assert_eq!(step.grow_batch(&mut rows)?.done, 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn revert<R: StepRow>(&mut self, rows: &mut [(R, usize)]) -> Result<()> {
        let rows_of: Vec<Option<usize>> = (0..rows.len()).map(Some).collect();
        self.undo(rows, &rows_of)
    }

    /// Undoes the growth of the rows, the newest first, and forgets all that the step has. `rows_of` says
    /// for each number which of `rows` grew then, or `None` if that sequence is gone.
    pub(super) fn undo<R: GrowingRow>(
        &mut self,
        rows: &mut [R],
        rows_of: &[Option<usize>],
    ) -> Result<()> {
        let grown = self.buffers.rows.len();
        if rows_of.len() != grown {
            return refuse(format!("{}, of which the step has {grown}", rows_of.len()));
        }
        let numbers = || (0..grown).rev().filter_map(|number| Some((number, rows_of[number]?)));
        for (number, row) in numbers() {
            self.check_undo(number, &mut rows[row], rows_of)?;
        }
        // The sources of copies get their owner back first: that can be refused.
        let copies = numbers().filter_map(|(number, _)| self.buffers.rows[number].copy);
        let sources: Vec<BlockId> = copies.map(|(src, _)| src).collect();
        for (done, &src) in sources.iter().enumerate() {
            if let Err(refusal) = self.pool.retain(src) {
                self.pool.give(&sources[..done]);
                return Err(refusal);
            }
        }
        let mut refused = None;
        for (number, row) in numbers() {
            let grown = &self.buffers.rows[number];
            let (sequence, naming) = rows[row].parts();
            if let Err(refusal) = sequence.restore(grown.start_tokens, grown.copy) {
                // Checked above: another thread has made itself an owner by id since, 2^20 times.
                grown.copy.iter().for_each(|&(src, _)| self.pool.give(&[src]));
                refused = Some(refusal);
            } else if let Some(naming) = naming {
                naming.forget_generated(grown.start_tokens, sequence.block_size());
            }
        }
        self.end_commits();
        refused.map_or(Ok(()), Err)
    }

    /// Refuses a row that is not the one that grew, or that has been cut or trimmed since into what it
    /// had before.
    fn check_undo<R: GrowingRow>(
        &self,
        number: usize,
        row: &mut R,
        rows_of: &[Option<usize>],
    ) -> Result<()> {
        let grown = &self.buffers.rows[number];
        let identity = row.identity();
        let sequence = row.parts().0;
        self.refuse_other_cache(sequence)?;
        let (start, len) = (grown.start_tokens, sequence.num_tokens());
        // By this very sequence, whose later growth is undone first. A fork's copy of the block says nothing.
        let was_copied_since = |id: BlockId| {
            let numbers = number + 1..rows_of.len();
            let mut later = numbers.filter(|&later| rows_of[later] == rows_of[number]);
            later.any(|later| self.buffers.rows[later].copy.is_some_and(|(src, _)| src == id))
        };
        let tail = sequence.block_at(start / sequence.block_size());
        let has_tail = match grown.copy {
            Some((_, dst)) => tail == Some(dst) || was_copied_since(dst),
            None => start.is_multiple_of(sequence.block_size()) || tail.is_some(),
        };
        if identity != grown.identity || len < start || !has_tail {
            return refuse(format!(
                "row {number} had {start} tokens before it grew, and has {len}"
            ));
        }
        sequence.check_truncate(start)
    }
}

fn refuse(reason: String) -> Result<()> {
    Err(PagedKvError::InvalidConfig { parameter: "rows", reason })
}
