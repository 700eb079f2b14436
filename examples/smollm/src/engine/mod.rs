//! `Engine`: a scheduler that serves samples in steps: continuous batching, chunked prefill beside decode,
//! drafts, forks, preemption, cancellation, and steps in flight.
//!
//! ```text
//!   waiting ── admit ──> running ── build ──> flight ── run, accept ──> running, or done
//!      ^                    │                   │ (two of them at a time)
//!      └──── preempt ───────┘                   └── its steps complete now, or one turn later
//! ```
//!
//! A flight is built (blocks are taken and exported) before an earlier one is run, so the earlier one's steps
//! are open at that time. A sample that is preempted or cancelled leaves at once, also while a flight has its
//! row; the kernels of that flight still write its blocks.

mod admit;
mod build;
mod chaos;
mod counts;
mod export;
mod finish;
pub mod hold;
mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use paged_kv::{LeaseRow, Result, Step, StepBuffers};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use self::chaos::Chaos;
pub use self::counts::Counts;
pub use self::hold::{ByHandle, ById, Hold, Ids};
use crate::batch::Batch;
use crate::request::{Request, Sample};
use crate::server::Server;

/// The parameters of an engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most tokens of a prompt that a row computes in one step.
    pub chunk: usize,
    /// Most tokens of a step.
    pub budget: usize,
    /// Most samples that run at the same time.
    pub most_running: usize,
    /// Most drafts of a row; 0 for none.
    pub drafts: usize,
    /// Most flights.
    pub depth: usize,
    /// Admits samples also if there is no room for all of their tokens; some will give up their blocks.
    pub is_eager: bool,
    /// Random events.
    pub chaos: Chaos,
    /// A fault to make on purpose, which the comparison must find.
    pub fault: Option<Fault>,
    /// The seed of the random events.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk: 64,
            budget: 128,
            most_running: 8,
            drafts: 0,
            depth: 1,
            is_eager: false,
            chaos: Chaos::default(),
            fault: None,
            seed: 0,
        }
    }
}

/// A fault for a negative control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Copies on write are left out.
    NoCopies,
    /// Attention finds blocks 1 and 2 of each table in the other's place.
    SwappedBlocks,
}

/// A sample that has blocks.
struct Running<H> {
    sample: Sample,
    /// Its sequence in each group.
    holds: Vec<H>,
    /// Tokens with slots, those of flights included.
    num_tokens: usize,
    /// Flights that have a row of it.
    in_flight: usize,
}

impl<H> Running<H> {
    /// Returns the blocks that its known tokens will take from now on.
    fn blocks_ahead(&self, block_size: usize) -> usize {
        let missing = self.sample.tokens.len().saturating_sub(self.num_tokens);
        missing.div_ceil(block_size)
    }
}

/// A row of a flight.
struct FlightRow {
    /// The key of the sample in `Engine::running`, if it is still there.
    key: u64,
    /// Position of the first token.
    start: usize,
    tokens: Vec<u32>,
    /// Wanted logits: those of the last known token and of the drafts.
    wanted: usize,
    /// True if the tokens were committed before the flight ran.
    is_committed: bool,
    /// Names the sequence of each group after its end.
    names: Vec<Option<LeaseRow>>,
}

/// Kernels that are to run, and the open steps that hold their blocks.
struct Flight {
    steps: Vec<Step>,
    rows: Vec<FlightRow>,
    batch: Batch,
}

/// Serves samples with the blocks of a server that it may share with other threads.
pub struct Engine<'a, H> {
    server: &'a Server,
    options: Options,
    random: ChaCha8Rng,
    ids: Ids,
    waiting: VecDeque<Sample>,
    /// By age: a preempted sample gets a new key.
    running: BTreeMap<u64, Running<H>>,
    next_key: u64,
    flights: VecDeque<Flight>,
    /// Steps whose kernels have run, and that end one turn later.
    lingering: Vec<Step>,
    buffers: Vec<StepBuffers>,
    finished: Vec<Sample>,
    /// True while rows lack blocks: a sample that is admitted now would take its old blocks back.
    is_short: bool,
    counts: Counts,
}

