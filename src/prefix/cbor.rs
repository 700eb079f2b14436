//! `Cbor`: canonical CBOR of the values that are hashed, written into a buffer that is kept.
//!
//! It writes the few kinds of values that vLLM hashes. Canonical: each number takes as few bytes as it can.
//! Source: RFC 8949, section 4.2.
//!
//! Invariant: bytes after `len` are of earlier values, and are not part of the encoding.

#[cfg(feature = "vllm-hashes")]
mod integers;

/// Major types.
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;

const NULL: u8 = 0xf6;

/// Values in canonical CBOR.
#[derive(Clone, Debug, Default)]
pub(super) struct Cbor {
    bytes: Vec<u8>,
    len: usize,
}

impl Cbor {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Removes all values but the ones in the first `len` bytes, and keeps the memory.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Begins an array: the next `len` values are its elements.
    pub(super) fn array(&mut self, len: usize) -> &mut Self {
        self.head(ARRAY, len as u64)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.head(TEXT, text.len() as u64).append(text.as_bytes())
    }

    pub(super) fn integer(&mut self, value: i64) -> &mut Self {
        match u64::try_from(value) {
            Ok(value) => self.head(UNSIGNED, value),
            Err(_) => self.head(NEGATIVE, !value as u64),
        }
    }

    pub(super) fn null(&mut self) -> &mut Self {
        self.append(&[NULL])
    }

    /// Writes the type of a value together with its number, or with its length.
    fn head(&mut self, major: u8, value: u64) -> &mut Self {
        let major = major << 5;
        let bytes = value.to_be_bytes();
        match value {
            0..24 => self.append(&[major | bytes[7]]),
            24..=0xff => self.append(&[major | 24, bytes[7]]),
            0x100..=0xffff => self.append(&[major | 25]).append(&bytes[6..]),
            0x1_0000..=0xffff_ffff => self.append(&[major | 26]).append(&bytes[4..]),
            _ => self.append(&[major | 27]).append(&bytes),
        }
    }

    /// Writes bytes that are encoded, or that need no encoding.
    #[inline]
    pub(super) fn append(&mut self, bytes: &[u8]) -> &mut Self {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    /// Returns the bytes after the encoding, at least `len` of them.
    #[inline]
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < len {
            self.grow(len);
        }
        &mut self.bytes[self.len..]
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        self.bytes.resize((self.len + len).next_power_of_two(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(write: impl FnOnce(&mut Cbor)) -> String {
        let mut encoded = Cbor::default();
        write(&mut encoded);
        encoded.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Examples of RFC 8949, appendix A.
    #[test]
    fn values_are_encoded_as_in_the_standard() {
        for (value, encoded) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (100, "1864"),
            (1000, "1903e8"),
            (1_000_000, "1a000f4240"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (-1, "20"),
            (-100, "3863"),
            (-1000, "3903e7"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            assert_eq!(hex(|out| _ = out.integer(value)), encoded);
        }
        assert_eq!(hex(|out| _ = out.null()), "f6");
        assert_eq!(hex(|out| _ = out.text("IETF").text("\u{6c34}")), "644945544663e6b0b4");
        assert_eq!(hex(|out| _ = out.array(25)), "9819");
    }

    #[test]
    fn bytes_of_removed_values_do_not_come_back() {
        let mut encoded = Cbor::default();
        encoded.text("a long text").truncate(1);
        encoded.null();
        assert_eq!(encoded.as_bytes(), [0x6b, 0xf6]);
    }
}
