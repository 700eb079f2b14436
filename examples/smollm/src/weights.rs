//! `Weights`: the weights of a model as rows of `f32`, one row an output.

use crate::dims::Dims;

/// A matrix in row order: row `o` has the weights of output `o`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of outputs.
    pub outs: usize,
    /// Number of inputs.
    pub ins: usize,
    /// `outs * ins` weights.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Returns the weights of one output.
    pub fn row(&self, out: usize) -> &[f32] {
        &self.data[out * self.ins..][..self.ins]
    }
}

/// The weights of one layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Weights of the norm before the attention.
    pub attention_norm: Vec<f32>,
    /// Queries, then keys, then values, as one matrix.
    pub qkv: Matrix,
    /// The projection after the attention.
    pub out: Matrix,
    /// Weights of the norm before the FFN.
    pub ffn_norm: Vec<f32>,
    /// Gate, then up, as one matrix.
    pub gate_up: Matrix,
    /// The projection after the FFN.
    pub down: Matrix,
}

/// The weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The shape.
    pub dims: Dims,
    /// A row of `width` elements a token.
    pub embedding: Matrix,
    /// One entry a layer.
    pub layers: Vec<LayerWeights>,
    /// Weights of the last norm.
    pub norm: Vec<f32>,
    /// The head; `None` if it is tied to the embedding.
    pub head: Option<Matrix>,
}

impl Weights {
    /// Returns the head, which may be the embedding.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
