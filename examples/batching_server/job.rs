//! `Job`: one request and its samples, also after its client has left.

use std::sync::{Arc, Mutex, PoisonError};

use paged_kv::{PagedKvError, Prompt, SeqId};
use tokio::sync::mpsc;

use super::Shared;

/// An event that a worker sends to the client.
#[derive(Debug)]
pub enum Event {
    /// The next token of a sample.
    Token { sample: u32, token: u32 },
    /// A sample has all its tokens.
    Finished { sample: u32 },
    /// The request cannot be served.
    Refused { refusal: PagedKvError },
}

/// A request, shared by its samples.
pub struct Job {
    pub prompt: Box<[u32]>,
    pub max_tokens: usize,
    pub samples: u32,
    pub events: mpsc::UnboundedSender<Event>,
    /// The sequences of its samples that are in the cache.
    sequences: Mutex<Vec<SeqId>>,
}

/// One sample of a request, with its tokens. It outlives its sequence, which may be evicted.
pub struct Sample {
    pub job: Arc<Job>,
    pub index: u32,
    /// The prompt and the generated tokens.
    pub tokens: Vec<u32>,
    /// The first of these tokens, hashed for an admission. The next admission hashes the others only.
    pub hashed: Option<Prompt>,
    /// Not forked yet: when the prompt is computed, the other samples are forked from this one.
    pub is_whole_job: bool,
}

impl Job {
    pub fn new(
        prompt: Vec<u32>,
        max_tokens: usize,
        samples: u32,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (prompt, sequences) = (prompt.into(), Mutex::default());
        (Arc::new(Self { prompt, max_tokens, samples, events, sequences }), receiver)
    }

    /// Notes that a sequence of this job is in the cache.
    pub fn came_in(&self, id: SeqId) {
        self.lock().push(id);
    }

    /// Notes that a sequence of this job is no longer in the cache.
    pub fn went_out(&self, id: SeqId) {
        self.lock().retain(|&other| other != id);
    }

    /// Frees the sequences of a request whose client has left: immediately, or at the end of their current
    /// step.
    pub fn abandon<M>(&self, shared: &Shared<M>) {
        for id in std::mem::take(&mut *self.lock()) {
            // The sequence may just have ended or been evicted.
            let _ = shared.cache.free_when_released(id);
        }
    }

    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SeqId>> {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    pub fn first(job: Arc<Job>) -> Self {
        let tokens = job.prompt.to_vec();
        Self { is_whole_job: job.samples > 1, job, index: 0, tokens, hashed: None }
    }

    /// Creates another sample with the same tokens so far.
    pub fn fork(&self, index: u32) -> Self {
        let (job, tokens) = (Arc::clone(&self.job), self.tokens.clone());
        Self { job, index, tokens, hashed: self.hashed.clone(), is_whole_job: false }
    }

    pub fn is_finished(&self) -> bool {
        self.tokens.len() == self.job.prompt.len() + self.job.max_tokens
    }
}
