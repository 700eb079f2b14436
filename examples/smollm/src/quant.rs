//! `Q4_1` and `Q8_0`: blocks of 32 quantized weights, as GGUF files store them.

/// Weights of a block.
pub const QUANTS: usize = 32;

/// A block of weights of 4 bits: each is `factor` times its quant, plus `smallest`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q4_1 {
    /// The difference of two neighbouring weights.
    pub factor: f32,
    /// The weight of quant 0.
    pub smallest: f32,
    /// Byte `i` has the quants of weight `i`, in its low half, and of weight `i + 16`.
    pub quants: [u8; QUANTS / 2],
}

/// A block of weights of 8 bits: each is `factor` times its quant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q8_0 {
    /// The difference of two neighbouring weights.
    pub factor: f32,
    /// The quants.
    pub quants: [i8; QUANTS],
}

impl Q4_1 {
    /// Bytes of a block in a file.
    pub const BYTES: usize = 20;

    /// Reads a block of [`BYTES`](Self::BYTES) bytes.
    pub fn read(bytes: &[u8]) -> Self {
        let quants = bytes[4..Self::BYTES].try_into().expect("16 bytes");
        Self { factor: half(bytes), smallest: half(&bytes[2..]), quants }
    }

    /// Returns the weights.
    pub fn numbers(&self) -> [f32; QUANTS] {
        std::array::from_fn(|at| {
            let byte = self.quants[at % (QUANTS / 2)];
            let quant = if at < QUANTS / 2 { byte & 15 } else { byte >> 4 };
            self.factor * f32::from(quant) + self.smallest
        })
    }
}

impl Q8_0 {
    /// Bytes of a block in a file.
    pub const BYTES: usize = 34;

    /// Reads a block of [`BYTES`](Self::BYTES) bytes.
    pub fn read(bytes: &[u8]) -> Self {
        let quants = std::array::from_fn(|at| bytes[2 + at] as i8);
        Self { factor: half(bytes), quants }
    }

    /// Returns the weights.
    pub fn numbers(&self) -> [f32; QUANTS] {
        self.quants.map(|quant| self.factor * f32::from(quant))
    }
}

/// Returns the half-precision number that `bytes` begin with.
fn half(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2.0_f32.powi(exponent - 25),
    }
}

#[test]
fn halves_are_read() {
    let read = |bits: u16| half(&bits.to_le_bytes());
    assert_eq!([0x3C00, 0xC000, 0x7BFF, 0x0001].map(read), [1.0, -2.0, 65504.0, 2.0_f32.powi(-24)]);
    assert!(read(0x7E00).is_nan() && read(0xFC00) == f32::NEG_INFINITY);
}
