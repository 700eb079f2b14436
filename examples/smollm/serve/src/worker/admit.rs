//! Admission: a waiting sample gets its cached blocks, if there is room for all its tokens. Steps take the others.

use std::sync::atomic::Ordering;
use std::time::Instant;

use paged_kv::{AdmitOptions, PagedKvError, Result};

use super::{Running, Worker};
use crate::job::{Event, Sample};
use crate::shared::Shared;

/// Tokens for whose blocks an admission leaves room, for each running sample. With fewer, more samples run and more are
/// preempted.
const GROWTH: usize = 64;

impl Worker {
    /// Admits samples from the queue as long as there is room.
    pub(super) fn admit(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.running.len() < self.shared.config.most_running {
            self.promise();
            let running = self.shared.picture.num_running_without(self.number) + self.running.len();
            let shared = &self.shared;
            let Some(sample) = shared.queue.take_if(|sample| self.claim_room(sample, running))
            else {
                break;
            };
            if !self.admit_sample(sample, running)? {
                break;
            }
        }
        self.shared.metrics.count_cache(start.elapsed());
        Ok(())
    }

    /// Notes the blocks that the samples of this worker will take soon.
    pub(super) fn promise(&self) {
        let of_sample = |running: &Running| {
            let Running { sample, sequence, .. } = running;
            let known = sample.tokens.len().div_ceil(sequence.block_size());
            known.saturating_sub(sequence.num_blocks()) + growth(&self.shared, sample)
        };
        let promised = self.running.iter().map(of_sample).sum();
        self.shared.promised[self.number].store(promised, Ordering::Relaxed);
    }

    /// Returns true if the blocks of all known tokens of a sample are free beside those that are promised, and some for
    /// its growth. This worker promises them under the lock of the queue, for which the other workers wait. A sample
    /// alone is admitted in any case.
    fn claim_room(&self, sample: &mut Sample, running: usize) -> bool {
        let shared = &self.shared;
        let new_tokens = &sample.tokens[sample.hashed.num_tokens()..];
        sample.hashed.extend(new_tokens).expect("the cache hashes its tokens");
        let required = shared.cache.required_blocks(&sample.hashed, &AdmitOptions::default());
        // An admission that is refused says why.
        let needed = required.unwrap_or(0) + growth(shared, sample);
        let has_room = needed + shared.promised_blocks() <= shared.cache.free_block_count();
        if has_room || running == 0 {
            shared.promised[self.number].fetch_add(needed, Ordering::Relaxed);
        }
        has_room || running == 0
    }

    /// Admits one sample. Returns false if another worker took the room.
    fn admit_sample(&mut self, sample: Sample, running: usize) -> Result<bool> {
        // Another worker may have taken the room since it was found.
        let reserve = if self.shared.config.is_eager { 0 } else { running };
        let options = AdmitOptions::default().first_chunk(0).leave_free(reserve);
        match self.shared.cache.admit_sequence(&sample.hashed, &options) {
            Ok((sequence, admission)) => {
                let cached = admission.cached_tokens;
                // A sample that comes back finds its own tokens too.
                sample.job.send(Event::Admitted { cached: cached.min(sample.job.prompt_tokens) });
                self.running.push(Running { sample, sequence, cached });
                Ok(true)
            }
            Err(PagedKvError::OutOfMemory { .. }) => {
                self.shared.queue.add(sample);
                Ok(false)
            }
            Err(refusal) => {
                sample.job.send(Event::Refused { refusal });
                Ok(true)
            }
        }
    }
}

/// Returns the blocks that are kept for the next tokens of a sample and of its forks.
pub(super) fn growth(shared: &Shared, sample: &Sample) -> usize {
    let next_tokens = match shared.config.is_eager {
        true => 1,
        false => sample.missing().min(GROWTH),
    };
    // Each fork copies the last block of the prompt, if that is partly filled.
    let copies = sample.forks + usize::from(sample.number > 0);
    (1 + sample.forks) * next_tokens.div_ceil(shared.config.block_size) + copies
}
