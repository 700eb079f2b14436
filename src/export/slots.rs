//! `SlotMapping`: the slot of each token of a batch, where a kernel writes its keys and values.
//!
//! Invariant: each cell is the slot of one token, in the order of the batch and of the positions,
//! and the cells past the last are [`KernelInt::NO_SLOT`].
//!
//! An export does not check whether a token's keys and values are computed, nor whether its block may be
//! written.

use std::ops::Range;

use crate::error::{PagedKvError, Result};
use crate::sequence::Sequence;

use super::gaps::{Gaps, GroupGaps};
use super::kernel_int::KernelInt;
use super::one_cache::OneCache;
use super::slot_runs::{check_slots, num_resident, write_slots};

/// The name of the buffer in errors.
const BUFFER: &str = "slots";

/// Writes the slots of `tokens`, positions of one sequence, into exactly as many cells.
///
/// After an append, the slots of the new tokens are the slot mapping that `reshape_and_cache` takes. Under
/// [`Gaps::Close`] `out` has a cell for each resident token: [`Gaps::num_slots`] counts them.
///
/// No lock, no allocation, `O(gaps + slots)`.
///
/// # Errors
/// [`TokenRange`](PagedKvError::TokenRange) if the range is reversed or ends past the sequence,
/// [`BufferSize`](PagedKvError::BufferSize) if `out` has more or fewer cells than slots,
/// [`IdTooLarge`](PagedKvError::IdTooLarge) if a slot does not fit a `T`. `out` is then untouched.
///
/// ```
/// use paged_kv::export::{Gaps, slots};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 4, 8, 128);
/// let sequence = cache.allocate_sequence(10)?;
///
/// let mut new = [0_i64; 3];
/// slots(&sequence, 7..10, Gaps::Show, &mut new)?;
/// let start = |block: usize| i64::from(sequence.block_ids()[block].0) * 4;
/// assert_eq!(new, [start(1) + 3, start(2), start(2) + 1]);
///
/// let refused = slots(&sequence, 9..12, Gaps::Show, &mut new);
/// assert_eq!(refused, Err(PagedKvError::TokenRange { start: 9, end: 12, num_tokens: 10 }));
/// # Ok::<(), PagedKvError>(())
/// ```
pub fn slots<T: KernelInt>(
    sequence: &Sequence,
    tokens: Range<usize>,
    gaps: impl Into<GroupGaps>,
    out: &mut [T],
) -> Result<()> {
    let of_group = gaps.into();
    let (sequence, gaps) = (of_group.table(sequence)?, of_group.gaps);
    let required = gaps.num_slots(sequence, tokens.clone())?;
    if out.len() != required {
        return Err(PagedKvError::BufferSize { buffer: BUFFER, required, actual: out.len() });
    }
    check_slots::<T>(sequence, &tokens)?;
    write_slots(sequence, &tokens, gaps, out);
    Ok(())
}

/// Writes the slots of a batch, one token range a sequence, one after the other. Returns their number.
///
/// Cells past the last slot get [`KernelInt::NO_SLOT`], which kernels skip. vLLM pads the slot mapping of a
/// CUDA graph in the same way.
///
/// No lock, no allocation, `O(sequences + gaps + cells)`.
///
/// # Errors
/// Those of [`slots()`], and [`WrongCache`](PagedKvError::WrongCache) if the sequences are not all of
/// one cache; here `out` may have spare cells. `out` is then untouched.
///
/// ```
/// use paged_kv::export::{Gaps, slot_mapping};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 4, 8, 128);
/// let (prefill, decode) = (cache.allocate_sequence(2)?, cache.allocate_sequence(5)?);
/// let batch = [(&prefill, 0..2), (&decode, 4..5)];
///
/// let mut mapping = [0_i64; 4];
/// assert_eq!(slot_mapping(batch.clone(), Gaps::Show, &mut mapping)?, 3);
/// let start = i64::from(prefill.block_ids()[0].0) * 4;
/// assert_eq!(mapping[..2], [start, start + 1]);
/// assert_eq!(mapping[2], i64::from(decode.block_ids()[1].0) * 4);
/// assert_eq!(mapping[3], -1);
///
/// let refused = slot_mapping(batch, Gaps::Show, &mut mapping[..2]);
/// let size = PagedKvError::BufferSize { buffer: "slots", required: 3, actual: 2 };
/// assert_eq!(refused, Err(size));
/// # Ok::<(), PagedKvError>(())
/// ```
pub fn slot_mapping<'s, T: KernelInt>(
    batch: impl IntoIterator<Item = (&'s Sequence, Range<usize>), IntoIter: Clone>,
    gaps: impl Into<GroupGaps>,
    out: &mut [T],
) -> Result<usize> {
    let (batch, of_group) = (batch.into_iter(), gaps.into());
    let mut mapping = SlotMapping::new(out, of_group);
    let mut required = 0;
    for (sequence, tokens) in batch.clone() {
        let (sequence, gaps) = (of_group.table(sequence)?, of_group.gaps);
        required = gaps.num_slots(sequence, tokens.clone())?.saturating_add(required);
        check_slots::<T>(sequence, &tokens)?;
    }
    mapping.check_room(required)?;
    OneCache::default().check_all(batch.clone().map(|(sequence, _)| sequence))?;
    for (sequence, tokens) in batch {
        let sequence = of_group.checked_table(sequence);
        mapping.write(sequence, &tokens, of_group.gaps.count(sequence, &tokens));
    }
    Ok(mapping.finish())
}

