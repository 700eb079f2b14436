//! `Rope`: rotary positions over pairs of neighbouring elements.

use crate::dims::Dims;

/// The frequencies of the pairs of a head.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f64>,
}

impl Rope {
    /// Returns the frequencies of a model.
    pub fn new(dims: &Dims) -> Self {
        let (base, len) = (f64::from(dims.rope_base), dims.head_dim as f64);
        let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / len);
        Self { frequencies: (0..dims.head_dim / 2).map(frequency).collect() }
    }

    /// Returns cosine and sine of each pair at a position.
    pub fn at(&self, position: usize) -> Vec<(f32, f32)> {
        let angles = self.frequencies.iter().map(|frequency| position as f64 * frequency);
        angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).collect()
    }
}

/// Rotates each head of `x`.
pub fn rotate(x: &mut [f32], turns: &[(f32, f32)]) {
    for head in x.chunks_exact_mut(2 * turns.len()) {
        for (pair, &(cos, sin)) in head.chunks_exact_mut(2).zip(turns) {
            let (even, odd) = (pair[0], pair[1]);
            pair[0] = even * cos - odd * sin;
            pair[1] = even * sin + odd * cos;
        }
    }
}
