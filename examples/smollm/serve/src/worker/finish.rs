//! The end of a row: its tokens are taken from the logits, accepted by the step, and sent.

use std::time::Instant;

use paged_kv::{CachedSequence, Result, Step};
use smollm::model::Logits;

use super::plan::Planned;
use super::{Running, Worker};
use crate::job::{Event, Sample};
use crate::shared::Shared;

/// The state of a sample after its new tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    GoesOn,
    /// The model ended it.
    Ended,
    /// It has all the tokens that it may have.
    Full,
}

impl Worker {
    /// Commits a chunk of a prompt, or takes the tokens of a row whose first logits are those of number `first`.
    pub(super) fn finish_row(
        &mut self,
        step: &mut Step,
        number: usize,
        mut sequence: CachedSequence,
        mut planned: Planned,
        logits: &Logits,
        first: usize,
    ) -> Result<()> {
        let shared = self.shared.clone();
        let Planned { is_last, known, cached, .. } = planned;
        if !is_last {
            let end = sequence.num_tokens();
            shared.timed(|| step.commit(&mut sequence, end))?;
            self.running.push(planned.back(sequence));
            return Ok(());
        }
        let forks = std::mem::take(&mut planned.sample.forks);
        let mut siblings: Vec<Sample> =
            (1..=forks).map(|number| planned.sample.fork(number)).collect();
        let drafts = planned.drafts().to_vec();
        let (accepted, state) = take_tokens(&shared, &mut planned.sample, &drafts, logits, first);
        shared.metrics.draft_tokens.inc_by(drafts.len() as u64);
        shared.metrics.accepted_tokens.inc_by(accepted as u64);
        let tokens = &planned.tokens[..known + accepted];
        shared.timed(|| step.accept(number, &mut sequence, tokens))?;
        let forked = shared.timed(|| sequence.fork_n(siblings.len()));
        self.go_on(planned.sample, sequence, cached, state);
        match forked {
            Ok(sequences) => {
                for (mut sibling, sequence) in siblings.into_iter().zip(sequences) {
                    let (_, state) = take_tokens(&shared, &mut sibling, &[], logits, first);
                    self.go_on(sibling, sequence, cached, state);
                }
            }
            // A block has too many owners: the siblings go on alone.
            Err(_) => siblings.drain(..).for_each(|sibling| shared.queue.add(sibling)),
        }
        Ok(())
    }

    /// Keeps a sample that goes on, and ends the others.
    fn go_on(&mut self, sample: Sample, sequence: CachedSequence, cached: usize, state: State) {
        if state == State::GoesOn {
            self.running.push(Running { sample, sequence, cached });
            return;
        }
        let Sample { job, number, tokens, hashed, .. } = sample;
        let is_end = state == State::Ended;
        self.shared.metrics.count_end(if is_end { "stop" } else { "length" });
        self.shared.metrics.latency.observe(job.start.elapsed().as_secs_f64());
        job.send(Event::Finished { sample: number, is_end });
        if number == 0 {
            let salt = job.parameters.salt.as_deref();
            self.shared.conversations.keep(salt, tokens, hashed);
        }
    }
}

impl Shared {
    /// Runs a call of the cache, and counts its time.
    fn timed<R>(&self, call: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = call();
        self.metrics.count_cache(start.elapsed());
        result
    }
}

/// Takes the next tokens of a sample, as long as they are the drafts, and sends them. Returns the number of accepted
/// drafts.
fn take_tokens(
    shared: &Shared,
    sample: &mut Sample,
    drafts: &[u32],
    logits: &Logits,
    first: usize,
) -> (usize, State) {
    let job = sample.job.clone();
    let sampler = job.sampler(sample.number);
    for index in 0..=drafts.len() {
        let token = sampler.token(logits.of(first + index), sample.tokens.len());
        if sample.number == 0 && sample.tokens.len() == job.prompt_tokens {
            shared.metrics.first_token.observe(job.start.elapsed().as_secs_f64());
        }
        sample.tokens.push(token);
        shared.metrics.generation_tokens.inc();
        if job.parameters.end == Some(token) {
            return (index, State::Ended);
        }
        job.send(Event::Token { sample: sample.number, token });
        if sample.missing() == 0 {
            return (index, State::Full);
        }
        if drafts.get(index) != Some(&token) {
            return (index, State::GoesOn);
        }
    }
    unreachable!("the token after the last draft is no draft")
}
