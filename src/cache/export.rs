//! Kernel inputs of leased sequences: the exports of [`export`](crate::export) over the rows of a lease.
//!
//! Each row is read at a separate moment; the lease keeps the rows in place between the reads. So if a
//! later row is refused, the earlier ones are written already.

use std::ops::Range;

use super::entry::MapEntry;
use super::{Lease, PagedKvCache};
use crate::error::{PagedKvError, Result};
use crate::export::{BlockTables, Csr, CsrBuffers, GroupGaps, KernelInt, SlotMapping, TableShape};
use crate::id::SeqId;
use crate::sequence::Sequence;
use crate::sync::Arc;

impl PagedKvCache {
    /// Reads a sequence in place, a very long one outside the map's lock.
    pub(super) fn look<R>(
        &self,
        id: SeqId,
        read: impl FnOnce(&Sequence) -> Result<R>,
    ) -> Result<R> {
        let shared = {
            let slot = self.sequences.get(&id).ok_or_else(self.missing(id))?;
            match &*slot {
                MapEntry::Owned(tracked) if tracked.is_brief() => return read(tracked.sequence()),
                MapEntry::Owned(_) => None,
                MapEntry::Shared(shared) => Some(Arc::clone(shared)),
            }
        };
        let shared = match shared {
            Some(shared) => shared,
            None => self.sequences.get_mut(&id).ok_or_else(self.missing(id))?.share(),
        };
        match &*shared.read() {
            Some(tracked) => read(tracked.sequence()),
            None => Err(self.missing(id)()),
        }
    }
}

impl Lease {
    /// Writes the block table of the leased sequences, a row each; see [`BlockTables`]. Takes each
    /// sequence's own lock, and no map lock; allocates no memory.
    ///
    /// # Errors
    /// Those of [`BlockTables`]. The rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::{Gaps, TableShape};
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 6)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// let shape = TableShape { stride: 3, pad: -1, gaps: Gaps::Show };
    /// let mut table = [0_i32; 3];
    /// lease.block_tables(&mut table, shape)?;
    /// assert_eq!(table[2], -1);
    /// assert!(lease.block_tables(&mut table[..2], shape).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_tables<T: KernelInt>(
        &self,
        out: &mut [T],
        shape: TableShape<T, impl Into<GroupGaps>>,
    ) -> Result<()> {
        let mut tables = BlockTables::new(out, shape)?;
        tables.check_rows(self.len())?;
        self.for_each(|_, sequence| tables.push(sequence))?;
        tables.finish();
        Ok(())
    }

    /// Writes the CSR triple of the leased sequences and returns the number of pages; see [`Csr`]. Takes
    /// each sequence's own lock, and no map lock; allocates no memory.
    ///
    /// # Errors
    /// Those of [`Csr`]. The rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::{CsrBuffers, Gaps};
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 6)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 2], [0; 4], [0; 1]);
    /// let buffers = CsrBuffers {
    ///     indptr: &mut indptr,
    ///     indices: &mut indices,
    ///     last_page_len: &mut last_page_len,
    /// };
    /// assert_eq!(lease.csr(buffers, -1, Gaps::Show)?, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn csr<T: KernelInt>(
        &self,
        buffers: CsrBuffers<'_, T>,
        pad: T,
        gaps: impl Into<GroupGaps>,
    ) -> Result<usize> {
        let mut csr = Csr::new(buffers, pad, gaps)?;
        csr.check_rows(self.len())?;
        self.for_each(|_, sequence| csr.push(sequence))?;
        Ok(csr.finish())
    }

    /// Writes the slots of a range of tokens of each row, one row after the other, and returns the number
    /// of slots; see [`SlotMapping`]. Takes each sequence's own lock, and no map lock; allocates no memory.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one range a row, and those of
    /// [`SlotMapping`]. The rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::Gaps;
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 6)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// let mut slots = [0_i64; 2];
    /// assert_eq!(lease.slot_mapping(&[4..6], Gaps::Show, &mut slots)?, 2);
    /// assert_eq!(slots[1], slots[0] + 1);
    /// assert!(lease.slot_mapping(&[4..7], Gaps::Show, &mut slots).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slot_mapping<T: KernelInt>(
        &self,
        tokens: &[Range<usize>],
        gaps: impl Into<GroupGaps>,
        out: &mut [T],
    ) -> Result<usize> {
        self.check_rows("tokens", tokens.len())?;
        let mut mapping = SlotMapping::new(out, gaps);
        self.for_each(|row, sequence| mapping.push(sequence, tokens[row].clone()))?;
        Ok(mapping.finish())
    }

    /// Writes the slots of the last `num_tokens[i]` tokens of each row `i`, for example those that a batch
    /// append added. Returns the number of slots; see [`SlotMapping`]. Takes each sequence's own lock, and
    /// no map lock; allocates no memory.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one number a row,
    /// [`TokenRange`](PagedKvError::TokenRange) if a row has fewer tokens, and those of [`SlotMapping`].
    /// The rows before the refused one are written then.
    ///
    /// ```
    /// use paged_kv::export::Gaps;
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 6)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// let mut slots = [0_i64; 2];
    /// assert_eq!(lease.last_slots(&[2], Gaps::Show, &mut slots)?, 2);
    /// assert!(lease.last_slots(&[7], Gaps::Show, &mut slots).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn last_slots<T: KernelInt>(
        &self,
        num_tokens: &[usize],
        gaps: impl Into<GroupGaps>,
        out: &mut [T],
    ) -> Result<usize> {
        self.check_rows("num_tokens", num_tokens.len())?;
        let mut mapping = SlotMapping::new(out, gaps);
        self.for_each(|row, sequence| {
            let end = sequence.num_tokens();
            let start = end.checked_sub(num_tokens[row]).ok_or(PagedKvError::TokenRange {
                start: 0,
                end: num_tokens[row],
                num_tokens: end,
            })?;
            mapping.push(sequence, start..end)
        })?;
        Ok(mapping.finish())
    }
}
