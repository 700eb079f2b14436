//! Building a flight: the rows of a step, their blocks, and the exports that the kernels read.

use std::collections::HashMap;

use paged_kv::export::{Gaps, TableShape};
use paged_kv::{PagedKvError, Result, SeqId, Step};

use super::hold::gone;
use super::{Engine, Fault, Flight, FlightRow, Hold, Running};
use crate::batch::{Batch, GroupBatch};
use crate::drafts::propose;

/// A row of a flight, before it has blocks.
struct Planned {
    key: u64,
    tokens: Vec<u32>,
    /// Number of the tokens that are known; the others are drafts.
    known: usize,
    /// True if the row ends with the last known token or with drafts.
    is_last: bool,
}

/// The reason why planned rows got no flight.
enum Refusal {
    /// Only so many of the first rows have room.
    Rows(usize),
    /// A sequence was evicted.
    Gone(SeqId),
    Other(PagedKvError),
}

impl From<PagedKvError> for Refusal {
    fn from(error: PagedKvError) -> Self {
        gone(&error).map_or(Self::Other(error), Self::Gone)
    }
}

impl<H: Hold> Engine<'_, H> {
    /// Builds a flight of as many rows as there is room for. Without any, the youngest sample gives up its
    /// blocks, unless a flight will release some.
    pub(super) fn build(&mut self) -> Result<Option<Flight>> {
        let mut plan = self.plan();
        while !plan.is_empty() {
            let mut steps = self.open_steps();
            match self.grow_and_export(&mut steps, &mut plan) {
                Ok(batch) if !self.happens(self.options.chaos.abort_in) => {
                    return Ok(Some(self.launch(steps, plan, batch)));
                }
                Ok(_) => {
                    self.counts.aborts += 1;
                    self.abort(steps, &plan)?;
                    return Ok(None);
                }
                Err(refusal) => {
                    self.abort(steps, &plan)?;
                    self.shorten(&mut plan, refusal)?;
                }
            }
        }
        Ok(None)
    }

    /// Takes the rows from a plan that got no blocks. If all of them got none, makes room.
    fn shorten(&mut self, plan: &mut Vec<Planned>, refusal: Refusal) -> Result<()> {
        match refusal {
            Refusal::Rows(rows) => {
                plan.truncate(rows);
                if rows == 0 { self.make_room() } else { Ok(()) }
            }
            Refusal::Gone(id) => {
                let key = self.forget(id);
                plan.retain(|row| row.key != key);
                Ok(())
            }
            Refusal::Other(error) => Err(error),
        }
    }

    /// Plans rows: first those that decode, then chunks of prompts, within the budget.
    fn plan(&mut self) -> Vec<Planned> {
        let pipelines = self.happens(self.options.chaos.pipeline_in);
        let (mut decode, mut prefill) = (Vec::new(), Vec::new());
        for (&key, running) in &self.running {
            // A flight may have drafts after the known tokens.
            let missing = running.sample.tokens.len().saturating_sub(running.num_tokens);
            let is_free = running.in_flight == 0;
            if is_free && missing == 1 {
                decode.push(key);
            } else if is_free || pipelines && running.in_flight == 1 && missing > 1 {
                prefill.push(key);
            }
        }
        let mut budget = self.options.budget;
        let mut plan = Vec::new();
        for key in decode.into_iter().chain(prefill) {
            if let Some(row) = self.plan_row(key, budget) {
                budget -= row.tokens.len();
                plan.push(row);
            }
        }
        plan
    }

    fn plan_row(&self, key: u64, budget: usize) -> Option<Planned> {
        let running = &self.running[&key];
        let (sample, most) = (&running.sample, budget.min(self.options.chunk));
        let missing = &sample.tokens[running.num_tokens..];
        let known = missing.len().min(most);
        let is_last = known == missing.len();
        let mut tokens = missing[..known].to_vec();
        if is_last && sample.forks == 0 {
            let most = self.options.drafts.min(budget - known).min(sample.missing() - 1);
            tokens.extend_from_slice(propose(&sample.tokens, most));
        }
        (known > 0).then_some(Planned { key, tokens, known, is_last })
    }

    /// Grows the rows in all groups, leaves out of the plan those that did not grow, and exports the others.
    fn grow_and_export(
        &mut self,
        steps: &mut [Step],
        plan: &mut Vec<Planned>,
    ) -> Result<Batch, Refusal> {
        let mut grown = Vec::new();
        for (group, step) in steps.iter_mut().enumerate() {
            let mut rows = rows(&mut self.running, plan, group);
            grown.push(step.grow(&mut rows)?.grown_rows);
        }
        let fewest = grown.iter().copied().min().expect("a model has layers");
        if fewest == 0 || grown.iter().any(|&rows| rows > fewest) {
            return Err(Refusal::Rows(fewest));
        }
        self.counts.refused_rows += (plan.len() - fewest) as u64;
        plan.truncate(fewest);
        self.export(steps, plan)
    }

    fn export(&mut self, steps: &[Step], plan: &[Planned]) -> Result<Batch, Refusal> {
        let mut batch = Batch::default();
        for (number, row) in plan.iter().enumerate() {
            let running = &self.running[&row.key];
            let wanted = row.tokens.len() + 1 - row.known;
            let end = batch.tokens.len() + row.tokens.len();
            if row.is_last {
                batch.wanted.extend(end - wanted..end);
            }
            batch.tokens.extend_from_slice(&row.tokens);
            batch.positions.extend(running.num_tokens..running.num_tokens + row.tokens.len());
            batch.rows.resize(end, number);
            batch.variants.resize(end, running.sample.request.variant());
        }
        for (group, step) in steps.iter().enumerate() {
            let block_size = self.server.groups[group].cache.block_size();
            let starts: Vec<usize> =
                plan.iter().map(|row| self.running[&row.key].num_tokens).collect();
            let rows = rows(&mut self.running, plan, group);
            let ends = starts.iter().zip(&rows).map(|(start, (_, len))| start + len);
            let stride = ends.clone().max().unwrap_or(0).div_ceil(block_size);
            let mut of_group = GroupBatch {
                slots: vec![-1; batch.tokens.len()],
                table: vec![-1; plan.len() * stride],
                stride,
                ..GroupBatch::default()
            };
            step.copies(&mut of_group.copies)?;
            step.slots(&rows, Gaps::Show, &mut of_group.slots)?;
            let shape = TableShape { stride, pad: -1, gaps: Gaps::Show };
            step.block_tables(&rows, &mut of_group.table, shape)?;
            for (row, (start, end)) in starts.iter().zip(ends).enumerate() {
                let fresh = start.div_ceil(block_size)..end.div_ceil(block_size);
                let fresh = of_group.table_of(row)[fresh].iter().map(|&cell| cell as u32);
                of_group.fresh.extend(fresh.collect::<Vec<_>>());
            }
            batch.groups.push(of_group);
        }
        Ok(batch)
    }

    fn launch(&mut self, mut steps: Vec<Step>, plan: Vec<Planned>, mut batch: Batch) -> Flight {
        let mut rows = Vec::new();
        for row in plan {
            let wanted = if row.is_last { row.tokens.len() + 1 - row.known } else { 0 };
            let is_committed = !row.is_last && self.happens(self.options.chaos.commit_early_in);
            let running = self.running.get_mut(&row.key).expect("it was planned");
            let start = running.num_tokens;
            running.num_tokens += row.tokens.len();
            running.in_flight += 1;
            self.counts.pipelined += u64::from(running.in_flight > 1);
            self.counts.early_commits += u64::from(is_committed);
            if is_committed {
                for (step, hold) in steps.iter_mut().zip(&mut running.holds) {
                    // A sequence that is gone is noticed when the flight has run.
                    let committed = step.commit(hold.row(), running.num_tokens);
                    assert!(committed.is_ok() || committed.is_err_and(|e| gone(&e).is_some()));
                }
            }
            let tables = batch.groups.iter().flat_map(|group| &group.copies);
            let copied_to: Vec<u32> = tables.map(|copy| copy[1]).collect();
            let number = rows.len();
            let mut blocks = batch.groups.iter().flat_map(|group| group.table_of(number));
            running.sample.copied |= blocks.any(|&id| copied_to.contains(&(id as u32)));
            let names = running.holds.iter().map(Hold::name).collect();
            let tokens = row.tokens;
            rows.push(FlightRow { key: row.key, start, tokens, wanted, is_committed, names });
        }
        self.counts.rows += rows.len() as u64;
        self.counts.computed += batch.tokens.len() as u64;
        let copies = batch.groups.iter().map(|group| group.copies.len() as u64);
        self.counts.copies += copies.sum::<u64>();
        if let Some(fault) = self.options.fault {
            batch.groups.iter_mut().for_each(|group| spoil(group, fault));
        }
        Flight { steps, rows, batch }
    }

    /// Aborts steps whose kernels did not run: their rows are as before.
    fn abort(&mut self, steps: Vec<Step>, plan: &[Planned]) -> Result<()> {
        for (group, step) in steps.into_iter().enumerate() {
            let mut rows = rows(&mut self.running, plan, group);
            self.buffers.push(step.abort(&mut rows)?.buffers);
        }
        Ok(())
    }

    /// Preempts the sample of an evicted sequence, and returns its key.
    fn forget(&mut self, id: SeqId) -> u64 {
        let has_id = |running: &Running<H>| running.holds.iter().any(|hold| hold.id() == Some(id));
        let found = self.running.iter().find(|(_, running)| has_id(running));
        let (&key, _) = found.expect("a refusal names a sequence of the step");
        self.notice_eviction(key);
        key
    }

    /// Frees blocks, if no flight is about to.
    fn make_room(&mut self) -> Result<()> {
        self.is_short = true;
        if !self.flights.is_empty() || !self.lingering.is_empty() {
            return Ok(());
        }
        if self.happens(2) && H::evict(&self.ids, self.server.cache()) {
            return Ok(());
        }
        if let Some((&youngest, _)) = self.running.last_key_value() {
            self.preempt(youngest);
        }
        Ok(())
    }
}

/// Returns the rows of a group, in the order of the plan.
fn rows<'r, H: Hold>(
    running: &'r mut std::collections::BTreeMap<u64, Running<H>>,
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
fn spoil(group: &mut GroupBatch, fault: Fault) {
    match fault {
        Fault::NoCopies => group.copies.clear(),
        Fault::SwappedBlocks => {
            let tables = group.table.chunks_exact_mut(group.stride);
            let long = tables.filter(|table| table.len() > 2 && table[1] >= 0 && table[2] >= 0);
            long.for_each(|table| table.swap(1, 2));
        }
    }
}
