//! `Step::abort`: ends a step whose launch failed. It restores the rows to their state before the step grew
//! them, and publishes nothing.
//!
//! A refusal comes before any row changes.

use std::fmt;

use super::{RowCopy, Step, StepBuffers};
use crate::cache::rows::lease_row::LeaseRow;
use crate::cache::rows::locked::with_locked_rows;
use crate::cache::rows::{GrowingRow, Held, Row};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;

/// The outcome of a step that was aborted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Aborted {
    /// The memory of the step, for the next one.
    pub buffers: StepBuffers,
}

/// The refusal of an abort: the step is still open, and its rows are unchanged.
///
/// ```
/// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
/// let mut rows = [(cache.allocate_sequence(3)?, 9)];
/// let mut step = cache.step(Default::default());
/// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
/// let refused = step.abort(&mut rows[..0]).unwrap_err();
/// assert!(refused.to_string().contains("the step has 1"));
/// refused.step.abort(&mut rows)?;
/// assert_eq!(rows[0].0.num_tokens(), 3);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub struct AbortRefused {
    /// The step.
    pub step: Step,
    /// The reason for the refusal.
    pub error: PagedKvError,
}

impl Step {
    /// Ends the step after its launch failed. Restores every row, in the order of their numbers, to its
    /// state before the step grew it. Publishes nothing, and returns the released blocks to the pool.
    /// Further rows, which did not grow, are left alone. If several steps grew the same sequences, the
    /// newest has to be aborted first. Rows of leases whose sequences are gone are skipped. Blocks that a
    /// trim released since the row grew stay released. A step that grew rows of several types cannot be
    /// aborted, because all rows of a call are of one type.
    ///
    /// # Errors
    /// [`AbortRefused`], which has the step and becomes a [`PagedKvError`] by `?` (the step is dropped
    /// then): [`InvalidConfig`](PagedKvError::InvalidConfig) if these are not the rows of the step, if a
    /// row is shorter than it was before, or if a trim released the block of its last token before;
    /// [`WrongCache`](PagedKvError::WrongCache); [`TooManyOwners`](PagedKvError::TooManyOwners). The rows
    /// are unchanged.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(3)?, 9)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// step.abort(&mut rows)?;
    /// assert_eq!(rows[0].0.num_tokens(), 3);
    /// assert_eq!(cache.free_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    // The error contains the step, and is large; a refusal is rare.
    #[expect(clippy::result_large_err)]
    pub fn abort<R: Row>(mut self, rows: &mut [(R, usize)]) -> Result<Aborted, AbortRefused> {
        match self.undo_rows(rows) {
            Ok(()) => Ok(Aborted { buffers: std::mem::take(&mut self.buffers) }),
            Err(error) => Err(AbortRefused { step: self, error }),
        }
    }

    fn undo_rows<R: Row>(&mut self, rows: &mut [(R, usize)]) -> Result<()> {
        let grown = self.buffers.rows.len();
        self.refuse_fewer_rows(rows.len())?;
        let rows = &mut rows[..grown];
        let is_leased = |row: &(R, usize)| matches!(row.0.held(), Held::Leased(_));
        if !rows.first().is_some_and(is_leased) {
            let rows_of: Vec<Option<usize>> = (0..grown).map(Some).collect();
            return self.undo(rows, &rows_of);
        }
        // A sequence may leave between the check and its lock: then the next round skips its row.
        loop {
            match self.undo_leased(rows) {
                Err(PagedKvError::SequenceNotFound(_)) => {}
                undone => return undone,
            }
        }
    }

