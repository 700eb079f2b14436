//! `Packed`: the weights of a model in the form in which the kernels read them.

use crate::dims::Dims;
use crate::panel::Panels;
use crate::quant::Q8_0;
use crate::weights::{LayerWeights, Matrix, Weights};

/// The packed weights of one layer.
#[derive(Clone, Debug)]
pub struct PackedLayer {
    /// Weights of the norm before the attention.
    pub attention_norm: Vec<f32>,
    /// Queries, then keys, then values, as one matrix.
    pub qkv: Panels,
    /// The projection after the attention.
    pub out: Panels,
    /// Weights of the norm before the FFN.
    pub ffn_norm: Vec<f32>,
    /// Gate, then up, as one matrix.
    pub gate_up: Panels,
    /// The projection after the FFN.
    pub down: Panels,
}

/// The packed weights of a model.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The shape.
    pub dims: Dims,
    /// A row a token.
    pub embedding: Embedding,
    /// One entry a layer.
    pub layers: Vec<PackedLayer>,
    /// Weights of the last norm.
    pub norm: Vec<f32>,
    /// The head.
    pub head: Panels,
}

/// The rows of all tokens.
#[derive(Clone, Debug)]
pub enum Embedding {
    /// As numbers.
    Numbers(Matrix),
    /// As quantized blocks.
    Q8_0(Vec<Vec<Q8_0>>),
}

impl Embedding {
    /// Returns the row of a token.
    pub fn row(&self, token: u32) -> Vec<f32> {
        match self {
            Self::Numbers(matrix) => matrix.row(token as usize).to_vec(),
            Self::Q8_0(rows) => rows[token as usize].iter().flat_map(Q8_0::numbers).collect(),
        }
    }
}

impl Packed {
    /// Packs weights that are numbers.
    pub fn of(weights: &Weights) -> Self {
        let layer = |layer: &LayerWeights| PackedLayer {
            attention_norm: layer.attention_norm.clone(),
            qkv: Panels::pack(&layer.qkv),
            out: Panels::pack(&layer.out),
            ffn_norm: layer.ffn_norm.clone(),
            gate_up: Panels::pack(&layer.gate_up),
            down: Panels::pack(&layer.down),
        };
        Self {
            dims: weights.dims.clone(),
            embedding: Embedding::Numbers(weights.embedding.clone()),
            layers: weights.layers.iter().map(layer).collect(),
            norm: weights.norm.clone(),
            head: Panels::pack(weights.head()),
        }
    }
}
