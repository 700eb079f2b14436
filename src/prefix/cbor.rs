//! `Cbor`: canonical CBOR of the values that are hashed, written into a buffer that is kept.
//!
//! It writes the few kinds of values that vLLM hashes. Canonical: each number takes as few bytes as it can.
//! Source: RFC 8949, section 4.2.
//!
//! Invariant: bytes after `len` are of earlier values, and are not part of the encoding.

/// The most bytes of an encoded integer.
#[cfg(feature = "vllm-hashes")]
const INTEGER_BYTES: usize = 5;

/// Bytes that are written for an integer. The next one overwrites the ones after its encoding.
#[cfg(feature = "vllm-hashes")]
const WORD: usize = 8;

/// Integers that are written into one window.
#[cfg(feature = "vllm-hashes")]
const GROUP: usize = 16;

/// Bytes of a window: a power of two above the bytes of a group, and a word.
#[cfg(feature = "vllm-hashes")]
const WINDOW: usize = MASK + 1 + WORD;
#[cfg(feature = "vllm-hashes")]
const MASK: usize = (GROUP * INTEGER_BYTES).next_power_of_two() - 1;

/// The form of each integer's encoding, by [`form_of`].
#[cfg(feature = "vllm-hashes")]
static FORMS: [Form; 1024] = forms();

/// How an integer is encoded from the highest byte of a word on:
///
/// ```text
///   bits 56..64   the first byte, or 0 if the integer itself is the first
///   bits  8..16   bytes of the encoding
///   bits  0..8    bits from the integer's lowest to the word's lowest
/// ```
#[cfg(feature = "vllm-hashes")]
type Form = u64;

/// Major types.
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
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

    #[cfg(feature = "vllm-hashes")]
    pub(super) fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Removes all values but the ones in the first `len` bytes, and keeps the memory.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Begins an array: the next `len` values are its elements.
    pub(super) fn array(&mut self, len: usize) -> &mut Self {
        self.head(ARRAY, len as u64)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.head(BYTES, bytes.len() as u64).append(bytes)
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

    /// Writes integers. No branch depends on one, because no branch predictor learns their sizes.
    #[cfg(feature = "vllm-hashes")]
    #[inline(always)]
    pub(super) fn integers(&mut self, integers: &[u32]) {
        let room = self.room(INTEGER_BYTES * integers.len() + WINDOW);
        let mut written = 0;
        let (groups, rest) = integers.as_chunks::<GROUP>();
        for group in groups {
            written += write(group, &mut room[written..]);
        }
        for &integer in rest {
            written += write_one(integer, form_of(integer), &mut room[written..]);
        }
        self.len += written;
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

/// Writes at most [`GROUP`] integers, and returns the number of their bytes.
#[cfg(feature = "vllm-hashes")]
#[inline(always)]
fn write(integers: &[u32; GROUP], room: &mut [u8]) -> usize {
    let window = room.first_chunk_mut::<WINDOW>().expect("room for a window");
    let forms = integers.map(form_of);
    let mut len = 0;
    for (integers, forms) in integers.as_chunks::<4>().0.iter().zip(forms.as_chunks::<4>().0) {
        // The mask changes nothing, and tells the compiler that the word is inside the window.
        len += write_one(integers[0], forms[0], &mut window[len & MASK..]);
        len += write_one(integers[1], forms[1], &mut window[len & MASK..]);
        len += write_one(integers[2], forms[2], &mut window[len & MASK..]);
        len += write_one(integers[3], forms[3], &mut window[len & MASK..]);
    }
    len
}

/// Writes an integer of the form at `form`, and returns the number of its bytes.
#[cfg(feature = "vllm-hashes")]
#[inline(always)]
fn write_one(integer: u32, form: u32, room: &mut [u8]) -> usize {
    let form = FORMS[form as usize % FORMS.len()];
    // The bits of `form` below the first byte are after the encoding.
    let word = form | u64::from(integer).wrapping_shl(form as u32);
    room[..WORD].copy_from_slice(&word.to_be_bytes());
    (form >> 8 & 0xff) as usize
}

/// Returns the place of an integer's form in [`FORMS`]: sign, exponent and the highest bit of the fraction of
/// the integer as a float. They distinguish 23 from 24, and any two numbers of different bits. Above 2^31 the
/// sign is set. The compiler computes several at a time.
#[cfg(feature = "vllm-hashes")]
#[inline(always)]
fn form_of(integer: u32) -> u32 {
    (integer as i32 as f32).to_bits() >> 22
}

#[cfg(feature = "vllm-hashes")]
const fn forms() -> [Form; 1024] {
    const fn place(integer: u32) -> usize {
        (integer as f32).to_bits() as usize >> 22
    }
    let mut forms = [0; 1024];
    let mut at = 0;
    while at < forms.len() {
        let (first, len) = if at < place(24) {
            (0, 1)
        } else if at < place(0x100) {
            (24, 2)
        } else if at < place(0x1_0000) {
            (25, 3)
        } else {
            (26, 5)
        };
        // Bytes after the first, or the integer in the first.
        let payload = if len == 1 { 0 } else { len - 1 };
        forms[at] = first << 56 | len << 8 | (56 - 8 * payload);
        at += 1;
    }
    forms
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
        assert_eq!(hex(|out| _ = out.bytes(&[1, 2, 3, 4])), "4401020304");
        assert_eq!(hex(|out| _ = out.text("IETF").text("\u{6c34}")), "644945544663e6b0b4");
        assert_eq!(hex(|out| _ = out.array(25)), "9819");
    }

    #[cfg(feature = "vllm-hashes")]
    #[test]
    fn integers_in_a_row_are_encoded_as_each_by_itself() {
        let edges = (0..32).flat_map(|bit| {
            let power = 1_u32 << bit;
            [power - 1, power, power + 1, power | power >> 1, (power | power >> 1) - 1]
        });
        let integers: Vec<u32> = edges.chain([u32::MAX - 1, u32::MAX, 22, 23, 24, 25]).collect();
        for len in 0..integers.len() {
            let row = hex(|out| out.integers(&integers[..len]));
            let single = hex(|out| {
                integers[..len].iter().for_each(|&integer| _ = out.integer(integer.into()))
            });
            assert_eq!(row, single, "{len}");
        }
    }

    #[test]
    fn bytes_of_removed_values_do_not_come_back() {
        let mut encoded = Cbor::default();
        encoded.text("a long text").truncate(1);
        encoded.null();
        assert_eq!(encoded.as_bytes(), [0x6b, 0xf6]);
    }
}
