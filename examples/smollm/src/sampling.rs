//! `sample`: the next token, a function of the logits, a seed and a position.
//!
//! Gumbel-max: the token with the largest logit plus noise, the noise keyed by seed, position and token. So a
//! fork, a resumed request and a verified draft take the tokens that the request alone takes.

/// How a sample takes its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The key of the noise.
    pub seed: u64,
    /// The scale of the noise; 0 takes the largest logit.
    pub temperature: f32,
}

/// Returns the token at `position`, by the logits of the position before it.
pub fn sample(logits: &[f32], sampling: Sampling, position: usize) -> u32 {
    let score = |(token, &logit): (usize, &f32)| {
        let noise = match sampling.temperature {
            0.0 => 0.0,
            scale => scale * gumbel(mix(mix(sampling.seed, position as u64), token as u64)),
        };
        (token as u32, logit + noise)
    };
    let scores = logits.iter().enumerate().map(score);
    let best = scores.reduce(|best, other| if other.1 > best.1 { other } else { best });
    best.expect("a vocabulary has tokens").0
}

/// Returns a hash of the bits of a logits vector.
pub fn digest(logits: &[f32]) -> u64 {
    logits.iter().fold(logits.len() as u64, |hash, logit| mix(hash, logit.to_bits().into()))
}

/// Returns a hash of two numbers.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Returns Gumbel noise from uniform bits.
fn gumbel(bits: u64) -> f32 {
    let uniform = ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(-uniform.ln()).ln() as f32
}
