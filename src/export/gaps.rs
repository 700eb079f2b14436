//! `Gaps`: the export of the blocks that a sequence has trimmed.
//!
//! Invariant: the stretches of a sequence cover its logical blocks once, in order, and its
//! resident ids once, in order. A sequence without gaps is one stretch, so the common case is one
//! copy.

use std::ops::Range;

use crate::error::Result;
use crate::id::{BlockId, GroupId};
use crate::sequence::Sequence;

use super::kernel_int::{KernelInt, copy_ids, fill};

/// The treatment of trimmed blocks (StreamingLLM) by an export.
///
/// ```
/// use paged_kv::{PagedKvCache, export::Gaps};
///
/// let cache = PagedKvCache::new(8, 16, 8, 128);
/// let mut sequence = cache.allocate_sequence(64)?;
/// sequence.apply_streaming_llm(16, 16);
///
/// assert_eq!(Gaps::Show.num_pages(&sequence), 4);
/// assert_eq!(Gaps::Close.num_pages(&sequence), 2);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gaps {
    /// Every page keeps its place. A trimmed block is written as the pad id, the slots of its tokens as
    /// [`KernelInt::NO_SLOT`]. For kernels that mask by position.
    Show,
    /// Resident pages move together, as in the StreamingLLM paper: positions count within the cache, and a
    /// trimmed block leaves no trace.
    Close,
}

/// The treatment of blocks without a place in memory, and the group of layers whose table is written.
///
/// An export takes it, or [`Gaps`] for group 0. In a sparse group, a block that a window has released counts as
/// trimmed.
///
/// ```
/// use paged_kv::export::{Gaps, slots};
/// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
///
/// let groups = [
///     LayerGroup::Full { block_size: 4 },
///     LayerGroup::SlidingWindow { block_size: 4, window: 4 },
/// ];
/// let cache = PagedKvCache::builder().num_blocks(16).groups(&groups).build()?;
/// let mut sequence = cache.allocate_sequence(12)?;
/// sequence.append(1)?;
/// let mut of_window = [0_i64; 13];
/// slots(&sequence, 0..13, Gaps::Show.of_group(GroupId(1)), &mut of_window)?;
/// assert_eq!(of_window[..8], [-1; 8]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupGaps {
    pub(super) gaps: Gaps,
    pub(super) group: GroupId,
}

impl From<Gaps> for GroupGaps {
    fn from(gaps: Gaps) -> Self {
        gaps.of_group(GroupId(0))
    }
}

impl GroupGaps {
    /// Returns the number of pages of the group's table; see [`Gaps::num_pages`].
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::PagedKvError::InvalidConfig) for a group that the cache does not have.
    ///
    /// ```
    /// use paged_kv::{GroupId, export::Gaps};
    ///
    /// let sequence = paged_kv::BlockPool::new(8).allocate_sequence(32, 4)?;
    /// assert_eq!(Gaps::Show.of_group(GroupId(0)).num_pages(&sequence)?, 8);
    /// assert!(Gaps::Show.of_group(GroupId(1)).num_pages(&sequence).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_pages(self, sequence: &Sequence) -> Result<usize> {
        Ok(self.gaps.num_pages(self.table(sequence)?))
    }

    /// Returns the number of slots of a range of the group's table; see [`Gaps::num_slots`].
    ///
    /// # Errors
    /// As [`num_pages`](Self::num_pages) and [`Gaps::num_slots`].
    ///
    /// ```
    /// use paged_kv::{GroupId, export::Gaps};
    ///
    /// let sequence = paged_kv::BlockPool::new(8).allocate_sequence(32, 4)?;
    /// assert_eq!(Gaps::Close.of_group(GroupId(0)).num_slots(&sequence, 3..9)?, 6);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_slots(self, sequence: &Sequence, tokens: Range<usize>) -> Result<usize> {
        self.gaps.num_slots(self.table(sequence)?, tokens)
    }

    /// Returns the table of the group.
    #[inline]
    pub(super) fn table(self, sequence: &Sequence) -> Result<&Sequence> {
        match self.group {
            GroupId(0) => Ok(sequence),
            group => sequence.of_group(group),
        }
    }

    /// Returns the table of the group, after a check that the sequence has the group.
    pub(super) fn checked_table(self, sequence: &Sequence) -> &Sequence {
        self.table(sequence).expect("the group was checked before the first cell was written")
    }
}

impl Gaps {
    /// Returns the same treatment, for the table of a group of layers.
    ///
    /// ```
    /// use paged_kv::{GroupId, export::Gaps};
    ///
    /// assert_eq!(Gaps::Show.of_group(GroupId(0)), Gaps::Show.into());
    /// ```
    pub fn of_group(self, group: GroupId) -> GroupGaps {
        GroupGaps { gaps: self, group }
    }

