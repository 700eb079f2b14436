//! `SlotHeader`: the record that says which content a slot holds.
//!
//! Its checksum has the slot and the seed of the file as its key, so that a record at another place or of another file is
//! none.

use twox_hash::XxHash3_128;

use crate::id::GroupId;
use crate::prefix::BlockHash;
use crate::tier_store::bytes::{Fields, put};
use crate::tier_store::slot_store::SlotKey;

/// The bytes of the record. No record crosses a page.
pub(super) const SLOT_HEADER_BYTES: usize = 128;

const MAGIC: [u8; 4] = *b"slot";

/// The bytes that the checksum is of.
const CHECKED: usize = 72;

/// The name, the place in time and the checksum of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotHeader {
    pub(super) key: SlotKey,
    pub(super) content_bytes: u64,
    pub(super) content_checksum: u128,
    pub(super) epoch: u64,
    pub(super) stamp: u64,
}

/// Returns the checksum of a content in a file of that seed.
pub(super) fn checksum_of(content: &[u8], seed: u64) -> u128 {
    XxHash3_128::oneshot_with_seed(seed, content)
}

fn checksum_of_header(bytes: &[u8; SLOT_HEADER_BYTES], slot: u32, seed: u64) -> u128 {
    XxHash3_128::oneshot_with_seed(seed ^ u64::from(slot), &bytes[..CHECKED])
}

impl SlotHeader {
    pub(super) fn encode(&self, slot: u32, seed: u64) -> [u8; SLOT_HEADER_BYTES] {
        let mut bytes = [0; SLOT_HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &u32::from(self.key.group.0).to_le_bytes());
        put(&mut bytes, 8, &self.key.hash.as_u128().to_le_bytes());
        put(&mut bytes, 24, &self.content_bytes.to_le_bytes());
        put(&mut bytes, 32, &self.content_checksum.to_le_bytes());
        put(&mut bytes, 48, &self.epoch.to_le_bytes());
        put(&mut bytes, 56, &self.stamp.to_le_bytes());
        let checksum = checksum_of_header(&bytes, slot, seed);
        put(&mut bytes, CHECKED, &checksum.to_le_bytes());
        bytes
    }

    /// Returns the header of a slot in a file of that seed, or `None` if these bytes are none.
    pub(super) fn decode(bytes: &[u8; SLOT_HEADER_BYTES], slot: u32, seed: u64) -> Option<Self> {
        let mut fields = Fields::of(bytes);
        if fields.array() != MAGIC {
            return None;
        }
        let group = GroupId(u8::try_from(fields.u32()).ok()?);
        let header = Self {
            key: SlotKey { group, hash: BlockHash::from_u128(fields.u128()) },
            content_bytes: fields.u64(),
            content_checksum: fields.u128(),
            epoch: fields.u64(),
            stamp: fields.u64(),
        };
        // Kept for later formats.
        let is_known = fields.u64() == 0;
        let checksum = checksum_of_header(bytes, slot, seed);
        (is_known && fields.u128() == checksum).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 0xDEAD_BEEF << 20;

    fn header() -> SlotHeader {
        SlotHeader {
            key: SlotKey { hash: BlockHash::from_u128(1 << 100 | 7), group: GroupId(3) },
            content_bytes: 4_096,
            content_checksum: checksum_of(b"content", SEED),
            epoch: 5,
            stamp: 6,
        }
    }

    #[test]
    fn a_header_is_decoded_in_its_slot_only() {
        let bytes = header().encode(9, SEED);
        assert_eq!(SlotHeader::decode(&bytes, 9, SEED), Some(header()));
        assert_eq!(SlotHeader::decode(&bytes, 8, SEED), None);
        assert_eq!(SlotHeader::decode(&bytes, 9, SEED + 1), None);
        assert_eq!(SlotHeader::decode(&[0; SLOT_HEADER_BYTES], 0, SEED), None);
    }

    #[test]
    fn a_header_with_any_bit_changed_is_none() {
        let bytes = header().encode(9, SEED);
        for bit in 0..(CHECKED + 16) * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SlotHeader::decode(&changed, 9, SEED), None, "bit {bit}");
        }
    }
}
