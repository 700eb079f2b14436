//! `Unpaged`: the same model in other code: one sequence alone, its keys and values in one piece, plain loops.
//!
//! It shares with [`model`](crate::model) the weights and the functions of one number ([`math::exp`]), and
//! nothing that knows of batches, panels or blocks.

use crate::math::{self, silu};
use crate::rope::{Rope, rotate};
use crate::sampling::{Sampling, digest, sample};
use crate::seeded;
use crate::weights::{Matrix, Weights};

/// One generated token, and the digest of the logits that it was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The token.
    pub token: u32,
    /// The digest of its logits.
    pub digest: u64,
}

/// A sequence that is computed alone.
pub struct Unpaged<'a> {
    weights: &'a Weights,
    rope: Rope,
    variant: Vec<f32>,
    /// `[layer][position][element]`.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

/// Returns the tokens that a prompt is answered with, and the digests of their logits.
pub fn generate(
    weights: &Weights,
    variant: u32,
    prompt: &[u32],
    sampling: Sampling,
    count: usize,
) -> Vec<Output> {
    let mut sequence = Unpaged::new(weights, variant);
    let mut logits = sequence.compute(prompt);
    let mut outputs = Vec::with_capacity(count);
    while outputs.len() < count {
        assert!(logits.iter().all(|logit| logit.is_finite()), "the reference has finite logits");
        let token = sample(&logits, sampling, prompt.len() + outputs.len());
        outputs.push(Output { token, digest: digest(&logits) });
        if outputs.len() < count {
            logits = sequence.compute(&[token]);
        }
    }
    outputs
}

impl<'a> Unpaged<'a> {
    /// Creates a sequence without tokens.
    pub fn new(weights: &'a Weights, variant: u32) -> Self {
        let none = vec![Vec::new(); weights.layers.len()];
        let variant = seeded::variant(weights.dims.width, variant);
        let rope = Rope::new(&weights.dims);
        Self { weights, rope, variant, keys: none.clone(), values: none }
    }

    /// Appends tokens and returns the logits of the last one.
    pub fn compute(&mut self, tokens: &[u32]) -> Vec<f32> {
        let (weights, first) = (self.weights, self.keys[0].len());
        let embed = |&token: &u32| -> Vec<f32> {
            let embedding = weights.embedding.row(token as usize);
            embedding.iter().zip(&self.variant).map(|(x, delta)| x + delta).collect()
        };
        let mut rows: Vec<Vec<f32>> = tokens.iter().map(embed).collect();
        for layer in 0..weights.layers.len() {
            for (index, row) in rows.iter_mut().enumerate() {
                self.attention(layer, first + index, row);
                self.feed_forward(layer, row);
            }
        }
        let last = rows.pop().expect("tokens are computed");
        times(weights.head(), &self.norm(&last, &weights.norm))
    }

    fn attention(&mut self, layer: usize, position: usize, row: &mut [f32]) {
        let (dims, of_layer) = (&self.weights.dims, &self.weights.layers[layer]);
        let mut queries = times(&of_layer.qkv, &self.norm(row, &of_layer.attention_norm));
        let mut keys = queries.split_off(dims.query_len());
        let values = keys.split_off(dims.kv_len());
        let turns = self.rope.at(position);
        rotate(&mut queries, &turns);
        rotate(&mut keys, &turns);
        self.keys[layer].push(keys);
        self.values[layer].push(values);
        let seen = dims.windows[layer].unwrap_or(usize::MAX).min(position + 1);
        let mut attended = Vec::with_capacity(queries.len());
        for head in 0..dims.heads {
            let query = &queries[head * dims.head_dim..][..dims.head_dim];
            let start = head * dims.kv_heads / dims.heads * dims.head_dim;
            attended.extend(self.head(layer, position + 1 - seen, query, start));
        }
        for (x, y) in row.iter_mut().zip(times(&of_layer.out, &attended)) {
            *x += y;
        }
    }

    /// Returns the attention of one query to the positions from `first` on. Its keys and values start at
    /// element `start`.
    fn head(&self, layer: usize, first: usize, query: &[f32], start: usize) -> Vec<f32> {
        let scale = 1.0 / (query.len() as f32).sqrt();
        let mut weights = Vec::new();
        for key in &self.keys[layer][first..] {
            let mut sum = 0.0;
            for (dim, query) in query.iter().enumerate() {
                sum += query * key[start + dim];
            }
            weights.push(sum * scale);
        }
        let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for weight in &mut weights {
            *weight = math::exp(*weight - most);
            sum += *weight;
        }
        let mut out = vec![0.0; query.len()];
        for (dim, out) in out.iter_mut().enumerate() {
            for (weight, value) in weights.iter().zip(&self.values[layer][first..]) {
                *out += weight / sum * value[start + dim];
            }
        }
        out
    }

    fn feed_forward(&self, layer: usize, row: &mut [f32]) {
        let (ffn, of_layer) = (self.weights.dims.ffn, &self.weights.layers[layer]);
        let both = times(&of_layer.gate_up, &self.norm(row, &of_layer.ffn_norm));
        let gated: Vec<f32> = (0..ffn).map(|at| silu(both[at]) * both[ffn + at]).collect();
        for (x, y) in row.iter_mut().zip(times(&of_layer.down, &gated)) {
            *x += y;
        }
    }

    fn norm(&self, row: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut squares = 0.0;
        for x in row {
            squares += x * x;
        }
        let scale = 1.0 / (squares / row.len() as f32 + self.weights.dims.eps).sqrt();
        row.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
    }
}

fn times(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let dot = |out: usize| {
        let mut sum = 0.0;
        for (x, weight) in x.iter().zip(matrix.row(out)) {
            sum += x * weight;
        }
        sum
    };
    (0..matrix.outs).map(dot).collect()
}