    /// Returns the number of pages of `sequence` in a block table or in `indices`, for the size of a buffer.
    ///
    /// `O(1)`.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(32, 4)?;
    /// sequence.apply_streaming_llm(4, 8);
    /// assert_eq!(paged_kv::export::Gaps::Show.num_pages(&sequence), 8);
    /// assert_eq!(paged_kv::export::Gaps::Close.num_pages(&sequence), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_pages(self, sequence: &Sequence) -> usize {
        match self {
            Gaps::Show => sequence.num_logical_blocks(),
            Gaps::Close => sequence.num_blocks(),
        }
    }

    /// Writes the pages of `sequence` into `cells`, of which there are `num_pages`.
    pub(super) fn write_pages<T: KernelInt>(self, sequence: &Sequence, pad: T, cells: &mut [T]) {
        match sequence.gaps().is_empty() {
            true => copy_ids(sequence.block_ids(), cells),
            false => self.write_around_gaps(sequence, pad, cells),
        }
    }

    #[inline(never)]
    fn write_around_gaps<T: KernelInt>(self, sequence: &Sequence, pad: T, cells: &mut [T]) {
        if let [Range { start: 0, end }] = *sequence.gaps() {
            // A window, which has left its first blocks.
            let (gap, resident) = match self {
                Gaps::Show => cells.split_at_mut(end),
                Gaps::Close => (Default::default(), cells),
            };
            fill(gap, pad);
            return copy_ids(sequence.block_ids(), resident);
        }
        let mut left = cells;
        for stretch in Stretches::of(sequence) {
            match stretch {
                Stretch::Resident(ids) => copy_ids(ids, take(&mut left, ids.len())),
                Stretch::Gap(blocks) if self == Gaps::Show => take(&mut left, blocks).fill(pad),
                Stretch::Gap(_) => {}
            }
        }
        debug_assert!(left.is_empty(), "the stretches of a sequence are its pages");
    }
}

/// Splits the next `len` cells off `left`.
pub(super) fn take<'a, T>(left: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    left.split_off_mut(..len).expect("cells are counted before they are written")
}

/// Adjacent logical blocks, all of them resident or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch<'a> {
    Resident(&'a [BlockId]),
    /// The number of adjacent logical blocks that were trimmed.
    Gap(usize),
}

impl Stretch<'_> {
    /// Returns the number of logical blocks of the stretch.
    pub(super) fn num_blocks(self) -> usize {
        match self {
            Stretch::Resident(ids) => ids.len(),
            Stretch::Gap(blocks) => blocks,
        }
    }
}

/// The stretches of a block table, from the front to the back.
#[derive(Debug, Clone)]
pub(super) struct Stretches<'a> {
    ids: &'a [BlockId],
    gaps: &'a [Range<usize>],
    /// The logical block at which the next stretch begins.
    block: usize,
}

impl<'a> Stretches<'a> {
    pub(super) fn of(sequence: &'a Sequence) -> Self {
        Self { ids: sequence.block_ids(), gaps: sequence.gaps(), block: 0 }
    }
}

impl<'a> Iterator for Stretches<'a> {
    type Item = Stretch<'a>;

    fn next(&mut self) -> Option<Stretch<'a>> {
        let gap_start = self.gaps.first().map(|gap| gap.start);
        let stretch = if gap_start == Some(self.block) {
            Stretch::Gap(self.gaps.split_off_first()?.len())
        } else {
            let blocks = gap_start.map_or(self.ids.len(), |start| start - self.block);
            Stretch::Resident(self.ids.split_off(..blocks)?)
        };
        self.block += stretch.num_blocks();
        (stretch.num_blocks() > 0).then_some(stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds ids and gaps from `resident`, and returns the blocks that `Stretches` gives.
    fn round_trip(resident: &[bool]) -> Vec<Option<BlockId>> {
        let ids: Vec<_> = (0..resident.iter().filter(|&&here| here).count() as u32).collect();
        let ids: Vec<_> = ids.into_iter().map(BlockId).collect();
        let mut gaps: Vec<Range<usize>> = Vec::new();
        for block in (0..resident.len()).filter(|&block| !resident[block]) {
            match gaps.last_mut() {
                Some(gap) if gap.end == block => gap.end += 1,
                _ => gaps.push(block..block + 1),
            }
        }
        let mut blocks = Vec::new();
        for stretch in (Stretches { ids: &ids, gaps: &gaps, block: 0 }) {
            match stretch {
                Stretch::Resident(ids) => blocks.extend(ids.iter().copied().map(Some)),
                Stretch::Gap(gap) => blocks.extend(std::iter::repeat_n(None, gap)),
            }
        }
        blocks
    }

    #[test]
    fn stretches_cover_every_pattern_of_gaps_once_and_in_order() {
        for len in 0..=9 {
            for mask in 0..1_u32 << len {
                let resident: Vec<bool> = (0..len).map(|block| mask >> block & 1 == 1).collect();
                let mut next = 0..;
                let expected: Vec<Option<BlockId>> = resident
                    .iter()
                    .map(|&here| here.then(|| BlockId(next.next().expect("ids do not end"))))
                    .collect();
                assert_eq!(round_trip(&resident), expected, "{resident:?}");
            }
        }
    }

    #[test]
    fn a_table_without_gaps_is_one_stretch() {
        let ids = [BlockId(4), BlockId(2)];
        let mut stretches = Stretches { ids: &ids, gaps: &[], block: 0 };
        assert_eq!(stretches.next(), Some(Stretch::Resident(&ids)));
        assert_eq!(stretches.next(), None);
    }
}
