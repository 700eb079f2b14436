//! Kernel inputs of a step: the exports of [`export`](crate::export) over rows that the step has grown,
//! into the caller's buffers.

use super::{GrownRow, Row, Step, look};
use crate::error::{PagedKvError, Result};
use crate::export::{
    BlockTables, Csr, CsrBuffers, GroupGaps, KernelInt, SlotMapping, TableShape, fit,
};
use crate::id::GroupId;

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
        shape: TableShape<T, impl Into<GroupGaps>>,
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
        gaps: impl Into<GroupGaps>,
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
        gaps: impl Into<GroupGaps>,
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

    /// Writes, for each row, the first position from which on every token has a slot in the group: where the table of a
    /// window begins; see [`Sequence::window_start`](crate::Sequence::window_start). Cells past the last row are 0.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if `out` has fewer cells than rows,
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a group that the cache does not have,
    /// [`IdTooLarge`](PagedKvError::IdTooLarge) if a position does not fit a `T`; otherwise as
    /// [`block_tables`](Self::block_tables).
    ///
    /// ```
    /// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::SlidingWindow { block_size: 4, window: 4 }];
    /// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
    /// let mut rows = [(cache.allocate_sequence(12)?, 1)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// let mut starts = [0_i32; 1];
    /// step.window_starts(&rows, GroupId(0), &mut starts)?;
    /// assert_eq!(starts, [8]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn window_starts<R: Row, T: KernelInt>(
        &self,
        rows: &[(R, usize)],
        group: GroupId,
        out: &mut [T],
    ) -> Result<()> {
        let (required, actual) = (rows.len(), out.len());
        let Some((starts, rest)) = out.split_at_mut_checked(required) else {
            return Err(PagedKvError::BufferSize { buffer: "window starts", required, actual });
        };
        for ((row, _), start) in rows.iter().zip(starts) {
            *start = look(row, |sequence, _| {
                self.refuse_other_cache(sequence)?;
                sequence.of_group(group)?;
                fit(sequence.window_start(group) as u64)
            })?;
        }
        rest.fill(fit(0)?);
        Ok(())
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
