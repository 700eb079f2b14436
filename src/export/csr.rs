//! `Csr`: the block ids of a batch as one list without padding, with the bounds of each row.
//!
//! Invariant: the pages of row `i` are `indices[indptr[i]..indptr[i + 1]]`, and the last of them
//! holds `last_page_len[i]` tokens: `1..=block_size`, and 0 exactly for a row without pages.
//!
//! A row without a sequence is a row without pages.

use crate::error::{PagedKvError, Result};
use crate::sequence::Sequence;

use super::gaps::GroupGaps;
use super::kernel_int::{KernelInt, check_blocks, fit};
use super::one_cache::OneCache;

/// The three arrays of a FlashInfer page table.
///
/// ```
/// use paged_kv::export::{{CsrBuffers, Gaps, csr}};
///
/// let pool = paged_kv::BlockPool::new(8);
/// let sequence = pool.allocate_sequence(6, 4)?;
/// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 2], [0; 4], [0; 1]);
/// let buffers = CsrBuffers {
///     indptr: &mut indptr,
///     indices: &mut indices,
///     last_page_len: &mut last_page_len,
/// };
/// csr([&sequence], buffers, -1, Gaps::Show)?;
/// assert_eq!((indptr, last_page_len), ([0, 2], [2]));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug)]
pub struct CsrBuffers<'a, T> {
    /// The start of each row's pages, and the end of the last row's: one cell more than rows.
    pub indptr: &'a mut [T],
    /// The pages of all rows, one after the other: at least the sum of [`Gaps::num_pages`](super::Gaps::num_pages).
    pub indices: &'a mut [T],
    /// Tokens in the last page of each row; its length is the number of rows.
    pub last_page_len: &'a mut [T],
}

/// Writes the CSR triple of a batch. Returns the number of pages written to `indices`.
///
/// The length of `last_page_len` is the number of rows: as many as sequences, or more, as for a CUDA graph
/// captured at a larger batch. The further rows have no pages and a last page of 0 tokens. Cells of `indices`
/// past the returned number keep their value. `pad` is the page id of a gap under [`Gaps::Show`](super::Gaps::Show), for example
/// that of a null block; [`Gaps::Close`](super::Gaps::Close) does not use it. The layout is that of FlashInfer's `kv_indptr`,
/// `kv_indices` and `kv_last_page_len`, where a full last page has `block_size` tokens, not 0.
///
/// No lock, no allocation, `O(rows + pages)`.
///
/// # Errors
/// [`BufferSize`](PagedKvError::BufferSize) if there are fewer rows than sequences, fewer cells than pages, or
/// not exactly one more `indptr` than rows; [`IdTooLarge`](PagedKvError::IdTooLarge) if a block id, the number
/// of pages or the block size does not fit a `T`; [`WrongCache`](PagedKvError::WrongCache) if the rows are not
/// all of one cache. The buffers are then untouched.
///
/// ```
/// use paged_kv::export::{CsrBuffers, Gaps, csr};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 16, 8, 128);
/// let batch = [cache.allocate_sequence(40)?, cache.allocate_sequence(16)?];
///
/// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 3], [0; 8], [0; 2]);
/// let buffers = CsrBuffers {
///     indptr: &mut indptr,
///     indices: &mut indices,
///     last_page_len: &mut last_page_len,
/// };
/// assert_eq!(csr(&batch, buffers, 0, Gaps::Close)?, 4);
/// assert_eq!(indptr, [0, 3, 4]);
/// assert_eq!(indices[3], batch[1].block_ids()[0].0 as i32);
/// assert_eq!(last_page_len, [8, 16], "a full page has 16 tokens, not 0");
///
/// let buffers = CsrBuffers {
///     indptr: &mut indptr,
///     indices: &mut indices[..3],
///     last_page_len: &mut last_page_len,
/// };
/// let size = PagedKvError::BufferSize { buffer: "indices", required: 4, actual: 3 };
/// assert_eq!(csr(&batch, buffers, 0, Gaps::Close), Err(size));
/// # Ok::<(), PagedKvError>(())
/// ```
pub fn csr<'s, T: KernelInt>(
    sequences: impl IntoIterator<Item = &'s Sequence, IntoIter: Clone>,
    buffers: CsrBuffers<'_, T>,
    pad: T,
    gaps: impl Into<GroupGaps>,
) -> Result<usize> {
    let (sequences, of_group) = (sequences.into_iter(), gaps.into());
    let mut csr = Csr::new(buffers, pad, of_group)?;
    csr.check_rows(sequences.clone().count())?;
    let mut pages = 0;
    for sequence in sequences.clone() {
        let table = of_group.table(sequence)?;
        pages += of_group.gaps.num_pages(table);
        check_numbers::<T>(table)?;
    }
    csr.check_pages(pages)?;
    OneCache::default().check_all(sequences.clone())?;
    for sequence in sequences {
        csr.write_row(sequence);
    }
    Ok(csr.finish())
}

