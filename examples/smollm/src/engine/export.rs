//! The exports of a step, as the input of the kernels.

use std::collections::{BTreeMap, HashMap};

use paged_kv::export::{Gaps, TableShape};
use paged_kv::{Result, Step};

use super::plan::Planned;
use super::{Engine, Fault, Hold, Running};
use crate::batch::{Batch, GroupBatch};

impl<H: Hold> Engine<'_, H> {
    /// Returns the input of the kernels for rows that have grown.
    pub(super) fn export(&mut self, steps: &[Step], plan: &[Planned]) -> Result<Batch> {
        let mut batch = Batch::default();
        for (number, row) in plan.iter().enumerate() {
            let running = &self.running[&row.key];
            let end = batch.tokens.len() + row.tokens.len();
            batch.wanted.extend(end - row.wanted()..end);
            batch.tokens.extend_from_slice(&row.tokens);
            batch.positions.extend(running.num_tokens..running.num_tokens + row.tokens.len());
            batch.rows.resize(end, number);
            batch.variants.resize(end, running.sample.request.variant());
        }
        for (group, step) in steps.iter().enumerate() {
            let of_group = self.export_group(step, plan, group, batch.tokens.len())?;
            batch.groups.push(of_group);
        }
        Ok(batch)
    }

    fn export_group(
        &mut self,
        step: &Step,
        plan: &[Planned],
        group: usize,
        num_tokens: usize,
    ) -> Result<GroupBatch> {
        let block_size = self.server.groups[group].cache.block_size();
        let new_tokens = plan.iter().map(|row| {
            let start = self.running[&row.key].num_tokens;
            start..start + row.tokens.len()
        });
        let new_tokens: Vec<_> = new_tokens.collect();
        let longest = new_tokens.iter().map(|tokens| tokens.end).max().unwrap_or(0);
        let stride = longest.div_ceil(block_size);
        let mut batch = GroupBatch {
            slots: vec![-1; num_tokens],
            table: vec![-1; plan.len() * stride],
            stride,
            ..GroupBatch::default()
        };
        let rows = rows(&mut self.running, plan, group);
        step.copies(&mut batch.copies)?;
        step.slots(&rows, Gaps::Show, &mut batch.slots)?;
        let shape = TableShape { stride, pad: -1, gaps: Gaps::Show };
        step.block_tables(&rows, &mut batch.table, shape)?;
        for (row, tokens) in new_tokens.into_iter().enumerate() {
            let fresh = tokens.start.div_ceil(block_size)..tokens.end.div_ceil(block_size);
            let fresh = batch.table_of(row)[fresh].iter().map(|&cell| cell as u32);
            let fresh: Vec<u32> = fresh.collect();
            batch.fresh.extend(fresh);
        }
        Ok(batch)
    }
}

/// Returns the rows of a group, in the order of the plan.
pub(super) fn rows<'r, H: Hold>(
    running: &'r mut BTreeMap<u64, Running<H>>,
    plan: &[Planned],
    group: usize,
) -> Vec<(&'r mut H::Row, usize)> {
    let holds = running.iter_mut().map(|(&key, running)| (key, &mut running.holds[group]));
    let mut holds: HashMap<u64, &mut H> = holds.collect();
    let row = |row: &Planned| {
        let hold = holds.remove(&row.key).expect("a planned sample runs");
        (hold.row(), row.tokens.len())
    };
    plan.iter().map(row).collect()
}

/// Makes a fault on purpose.
pub(super) fn spoil(group: &mut GroupBatch, fault: Fault) {
    match fault {
        Fault::NoCopies => group.copies.clear(),
        Fault::SwappedBlocks => {
            let tables = group.table.chunks_exact_mut(group.stride);
            let long = tables.filter(|table| table.len() > 2 && table[1] >= 0 && table[2] >= 0);
            long.for_each(|table| table.swap(1, 2));
        }
    }
}
