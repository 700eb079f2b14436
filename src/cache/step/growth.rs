//! `Step::grow`: one pass grows the rows that stay in their last blocks, then one allocation serves the
//! others.
//!
//! Invariant: as many of the first rows as there is room for have grown and joined the step, and no other
//! row has. A refused row undoes the growth of the rows after it, a few words each.

use super::{Grown, GrownRow, Step, StepBuffers};
use crate::cache::rows::{GrowingRow, Row, Visit, visit_all};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::prefix::overwrites::list_overwritten;
use crate::sequence::{AppendPlan, SharedTails};
use crate::table::BlockTable;

/// Rows that need blocks. Kept for its memory.
#[derive(Default)]
pub(super) struct Growth {
    /// Index of each such row, and the plan of its append.
    needy: Vec<(usize, AppendPlan)>,
    tails: SharedTails,
    /// Blocks of the longest row of the call.
    stride: usize,
    /// Empty between calls.
    stock: Option<BlockTable>,
}

impl Growth {
    pub(super) fn clear(&mut self) {
        self.needy.clear();
        self.tails.clear();
        self.stride = 0;
    }

    fn need(&self) -> usize {
        self.needy.iter().fold(0, |need, (_, plan)| need.saturating_add(plan.blocks()))
    }

    /// Plans again, because sharers outside of the step may have left since: then fewer copies are needed.
    fn plan_again<R: GrowingRow>(&mut self, rows: &mut [R], grown: &[GrownRow]) -> Result<usize> {
        self.tails.clear();
        for (row, plan) in &mut self.needy {
            let row = &mut rows[*row];
            let num_new_tokens = row.num_new_tokens();
            let sources = |id| sources_of_copies(grown, id);
            *plan = self.tails.plan(row.parts().0, num_new_tokens, sources)?;
        }
        Ok(self.need())
    }

    /// Returns the first row that `available` blocks do not serve, together with the rows before it, and
    /// the number of blocks that are missing.
    fn first_unserved(&self, available: usize) -> (usize, usize) {
        let mut need = 0_usize;
        for &(row, plan) in &self.needy {
            need = need.saturating_add(plan.blocks());
            if need > available {
                return (row, need - available);
            }
        }
        unreachable!("a refusal says that fewer blocks are available than the plans need")
    }
}

/// Returns how many of these rows copied `id`, which the step owns for each of them until it ends.
fn sources_of_copies(grown: &[GrownRow], id: BlockId) -> u32 {
    let copies = grown.iter().filter_map(|row| row.copy);
    copies.filter(|&(source, _)| source == id).count() as u32
}

/// Returns the blocks of the longest of these rows, trimmed ones included.
#[cold]
fn stride_of<R: GrowingRow>(rows: &mut [R]) -> usize {
    let blocks = |row: &mut R| row.parts().0.num_logical_blocks();
    rows.iter_mut().map(blocks).max().unwrap_or(0)
}

/// Grows the rows of a call.
struct GrowRows<'a>(&'a mut Step);

impl Visit for GrowRows<'_> {
    type Output = Grown;

    fn visit<G: GrowingRow>(self, rows: &mut [G]) -> Result<Grown> {
        self.0.grow_all(rows)
    }
}

impl Step {
    pub(super) fn grow_rows<R: Row>(&mut self, rows: &mut [(R, usize)]) -> Result<Grown> {
        let mut locks = std::mem::take(&mut self.buffers.locks);
        let grown = visit_all(rows, &mut locks, GrowRows(self), |grown| grown.grown_rows);
        self.buffers.locks = locks;
        grown
    }

    fn grow_all<R: GrowingRow>(&mut self, rows: &mut [R]) -> Result<Grown> {
        let start = self.buffers.rows.len();
        let grown = self.grow_in_place(rows).and_then(|()| self.grow_needy(rows, start));
        match &grown {
            Err(_) => self.take_back(rows, start, 0),
            Ok(grown) if self.generations.is_some() => {
                self.list_copies(&mut rows[..grown.grown_rows], start);
            }
            Ok(_) => {}
        }
        grown
    }

    /// Lists the copies that the groups of the first rows need, those of earlier growth included.
    #[cold]
    fn list_copies<R: GrowingRow>(&mut self, rows: &mut [R], start: usize) {
        for (row, number) in rows.iter_mut().zip(start..) {
            let sequence = row.parts().0;
            if sequence.has_pending_copies() || !self.buffers.copies.is_empty() {
                self.buffers.list_copies(sequence, Some(number), self.in_flight);
            }
        }
    }