/// A slot mapping that is written one sequence at a time.
///
/// For a batch whose sequences are reached one by one. If all handles are available, [`slot_mapping`] does the
/// same in one call.
///
/// ```
/// use paged_kv::export::{Gaps, SlotMapping};
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(16, 4, 8, 128);
/// let mut sequence = cache.allocate_sequence(12)?;
/// sequence.apply_streaming_llm(4, 4);
///
/// let mut out = [0_i32; 5];
/// let mut mapping = SlotMapping::new(&mut out, Gaps::Show);
/// mapping.push(&sequence, 3..6)?;
/// let size = PagedKvError::BufferSize { buffer: "slots", required: 6, actual: 5 };
/// assert_eq!(mapping.push(&sequence, 8..11), Err(size));
/// assert_eq!(mapping.finish(), 3);
/// let last_of_first_block = sequence.block_ids()[0].0 as i32 * 4 + 3;
/// assert_eq!(out, [last_of_first_block, -1, -1, -1, -1], "4 and 5 are trimmed; two to spare");
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
#[must_use = "cells without a token are written by `finish`"]
pub struct SlotMapping<'a, T> {
    out: &'a mut [T],
    gaps: GroupGaps,
    /// Slots written.
    slots: usize,
    cache: OneCache,
}

impl<'a, T: KernelInt> SlotMapping<'a, T> {
    /// Creates a mapping over `out`, none of its cells written yet.
    ///
    /// ```
    /// use paged_kv::export::{Gaps, SlotMapping};
    ///
    /// let mut out = [0_i64; 2];
    /// assert_eq!(SlotMapping::new(&mut out, Gaps::Show).finish(), 0);
    /// ```
    pub fn new(out: &'a mut [T], gaps: impl Into<GroupGaps>) -> Self {
        Self { out, gaps: gaps.into(), slots: 0, cache: OneCache::default() }
    }

    /// Writes the slots of `tokens`, positions of `sequence`, into the next cells.
    /// No lock, no allocation, `O(gaps + slots)`.
    ///
    /// # Errors
    /// Those of [`slot_mapping`]; `required` counts the cells up to this range's last. `out` is then
    /// untouched.
    ///
    /// ```
    /// use paged_kv::export::{{Gaps, SlotMapping}};
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let mut out = [0_i64; 2];
    /// let mut slots = SlotMapping::new(&mut out, Gaps::Show);
    /// slots.push(&sequence, 4..6)?;
    /// assert!(slots.push(&sequence, 0..1).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn push(&mut self, sequence: &Sequence, tokens: Range<usize>) -> Result<()> {
        let table = self.gaps.table(sequence)?;
        let slots = self.gaps.gaps.num_slots(table, tokens.clone())?;
        self.check_room(slots)?;
        check_slots::<T>(table, &tokens)?;
        self.cache.check(sequence)?;
        self.write(table, &tokens, slots);
        Ok(())
    }

    /// Fills the cells without a token with [`KernelInt::NO_SLOT`]. Returns the number of cells with a token.
    ///
    /// ```
    /// use paged_kv::export::{{Gaps, SlotMapping}};
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let mut out = [0_i64; 2];
    /// let mut slots = SlotMapping::new(&mut out, Gaps::Show);
    /// slots.push(&sequence, 5..6)?;
    /// assert_eq!(slots.finish(), 1);
    /// assert_eq!(out[1], -1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn finish(self) -> usize {
        self.out[self.slots..].fill(T::NO_SLOT);
        self.slots
    }

    /// Refuses more slots than there are cells left.
    fn check_room(&self, additional: usize) -> Result<()> {
        let (required, actual) = (self.slots.saturating_add(additional), self.out.len());
        if required > actual {
            return Err(PagedKvError::BufferSize { buffer: BUFFER, required, actual });
        }
        Ok(())
    }

    /// Writes the next `slots` cells, which have been checked.
    fn write(&mut self, sequence: &Sequence, tokens: &Range<usize>, slots: usize) {
        write_slots(sequence, tokens, self.gaps.gaps, &mut self.out[self.slots..][..slots]);
        self.slots += slots;
    }
}

impl Gaps {
    /// Returns the number of cells for the slots of `tokens`, for the size of a slot mapping. `O(gaps)`.
    ///
    /// # Errors
    /// [`TokenRange`](PagedKvError::TokenRange) if the range is reversed or ends past the sequence.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, export::Gaps};
    ///
    /// let cache = PagedKvCache::new(16, 4, 8, 128);
    /// let mut sequence = cache.allocate_sequence(12)?;
    /// sequence.apply_streaming_llm(4, 4);
    ///
    /// assert_eq!(Gaps::Show.num_slots(&sequence, 2..9)?, 7);
    /// assert_eq!(Gaps::Close.num_slots(&sequence, 2..9)?, 3);
    /// assert!(Gaps::Show.num_slots(&sequence, 2..13).is_err());
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn num_slots(self, sequence: &Sequence, tokens: Range<usize>) -> Result<usize> {
        let (Range { start, end }, num_tokens) = (tokens.clone(), sequence.num_tokens());
        if start > end || end > num_tokens {
            return Err(PagedKvError::TokenRange { start, end, num_tokens });
        }
        Ok(self.count(sequence, &tokens))
    }

    /// Does [`Gaps::num_slots`] for a range that has been checked.
    fn count(self, sequence: &Sequence, tokens: &Range<usize>) -> usize {
        match self {
            Gaps::Show => tokens.len(),
            Gaps::Close => num_resident(sequence, tokens),
        }
    }
}
