//! `Attend`: the attention of one token's query heads that share keys, to the keys and values in the blocks of its
//! row.
//!
//! Two passes over a buffer of scores: all scores, softmax, then the sum of the values in the order of the
//! positions. So the block size does not enter the arithmetic.

use crate::kv::OpenBlocks;
use crate::math::softmax;
use crate::wide::{Kernel, LANES, Wide};

/// A token's view of the keys and values of one layer.
pub struct View<'a> {
    /// The blocks of the step.
    pub blocks: &'a OpenBlocks<'a>,
    /// The number of the layer in its group.
    pub layer: usize,
    /// The blocks of the token's row.
    pub table: &'a [i32],
    /// The positions that the token attends to: its own is the last.
    pub positions: std::ops::Range<usize>,
}

impl View<'_> {
    /// Returns the memory of a block of the row.
    fn block(&self, logical_block: usize) -> &[f32] {
        let id = usize::try_from(self.table[logical_block]);
        self.blocks.block(id.expect("a block of the window is not trimmed"))
    }
}

/// The attention of the query heads of one key head. `scores` is scratch memory.
pub struct Attend<'a> {
    /// The keys and values.
    pub view: View<'a>,
    /// The key head.
    pub head: usize,
    /// The query heads, one after the other.
    pub queries: &'a [f32],
    /// Scratch memory.
    pub scores: &'a mut Vec<f32>,
    /// Their attention.
    pub out: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<W: Wide>(self, wide: W) {
        let Self { view, head, queries, scores, out } = self;
        let head_dim = view.blocks.shape().head_dim;
        let queries = queries.chunks_exact(head_dim);
        for (query, out) in queries.zip(out.chunks_exact_mut(head_dim)) {
            attend_head(wide, &view, head, query, scores, out);
        }
    }
}

#[inline(always)]
fn attend_head<W: Wide>(
    wide: W,
    view: &View<'_>,
    head: usize,
    query: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (shape, positions) = (view.blocks.shape(), view.positions.clone());
    let block_size = shape.block_size;
    let blocks = positions.start / block_size..positions.end.div_ceil(block_size);
    scores.clear();
    scores.resize(blocks.len() * block_size, 0.0);
    for (block, scores) in blocks.clone().zip(scores.chunks_exact_mut(block_size)) {
        let keys = &view.block(block)[shape.keys(view.layer, head)..];
        // Slots after the last position are scored too, and not used.
        score(wide, query, &keys[..query.len() * block_size], scores);
    }
    let skipped = positions.start - blocks.start * block_size;
    let scores = &mut scores[skipped..][..positions.len()];
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    scores.iter_mut().for_each(|score| *score *= scale);
    softmax(scores);
    out.fill(0.0);
    let (mut scores, mut position) = (&*scores, positions.start);
    for block in blocks {
        let values = &view.block(block)[shape.values(view.layer, head)..];
        let values = &values[position % block_size * shape.head_dim..];
        let here = scores.len().min(block_size - position % block_size);
        sum(wide, &scores[..here], values, out);
        (scores, position) = (&scores[here..], position + here);
    }
}

/// Adds the products of a query with the keys of all slots of a block: `[dim][slot]`.
#[inline(always)]
fn score<W: Wide>(wide: W, query: &[f32], keys: &[f32], scores: &mut [f32]) {
    let block_size = scores.len();
    let (sixteens, rest) = scores.as_chunks_mut::<LANES>();
    let rest_start = sixteens.len() * LANES;
    for (number, scores) in sixteens.iter_mut().enumerate() {
        let mut sum = wide.load(scores);
        for (&query, keys) in query.iter().zip(keys.chunks_exact(block_size)) {
            let (keys, _) = keys.as_chunks::<LANES>();
            sum = wide.add(sum, wide.mul(wide.splat(query), wide.load(&keys[number])));
        }
        *scores = wide.store(sum);
    }
    for (&query, keys) in query.iter().zip(keys.chunks_exact(block_size)) {
        let keys = &keys[rest_start..];
        rest.iter_mut().zip(keys).for_each(|(score, key)| *score += query * key);
    }
}

/// Adds the weighted values of some slots: `[slot][dim]`.
#[inline(always)]
fn sum<W: Wide>(wide: W, weights: &[f32], values: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    let (sixteens, rest) = out.as_chunks_mut::<LANES>();
    let rest_start = sixteens.len() * LANES;
    for (number, out) in sixteens.iter_mut().enumerate() {
        let mut sum = wide.load(out);
        for (&weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
            let (values, _) = values.as_chunks::<LANES>();
            sum = wide.add(sum, wide.mul(wide.splat(weight), wide.load(&values[number])));
        }
        *out = wide.store(sum);
    }
    for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
        let values = &values[rest_start..];
        rest.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
    }
}
