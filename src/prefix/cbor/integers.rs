//! Rows of integers, and bytes, in canonical CBOR: the parts that only vLLM's hashes need.

use super::Cbor;

/// The major type of bytes.
const BYTES: u8 = 2;

/// The most bytes of an encoded integer.
const INTEGER_BYTES: usize = 5;

/// Bytes that are written for an integer. The next one overwrites the ones after its encoding.
const WORD: usize = 8;

/// Integers that are written into one window.
const GROUP: usize = 16;

/// Bytes of a window: a power of two above the bytes of a group, and a word.
const WINDOW: usize = MASK + 1 + WORD;
const MASK: usize = (GROUP * INTEGER_BYTES).next_power_of_two() - 1;

/// The form of each integer's encoding, by [`form_of`].
static FORMS: [Form; 1024] = forms();

/// How an integer is encoded from the highest byte of a word on:
///
/// ```text
///   bits 56..64   the first byte, or 0 if the integer itself is the first
///   bits  8..16   bytes of the encoding
///   bits  0..8    bits from the integer's lowest to the word's lowest
/// ```
type Form = u64;

impl Cbor {
    /// Writes integers. No branch depends on one, because no branch predictor learns their sizes.
    #[inline(always)]
    pub(in crate::prefix) fn integers(&mut self, integers: &[u32]) {
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

    pub(in crate::prefix) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.head(BYTES, bytes.len() as u64).append(bytes)
    }

    pub(in crate::prefix) fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// Writes [`GROUP`] integers, and returns the number of their bytes.
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
#[inline(always)]
fn form_of(integer: u32) -> u32 {
    (integer as i32 as f32).to_bits() >> 22
}

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

    fn encoded(write: impl FnOnce(&mut Cbor)) -> Vec<u8> {
        let mut encoded = Cbor::default();
        write(&mut encoded);
        encoded.as_bytes().to_vec()
    }

    #[test]
    fn integers_in_a_row_are_encoded_as_each_by_itself() {
        let edges = (0..32).flat_map(|bit| {
            let power = 1_u32 << bit;
            [power - 1, power, power + 1, power | power >> 1, (power | power >> 1) - 1]
        });
        let integers: Vec<u32> = edges.chain([u32::MAX - 1, u32::MAX, 22, 23, 24, 25]).collect();
        for len in 0..integers.len() {
            let row = encoded(|out| out.integers(&integers[..len]));
            let single = encoded(|out| {
                integers[..len].iter().for_each(|&integer| _ = out.integer(integer.into()))
            });
            assert_eq!(row, single, "{len}");
        }
    }

    #[test]
    fn bytes_follow_their_number() {
        assert_eq!(encoded(|out| _ = out.bytes(&[1, 2, 3, 4])), [0x44, 1, 2, 3, 4]);
    }
}
