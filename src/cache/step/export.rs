//! Kernel inputs of a step: the exports of [`export`](crate::export) over rows that the step has grown,
//! into the caller's buffers.

use super::{GrownRow, Row, Step, look};
use crate::error::{PagedKvError, Result};
use crate::export::{BlockTables, Csr, CsrBuffers, Gaps, KernelInt, SlotMapping, TableShape};

impl Step {
    /// Writes the block table of these rows; see [`BlockTables`]. Rows that did not grow are written too:
    /// leave them out. A row of a lease takes the sequence's own lock. Allocates no memory.
    ///
    /// # Errors
    /// [`WrongCache`](PagedKvError::WrongCache) for a row of another cache, and those of [`BlockTables`];
    /// the rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::{Gaps, TableShape};
    ///
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(4)?, 1)];
    /// let mut step = cache.step(Default::default());
    /// let grown_rows = step.grow(&mut rows)?.grown_rows;
    /// let mut table = [0_i32; 3];
    /// let shape = TableShape { stride: 3, pad: -1, gaps: Gaps::Show };
    /// step.block_tables(&rows[..grown_rows], &mut table, shape)?;
    /// assert_eq!(table[2], -1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_tables<R: Row, T: KernelInt>(
        &self,
        rows: &[(R, usize)],
        out: &mut [T],
        shape: TableShape<T>,
    ) -> Result<()> {
        let mut tables = BlockTables::new(out, shape)?;
        tables.check_rows(rows.len())?;
        for (row, _) in rows {
            look(row, |sequence, _| {
                self.refuse_other_cache(sequence)?;
                tables.push(sequence)
            })?;
        }
        tables.finish();
        Ok(())
    }

    /// Writes the CSR triple of these rows and returns the number of pages; see
    /// [`csr`](crate::export::csr()). A row of a lease takes the sequence's own lock. Allocates no memory.
    ///
    /// # Errors
    /// [`WrongCache`](PagedKvError::WrongCache) for a row of another cache, and those of
    /// [`csr`](crate::export::csr()).
    ///
    /// ```
    /// use paged_kv::export::{CsrBuffers, Gaps};
    ///
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(4)?, 1)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 2], [0; 4], [0; 1]);
    /// let buffers = CsrBuffers {
    ///     indptr: &mut indptr,
    ///     indices: &mut indices,
    ///     last_page_len: &mut last_page_len,
    /// };
    /// assert_eq!(step.csr(&rows, buffers, -1, Gaps::Show)?, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn csr<R: Row, T: KernelInt>(
        &self,
        rows: &[(R, usize)],
        buffers: CsrBuffers<'_, T>,
        pad: T,
        gaps: Gaps,
    ) -> Result<usize> {
        let mut csr = Csr::new(buffers, pad, gaps)?;
        csr.check_rows(rows.len())?;
        for (row, _) in rows {
            look(row, |sequence, _| {
                self.refuse_other_cache(sequence)?;
                csr.push(sequence)
            })?;
        }
        Ok(csr.finish())
    }

    /// Writes the slots of the tokens by which the rows of this step grew, one row after the other, and
    /// returns the number of slots; see [`SlotMapping`]. `rows` are the rows of the step in the order of
    /// their numbers; those after them did not grow. A row of a lease takes the sequence's own lock.
    /// Allocates no memory.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for fewer rows than the step has,
    /// [`WrongCache`](PagedKvError::WrongCache) for a row of another cache, and those of [`SlotMapping`];
    /// the rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::Gaps;
    ///
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let mut rows = [(cache.allocate_sequence(4)?, 2)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// let mut slots = [0_i64; 3];
    /// assert_eq!(step.slots(&rows, Gaps::Show, &mut slots)?, 2);
    /// assert_eq!((slots[1], slots[2]), (slots[0] + 1, -1));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slots<R: Row, T: KernelInt>(
        &self,
        rows: &[(R, usize)],
        gaps: Gaps,
        out: &mut [T],
    ) -> Result<usize> {
        self.refuse_fewer_rows(rows.len())?;
        let mut mapping = SlotMapping::new(out, gaps);
        for (number, ((row, _), grown)) in rows.iter().zip(&self.buffers.rows).enumerate() {
            look(row, |sequence, identity| {
                self.refuse_other_cache(sequence)?;
                self.refuse_other_row(number, identity)?;
                mapping.push(sequence, grown.new_tokens())
            })?;
        }
        Ok(mapping.finish())
    }

    pub(super) fn refuse_fewer_rows(&self, rows: usize) -> Result<()> {
        let grown = self.buffers.rows.len();
        if rows >= grown {
            return Ok(());
        }
        let reason = format!("{rows}, of which the step has {grown}");
        Err(PagedKvError::InvalidConfig { parameter: "rows", reason })
    }
}

impl GrownRow {
    /// Returns the positions of the tokens by which it grew.
    pub(super) fn new_tokens(&self) -> std::ops::Range<usize> {
        self.start_tokens..self.end()
    }

    /// Returns the number of tokens after it grew.
    pub(super) fn end(&self) -> usize {
        self.start_tokens + self.num_new_tokens
    }
}
