//! `BlockTables`: the block ids of a batch, one row of fixed width a sequence.
//!
//! Invariant: a row is the pages of one sequence and then pad ids, `stride` cells in all; after
//! `finish` every cell of the buffer has been written.
//!
//! Token counts are not part of the table: a kernel takes the lengths in a separate argument.

use crate::error::{PagedKvError, Result};
use crate::id::GroupId;
use crate::sequence::Sequence;

use super::gaps::{Gaps, GroupGaps};
use super::kernel_int::{KernelInt, check_blocks, fill};
use super::one_cache::OneCache;

/// The name of the buffer in errors.
const BUFFER: &str = "block table";

/// The layout of a block table: row-major, `[rows, stride]`.
///
/// ```
/// use paged_kv::export::{{Gaps, TableShape, block_tables}};
///
/// let pool = paged_kv::BlockPool::new(8);
/// let sequence = pool.allocate_sequence(6, 4)?;
/// let shape = TableShape { stride: 4, pad: 0_u32, gaps: Gaps::Show };
/// let mut table = [7; 4];
/// block_tables([&sequence], &mut table, shape)?;
/// assert_eq!(table[2..], [0, 0]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableShape<T, G = Gaps> {
    /// Cells a row: the most blocks a sequence may have, at least 1.
    pub stride: usize,
    /// The value of a cell without a block: `-1`, or the id of a null block.
    pub pad: T,
    /// Whether trimmed blocks appear, as `pad`; see [`group`](Self::group) for the groups other than 0.
    pub gaps: G,
}

impl<T> TableShape<T> {
    /// Returns the same shape, for the table of a group of layers.
    ///
    /// ```
    /// use paged_kv::export::{Gaps, TableShape, block_tables};
    /// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
    ///
    /// let groups = [
    ///     LayerGroup::Full { block_size: 4 },
    ///     LayerGroup::SlidingWindow { block_size: 4, window: 4 },
    /// ];
    /// let cache = PagedKvCache::builder().num_blocks(16).groups(&groups).build()?;
    /// let mut sequence = cache.allocate_sequence(12)?;
    /// sequence.append(1)?;
    /// let shape = TableShape { stride: 4, pad: -1_i32, gaps: Gaps::Show };
    /// let mut table = [0; 4];
    /// block_tables([&sequence], &mut table, shape.group(GroupId(1)))?;
    /// assert_eq!(table[..2], [-1, -1]); // the window has left these
    /// assert!(table[2..].iter().all(|&id| id >= 0));
    /// assert!(block_tables([&sequence], &mut table, shape.group(GroupId(2))).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn group(self, group: GroupId) -> TableShape<T, GroupGaps> {
        let Self { stride, pad, gaps } = self;
        TableShape { stride, pad, gaps: gaps.of_group(group) }
    }
}

