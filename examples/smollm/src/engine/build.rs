//! Building a flight: planned rows get blocks, and their step is exported.

use paged_kv::{PagedKvError, Result, SeqId, Step};

use super::export::{rows, spoil};
use super::hold::gone;
use super::plan::Planned;
use super::{Engine, Flight, FlightRow, Hold, Running};
use crate::batch::Batch;

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
                Ok(batch) => {
                    let committed = self.commit_early(&mut steps, &plan);
                    if !self.happens(self.options.chaos.abort_in) {
                        return Ok(Some(self.launch(steps, plan, batch, committed)));
                    }
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
        Ok(self.export(steps, plan)?)
    }

    /// Commits some chunks of prompts before their kernels run. They must not be matched earlier. Returns,
    /// for each row, whether it was committed.
    fn commit_early(&mut self, steps: &mut [Step], plan: &[Planned]) -> Vec<bool> {
        let commit = |row: &Planned| {
            let is_chosen = !row.is_last && self.happens(self.options.chaos.commit_early_in);
            if is_chosen {
                self.counts.early_commits += 1;
                let running = self.running.get_mut(&row.key).expect("it was planned");
                let end = running.num_tokens + row.tokens.len();
                for (step, hold) in steps.iter_mut().zip(&mut running.holds) {
                    // A sequence that is gone is noticed when the flight has run.
                    let committed = step.commit(hold.row(), end);
                    assert!(committed.is_ok() || committed.is_err_and(|e| gone(&e).is_some()));
                }
            }
            is_chosen
        };
        plan.iter().map(commit).collect()
    }

    fn launch(
        &mut self,
        steps: Vec<Step>,
        plan: Vec<Planned>,
        mut batch: Batch,
        committed: Vec<bool>,
    ) -> Flight {
        let mut rows = Vec::new();
        for (number, (row, is_committed)) in plan.into_iter().zip(committed).enumerate() {
            let running = self.running.get_mut(&row.key).expect("it was planned");
            let (start, wanted) = (running.num_tokens, row.wanted());
            running.num_tokens += row.tokens.len();
            running.in_flight += 1;
            running.sample.copied |= batch.groups.iter().any(|group| group.copies_for(number));
            self.counts.pipelined += u64::from(running.in_flight > 1);
            let names = running.holds.iter().map(Hold::name).collect();
            let (key, tokens) = (row.key, row.tokens);
            rows.push(FlightRow { key, start, tokens, wanted, is_committed, names });
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

    /// Drops the youngest flight before its kernels run: its samples give up their blocks.
    pub(super) fn lose_flight(&mut self) {
        if let Some(flight) = self.flights.pop_back() {
            self.counts.lost += 1;
            for row in &flight.rows {
                if self.running.contains_key(&row.key) {
                    self.preempt(row.key);
                }
            }
            drop(flight.steps);
        }
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
