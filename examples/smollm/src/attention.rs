//! `attend`: the attention of one token to the keys and values in the blocks of its row.
//!
//! Two passes over a buffer of scores: all scores, softmax, then the sum of the values in the order of the
//! positions. So the block size does not enter the arithmetic.

use crate::kv::OpenBlocks;
use crate::math::softmax;

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

/// Writes the attention of all query heads of one token. `scores` is scratch memory.
pub fn attend(view: &View<'_>, queries: &[f32], scores: &mut Vec<f32>, out: &mut [f32]) {
    let shape = view.blocks.shape();
    let of_kv_head = queries.len() / shape.kv_heads;
    let heads = queries.chunks_exact(of_kv_head).zip(out.chunks_exact_mut(of_kv_head));
    for (kv_head, (queries, out)) in heads.enumerate() {
        let queries = queries.chunks_exact(shape.head_dim);
        for (query, out) in queries.zip(out.chunks_exact_mut(shape.head_dim)) {
            attend_head(view, kv_head, query, scores, out);
        }
    }
}

fn attend_head(
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
        for (&query, keys) in query.iter().zip(keys.chunks_exact(block_size)) {
            scores.iter_mut().zip(keys).for_each(|(score, key)| *score += query * key);
        }
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
        for (weight, values) in scores[..here].iter().zip(values.chunks_exact(shape.head_dim)) {
            out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
        }
        (scores, position) = (&scores[here..], position + here);
    }
}
