//! `Job`: a request, shared by its samples, and the events that its client gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use paged_kv::{PagedKvError, Prompt};
use smollm::sampling::mix;
use tokio::sync::mpsc;

use crate::sampling::Sampler;

/// An event of a request.
#[derive(Debug)]
pub enum Event {
    /// The request has its first blocks.
    Admitted {
        /// Tokens of the prompt that were cached.
        cached: usize,
    },
    /// The next token of a sample.
    Token {
        /// The number of the sample.
        sample: usize,
        /// The token.
        token: u32,
    },
    /// A sample has ended.
    Finished {
        /// The number of the sample.
        sample: usize,
        /// True if the model ended it, false if it has all the tokens that it may have.
        is_end: bool,
    },
    /// The request cannot be served.
    Refused {
        /// The reason.
        refusal: PagedKvError,
    },
}

/// The parameters of a request.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Most tokens of each sample.
    pub max_tokens: usize,
    /// Number of samples.
    pub samples: usize,
    /// The seed of the samples' noise.
    pub seed: u64,
    /// The scale of the noise; 0 takes the likeliest token.
    pub temperature: f32,
    /// The share of the probability to take tokens from.
    pub top_p: f32,
    /// Requests of a lower number are served first.
    pub priority: i64,
    /// The token that ends a sample.
    pub end: Option<u32>,
    /// The salt of the hashes: only requests of one salt share blocks.
    pub salt: Option<String>,
}

/// A request.
pub struct Job {
    /// The number of the request: its place among those of one priority.
    pub number: u64,
    /// Its parameters.
    pub parameters: Parameters,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The time at which it came.
    pub start: Instant,
    events: mpsc::UnboundedSender<Event>,
    /// For each sample, whether its client needs no more tokens.
    stopped: Box<[AtomicBool]>,
}

/// One sample of a request, with its tokens. It outlives its sequence, which may be preempted.
pub struct Sample {
    /// The request.
    pub job: Arc<Job>,
    /// The number of the sample.
    pub number: usize,
    /// The prompt, then the generated tokens.
    pub tokens: Vec<u32>,
    /// The first of these tokens, hashed for an admission. The next admission hashes the others only.
    pub hashed: Prompt,
    /// Samples that are still to be forked from this one.
    pub forks: usize,
}

impl Job {
    /// Creates a request and the receiver of its events.
    pub fn new(
        number: u64,
        parameters: Parameters,
        prompt_tokens: usize,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let stopped = (0..parameters.samples).map(|_| AtomicBool::new(false)).collect();
        let start = Instant::now();
        (Arc::new(Self { number, parameters, prompt_tokens, start, events, stopped }), receiver)
    }

    /// Sends an event. A client that has left needs none.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Returns true if the client has left.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Ends a sample early, at the end of its step.
    pub fn stop(&self, sample: usize) {
        // Relaxed: the flag hands nothing over.
        self.stopped[sample].store(true, Ordering::Relaxed);
    }

    /// Returns how a sample takes its tokens.
    pub fn sampler(&self, sample: usize) -> Sampler {
        let Parameters { seed, temperature, top_p, .. } = self.parameters;
        Sampler { seed: mix(seed, sample as u64), temperature, top_p }
    }
}

impl Sample {
    /// Returns the first sample of a request, from which the others are forked.
    pub fn first(job: Arc<Job>, tokens: Vec<u32>, hashed: Prompt) -> Self {
        Self { forks: job.parameters.samples - 1, job, number: 0, tokens, hashed }
    }

    /// Returns another sample with the same tokens so far.
    pub fn fork(&self, number: usize) -> Self {
        let (job, tokens) = (self.job.clone(), self.tokens.clone());
        Self { job, number, tokens, hashed: self.hashed.clone(), forks: 0 }
    }

    /// Returns the number of tokens that may still be generated.
    pub fn missing(&self) -> usize {
        self.job.prompt_tokens + self.job.parameters.max_tokens - self.tokens.len()
    }

    /// Returns true if no token is needed: the client has left, or has found a stop text.
    pub fn is_unwanted(&self) -> bool {
        // A sample that has forks to make goes on for them.
        let is_stopped = || self.job.stopped[self.number].load(Ordering::Relaxed);
        self.job.is_abandoned() || self.forks == 0 && is_stopped()
    }
}