/// A CSR triple that is written one sequence at a time.
///
/// For a batch whose sequences are reached one by one. If all handles are available, [`csr()`] does the same
/// in one call.
///
/// ```
/// use paged_kv::export::{Csr, CsrBuffers, Gaps};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 16, 8, 128);
/// let mut sequence = cache.allocate_sequence(70)?;
/// sequence.apply_streaming_llm(16, 16);
///
/// let (mut indptr, mut indices, mut last_page_len) = ([9_u32; 2], [9; 6], [9; 1]);
/// let buffers = CsrBuffers {
///     indptr: &mut indptr,
///     indices: &mut indices,
///     last_page_len: &mut last_page_len,
/// };
/// let mut csr = Csr::new(buffers, 0, Gaps::Show)?;
/// csr.push(&sequence)?;
/// let size = PagedKvError::BufferSize { buffer: "last_page_len", required: 2, actual: 1 };
/// assert_eq!(csr.push(&sequence), Err(size));
/// assert_eq!(csr.finish(), 5);
///
/// let resident = sequence.block_ids();
/// assert_eq!(indices[..5], [resident[0].0, 0, 0, resident[1].0, resident[2].0]);
/// assert_eq!((indptr, last_page_len), ([0, 5], [6]));
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
#[must_use = "rows without a sequence are written by `finish`"]
pub struct Csr<'a, T> {
    buffers: CsrBuffers<'a, T>,
    pad: T,
    gaps: GroupGaps,
    /// Rows written.
    rows: usize,
    /// Pages written.
    pages: usize,
    cache: OneCache,
}

impl<'a, T: KernelInt> Csr<'a, T> {
    /// Creates a triple over `buffers`, none of its rows written yet.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if `indptr` is not one longer than `last_page_len`.
    ///
    /// ```
    /// use paged_kv::export::{Csr, CsrBuffers, Gaps};
    ///
    /// let (indptr, indices, last_page_len) = (&mut [0_i32; 2], &mut [0; 4], &mut [0; 3]);
    /// let buffers = CsrBuffers { indptr, indices, last_page_len };
    /// assert!(Csr::new(buffers, -1, Gaps::Show).is_err()); // 3 rows need 4 in indptr
    /// ```
    pub fn new(buffers: CsrBuffers<'a, T>, pad: T, gaps: impl Into<GroupGaps>) -> Result<Self> {
        let gaps = gaps.into();
        let (required, actual) = (buffers.last_page_len.len() + 1, buffers.indptr.len());
        if actual != required {
            return Err(PagedKvError::BufferSize { buffer: "indptr", required, actual });
        }
        Ok(Self { buffers, pad, gaps, rows: 0, pages: 0, cache: OneCache::default() })
    }

    /// Checks that `additional` more rows fit: a whole batch, before its first row.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize), with the number of rows after them.
    ///
    /// ```
    /// use paged_kv::PagedKvError;
    /// use paged_kv::export::{Csr, CsrBuffers, Gaps};
    ///
    /// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 3], [0; 8], [0; 2]);
    /// let buffers = CsrBuffers {
    ///     indptr: &mut indptr,
    ///     indices: &mut indices,
    ///     last_page_len: &mut last_page_len,
    /// };
    /// let csr = Csr::new(buffers, 0, Gaps::Close)?;
    /// assert_eq!(csr.check_rows(2), Ok(()));
    /// let size = PagedKvError::BufferSize { buffer: "last_page_len", required: 5, actual: 2 };
    /// assert_eq!(csr.check_rows(5), Err(size));
    /// # assert_eq!(csr.finish(), 0);
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn check_rows(&self, additional: usize) -> Result<()> {
        let rows = self.rows.saturating_add(additional);
        check_at_least("last_page_len", rows, self.buffers.last_page_len.len())
    }

