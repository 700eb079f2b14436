//! `FileHeader`: the record at the beginning of a file of slots.
//!
//! A header that is not whole, or of another format, is none: the file is started anew then.

use super::layout::Layout;
use crate::tier_store::bytes::{Fields, put};
use twox_hash::XxHash3_128;

/// The bytes of the record.
pub(super) const FILE_HEADER_BYTES: usize = 128;

/// The first bytes of the record, which a file gets before its room.
pub(super) const MAGIC: [u8; 8] = *b"pagedkv\n";
const VERSION: u64 = 1;

/// The bytes that the checksum is of.
const CHECKED: usize = 64;
/// A key, so that no header of a slot is one of the file.
const KEY: u64 = 0x7061_6765_646b_7600;

/// The purpose of a file, and how often it was reset and opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    namespace: [u8; 16],
    slots: u64,
    block_bytes: u64,
    /// The number of resets.
    pub(super) epoch: u64,
    /// The number of times that the file was opened since it was started anew.
    pub(super) session: u64,
}

impl FileHeader {
    pub(super) fn new(namespace: [u8; 16], layout: &Layout) -> Self {
        let (slots, block_bytes) = (layout.slots() as u64, layout.block_bytes() as u64);
        Self { namespace, slots, block_bytes, epoch: 1, session: 1 }
    }

    /// Returns true if the contents of a file with the other header can be used under this one.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Self { epoch: 0, session: 0, ..*self } == Self { epoch: 0, session: 0, ..*other }
    }

    pub(super) fn next_session(self) -> Self {
        // Beyond 2^24 openings the stamps begin again, which changes the order of use only.
        Self { session: (self.session + 1) % (1 << 24), ..self }
    }

    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.namespace);
        put(&mut bytes, 32, &self.slots.to_le_bytes());
        put(&mut bytes, 40, &self.block_bytes.to_le_bytes());
        put(&mut bytes, 48, &self.epoch.to_le_bytes());
        put(&mut bytes, 56, &self.session.to_le_bytes());
        let checksum = XxHash3_128::oneshot_with_seed(KEY, &bytes[..CHECKED]);
        put(&mut bytes, CHECKED, &checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; FILE_HEADER_BYTES]) -> Option<Self> {
        let checksum = XxHash3_128::oneshot_with_seed(KEY, &bytes[..CHECKED]);
        let mut fields = Fields::of(bytes);
        let is_known = fields.array() == MAGIC && fields.u64() == VERSION;
        let header = Self {
            namespace: fields.array(),
            slots: fields.u64(),
            block_bytes: fields.u64(),
            epoch: fields.u64(),
            session: fields.u64(),
        };
        (is_known && fields.u128() == checksum).then_some(header)
    }

    /// Returns true if a file with this beginning and length may be started anew: it is one of these files, also a
    /// truncated one, or has no content.
    pub(super) fn may_replace(bytes: &[u8; FILE_HEADER_BYTES], len: u64) -> bool {
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let is_short = len <= FILE_HEADER_BYTES as u64;
        bytes.starts_with(&MAGIC) || is_short && MAGIC.starts_with(&bytes[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader::new([9; 16], &Layout::new(4, 100).unwrap())
    }

    #[test]
    fn a_header_is_decoded_as_it_was_encoded() {
        let header = header().next_session();
        assert_eq!(FileHeader::decode(&header.encode()), Some(header));
    }

    #[test]
    fn a_header_with_any_bit_changed_is_none() {
        let bytes = header().encode();
        for bit in 0..(CHECKED + 16) * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(&changed), None, "bit {bit}");
        }
    }

    #[test]
    fn only_files_of_slots_and_empty_files_are_replaced() {
        assert!(FileHeader::may_replace(&header().encode(), 8_192));
        for left in 0..MAGIC.len() {
            let mut truncated = [0; FILE_HEADER_BYTES];
            truncated[..left].copy_from_slice(&MAGIC[..left]);
            assert!(FileHeader::may_replace(&truncated, left as u64), "{left} bytes");
            assert!(!FileHeader::may_replace(&truncated, 8_192), "{left} bytes and zeros");
        }
        assert!(!FileHeader::may_replace(&[b'x'; FILE_HEADER_BYTES], 128));
    }
}