/// Writes the block table of a batch: row `i` is the `i`-th sequence, rows past the last are pad.
///
/// `out` holds whole rows of `shape.stride` cells, at least as many as there are sequences. The
/// shape is that of vLLM's and FlashAttention's `block_table`: `[batch, max_blocks_per_seq]`.
///
/// No lock, no allocation, `O(cells)`.
///
/// # Errors
/// [`BufferSize`](PagedKvError::BufferSize) if `out` is not whole rows or has too few,
/// [`StrideTooSmall`](PagedKvError::StrideTooSmall) if a sequence has more pages than a row,
/// [`WrongCache`](PagedKvError::WrongCache) if the rows are not all of one cache,
/// [`IdTooLarge`](PagedKvError::IdTooLarge) if a block id does not fit a `T`,
/// [`InvalidConfig`](PagedKvError::InvalidConfig) if the stride is 0. `out` is then untouched.
///
/// ```
/// use paged_kv::export::{Gaps, TableShape, block_tables};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 16, 8, 128);
/// let batch = [cache.allocate_sequence(40)?, cache.allocate_sequence(16)?];
/// let shape = TableShape { stride: 4, pad: -1, gaps: Gaps::Show };
///
/// let mut table = [0_i32; 3 * 4];
/// block_tables(&batch, &mut table, shape)?;
/// let id = |sequence: usize, block: usize| batch[sequence].block_ids()[block].0 as i32;
/// assert_eq!(table[..4], [id(0, 0), id(0, 1), id(0, 2), -1]);
/// assert_eq!(table[4..8], [id(1, 0), -1, -1, -1]);
/// assert_eq!(table[8..], [-1; 4], "a row without a sequence");
///
/// let refused = block_tables(&batch, &mut table[..4], shape);
/// let size = PagedKvError::BufferSize { buffer: "block table", required: 8, actual: 4 };
/// assert_eq!(refused, Err(size));
/// # Ok::<(), PagedKvError>(())
/// ```
pub fn block_tables<'s, T: KernelInt>(
    sequences: impl IntoIterator<Item = &'s Sequence, IntoIter: Clone>,
    out: &mut [T],
    shape: TableShape<T, impl Into<GroupGaps>>,
) -> Result<()> {
    let sequences = sequences.into_iter();
    let mut tables = BlockTables::new(out, shape)?;
    tables.check_rows(sequences.clone().count())?;
    OneCache::default().check_all(sequences.clone())?;
    for (row, sequence) in sequences.clone().enumerate() {
        tables.check_row(row, sequence)?;
    }
    for sequence in sequences {
        tables.write_row(sequence);
    }
    tables.finish();
    Ok(())
}

/// A block table that is written one row at a time.
///
/// For a batch whose sequences are reached one by one. If all handles are available, [`block_tables()`]
/// does the same in one call.
///
/// ```
/// use paged_kv::export::{BlockTables, Gaps, TableShape};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 16, 8, 128);
/// let (short, long) = (cache.allocate_sequence(16)?, cache.allocate_sequence(48)?);
///
/// let mut table = [7_i64; 4];
/// let shape = TableShape { stride: 2, pad: 0, gaps: Gaps::Close };
/// let mut rows = BlockTables::new(&mut table, shape)?;
/// rows.push(&short)?;
/// let refused = PagedKvError::StrideTooSmall { row: 1, blocks: 3, stride: 2 };
/// assert_eq!(rows.push(&long), Err(refused));
/// assert_eq!(rows.finish(), 1);
/// assert_eq!(table, [i64::from(short.block_ids()[0].0), 0, 0, 0]);
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
#[must_use = "rows without a sequence are written by `finish`"]
pub struct BlockTables<'a, T> {
    /// The buffer, of whole rows.
    out: &'a mut [T],
    shape: TableShape<T, GroupGaps>,
    /// Rows written.
    rows: usize,
    cache: OneCache,
}

