//! `write_slots`: the slots of a token range, written in runs.
//!
//! Invariant: the slot of a resident token is `block_id * block_size + offset`; a token without a
//! block shows as [`KernelInt::NO_SLOT`] or is left out, and no resident token has that slot.
//!
//! The callers have checked the range against the sequence and the cells against the range.

use std::ops::Range;

use crate::error::Result;
use crate::id::BlockId;
use crate::sequence::Sequence;

use super::gaps::{Gaps, Stretch, Stretches, take};
use super::kernel_int::{KernelInt, check_slot, largest};

/// Writes the slots of a range, which has been checked, into as many cells.
pub(super) fn write_slots<T: KernelInt>(
    sequence: &Sequence,
    tokens: &Range<usize>,
    gaps: Gaps,
    cells: &mut [T],
) {
    // Fast path for a decode step, which asks for the last tokens of the last block only.
    if tokens.end == sequence.num_tokens()
        && let Some((id, tail)) = sequence.tail()
        && tokens.len() <= tail
    {
        let start = u64::from(id.0) * sequence.block_size() as u64;
        return count_up(cells, start + (tail - tokens.len()) as u64);
    }
    let mut left = cells;
    for piece in pieces(sequence, tokens) {
        match piece {
            Piece::Resident { ids, offset, tokens } => {
                write_resident(ids, offset, sequence.block_size(), take(&mut left, tokens));
            }
            Piece::Gap { tokens } if gaps == Gaps::Show => take(&mut left, tokens).fill(T::NO_SLOT),
            Piece::Gap { .. } => {}
        }
    }
    debug_assert!(left.is_empty(), "the pieces of a range are its slots");
}

/// Refuses a range if one slot does not fit a `T`. Costs nothing if every slot of the pool fits.
pub(super) fn check_slots<T: KernelInt>(sequence: &Sequence, tokens: &Range<usize>) -> Result<()> {
    let block_size = sequence.block_size() as u64;
    let slot =
        |id: u32, offset: u64| u64::from(id).saturating_mul(block_size).saturating_add(offset);
    if check_slot::<T>(slot(u32::MAX, block_size)).is_ok() {
        return Ok(());
    }
    for piece in pieces(sequence, tokens) {
        let Piece::Resident { ids, offset, tokens } = piece else {
            continue;
        };
        let last_token = offset + tokens - 1;
        let (full, last) = (last_token / sequence.block_size(), last_token as u64 % block_size);
        check_slot::<T>(slot(ids[full].0, last))?;
        if full > 0 {
            check_slot::<T>(slot(largest(&ids[..full]), block_size - 1))?;
        }
    }
    Ok(())
}

/// Returns the number of tokens of the range that have a slot.
pub(super) fn num_resident(sequence: &Sequence, tokens: &Range<usize>) -> usize {
    let resident = |piece| match piece {
        Piece::Resident { tokens, .. } => tokens,
        Piece::Gap { .. } => 0,
    };
    pieces(sequence, tokens).map(resident).sum()
}

/// The part of one stretch that a token range covers, in tokens; never empty.
enum Piece<'a> {
    /// `tokens` tokens from `offset` on in the first of `ids`; the range may end before the last of `ids`.
    Resident {
        ids: &'a [BlockId],
        offset: usize,
        tokens: usize,
    },
    Gap {
        tokens: usize,
    },
}

/// Splits `tokens` at the bounds of gaps. Nothing overflows: the slots of a sequence's blocks can be counted.
fn pieces<'a>(sequence: &'a Sequence, tokens: &Range<usize>) -> impl Iterator<Item = Piece<'a>> {
    let (block_size, tokens) = (sequence.block_size(), tokens.clone());
    let mut next_block = 0;
    Stretches::of(sequence).filter_map(move |stretch| {
        let first_block = next_block;
        next_block += stretch.num_blocks();
        let start = tokens.start.max(first_block * block_size);
        let end = tokens.end.min(next_block * block_size);
        (start < end).then(|| match stretch {
            Stretch::Gap(_) => Piece::Gap { tokens: end - start },
            Stretch::Resident(ids) => {
                let (block, offset) = (start / block_size, start % block_size);
                Piece::Resident { ids: &ids[block - first_block..], offset, tokens: end - start }
            }
        })
    })
}

/// Writes slots from `offset` on in the first of `ids`, block by block, until the cells are full.
fn write_resident<T: KernelInt>(
    ids: &[BlockId],
    offset: usize,
    block_size: usize,
    cells: &mut [T],
) {
    let Some((first, rest)) = ids.split_first() else {
        return;
    };
    let start = |id: &BlockId| u64::from(id.0) * block_size as u64;
    let (head, tail) = cells.split_at_mut(cells.len().min(block_size - offset));
    count_up(head, start(first) + offset as u64);
    for (cells, id) in tail.chunks_mut(block_size).zip(rest) {
        count_up(cells, start(id));
    }
}

/// Writes `first`, `first + 1`, ..
fn count_up<T: KernelInt>(cells: &mut [T], first: u64) {
    for (cell, slot) in cells.iter_mut().zip(first..) {
        *cell = T::cast(slot);
    }
}
