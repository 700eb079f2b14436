//! `Workload`: random requests that share prefixes, blocks, adapters and conversations.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::request::Request;
use crate::weights::Weights;

/// Longest prompt of a workload, in tokens.
pub const LONGEST_PROMPT: usize = 330;
/// Most tokens that a request of a workload generates.
pub const MOST_GENERATED: usize = 40;

/// A source of random requests.
pub struct Workload<'a> {
    weights: &'a Weights,
    random: ChaCha8Rng,
    /// Runs of 16 tokens. Prompts that put them in different orders share blocks' tokens, but not blocks.
    segments: Vec<Vec<u32>>,
    system: Vec<u32>,
    made: Vec<Arc<Request>>,
}

impl<'a> Workload<'a> {
    /// Creates a source of requests for a model.
    pub fn new(weights: &'a Weights, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let segments = (0..3).map(|_| tokens(&mut random, weights, 16)).collect();
        let system = tokens(&mut random, weights, 70);
        Self { weights, random, segments, system, made: Vec::new() }
    }

    /// Returns `count` requests.
    pub fn take(&mut self, count: usize) -> Vec<Arc<Request>> {
        (0..count).map(|_| self.request()).collect()
    }

    /// Returns a random prompt of some length.
    pub fn prompt(&mut self, len: usize) -> Vec<u32> {
        tokens(&mut self.random, self.weights, len)
    }

    fn request(&mut self) -> Arc<Request> {
        let mut prompt = self.shared_prompt();
        prompt.truncate(LONGEST_PROMPT);
        let random = &mut self.random;
        let count = random.random_range(1..=MOST_GENERATED);
        let samples = if random.random_ratio(1, 5) { random.random_range(2..=4) } else { 1 };
        let adapter = if random.random_ratio(1, 4) { random.random_range(1..=2) } else { 0 };
        let (seed, temperature) = match random.random_ratio(1, 2) {
            true => (random.random(), 0.7),
            false => (0, 0.0),
        };
        let request = Request::new(prompt, count).samples(samples, seed, temperature);
        let request = Arc::new(request.adapter(adapter));
        self.made.push(request.clone());
        request
    }

    fn shared_prompt(&mut self) -> Vec<u32> {
        let random = &mut self.random;
        let tail = random.random_range(1..40);
        match random.random_range(0..6) {
            0 => tokens(random, self.weights, tail),
            1 | 2 => {
                let tail = tokens(random, self.weights, tail);
                self.system.iter().copied().chain(tail).collect()
            }
            3 if !self.made.is_empty() => {
                let made = self.made[random.random_range(0..self.made.len())].clone();
                let tail = tokens(random, self.weights, tail);
                let mut prompt = made.conversation(self.weights);
                prompt.truncate(LONGEST_PROMPT - tail.len());
                prompt.into_iter().chain(tail).collect()
            }
            4 => {
                let period = tokens(random, self.weights, tail.min(9));
                period.iter().copied().cycle().take(80 + tail).collect()
            }
            _ => {
                let count = random.random_range(1..12);
                let pick = |_| self.segments[random.random_range(0..self.segments.len())].clone();
                let mut prompt: Vec<u32> = (0..count).flat_map(pick).collect();
                prompt.extend(tokens(&mut self.random, self.weights, 3));
                prompt
            }
        }
    }
}

fn tokens(random: &mut ChaCha8Rng, weights: &Weights, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.random_range(0..weights.dims.vocab as u32)).collect()
}
