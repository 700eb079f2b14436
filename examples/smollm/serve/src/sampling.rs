//! `Sampler`: the next token of a sample, a function of the logits, a seed and a position.
//!
//! So a sample has the same tokens alone, in a batch, after a preemption, and with drafts.

use smollm::math::softmax;
use smollm::sampling::{Sampling, sample};

/// How a sample takes its tokens.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// The key of the noise.
    pub seed: u64,
    /// The scale of the noise; 0 takes the likeliest token.
    pub temperature: f32,
    /// The share of the probability to take tokens from.
    pub top_p: f32,
}

impl Sampler {
    /// Returns the token at `position`, by the logits of the position before it.
    pub fn token(&self, logits: &[f32], position: usize) -> u32 {
        let Self { seed, temperature, top_p } = *self;
        let sampling = Sampling { seed, temperature };
        if temperature == 0.0 || top_p >= 1.0 {
            return sample(logits, sampling, position);
        }
        sample(&nucleus(logits, temperature, top_p), sampling, position)
    }
}

/// Returns the logits of the likeliest tokens that have `top_p` of the probability together; those of the others are
/// infinitely low.
fn nucleus(logits: &[f32], temperature: f32, top_p: f32) -> Vec<f32> {
    let mut shares: Vec<f32> = logits.iter().map(|logit| logit / temperature).collect();
    softmax(&mut shares);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_unstable_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
    let mut kept = vec![f32::NEG_INFINITY; logits.len()];
    let mut sum = 0.0;
    for token in order {
        kept[token] = logits[token];
        sum += shares[token];
        if sum >= top_p {
            break;
        }
    }
    kept
}

#[test]
fn a_nucleus_has_the_likeliest_tokens_only() {
    let logits = [1.0, 3.0, 2.0, -4.0];
    assert_eq!(nucleus(&logits, 1.0, 0.01)[1], 3.0);
    assert_eq!(nucleus(&logits, 1.0, 0.01)[0], f32::NEG_INFINITY);
    assert_eq!(nucleus(&logits, 1.0, 0.8)[1..3], [3.0, 2.0]);
    let sampler = Sampler { seed: 1, temperature: 1.0, top_p: 0.8 };
    assert!((0..200).all(|at| [1, 2].contains(&sampler.token(&logits, at))));
}