    /// # Errors
    /// Those of [`undo`](Self::undo), and `SequenceNotFound` for a row whose sequence left during the call.
    fn undo_leased<R: Row>(&mut self, rows: &[(R, usize)]) -> Result<()> {
        let grown = rows.len();
        // A sequence that grew twice is locked once, and one that is gone not at all.
        let (mut distinct, mut rows_of) = (Vec::<&LeaseRow>::new(), Vec::with_capacity(grown));
        for (number, (row, _)) in rows.iter().enumerate() {
            let Held::Leased(row) = row.held() else {
                unreachable!("all rows of a call are of one type");
            };
            let known = distinct.iter().position(|known| known.is_same_sequence(row));
            let is_gone = known.is_none() && row.look(|_| Ok(())).is_err();
            if is_gone {
                // `check_undo` checks the other rows.
                self.refuse_other_row(number, Some(row.identity()))?;
            }
            rows_of.push((!is_gone).then(|| {
                known.unwrap_or_else(|| {
                    distinct.push(row);
                    distinct.len() - 1
                })
            }));
        }
        let mut locks = std::mem::take(&mut self.buffers.locks);
        let leased = distinct.iter().map(|row| (*row, 0));
        let undone = with_locked_rows(leased, &mut locks, |rows| self.undo(rows, &rows_of));
        self.buffers.locks = locks;
        undone
    }

    /// Undoes the growth of the rows, the newest first, and forgets the commits of the step. `rows_of`
    /// gives, for each number, the index in `rows` of the row that grew, or `None` if its sequence is gone.
    fn undo<R: GrowingRow>(&mut self, rows: &mut [R], rows_of: &[Option<usize>]) -> Result<()> {
        let grown = self.buffers.rows.len();
        let numbers = || (0..grown).rev().filter_map(|number| Some((number, rows_of[number]?)));
        for (number, row) in numbers() {
            self.check_undo(number, &mut rows[row], rows_of)?;
        }
        // First retain the sources of the copies for their sequences: that can be refused.
        let copies = numbers().filter_map(|(number, _)| self.buffers.rows[number].copy);
        let of_groups = self.buffers.copies.iter().filter(|copy| {
            let Some(number) = copy.row.filter(|&number| rows_of[number].is_some()) else {
                return false;
            };
            let start_tokens = self.buffers.rows[number].start_tokens;
            copy.copy.is_on_write() && copy.copy.is_of_growth_from(start_tokens)
        });
        let of_groups = of_groups.map(|copy| copy.copy.src);
        let sources: Vec<BlockId> = copies.map(|(src, _)| src).chain(of_groups).collect();
        for (done, &src) in sources.iter().enumerate() {
            if let Err(refusal) = self.pool.retain(src) {
                self.pool.give(&sources[..done]);
                return Err(refusal);
            }
        }
        let mut refused = None;
        for (number, row) in numbers() {
            let grown = &self.buffers.rows[number];
            let (sequence, hashed) = rows[row].parts();
            if let Err(refusal) = sequence.restore(grown.start_tokens, grown.copy) {
                // Checked above: another thread has added owners by id since, 2^20 of them.
                grown.copy.iter().for_each(|&(src, _)| self.pool.give(&[src]));
                refused = Some(refusal);
            } else {
                let of_row = |copy: &mut RowCopy| copy.row == Some(number);
                let copies: Vec<RowCopy> = self.buffers.copies.extract_if(.., of_row).collect();
                // From the end: each is put before those that are pending.
                for copy in copies.into_iter().rev() {
                    sequence.take_copy_back(copy.copy, grown.start_tokens);
                }
                if let Some(hashed) = hashed {
                    hashed.forget_generated(grown.start_tokens, sequence.hash_unit());
                }
            }
        }
        self.end_commits();
        refused.map_or(Ok(()), Err)
    }

    /// Refuses a row that is not the one that grew, or that was cut or trimmed since into the part that it
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
        // Copied by this sequence, whose later growth is undone first. A fork's copy of the block does
        // not count.
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

impl fmt::Debug for AbortRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortRefused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl fmt::Display for AbortRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for AbortRefused {}

impl From<AbortRefused> for PagedKvError {
    fn from(refused: AbortRefused) -> Self {
        refused.error
    }
}
