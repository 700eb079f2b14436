//! `Model`: packed weights, and the forward pass of the rows of a step.

use rayon::prelude::*;

use crate::attention::{Attend, View};
use crate::batch::Batch;
use crate::dims::{Dims, LayerPlace};
use crate::kv::OpenBlocks;
use crate::math::{rms_norm, silu};
use crate::packed::{Embedding, Packed, PackedLayer};
use crate::panel::{Panels, Split};
use crate::rope::{Rope, rotate};
use crate::seeded;
use crate::weights::Weights;
use crate::wide::{Kernel, Wide, dispatch};

/// A model that is ready to run.
pub struct Model {
    dims: Dims,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Panels,
    rope: Rope,
    split: Split,
}

struct Layer {
    place: LayerPlace,
    window: Option<usize>,
    packed: PackedLayer,
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
        Self::of(Packed::of(weights), split)
    }

    /// Makes a model of packed weights.
    pub fn of(packed: Packed, split: Split) -> Self {
        let Packed { dims, embedding, layers, norm, head } = packed;
        let places = dims.places().into_iter().zip(dims.windows.clone());
        let layers = layers.into_iter().zip(places);
        let layers = layers.map(|(packed, (place, window))| Layer { place, window, packed });
        let (layers, rope) = (layers.collect(), Rope::new(&dims));
        Self { layers, embedding, norm, head, rope, split, dims }
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
            let packed = &layer.packed;
            let normed = self.norm(&x, &packed.attention_norm);
            let mut qkv = packed.qkv.multiply(&normed, self.split);
            let kv = &mut kv[layer.place.group];
            self.store(batch, layer, &turns, &mut qkv, kv);
            let attended = self.attend(batch, layer, &qkv, kv);
            add(&mut x, &packed.out.multiply(&attended, self.split));
            let normed = self.norm(&x, &packed.ffn_norm);
            let gated = self.gate(&packed.gate_up.multiply(&normed, self.split));
            add(&mut x, &packed.down.multiply(&gated, self.split));
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
            let embedding = self.embedding.row(token);
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
        let (query, kv_heads) = (self.dims.query_len(), self.dims.kv_heads);
        let tables = &batch.groups[layer.place.group];
        let mut out = vec![0.0; batch.tokens.len() * query];
        let of_head = query / kv_heads;
        let attend = |scores: &mut Vec<f32>, (task, out): (usize, &mut [f32])| {
            let (token, head) = (task / kv_heads, task % kv_heads);
            let end = batch.positions[token] + 1;
            let start = layer.window.map_or(0, |window| end.saturating_sub(window));
            let view = View {
                blocks: kv,
                layer: layer.place.layer,
                table: tables.table_of(batch.rows[token]),
                positions: start..end,
            };
            let queries = &qkv[token * layer.packed.qkv.outs()..][head * of_head..][..of_head];
            dispatch(Attend { view, head, queries, scores, out });
        };
        match self.split {
            Split::None => {
                let mut scores = Vec::new();
                let tasks = out.chunks_exact_mut(of_head).enumerate();
                tasks.for_each(|task| attend(&mut scores, task));
            }
            Split::Rayon => {
                let tasks = out.par_chunks_exact_mut(of_head).enumerate();
                tasks.for_each_init(Vec::new, attend);
            }
        }
        out
    }

    fn gate(&self, gate_up: &[f32]) -> Vec<f32> {
        let ffn = self.dims.ffn;
        let mut out = vec![0.0; gate_up.len() / 2];
        let gate = |(both, out): (&[f32], &mut [f32])| {
            let (gate, up) = both.split_at(ffn);
            dispatch(Gate { gate, up, out });
        };
        match self.split {
            Split::None => {
                gate_up.chunks_exact(2 * ffn).zip(out.chunks_exact_mut(ffn)).for_each(gate)
            }
            Split::Rayon => {
                let rows = gate_up.par_chunks_exact(2 * ffn).zip(out.par_chunks_exact_mut(ffn));
                rows.with_min_len(4).for_each(gate);
            }
        }
        out
    }
}

/// The gated inputs of the last matrix of an FFN.
struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<W: Wide>(self, _: W) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = silu(*gate) * up;
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
