//! `Wide`: sixteen `f32` lanes, in the widest registers that the processor has.
//!
//! [`dispatch`] finds the registers at run time, through `pulp`, and compiles a kernel for each kind. All kinds
//! multiply and add apart, lane by lane, so they give the same bits.

use pulp::Arch;

/// Number of lanes.
pub const LANES: usize = 16;

/// Operations on sixteen lanes.
pub trait Wide: Copy {
    /// Sixteen numbers.
    type Lanes: Copy;

    /// Rows that a kernel sums at the same time, so that their sums stay in registers.
    const ROWS: usize;

    /// Returns a number in all lanes.
    fn splat(self, number: f32) -> Self::Lanes;

    /// Returns sixteen numbers in registers.
    fn load(self, numbers: &[f32; LANES]) -> Self::Lanes;

    /// Returns the numbers of the lanes.
    fn store(self, lanes: Self::Lanes) -> [f32; LANES];

    /// Returns the products, lane by lane.
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// Returns the sums, lane by lane.
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// Returns the low halves of sixteen bytes, as numbers.
    fn low_nibbles(self, bytes: [u8; LANES]) -> Self::Lanes;

    /// Returns the high halves of sixteen bytes, as numbers.
    fn high_nibbles(self, bytes: [u8; LANES]) -> Self::Lanes;

    /// Returns sixteen signed bytes as numbers.
    fn signed(self, bytes: [i8; LANES]) -> Self::Lanes;
}

/// A computation that is compiled for each kind of registers.
pub trait Kernel {
    /// Runs with one kind of registers.
    fn run<W: Wide>(self, wide: W);
}

/// Runs a kernel with the widest registers of the processor.
pub fn dispatch(kernel: impl Kernel) {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => x86::run(simd, simd, kernel),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => x86::run(simd, simd, kernel),
        _ => kernel.run(Plain),
    }
}

/// Lanes in an array, for every processor.
#[derive(Clone, Copy)]
pub struct Plain;

impl Wide for Plain {
    type Lanes = [f32; LANES];
    const ROWS: usize = 4;

    fn splat(self, number: f32) -> [f32; LANES] {
        [number; LANES]
    }

    fn load(self, numbers: &[f32; LANES]) -> [f32; LANES] {
        *numbers
    }

    fn store(self, lanes: [f32; LANES]) -> [f32; LANES] {
        lanes
    }

    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    fn low_nibbles(self, bytes: [u8; LANES]) -> [f32; LANES] {
        bytes.map(|byte| f32::from(byte & 15))
    }

    fn high_nibbles(self, bytes: [u8; LANES]) -> [f32; LANES] {
        bytes.map(|byte| f32::from(byte >> 4))
    }

    fn signed(self, bytes: [i8; LANES]) -> [f32; LANES] {
        bytes.map(f32::from)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m128i, __m256, __m512};

    use pulp::x86::{V3, V4};
    use pulp::{Simd, WithSimd, cast};

    use super::{Kernel, LANES, Wide};

    /// Runs a kernel in a function that is compiled for the instructions of `simd`.
    pub(super) fn run<S: Simd, W: Wide>(simd: S, wide: W, kernel: impl Kernel) {
        struct Run<W, K>(W, K);

        impl<W: Wide, K: Kernel> WithSimd for Run<W, K> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) {
                self.1.run(self.0);
            }
        }
        simd.vectorize(Run(wide, kernel));
    }

    #[inline(always)]
    fn low(simd: V3, bytes: [u8; LANES]) -> __m128i {
        simd.sse2._mm_and_si128(cast(bytes), simd.sse2._mm_set1_epi8(15))
    }

    #[inline(always)]
    fn high(simd: V3, bytes: [u8; LANES]) -> __m128i {
        let shifted = simd.sse2._mm_srli_epi16::<4>(cast(bytes));
        simd.sse2._mm_and_si128(shifted, simd.sse2._mm_set1_epi8(15))
    }

    impl Wide for V4 {
        type Lanes = __m512;
        const ROWS: usize = 8;

        #[inline(always)]
        fn splat(self, number: f32) -> __m512 {
            self.avx512f._mm512_set1_ps(number)
        }

        #[inline(always)]
        fn load(self, numbers: &[f32; LANES]) -> __m512 {
            cast(*numbers)
        }

        #[inline(always)]
        fn store(self, lanes: __m512) -> [f32; LANES] {
            cast(lanes)
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_mul_ps(a, b)
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_add_ps(a, b)
        }

        #[inline(always)]
        fn low_nibbles(self, bytes: [u8; LANES]) -> __m512 {
            let wide = self.avx512f._mm512_cvtepu8_epi32(low(*self, bytes));
            self.avx512f._mm512_cvtepi32_ps(wide)
        }

        #[inline(always)]
        fn high_nibbles(self, bytes: [u8; LANES]) -> __m512 {
            let wide = self.avx512f._mm512_cvtepu8_epi32(high(*self, bytes));
            self.avx512f._mm512_cvtepi32_ps(wide)
        }

        #[inline(always)]
        fn signed(self, bytes: [i8; LANES]) -> __m512 {
            let wide = self.avx512f._mm512_cvtepi8_epi32(cast(bytes));
            self.avx512f._mm512_cvtepi32_ps(wide)
        }
    }

    impl Wide for V3 {
        type Lanes = [__m256; 2];
        const ROWS: usize = 4;

        #[inline(always)]
        fn splat(self, number: f32) -> [__m256; 2] {
            [self.avx._mm256_set1_ps(number); 2]
        }

        #[inline(always)]
        fn load(self, numbers: &[f32; LANES]) -> [__m256; 2] {
            cast(*numbers)
        }

        #[inline(always)]
        fn store(self, lanes: [__m256; 2]) -> [f32; LANES] {
            cast(lanes)
        }

        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [self.avx._mm256_mul_ps(a[0], b[0]), self.avx._mm256_mul_ps(a[1], b[1])]
        }

        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [self.avx._mm256_add_ps(a[0], b[0]), self.avx._mm256_add_ps(a[1], b[1])]
        }

        #[inline(always)]
        fn low_nibbles(self, bytes: [u8; LANES]) -> [__m256; 2] {
            widen(self, low(self, bytes))
        }

        #[inline(always)]
        fn high_nibbles(self, bytes: [u8; LANES]) -> [__m256; 2] {
            widen(self, high(self, bytes))
        }

        #[inline(always)]
        fn signed(self, bytes: [i8; LANES]) -> [__m256; 2] {
            widen(self, cast(bytes))
        }
    }

    /// Returns sixteen signed bytes as numbers.
    #[inline(always)]
    fn widen(simd: V3, bytes: __m128i) -> [__m256; 2] {
        let first = simd.avx2._mm256_cvtepi8_epi32(bytes);
        let second = simd.avx2._mm256_cvtepi8_epi32(simd.sse2._mm_srli_si128::<8>(bytes));
        [simd.avx._mm256_cvtepi32_ps(first), simd.avx._mm256_cvtepi32_ps(second)]
    }
}
