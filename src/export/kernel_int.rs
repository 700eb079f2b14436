//! `KernelInt`: the integers that a kernel reads, and the checks that a number fits one.
//!
//! Invariant: no id, count or slot is ever cut to a narrower type. It fits, or it is refused with the number
//! that did not fit.

use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::sequence::Sequence;

/// An integer that kernels read: `i32`, `u32` or `i64`.
///
/// vLLM and FlashAttention take block tables as `i32` and slot mappings as `i64`; FlashInfer takes
/// `i32` throughout. The trait is sealed.
///
/// ```
/// use paged_kv::export::KernelInt;
///
/// assert_eq!(<i32 as KernelInt>::NO_SLOT, -1);
/// assert_eq!(<i64 as KernelInt>::NO_SLOT, -1);
/// assert_eq!(<u32 as KernelInt>::NO_SLOT, u32::MAX);
/// ```
pub trait KernelInt: Number {
    /// The slot of a token that has none: `-1`, which kernels skip; for `u32` the same bits.
    const NO_SLOT: Self;
}

/// The conversions of a [`KernelInt`]; private, which seals the trait.
pub trait Number: Copy + PartialEq {
    /// The type's name, for errors.
    const NAME: &'static str;
    /// The largest id or count that fits.
    const LARGEST: u64;
    /// The largest slot that fits: never the bits of `NO_SLOT`.
    const LARGEST_SLOT: u64;
    /// Converts `value`, which the caller has checked to be at most `LARGEST`.
    fn cast(value: u64) -> Self;
}

macro_rules! kernel_int {
    ($int:ident, no_slot: $no_slot:expr, largest_slot: $largest_slot:expr) => {
        impl KernelInt for $int {
            const NO_SLOT: Self = $no_slot;
        }

        impl Number for $int {
            const NAME: &'static str = stringify!($int);
            const LARGEST: u64 = $int::MAX as u64;
            const LARGEST_SLOT: u64 = $largest_slot as u64;

            #[inline]
            fn cast(value: u64) -> Self {
                debug_assert!(value <= Self::LARGEST, "numbers are checked before they are cast");
                value as Self
            }
        }
    };
}

kernel_int!(i32, no_slot: -1, largest_slot: i32::MAX);
kernel_int!(u32, no_slot: u32::MAX, largest_slot: u32::MAX - 1);
kernel_int!(i64, no_slot: -1, largest_slot: i64::MAX);

/// Converts `value` to a `T`, or refuses it.
pub(crate) fn fit<T: KernelInt>(value: u64) -> Result<T> {
    check(value, T::LARGEST, T::NAME)?;
    Ok(T::cast(value))
}

/// Converts a block id to a `T`, or refuses it.
pub(crate) fn block_number<T: KernelInt>(id: BlockId) -> Result<T> {
    fit(u64::from(id.0))
}

/// Refuses a slot that a `T` cannot hold.
pub(super) fn check_slot<T: KernelInt>(slot: u64) -> Result<()> {
    check(slot, T::LARGEST_SLOT, T::NAME)
}

/// Refuses ids if one does not fit a `T`. Costs nothing if every id fits; else one pass.
pub(super) fn check_ids<T: KernelInt>(ids: &[BlockId]) -> Result<()> {
    if T::LARGEST >= u64::from(u32::MAX) {
        return Ok(());
    }
    check(u64::from(largest(ids)), T::LARGEST, T::NAME)
}

/// Does [`check_ids`] for a sequence's blocks. Skips the pass if every block of the pool fits.
pub(super) fn check_blocks<T: KernelInt>(sequence: &Sequence) -> Result<()> {
    if u64::from(sequence.largest_id_of_pool()) <= T::LARGEST {
        return Ok(());
    }
    check_ids::<T>(sequence.block_ids())
}

/// Writes `ids`, which have been checked, into as many cells.
pub(super) fn copy_ids<T: KernelInt>(ids: &[BlockId], cells: &mut [T]) {
    debug_assert_eq!(ids.len(), cells.len(), "one cell an id");
    for (cell, id) in cells.iter_mut().zip(ids) {
        *cell = T::cast(u64::from(id.0));
    }
}

/// Fills `cells` with one value. The two usual values have equal bytes, so they are written as by `memset`.
/// That moves more bytes a step than a loop that is compiled for any processor of its kind.
#[inline(never)]
pub(super) fn fill<T: KernelInt>(cells: &mut [T], value: T) {
    if value == T::NO_SLOT {
        cells.fill(T::NO_SLOT);
    } else if value == T::cast(0) {
        cells.fill(T::cast(0));
    } else {
        cells.fill(value);
    }
}

/// Returns the largest of `ids`; 0 if there are none.
pub(super) fn largest(ids: &[BlockId]) -> u32 {
    ids.iter().fold(0, |largest, id| largest.max(id.0))
}

fn check(value: u64, largest: u64, target: &'static str) -> Result<()> {
    if value > largest {
        return Err(PagedKvError::IdTooLarge { value, target });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP_I32: u32 = i32::MAX as u32;

    fn too_large<T>(value: u64, target: &'static str) -> Result<T> {
        Err(PagedKvError::IdTooLarge { value, target })
    }

    #[test]
    fn an_id_past_i32_is_refused_and_named() {
        let ids = [BlockId(3), BlockId(TOP_I32 + 1), BlockId(4)];
        assert_eq!(check_ids::<i32>(&ids), too_large(1 << 31, "i32"));
        assert_eq!(check_ids::<u32>(&ids), Ok(()));
        assert_eq!(check_ids::<i64>(&ids), Ok(()));
        assert_eq!(check_ids::<i32>(&[BlockId(TOP_I32)]), Ok(()));
    }

    #[test]
    fn every_id_fits_u32_and_i64_unchanged() {
        let ids = [BlockId(0), BlockId(TOP_I32 + 1), BlockId(u32::MAX)];
        let mut narrow = [0_u32; 3];
        copy_ids(&ids, &mut narrow);
        assert_eq!(narrow, ids.map(|id| id.0));
        let mut wide = [0_i64; 3];
        copy_ids(&ids, &mut wide);
        assert_eq!(wide, ids.map(|id| i64::from(id.0)));
    }

    #[test]
    fn no_real_slot_has_the_bits_of_no_slot() {
        assert_eq!(check_slot::<u32>(u64::from(u32::MAX) - 1), Ok(()));
        assert_eq!(check_slot::<u32>(u64::from(u32::MAX)), too_large(0xffff_ffff, "u32"));
        assert_eq!(check_slot::<i32>(1 << 31), too_large(1 << 31, "i32"));
        assert_eq!(check_slot::<i64>(u64::MAX), too_large(u64::MAX, "i64"));
    }

    #[test]
    fn every_cell_is_filled_with_whatever_it_is() {
        for value in [-1, 0, 7] {
            let mut cells = [3_i32; 5];
            fill(&mut cells[1..4], value);
            assert_eq!(cells, [3, value, value, value, 3]);
        }
    }

    #[test]
    fn a_count_fits_up_to_the_largest_number() {
        assert_eq!(fit::<i32>(u64::from(TOP_I32)), Ok(i32::MAX));
        assert_eq!(fit::<i32>(1 << 31), too_large(1 << 31, "i32"));
        assert_eq!(fit::<u32>(u64::from(u32::MAX)), Ok(u32::MAX));
    }
}