impl<'a, H: Hold> Engine<'a, H> {
    /// Creates an engine without samples.
    pub fn new(server: &'a Server, ids: Ids, options: Options) -> Self {
        Self {
            server,
            random: ChaCha8Rng::seed_from_u64(options.seed),
            options,
            ids,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_key: 0,
            flights: VecDeque::new(),
            lingering: Vec::new(),
            buffers: Vec::new(),
            finished: Vec::new(),
            is_short: false,
            counts: Counts::default(),
        }
    }

    /// Adds a request.
    pub fn add(&mut self, request: &Arc<Request>) {
        self.waiting.push_back(Sample::first(request));
    }

    /// Returns the number of samples that are not finished; forks that are still to be made do not count.
    pub fn unfinished(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Returns the finished and cancelled samples since the last call.
    pub fn take_finished(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.finished)
    }

    /// Returns how often each thing happened.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Admits samples, builds a flight, and runs one if there are enough. Returns false if no sample could go on.
    pub fn turn(&mut self) -> Result<bool> {
        self.disturb();
        if !self.is_short || self.running.is_empty() {
            self.admit()?;
        }
        let built = self.build()?;
        let is_built = built.is_some();
        if let Some(flight) = built {
            self.counts.overlapping += u64::from(!self.flights.is_empty());
            self.flights.push_back(flight);
            self.is_short = false;
        }
        self.complete_lingering();
        let runs = self.flights.len() >= self.options.depth.max(1) || !is_built;
        if runs && !self.flights.is_empty() {
            let flight = self.next_flight();
            self.run(flight)?;
            return Ok(true);
        }
        Ok(is_built)
    }

    /// Serves all samples to their ends.
    pub fn run_all(&mut self) -> Result<()> {
        while self.unfinished() > 0 || !self.flights.is_empty() {
            if !self.turn()? {
                // Other threads have the blocks.
                std::thread::yield_now();
            }
        }
        self.complete_lingering();
        Ok(())
    }

    /// Takes the oldest flight, or the second if the two have no sample in common.
    fn next_flight(&mut self) -> Flight {
        let keys = |flight: &Flight| flight.rows.iter().map(|row| row.key).collect::<Vec<_>>();
        let is_free = self.flights.len() > 1 && {
            let first = keys(&self.flights[0]);
            keys(&self.flights[1]).iter().all(|key| !first.contains(key))
        };
        let index = usize::from(is_free && self.random.random_ratio(1, 2));
        self.counts.reordered += index as u64;
        self.flights.remove(index).expect("there is a flight")
    }

    fn complete_lingering(&mut self) {
        for step in std::mem::take(&mut self.lingering) {
            self.complete(step);
        }
    }

    fn complete(&mut self, step: Step) {
        let completed = step.complete();
        self.counts.published += completed.published as u64;
        self.buffers.push(completed.buffers);
    }

    fn open_steps(&mut self) -> Vec<Step> {
        let groups = self.server.groups.iter();
        groups.map(|group| group.cache.step(self.buffers.pop().unwrap_or_default())).collect()
    }

    fn start(&mut self, sample: Sample, holds: Vec<H>, num_tokens: usize) {
        self.running.insert(self.next_key, Running { sample, holds, num_tokens, in_flight: 0 });
        self.next_key += 1;
    }

    /// Takes a sample's blocks from it.
    fn stop(&mut self, key: u64) -> Sample {
        let running = self.running.remove(&key).expect("it runs");
        self.counts.left_in_flight += u64::from(running.in_flight > 0);
        self.end(running.holds);
        running.sample
    }

    fn end(&mut self, holds: Vec<H>) {
        for (hold, group) in holds.into_iter().zip(&self.server.groups) {
            hold.end(&mut self.ids, &group.cache);
        }
    }

    /// Takes a sample's blocks from it. It is admitted again later.
    fn preempt(&mut self, key: u64) {
        self.counts.preemptions += u64::from(self.running[&key].num_tokens > 0);
        let sample = self.stop(key);
        match sample.missing() {
            0 => self.finished.push(sample),
            _ => self.waiting.push_front(sample),
        }
    }

    /// Preempts a sample that another thread evicted.
    fn notice_eviction(&mut self, key: u64) {
        self.counts.evicted += 1;
        self.preempt(key);
    }
}
