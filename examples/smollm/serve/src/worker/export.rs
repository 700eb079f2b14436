//! `batch`: the exports of a step, as the input of the kernels.

use paged_kv::export::{Gaps, TableShape};
use paged_kv::{CachedSequence, Result, Step};
use smollm::batch::{Batch, GroupBatch};

use super::plan::Planned;

/// Returns the input of the kernels for rows that have grown.
pub(super) fn batch(
    step: &Step,
    rows: &[(CachedSequence, usize)],
    planned: &[Planned],
    block_size: usize,
) -> Result<Batch> {
    let mut batch = Batch::default();
    let stride = rows.iter().map(|(sequence, _)| sequence.num_logical_blocks()).max().unwrap_or(0);
    let mut group = GroupBatch { stride, ..GroupBatch::default() };
    for (number, ((sequence, _), planned)) in rows.iter().zip(planned).enumerate() {
        let end = batch.tokens.len() + planned.tokens.len();
        batch.tokens.extend_from_slice(&planned.tokens);
        let last = sequence.num_tokens();
        batch.positions.extend(last - planned.tokens.len()..last);
        batch.wanted.extend(end - planned.wanted()..end);
        batch.rows.resize(end, number);
    }
    batch.variants.resize(batch.tokens.len(), 0);
    group.slots.resize(batch.tokens.len(), -1);
    group.table.resize(rows.len() * stride, -1);
    step.copies(&mut group.copies)?;
    step.slots(rows, Gaps::Show, &mut group.slots)?;
    let shape = TableShape { stride, pad: -1, gaps: Gaps::Show };
    step.block_tables(rows, &mut group.table, shape)?;
    for (number, (sequence, new_tokens)) in rows.iter().enumerate() {
        let end = sequence.num_tokens();
        let fresh = (end - new_tokens).div_ceil(block_size)..end.div_ceil(block_size);
        let fresh = &group.table[number * stride..][fresh];
        group.fresh.extend(fresh.iter().map(|&cell| cell as u32));
    }
    batch.groups.push(group);
    Ok(batch)
}
