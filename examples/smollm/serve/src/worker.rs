//! `Worker`: one of several schedulers that share a cache, a model and a queue. Each works in steps.
//!
//! ```text
//!   queue ── admit ──> running ── plan ──> rows ── grow, export, forward, accept ──> running, or ended
//!     ^                                     │
//!     └──────────── preempt <── no room ────┘
//! ```
//!
//! A step has a row for each sample that generates, with its last token and drafts, and rows with chunks of
//! prompts. A worker holds its sequences by their handles, so no other worker can touch them. The cache alone is
//! shared: its blocks, and the prefixes that are found in it.

mod admit;
mod export;
mod finish;
mod plan;

use std::sync::Arc;
use std::time::{Duration, Instant};

use paged_kv::{CachedSequence, PagedKvError, Result, StepBuffers};

use crate::job::{Event, Sample};
use crate::picture::Shown;
use crate::shared::Shared;

/// The longest time for which a worker waits without a look at the queue.
const PATIENCE: Duration = Duration::from_millis(20);

/// A sample that has a sequence in the cache.
struct Running {
    sample: Sample,
    sequence: CachedSequence,
    /// Tokens of its prompt that were cached.
    cached: usize,
}

/// A scheduler.
pub struct Worker {
    shared: Arc<Shared>,
    number: usize,
    /// In the order of admission.
    running: Vec<Running>,
    buffers: StepBuffers,
}

impl Worker {
    /// Creates a worker without samples.
    pub fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self { shared, number, running: Vec::new(), buffers: StepBuffers::default() }
    }

    /// Serves until the server stops. A step computes for long, so the task has a thread of its own.
    pub async fn run(mut self) {
        loop {
            let has_worked = self.turn().unwrap_or_else(|refusal| {
                self.refuse_all(&refusal);
                true
            });
            if has_worked {
                tokio::task::yield_now().await;
            } else if self.shared.is_stopped() && self.shared.queue.is_empty() {
                return;
            } else {
                self.shared.queue.changed(PATIENCE).await;
            }
        }
    }

    /// Admits samples and runs a step. Returns false if nothing could be done.
    fn turn(&mut self) -> Result<bool> {
        let before = self.running.len();
        self.running.retain(|running| !running.sample.is_unwanted());
        for _ in self.running.len()..before {
            self.shared.metrics.count_end("abort");
        }
        self.admit()?;
        let has_rows = !self.running.is_empty();
        if has_rows {
            self.step()?;
        }
        self.note();
        Ok(has_rows)
    }

    /// Runs a step of all rows for which there are blocks.
    fn step(&mut self) -> Result<()> {
        let (start, metrics) = (Instant::now(), &self.shared.metrics);
        let (mut rows, mut planned) = plan::plan(&mut self.running, &self.shared.config);
        let cache_start = Instant::now();
        let mut step = self.shared.cache.step(std::mem::take(&mut self.buffers));
        let grown = step.grow(&mut rows)?;
        let refused = rows.drain(grown.grown_rows..).zip(planned.drain(grown.grown_rows..));
        let refused = refused.map(|((sequence, _), planned)| planned.back(sequence));
        self.running.extend(refused);
        if grown.missing_blocks > 0 {
            preempt(&self.shared, &mut self.running);
        }
        if rows.is_empty() {
            self.buffers = step.complete().buffers;
            return Ok(());
        }
        let batch = export::batch(&step, &rows, &planned, self.shared.config.block_size)?;
        metrics.count_cache(cache_start.elapsed());
        metrics.copies.inc_by(batch.groups[0].copies.len() as u64);
        if self.shared.picture.is_watched() {
            self.shared.picture.begin_step(self.number, &batch.groups[0]);
        }
        let logits = {
            let mut open = [self.shared.kv.open(&batch.groups[0])];
            self.shared.loaded.model.forward(&batch, &mut open)
        };
        let mut first = 0;
        for (number, ((sequence, _), planned)) in rows.into_iter().zip(planned).enumerate() {
            let wanted = planned.wanted();
            self.finish_row(&mut step, number, sequence, planned, &logits, first)?;
            first += wanted;
        }
        let cache_start = Instant::now();
        self.buffers = step.complete().buffers;
        self.shared.metrics.count_cache(cache_start.elapsed());
        self.shared.metrics.steps.inc();
        self.shared.metrics.step_seconds.inc_by(start.elapsed().as_secs_f64());
        // Samples may have ended, or were preempted: another worker may admit now.
        self.shared.queue.wake();
        Ok(())
    }

    /// Notes the figures that other workers and the picture read.
    fn note(&self) {
        self.promise();
        let picture = &self.shared.picture;
        picture.count_running(self.number, self.running.len());
        self.shared.metrics.running.set(picture.num_running() as i64);
        self.shared.metrics.waiting.set(self.shared.queue.len() as i64);
        if picture.is_watched() {
            picture.end_step(self.number, self.running.iter().map(Running::shown).collect());
        }
    }

    /// Ends all samples after a fault of the cache.
    fn refuse_all(&mut self, refusal: &PagedKvError) {
        eprintln!("worker {}: {refusal}", self.number);
        for running in self.running.drain(..) {
            running.sample.job.send(Event::Refused { refusal: refusal.clone() });
        }
    }
}

/// Takes its blocks from the youngest sample of the lowest priority. It waits again, and finds most of its tokens
/// cached when it is admitted.
fn preempt(shared: &Shared, running: &mut Vec<Running>) {
    let age = |(_, running): &(usize, &Running)| {
        let job = &running.sample.job;
        (job.parameters.priority, job.number, running.sample.number)
    };
    let holders = running.iter().enumerate().filter(|(_, r)| r.sequence.num_blocks() > 0);
    if let Some((youngest, _)) = holders.max_by_key(age) {
        let Running { sample, sequence, .. } = running.remove(youngest);
        drop(sequence);
        shared.metrics.preemptions.inc();
        shared.queue.add(sample);
    }
}

impl Running {
    fn shown(&self) -> Shown {
        let (sample, sequence) = (&self.sample, &self.sequence);
        Shown {
            request: sample.job.number,
            sample: sample.number,
            priority: sample.job.parameters.priority,
            prompt: sample.job.prompt_tokens,
            tokens: sample.tokens.len(),
            computed: sequence.num_tokens(),
            cached: self.cached,
            table: sequence.block_ids().iter().map(|id| id.0).collect(),
        }
    }
}
