//! `seeded`: a small model whose weights come from a seed, so that no file is needed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dims::Dims;
use crate::weights::{LayerWeights, Matrix, Weights};

/// Returns the shape of the small model: two layers of width 64.
pub fn small() -> Dims {
    Dims {
        width: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        vocab: 80,
        rope_base: 10_000.0,
        eps: 1e-5,
        windows: vec![None; 2],
    }
}

/// Returns the small model with four layers, of which every second one attends to `window` positions.
pub fn windowed(window: usize) -> Dims {
    Dims { windows: vec![None, Some(window), None, Some(window)], ..small() }
}

/// Returns weights from a seed. They are large enough that each position moves the logits.
pub fn weights(dims: &Dims, seed: u64) -> Weights {
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let (query, kv) = (dims.query_len(), dims.kv_len());
    let layer = |random: &mut ChaCha8Rng| LayerWeights {
        attention_norm: norm(random, dims.width),
        qkv: matrix(random, query + 2 * kv, dims.width),
        out: matrix(random, dims.width, query),
        ffn_norm: norm(random, dims.width),
        gate_up: matrix(random, 2 * dims.ffn, dims.width),
        down: matrix(random, dims.width, dims.ffn),
    };
    Weights {
        dims: dims.clone(),
        embedding: matrix(random, dims.vocab, dims.width),
        layers: dims.windows.iter().map(|_| layer(random)).collect(),
        norm: norm(random, dims.width),
        head: None,
    }
}

/// Returns the vector that a variant of the weights adds to each embedding; zeros for variant 0. It stands in for
/// everything but the tokens that keys and values depend on: a LoRA adapter, or an update of the weights.
pub fn variant(width: usize, variant: u32) -> Vec<f32> {
    if variant == 0 {
        return vec![0.0; width];
    }
    let mut random = ChaCha8Rng::seed_from_u64(0xADA0 + u64::from(variant));
    (0..width).map(|_| uniform(&mut random) * 0.25).collect()
}

fn norm(random: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| 1.0 + 0.1 * uniform(random)).collect()
}

fn matrix(random: &mut ChaCha8Rng, outs: usize, ins: usize) -> Matrix {
    let scale = 3.0_f32.sqrt() * 1.5 / (ins as f32).sqrt();
    let data = (0..outs * ins).map(|_| uniform(random) * scale).collect();
    Matrix { outs, ins, data }
}

/// Returns a number between -1 and 1.
fn uniform(random: &mut ChaCha8Rng) -> f32 {
    random.random::<f32>() * 2.0 - 1.0
}
