//! `Model`: the interface of a model, and `HashModel`, a stand-in that hashes the context.

use std::time::Duration;

/// A model: it computes the keys and values of a position, and samples a token.
///
/// A real model would run a batch on a device. Here the "keys and values" of a position are one number. The
/// server keeps it in the slot that the cache assigns, so a token is right only if every block was right.
pub trait Model: Send + Sync + 'static {
    /// Returns the keys and values of a token, given those of the previous position (0 at the start).
    fn extend(&self, before: u64, token: u32) -> u64;

    /// Returns the token that follows a position, for one of several samples.
    fn sample(&self, state: u64, sample: u32) -> u32;

    /// Returns the time of a step that computes `positions` positions.
    fn step_time(&self, positions: usize) -> Duration;
}

/// A deterministic stand-in for a model: each token is a hash of all tokens before it, and means nothing.
#[derive(Clone, Copy, Debug)]
pub struct HashModel {
    /// The time of a step.
    pub step: Duration,
}

/// The number of the stand-in's tokens; each token is below it.
pub const VOCABULARY: u32 = 32_000;

impl Model for HashModel {
    fn extend(&self, before: u64, token: u32) -> u64 {
        mix(before ^ (u64::from(token) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn sample(&self, state: u64, sample: u32) -> u32 {
        (mix(state.wrapping_add(u64::from(sample))) % u64::from(VOCABULARY)) as u32
    }

    fn step_time(&self, _positions: usize) -> Duration {
        self.step
    }
}

impl HashModel {
    /// Returns the right answer to a request for `max_tokens` tokens.
    #[allow(dead_code, reason = "the server does not check itself; its clients do")]
    pub fn expected(&self, prompt: &[u32], max_tokens: usize, sample: u32) -> Vec<u32> {
        let mut state = prompt.iter().fold(0, |state, &token| self.extend(state, token));
        let next = |_| {
            let token = self.sample(state, sample);
            state = self.extend(state, token);
            token
        };
        (0..max_tokens).map(next).collect()
    }
}

/// Mixes the bits of `x`: the finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}
