//! `Model`: packed weights, and the forward pass of the rows of a step.

use rayon::prelude::*;

use crate::attention::{View, attend};
use crate::batch::Batch;
use crate::dims::{Dims, LayerPlace};
use crate::kv::OpenBlocks;
use crate::math::{rms_norm, silu};
use crate::panel::{Panels, Split};
use crate::rope::{Rope, rotate};
use crate::seeded;
use crate::weights::{LayerWeights, Matrix, Weights};

/// A model that is ready to run.
pub struct Model {
    dims: Dims,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Panels,
    rope: Rope,
    split: Split,
}

struct Layer {
    place: LayerPlace,
    window: Option<usize>,
    attention_norm: Vec<f32>,
    qkv: Panels,
    out: Panels,
    ffn_norm: Vec<f32>,
    gate_up: Panels,
    down: Panels,
}

/// The logits of the wanted tokens of a batch, in their order.
#[derive(Clone, Debug)]
pub struct Logits {
    vocab: usize,
    data: Vec<f32>,
}

impl Logits {
    /// Returns the logits of the `index`-th wanted token.
    pub fn of(&self, index: usize) -> &[f32] {
        &self.data[index * self.vocab..][..self.vocab]
    }
}

impl Model {
    /// Packs the weights.
    pub fn new(weights: &Weights, split: Split) -> Self {
        let dims = weights.dims.clone();
        let layer = |((layer, place), window): ((&LayerWeights, _), &Option<usize>)| Layer {
            place,
            window: *window,
            attention_norm: layer.attention_norm.clone(),
            qkv: Panels::pack(&layer.qkv),
            out: Panels::pack(&layer.out),
            ffn_norm: layer.ffn_norm.clone(),
            gate_up: Panels::pack(&layer.gate_up),
            down: Panels::pack(&layer.down),
        };
        let layers = weights.layers.iter().zip(dims.places()).zip(&dims.windows).map(layer);
        Self {
            layers: layers.collect(),
            embedding: weights.embedding.clone(),
            norm: weights.norm.clone(),
            head: Panels::pack(weights.head()),
            rope: Rope::new(&dims),
            split,
            dims,
        }
    }

    /// Returns the shape of the model.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Computes the tokens of a batch: stores their keys and values, and returns the wanted logits. `kv` has the
    /// open blocks of each group.
    pub fn forward(&self, batch: &Batch, kv: &mut [OpenBlocks<'_>]) -> Logits {
        let mut x = self.embed(batch);
        let turns: Vec<_> = batch.positions.iter().map(|&at| self.rope.at(at)).collect();
        for layer in &self.layers {
            let normed = self.norm(&x, &layer.attention_norm);
            let mut qkv = layer.qkv.multiply(&normed, self.split);
            let kv = &mut kv[layer.place.group];
            self.store(batch, layer, &turns, &mut qkv, kv);
            let attended = self.attend(batch, layer, &qkv, kv);
            add(&mut x, &layer.out.multiply(&attended, self.split));
            let normed = self.norm(&x, &layer.ffn_norm);
            let gated = self.gate(&layer.gate_up.multiply(&normed, self.split));
            add(&mut x, &layer.down.multiply(&gated, self.split));
        }
        let width = self.dims.width;
        let wanted = batch.wanted.iter().flat_map(|&token| &x[token * width..][..width]);
        let wanted: Vec<f32> = wanted.copied().collect();
        let data = self.head.multiply(&self.norm(&wanted, &self.norm), self.split);
        Logits { vocab: self.dims.vocab, data }
    }

    fn embed(&self, batch: &Batch) -> Vec<f32> {
        let mut x = Vec::with_capacity(batch.tokens.len() * self.dims.width);
        for (&token, &variant) in batch.tokens.iter().zip(&batch.variants) {
            let variant = seeded::variant(self.dims.width, variant);
            let embedding = self.embedding.row(token as usize);
            x.extend(embedding.iter().zip(variant).map(|(x, delta)| x + delta));
        }
        x
    }

    fn norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let rows = x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len()));
        rows.for_each(|(x, out)| rms_norm(x, weight, self.dims.eps, out));
        out
    }

    /// Rotates queries and keys, and writes keys and values into their slots.
    fn store(
        &self,
        batch: &Batch,
        layer: &Layer,
        turns: &[Vec<(f32, f32)>],
        qkv: &mut [f32],
        kv: &mut OpenBlocks<'_>,
    ) {
        let (query, keys) = (self.dims.query_len(), self.dims.kv_len());
        let slots = &batch.groups[layer.place.group].slots;
        let rows = qkv.chunks_exact_mut(query + 2 * keys).zip(turns).zip(slots);
        for ((qkv, turns), &slot) in rows {
            rotate(&mut qkv[..query + keys], turns);
            let (keys, values) = qkv[query..].split_at(keys);
            kv.store(layer.place.layer, slot as usize, keys, values);
        }
    }

    fn attend(&self, batch: &Batch, layer: &Layer, qkv: &[f32], kv: &OpenBlocks<'_>) -> Vec<f32> {
        let (query, tables) = (self.dims.query_len(), &batch.groups[layer.place.group]);
        let mut out = vec![0.0; batch.tokens.len() * query];
        let attend_token = |scores: &mut Vec<f32>, (token, out): (usize, &mut [f32])| {
            let end = batch.positions[token] + 1;
            let start = layer.window.map_or(0, |window| end.saturating_sub(window));
            let view = View {
                blocks: kv,
                layer: layer.place.layer,
                table: tables.table_of(batch.rows[token]),
                positions: start..end,
            };
            let qkv = &qkv[token * layer.qkv.outs()..][..query];
            attend(&view, qkv, scores, out);
        };
        match self.split {
            Split::None => {
                let mut scores = Vec::new();
                let tokens = out.chunks_exact_mut(query).enumerate();
                tokens.for_each(|token| attend_token(&mut scores, token));
            }
            Split::Rayon => {
                let tokens = out.par_chunks_exact_mut(query).enumerate();
                tokens.for_each_init(Vec::new, attend_token);
            }
        }
        out
    }

    fn gate(&self, gate_up: &[f32]) -> Vec<f32> {
        let rows = gate_up.chunks_exact(2 * self.dims.ffn);
        let gated = rows.flat_map(|row| {
            let (gate, up) = row.split_at(self.dims.ffn);
            gate.iter().zip(up).map(|(gate, up)| silu(*gate) * up)
        });
        gated.collect()
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
