//! `Planned`: the rows of the next flight, within the budget of a step.

use super::{Engine, Hold};
use crate::drafts::propose;

/// A row of a flight, before it has blocks.
pub(super) struct Planned {
    pub(super) key: u64,
    pub(super) tokens: Vec<u32>,
    /// Number of the tokens that are known; the others are drafts.
    pub(super) known: usize,
    /// True if the row ends with the last known token or with drafts.
    pub(super) is_last: bool,
}

impl Planned {
    /// Returns the number of wanted logits: those of the last known token and of the drafts.
    pub(super) fn wanted(&self) -> usize {
        if self.is_last { self.tokens.len() + 1 - self.known } else { 0 }
    }
}

impl<H: Hold> Engine<'_, H> {
    /// Plans rows: first those that decode, then chunks of prompts, within the budget.
    pub(super) fn plan(&mut self) -> Vec<Planned> {
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
}
