//! Running a flight: its kernels, then the tokens of its rows.

use paged_kv::{Result, Step};

use super::hold::gone;
use super::{Engine, Flight, FlightRow, Hold};
use crate::model::Logits;
use crate::request::Sample;
use crate::sampling::{digest, sample};

impl<H: Hold> Engine<'_, H> {
    /// Runs the kernels of a flight, takes the tokens of its rows, and ends its steps.
    pub(super) fn run(&mut self, flight: Flight) -> Result<()> {
        let Flight { mut steps, rows, batch } = flight;
        let logits = {
            let groups = self.server.groups.iter().zip(&batch.groups);
            let mut open: Vec<_> = groups.map(|(group, batch)| group.store.open(batch)).collect();
            self.server.model.forward(&batch, &mut open)
        };
        self.counts.flights += 1;
        let mut first = 0;
        for (number, row) in rows.iter().enumerate() {
            match self.running.contains_key(&row.key) {
                true => self.finish_row(&mut steps, number, row, &logits, first)?,
                false => self.check_stale(&mut steps, number, row),
            }
            first += row.wanted;
        }
        if self.happens(self.options.chaos.linger_in) {
            self.lingering.extend(steps);
        } else {
            steps.into_iter().for_each(|step| self.complete(step));
        }
        Ok(())
    }

    /// A step refuses the row of a sequence that has ended, also if its id is in use again.
    fn check_stale(&mut self, steps: &mut [Step], number: usize, row: &FlightRow) {
        for (step, name) in steps.iter_mut().zip(&row.names) {
            if let Some(mut name) = name.clone() {
                let refused = step.accept(number, &mut name, &row.tokens);
                assert!(refused.is_err_and(|error| gone(&error).is_some()), "the sequence is gone");
                self.counts.stale_rows += 1;
            }
        }
    }

    fn finish_row(
        &mut self,
        steps: &mut [Step],
        number: usize,
        row: &FlightRow,
        logits: &Logits,
        first: usize,
    ) -> Result<()> {
        let running = self.running.get_mut(&row.key).expect("it runs");
        running.in_flight -= 1;
        if row.wanted == 0 {
            return self.finish_chunk(steps, number, row);
        }
        let forks = std::mem::take(&mut running.sample.forks);
        let mut siblings = Vec::new();
        for number in 1..=forks {
            siblings.push(Sample { number, ..running.sample.clone() });
        }
        let accepted = take_tokens(&mut running.sample, row, logits, first);
        let drafts = row.wanted - 1;
        self.counts.accepted += accepted as u64;
        self.counts.rejected += (drafts - accepted) as u64;
        let tokens = &row.tokens[..row.tokens.len() - drafts + accepted];
        running.num_tokens -= drafts - accepted;
        for (step, hold) in steps.iter_mut().zip(&mut running.holds) {
            if let Err(refusal) = step.accept(number, hold.row(), tokens) {
                gone(&refusal).ok_or(refusal)?;
                self.waiting.extend(siblings);
                self.notice_eviction(row.key);
                return Ok(());
            }
        }
        self.fork(row, siblings, logits, first)?;
        let running = &self.running[&row.key];
        if running.sample.missing() == 0 {
            let sample = self.stop(row.key);
            self.finished.push(sample);
            return Ok(());
        }
        self.trim(row.key, self.running[&row.key].num_tokens)
    }

    /// Commits a chunk of a prompt.
    fn finish_chunk(&mut self, steps: &mut [Step], number: usize, row: &FlightRow) -> Result<()> {
        let running = self.running.get_mut(&row.key).expect("it runs");
        for (step, hold) in steps.iter_mut().zip(&mut running.holds) {
            let end = row.start + row.tokens.len();
            let committed = match row.is_committed {
                true => Ok(0),
                false if row.tokens.len().is_multiple_of(2) => step.commit(hold.row(), end),
                false => step.accept(number, hold.row(), &row.tokens),
            };
            if let Err(refusal) = committed {
                gone(&refusal).ok_or(refusal)?;
                self.notice_eviction(row.key);
                return Ok(());
            }
        }
        self.trim(row.key, row.start + row.tokens.len())
    }

    /// Forks the siblings of a sample whose prompt is computed, and takes their first tokens.
    fn fork(
        &mut self,
        row: &FlightRow,
        siblings: Vec<Sample>,
        logits: &Logits,
        first: usize,
    ) -> Result<()> {
        let running = self.running.get_mut(&row.key).expect("it runs");
        let num_tokens = running.num_tokens;
        let mut forks: Vec<Vec<H>> = siblings.iter().map(|_| Vec::new()).collect();
        for (hold, group) in running.holds.iter_mut().zip(&self.server.groups) {
            match hold.fork_n(&mut self.ids, &group.cache, siblings.len()) {
                Ok(made) => forks.iter_mut().zip(made).for_each(|(fork, made)| fork.push(made)),
                Err(refusal) => {
                    // The siblings go on alone.
                    gone(&refusal).ok_or(refusal)?;
                    forks.into_iter().for_each(|holds| self.end(holds));
                    self.waiting.extend(siblings);
                    return Ok(());
                }
            }
        }
        for (mut sibling, holds) in siblings.into_iter().zip(forks) {
            self.counts.forks += 1;
            take_tokens(&mut sibling, row, logits, first);
            if sibling.missing() == 0 {
                self.end(holds);
                self.finished.push(sibling);
            } else {
                self.start(sibling, holds, num_tokens);
            }
        }
        Ok(())
    }

    /// Releases the blocks before the windows of the token at `end`. Later tokens have slots already if another
    /// flight has a row of the sample, but that flight may reject drafts.
    fn trim(&mut self, key: u64, end: usize) -> Result<()> {
        let running = self.running.get_mut(&key).expect("it runs");
        let ahead = running.num_tokens - end;
        for (hold, group) in running.holds.iter_mut().zip(&self.server.groups) {
            let Some(window) = group.window else { continue };
            match hold.trim(&group.cache, window + ahead) {
                Ok(tokens) => self.counts.trimmed += tokens as u64,
                Err(refusal) => {
                    gone(&refusal).ok_or(refusal)?;
                    self.notice_eviction(key);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Takes the next tokens of a sample, as long as they are the drafts. Returns the number of accepted drafts.
fn take_tokens(running: &mut Sample, row: &FlightRow, logits: &Logits, first: usize) -> usize {
    let drafts = &row.tokens[row.tokens.len() + 1 - row.wanted..];
    for index in 0..row.wanted {
        let logits = logits.of(first + index);
        running.has_nan |= logits.iter().any(|logit| logit.is_nan());
        let sampling = running.request.sampling(running.number);
        let token = sample(logits, sampling, running.tokens.len());
        running.tokens.push(token);
        running.digests.push(digest(logits));
        if drafts.get(index) != Some(&token) || running.missing() == 0 {
            return index;
        }
    }
    row.wanted - 1
}