    /// Grows the rows that need no block, plans the others, and lets all of them join the step.
    fn grow_in_place<R: GrowingRow>(&mut self, rows: &mut [R]) -> Result<()> {
        let StepBuffers { growth, rows: grown_rows, .. } = &mut self.buffers;
        growth.clear();
        grown_rows.reserve(rows.len());
        let start = grown_rows.len();
        let has_groups = self.generations.is_some();
        for (index, row) in rows.iter_mut().enumerate() {
            let (num_new_tokens, identity) = (row.num_new_tokens(), row.identity());
            let (sequence, _) = row.parts();
            if !sequence.table().pool().is_of_same_pool(&self.pool) {
                return Err(PagedKvError::WrongCache { value: "row" });
            }
            if has_groups {
                sequence.release_windows();
            }
            let start_tokens = sequence.num_tokens();
            let (end, block_size) =
                (start_tokens.saturating_add(num_new_tokens), sequence.block_size());
            // A multiplication a row, and a division only for a longer one.
            if end > growth.stride.saturating_mul(block_size) {
                growth.stride = end.div_ceil(block_size);
            }
            if !sequence.append_in_place(num_new_tokens) {
                let sources = |id| sources_of_copies(&grown_rows[..start], id);
                let plan = growth.tails.plan(sequence, num_new_tokens, sources)?;
                growth.needy.push((index, plan));
            }
            // Before the source of a copy is released, so that the step holds it.
            let before = match has_groups {
                true => sequence.join_step(self.in_flight),
                false => sequence.join_step_alone(self.in_flight),
            };
            let copy = None;
            grown_rows.push(GrownRow { start_tokens, num_new_tokens, copy, identity, before });
        }
        Ok(())
    }

    /// Gives the planned rows their blocks, or only those before the first row without room.
    fn grow_needy<R: GrowingRow>(&mut self, rows: &mut [R], start: usize) -> Result<Grown> {
        if self.buffers.growth.needy.is_empty() {
            let stride = self.buffers.growth.stride;
            return Ok(Grown { grown_rows: rows.len(), missing_blocks: 0, stride });
        }
        let (mut grown_rows_now, mut missing_blocks) = (rows.len(), 0);
        let mut need = self.buffers.growth.need();
        let mut stock = self.take_stock();
        let cached = loop {
            match stock.grow_over_cached(need) {
                Ok(cached) => break cached,
                Err(PagedKvError::OutOfMemory { available, .. }) => {
                    let StepBuffers { growth, rows: grown_rows, .. } = &mut self.buffers;
                    let again = growth.plan_again(rows, &grown_rows[..start])?;
                    if again >= need {
                        (grown_rows_now, missing_blocks) =
                            self.buffers.growth.first_unserved(available);
                        self.take_back(rows, start, grown_rows_now);
                    }
                    need = self.buffers.growth.need();
                }
                Err(refusal) => return Err(refusal),
            }
        };
        let StepBuffers { growth, rows: grown_rows, overwritten, .. } = &mut self.buffers;
        let cached = &stock.as_slice()[need - cached..];
        if !cached.is_empty() {
            let own = std::slice::from_ref(&self.generation);
            let generations = self.generations.as_deref().unwrap_or(own);
            let overwrites = self.overwrites.as_deref();
            list_overwritten(cached, overwrites, generations, &self.pool, overwritten);
        }
        for (row, plan) in growth.needy.drain(..) {
            let append = rows[row].parts().0.append_from(plan, &mut stock);
            grown_rows[start + row].copy = append.copy.map(|copy| (copy.src, copy.dst));
        }
        growth.stock = Some(stock);
        let stride = match grown_rows_now == rows.len() {
            true => growth.stride,
            false => stride_of(&mut rows[..grown_rows_now]),
        };
        Ok(Grown { grown_rows: grown_rows_now, missing_blocks, stride })
    }

    /// Returns the table that takes the blocks of all rows in one allocation.
    fn take_stock(&mut self) -> BlockTable {
        let stock = self.buffers.growth.stock.take();
        let stock = stock.filter(|stock| stock.pool().is_of_same_pool(&self.pool));
        stock.unwrap_or_else(|| BlockTable::new(self.pool.clone()))
    }

    /// Undoes the growth and the joining of the rows from `done` on. No planned row among them has its
    /// blocks yet.
    fn take_back<R: GrowingRow>(&mut self, rows: &mut [R], start: usize, done: usize) {
        let StepBuffers { growth, rows: grown_rows, .. } = &mut self.buffers;
        let mut needy = growth.needy.iter().skip_while(|(row, _)| *row < done).peekable();
        let grown_in_place = grown_rows[start..].iter().enumerate().skip(done);
        for (index, grown) in grown_in_place {
            let (sequence, _) = rows[index].parts();
            if needy.next_if(|(row, _)| *row == index).is_none() {
                sequence.undo_in_place(grown.num_new_tokens);
            }
            sequence.leave_step(grown.before);
        }
        grown_rows.truncate(start + done);
        growth.needy.retain(|(row, _)| *row < done);
    }
}