    /// Writes the next row: the pages of `sequence`, their end, and the number of tokens in the last page.
    /// No lock, no allocation, `O(pages of the sequence)`.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if no row is left, or too few cells of `indices`
    /// (`required` then counts the pages up to this row's last);
    /// [`WrongCache`](PagedKvError::WrongCache) if the rows are not all of one cache,
    /// [`IdTooLarge`](PagedKvError::IdTooLarge) if a number does not fit a `T`. The buffers are
    /// then untouched.
    ///
    /// ```
    /// use paged_kv::export::{{Csr, CsrBuffers, Gaps}};
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 2], [0; 4], [0; 1]);
    /// let buffers = CsrBuffers {
    ///     indptr: &mut indptr,
    ///     indices: &mut indices,
    ///     last_page_len: &mut last_page_len,
    /// };
    /// let mut csr = Csr::new(buffers, -1, Gaps::Show)?;
    /// csr.push(&sequence)?;
    /// assert!(csr.push(&sequence).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn push(&mut self, sequence: &Sequence) -> Result<()> {
        self.check_rows(1)?;
        let table = self.gaps.table(sequence)?;
        self.check_pages(self.gaps.gaps.num_pages(table))?;
        check_numbers::<T>(table)?;
        self.cache.check(sequence)?;
        self.write_row(sequence);
        Ok(())
    }

    /// Writes the rows without a sequence as rows without pages. Returns the number of pages written.
    ///
    /// ```
    /// use paged_kv::export::{{Csr, CsrBuffers, Gaps}};
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 2], [0; 4], [0; 1]);
    /// let buffers = CsrBuffers {
    ///     indptr: &mut indptr,
    ///     indices: &mut indices,
    ///     last_page_len: &mut last_page_len,
    /// };
    /// let mut csr = Csr::new(buffers, -1, Gaps::Show)?;
    /// csr.push(&sequence)?;
    /// assert_eq!(csr.finish(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn finish(self) -> usize {
        let (rows, pages) = (self.rows, self.pages);
        self.buffers.indptr[rows..].fill(T::cast(pages as u64));
        self.buffers.last_page_len[rows..].fill(T::cast(0));
        pages
    }

    /// Refuses more pages than there are cells left, or than a `T` can count.
    fn check_pages(&self, additional: usize) -> Result<()> {
        let pages = self.pages + additional;
        check_at_least("indices", pages, self.buffers.indices.len())?;
        fit::<T>(pages as u64).map(drop)
    }

    /// Writes the next row, which has been checked.
    fn write_row(&mut self, sequence: &Sequence) {
        let (row, start) = (self.rows, self.pages);
        let (sequence, gaps) = (self.gaps.checked_table(sequence), self.gaps.gaps);
        let pages = gaps.num_pages(sequence);
        gaps.write_pages(sequence, self.pad, &mut self.buffers.indices[start..][..pages]);
        self.buffers.indptr[row] = T::cast(start as u64);
        self.buffers.last_page_len[row] = T::cast(last_page_len(sequence, pages) as u64);
        self.rows += 1;
        self.pages += pages;
    }
}

/// Returns the number of tokens in the last of a sequence's `pages`.
///
/// Only full blocks are trimmed. So if the last page is not the block of the last token, both are full, and the
/// remainder is right for both.
fn last_page_len(sequence: &Sequence, pages: usize) -> usize {
    if pages == 0 {
        return 0;
    }
    match sequence.num_tokens() % sequence.block_size() {
        0 => sequence.block_size(),
        partly_filled => partly_filled,
    }
}

/// Refuses a sequence with an id or a block size that a `T` cannot hold.
fn check_numbers<T: KernelInt>(sequence: &Sequence) -> Result<()> {
    fit::<T>(sequence.block_size() as u64)?;
    check_blocks::<T>(sequence)
}

fn check_at_least(buffer: &'static str, required: usize, actual: usize) -> Result<()> {
    if required > actual {
        return Err(PagedKvError::BufferSize { buffer, required, actual });
    }
    Ok(())
}
