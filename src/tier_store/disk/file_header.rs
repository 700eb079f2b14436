//! `FileHeader`: the record at the beginning of a file of slots.
//!
//! A header that is not whole, or of another format, is none: the file is started anew then.

use std::hash::{BuildHasher, RandomState};

use twox_hash::XxHash3_128;

use super::layout::Layout;
use crate::tier_store::bytes::{Fields, put};

/// The bytes of the record.
pub(super) const FILE_HEADER_BYTES: usize = 128;

/// The first bytes of the record, which a file gets before its room.
pub(super) const MAGIC: [u8; 8] = *b"pagedkv\n";
const VERSION: u64 = 2;

/// The bytes that the checksum is of.
const CHECKED: usize = 72;
/// A key, so that no header of a slot is one of the file.
const KEY: u64 = 0x7061_6765_646b_7600;

/// Beyond so many openings the stamps begin again, which changes the order of use only.
const SESSIONS: u64 = 1 << 24;
/// More resets than there can be: a header with it is none, so that no sum of epochs overflows.
const EPOCHS: u64 = 1 << 63;

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
    /// A random number, another one each time that the file is started anew.
    incarnation: u64,
}

impl FileHeader {
    pub(super) fn new(namespace: [u8; 16], layout: &Layout) -> Self {
        let (slots, block_bytes) = (layout.slots() as u64, layout.block_bytes() as u64);
        let incarnation = RandomState::new().hash_one(KEY);
        Self { namespace, slots, block_bytes, epoch: 1, session: 1, incarnation }
    }

    /// Returns true if the contents of a file with the other header can be used under this one.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let of_file = |of: &Self| Self { epoch: 0, session: 0, incarnation: 0, ..*of };
        of_file(self) == of_file(other)
    }

    /// Returns the key of the checksums in the file: a record that was written under another namespace, or before
    /// the file was started anew, has none of these.
    pub(super) fn seed(&self) -> u64 {
        let mut named = [0; 24];
        put(&mut named, 0, &self.namespace);
        put(&mut named, 16, &self.incarnation.to_le_bytes());
        XxHash3_128::oneshot_with_seed(KEY, &named) as u64
    }

    pub(super) fn next_session(self) -> Self {
        Self { session: (self.session + 1) % SESSIONS, ..self }
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
        put(&mut bytes, 64, &self.incarnation.to_le_bytes());
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
            incarnation: fields.u64(),
        };
        let is_known = is_known && header.epoch < EPOCHS && header.session < SESSIONS;
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
    fn a_header_with_a_forged_number_is_none() {
        for forged in [u64::MAX, u64::MAX - 1, EPOCHS] {
            assert_eq!(
                FileHeader::decode(&FileHeader { epoch: forged, ..header() }.encode()),
                None
            );
            let header = FileHeader { session: forged, ..header() };
            assert_eq!(FileHeader::decode(&header.encode()), None);
        }
    }

    #[test]
    fn the_seed_is_of_one_namespace_and_one_start() {
        let (first, again) = (header(), header());
        assert!(first.is_like(&again));
        assert_ne!(first.seed(), again.seed());
        assert_eq!(first.seed(), first.next_session().seed());
        assert_ne!(first.seed(), FileHeader { namespace: [8; 16], ..first }.seed());
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
