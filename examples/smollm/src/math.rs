//! `math`: functions of one row, each with one order of summation.
//!
//! Invariant of all kernels: a sum starts at 0 and takes its terms in the order of the inputs, one multiplication
//! and one addition each. Vector lanes are outputs. So batches, blocks and threads do not change a bit.
//! The compiler never contracts or reorders such sums.

/// Returns e to the power of `x`, within two units in the last place; NaN for NaN. Plain arithmetic, which
/// the compiler can vectorize.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves an integer
    const LN_2_HIGH: f32 = 0.693_359_4; // 355 / 512, exactly
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let power = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let rest = x - power * LN_2_HIGH - power * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + term;
    }
    sum * f32::from_bits(((power as i32 + 127) << 23) as u32)
}

/// Returns `x` times its sigmoid.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Turns scores into weights whose sum is 1. A NaN among them makes all of them NaN.
#[inline(always)]
pub fn softmax(scores: &mut [f32]) {
    let most = scores.iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    scores.iter_mut().for_each(|score| *score = exp(*score - most));
    let sum = scores.iter().fold(0.0, |sum, score| sum + score);
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Writes the RMS norm of `x`, times `weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let squares = x.iter().fold(0.0, |sum, x| sum + x * x);
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_parts_in_ten_million() {
        for step in -8_000..8_000 {
            let x = step as f32 / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.4e-7, "{x}: {ours} {exact}");
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn one_nan_makes_all_weights_nan() {
        let mut scores = [1.0, f32::NAN, 2.0];
        softmax(&mut scores);
        assert!(scores.iter().all(|weight| weight.is_nan()));
    }
}
