//! `Layout`: the positions of headers and contents in the file.

use super::options::OpenError;
use super::slot_header::SLOT_HEADER_BYTES;
use crate::tier_store::slot_store::SlotError;

/// Contents and tables begin at multiples of this.
const PAGE: u64 = 4_096;

/// The slots and the bytes of a block, of which the positions follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    slots: u32,
    block_bytes: usize,
    contents_at: u64,
    stride: u64,
}

impl Layout {
    /// # Errors
    /// `InvalidOptions` for no slot, no bytes, or a file that is longer than files can be.
    pub(super) fn new(slots: usize, block_bytes: usize) -> Result<Self, OpenError> {
        let invalid = || OpenError::InvalidOptions {
            reason: format!("{slots} slots of {block_bytes} bytes make no file"),
        };
        let of_slots = u32::try_from(slots).ok().filter(|&slots| slots > 0 && slots < u32::MAX);
        let of_slots = of_slots.filter(|_| block_bytes > 0).ok_or_else(invalid)?;
        let round_up = |bytes: u64| bytes.checked_next_multiple_of(PAGE);
        let table = round_up(u64::from(of_slots) * SLOT_HEADER_BYTES as u64);
        let stride = round_up(block_bytes as u64).ok_or_else(invalid)?;
        let contents_at = PAGE + table.ok_or_else(invalid)?;
        let end = stride.checked_mul(of_slots.into()).and_then(|end| end.checked_add(contents_at));
        end.filter(|&end| i64::try_from(end).is_ok()).ok_or_else(invalid)?;
        Ok(Self { slots: of_slots, block_bytes, contents_at, stride })
    }

    pub(super) fn slots(&self) -> usize {
        self.slots as usize
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub(super) fn header_at(&self, slot: u32) -> u64 {
        PAGE + u64::from(slot) * SLOT_HEADER_BYTES as u64
    }

    pub(super) fn content_at(&self, slot: u32) -> u64 {
        self.contents_at + u64::from(slot) * self.stride
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.content_at(self.slots)
    }

    /// # Errors
    /// `NoSuchSlot` unless there is such a slot, and a block has so many bytes.
    pub(super) fn refuse(&self, slot: u32, bytes: usize) -> Result<(), SlotError> {
        match slot < self.slots && bytes == self.block_bytes {
            true => Ok(()),
            false => Err(SlotError::NoSuchSlot { slot, bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_contents_do_not_overlap() {
        for (slots, block_bytes) in [(1, 1), (31, 4_096), (32, 4_097), (33, 8_192), (1_000, 100)] {
            let layout = Layout::new(slots, block_bytes).unwrap();
            let last = slots as u32 - 1;
            let end_of_table = layout.header_at(last) + SLOT_HEADER_BYTES as u64;
            assert!(layout.header_at(0) == PAGE && end_of_table <= layout.content_at(0));
            assert_eq!(layout.content_at(last) % PAGE, 0);
            let end = layout.content_at(last) + block_bytes as u64;
            assert!(end <= layout.file_bytes() && layout.file_bytes() < end + PAGE);
            assert!(last == 0 || layout.content_at(0) + block_bytes as u64 <= layout.content_at(1));
        }
    }

    #[test]
    fn a_geometry_without_a_file_is_refused() {
        for (slots, block_bytes) in
            [(0, 1), (1, 0), (usize::MAX, 1), (1 << 31, usize::MAX), (1 << 20, 1 << 44)]
        {
            assert!(Layout::new(slots, block_bytes).is_err(), "{slots} of {block_bytes}");
        }
    }
}
