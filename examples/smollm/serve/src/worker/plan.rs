//! `Planned`: the rows of the next step, within its budget of tokens.

use paged_kv::CachedSequence;
use smollm::drafts::propose;

use super::Running;
use crate::job::Sample;
use crate::shared::Config;

/// Most samples of a step with drafts: with more, the rows of others use the processor better.
const ROWS_WITH_DRAFTS: usize = 4;

/// A row of a step: its sample, and the tokens to compute.
pub(super) struct Planned {
    pub(super) sample: Sample,
    pub(super) cached: usize,
    pub(super) tokens: Vec<u32>,
    /// Number of the tokens that are known; the others are drafts.
    pub(super) known: usize,
    /// True if the known tokens are the last ones of the sample.
    pub(super) is_last: bool,
}

impl Planned {
    /// Returns the number of wanted logits: those of the last known token and of the drafts.
    pub(super) fn wanted(&self) -> usize {
        if self.is_last { self.tokens.len() + 1 - self.known } else { 0 }
    }

    /// Returns the drafts.
    pub(super) fn drafts(&self) -> &[u32] {
        &self.tokens[self.known..]
    }

    /// Returns the sample of a row that got no blocks.
    pub(super) fn back(self, sequence: CachedSequence) -> Running {
        Running { sample: self.sample, sequence, cached: self.cached }
    }
}

/// Takes the rows of a step from the running samples: first those that generate, then chunks of prompts. The
/// others stay.
pub(super) fn plan(
    running: &mut Vec<Running>,
    config: &Config,
) -> (Vec<(CachedSequence, usize)>, Vec<Planned>) {
    let missing = |r: &Running| r.sample.tokens.len() - r.sequence.num_tokens();
    running.sort_by_key(|r| missing(r) > 1); // stable: the older ones first
    let most_drafts = if running.len() > ROWS_WITH_DRAFTS { 0 } else { config.drafts };
    let mut budget = config.chunk;
    let (mut rows, mut planned) = (Vec::new(), Vec::new());
    for Running { sample, sequence, cached } in std::mem::take(running) {
        let missing = &sample.tokens[sequence.num_tokens()..];
        // A row that generates costs nothing of the budget: there are few, and their clients wait.
        let known = if missing.len() == 1 { 1 } else { missing.len().min(budget) };
        if known == 0 {
            running.push(Running { sample, sequence, cached });
            continue;
        }
        let is_last = known == missing.len();
        let mut tokens = missing[..known].to_vec();
        if missing.len() == 1 && sample.forks == 0 {
            let most = most_drafts.min(sample.missing() - 1);
            tokens.extend_from_slice(propose(&sample.tokens, most));
        } else {
            budget -= known;
        }
        rows.push((sequence, tokens.len()));
        planned.push(Planned { sample, cached, tokens, known, is_last });
    }
    (rows, planned)
}