impl<'a, T: KernelInt> BlockTables<'a, T> {
    /// Creates a table over `out`, none of its rows written yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if the stride is 0,
    /// [`BufferSize`](PagedKvError::BufferSize) if `out` is not whole rows.
    ///
    /// ```
    /// use paged_kv::export::{BlockTables, Gaps, TableShape};
    ///
    /// let shape = TableShape { stride: 3, pad: -1_i32, gaps: Gaps::Show };
    /// assert!(BlockTables::new(&mut [0; 6], shape).is_ok());
    /// assert!(BlockTables::new(&mut [0; 7], shape).is_err());
    /// ```
    pub fn new(out: &'a mut [T], shape: TableShape<T, impl Into<GroupGaps>>) -> Result<Self> {
        let TableShape { stride, pad, gaps } = shape;
        let shape = TableShape { stride, pad, gaps: gaps.into() };
        let (cells, stride) = (out.len(), shape.stride);
        if stride == 0 {
            let reason = "a row needs at least one cell".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "stride", reason });
        }
        if cells % stride != 0 {
            return Err(buffer_size(cells.div_ceil(stride), stride, cells));
        }
        Ok(Self { out, shape, rows: 0, cache: OneCache::default() })
    }

    /// Checks that `additional` more rows fit: a whole batch, before its first row.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize), with the cells that all rows would take.
    ///
    /// ```
    /// use paged_kv::PagedKvError;
    /// use paged_kv::export::{BlockTables, Gaps, TableShape};
    ///
    /// let mut table = [0_i32; 2 * 4];
    /// let shape = TableShape { stride: 4, pad: -1, gaps: Gaps::Show };
    /// let tables = BlockTables::new(&mut table, shape)?;
    /// assert_eq!(tables.check_rows(2), Ok(()));
    /// let size = PagedKvError::BufferSize { buffer: "block table", required: 20, actual: 8 };
    /// assert_eq!(tables.check_rows(5), Err(size));
    /// # assert_eq!(tables.finish(), 0);
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn check_rows(&self, additional: usize) -> Result<()> {
        let (rows, stride) = (self.rows.saturating_add(additional), self.shape.stride);
        if rows > self.out.len() / stride {
            return Err(buffer_size(rows, stride, self.out.len()));
        }
        Ok(())
    }

    /// Writes the next row: the pages of `sequence`, then pad ids.
    /// No lock, no allocation, `O(stride)`.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if every row is written,
    /// [`StrideTooSmall`](PagedKvError::StrideTooSmall) if a row cannot hold the sequence,
    /// [`WrongCache`](PagedKvError::WrongCache) if the rows are not all of one cache,
    /// [`IdTooLarge`](PagedKvError::IdTooLarge) if a block id does not fit a `T`. The row is then
    /// untouched and still the next.
    ///
    /// ```
    /// use paged_kv::export::{{BlockTables, Gaps, TableShape}};
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let shape = TableShape { stride: 3, pad: -1_i32, gaps: Gaps::Show };
    /// let mut out = [0; 3];
    /// let mut table = BlockTables::new(&mut out, shape)?;
    /// table.push(&sequence)?;
    /// assert!(table.push(&sequence).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn push(&mut self, sequence: &Sequence) -> Result<()> {
        self.check_rows(1)?;
        self.check_row(self.rows, sequence)?;
        self.cache.check(sequence)?;
        self.write_row(sequence);
        Ok(())
    }

    /// Fills the rows without a sequence with pad ids. Returns the number of rows with a sequence.
    ///
    /// ```
    /// use paged_kv::export::{BlockTables, Gaps, TableShape};
    ///
    /// let shape = TableShape { stride: 3, pad: -1_i32, gaps: Gaps::Show };
    /// let mut out = [0; 3];
    /// assert_eq!(BlockTables::new(&mut out, shape)?.finish(), 0);
    /// assert_eq!(out, [-1; 3]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn finish(self) -> usize {
        self.out[self.rows * self.shape.stride..].fill(self.shape.pad);
        self.rows
    }

    /// Refuses a sequence that row `row` cannot hold.
    fn check_row(&self, row: usize, sequence: &Sequence) -> Result<()> {
        let GroupGaps { gaps, .. } = self.shape.gaps;
        let sequence = self.shape.gaps.table(sequence)?;
        let (blocks, stride) = (gaps.num_pages(sequence), self.shape.stride);
        if blocks > stride {
            return Err(PagedKvError::StrideTooSmall { row, blocks, stride });
        }
        check_blocks::<T>(sequence)
    }

    /// Writes the next row, which has been checked.
    fn write_row(&mut self, sequence: &Sequence) {
        let TableShape { stride, pad, gaps: of_group } = self.shape;
        let (sequence, gaps) = (of_group.checked_table(sequence), of_group.gaps);
        let row = &mut self.out[self.rows * stride..][..stride];
        let (pages, tail) = row.split_at_mut(gaps.num_pages(sequence));
        gaps.write_pages(sequence, pad, pages);
        fill(tail, pad);
        self.rows += 1;
    }
}

fn buffer_size(rows: usize, stride: usize, actual: usize) -> PagedKvError {
    PagedKvError::BufferSize { buffer: BUFFER, required: rows.saturating_mul(stride), actual }
}
