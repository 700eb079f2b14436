//! `Request`: a prompt and its samples, and the tokens and digests that each sample must have.

use std::sync::{Arc, OnceLock};

use paged_kv::ExtraKeys;

use crate::reference::{self, Output};
use crate::sampling::{Sampling, mix};
use crate::weights::Weights;

/// A request for one or more samples of one prompt.
#[derive(Debug)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The adapter; 0 for none.
    pub adapter: u32,
    /// An update of the weights, which is no part of the hashes; 0 for none.
    pub update: u32,
    /// Number of samples.
    pub samples: usize,
    /// Tokens of each sample.
    pub count: usize,
    /// The key of the samples' noise.
    pub seed: u64,
    /// The scale of the samples' noise.
    pub temperature: f32,
    expected: Vec<OnceLock<Vec<Output>>>,
}

impl Request {
    /// Creates a request of one sample without adapter and without noise.
    pub fn new(prompt: Vec<u32>, count: usize) -> Self {
        let expected = vec![OnceLock::new()];
        Self {
            prompt,
            adapter: 0,
            update: 0,
            samples: 1,
            count,
            seed: 0,
            temperature: 0.0,
            expected,
        }
    }

    /// Sets the number of samples, and their noise.
    pub fn samples(self, samples: usize, seed: u64, temperature: f32) -> Self {
        let expected = (0..samples).map(|_| OnceLock::new()).collect();
        Self { samples, seed, temperature, expected, ..self }
    }

    /// Sets the adapter.
    pub fn adapter(self, adapter: u32) -> Self {
        Self { adapter, ..self }
    }

    /// Sets the update of the weights.
    pub fn update(self, update: u32) -> Self {
        Self { update, ..self }
    }

    /// Returns the variant of the weights: all that keys and values depend on besides the tokens.
    pub fn variant(&self) -> u32 {
        self.adapter + 1000 * self.update
    }

    /// Returns how a sample takes its tokens.
    pub fn sampling(&self, sample: usize) -> Sampling {
        Sampling { seed: mix(self.seed, sample as u64), temperature: self.temperature }
    }

    /// Returns the keys, besides the tokens, that the blocks of the request depend on.
    pub fn extra_keys(&self) -> ExtraKeys {
        match self.adapter {
            0 => ExtraKeys::default(),
            // Odd adapters go by name, even ones by salt: each has to separate the hashes.
            odd if odd % 2 == 1 => {
                ExtraKeys::default().lora(format!("adapter {odd}"), format!("/{odd}"))
            }
            even => ExtraKeys::default().salt(format!("tenant {even}")),
        }
    }

    /// Returns the tokens and digests of a sample that runs alone and without blocks.
    pub fn expected(&self, weights: &Weights, sample: usize) -> &[Output] {
        self.expected[sample].get_or_init(|| {
            let sampling = self.sampling(sample);
            reference::generate(weights, self.variant(), &self.prompt, sampling, self.count)
        })
    }

    /// Returns the prompt and the expected tokens of the first sample: a conversation to go on with.
    pub fn conversation(&self, weights: &Weights) -> Vec<u32> {
        let answer = self.expected(weights, 0).iter().map(|output| output.token);
        self.prompt.iter().copied().chain(answer).collect()
    }
}

/// One sample on its way: its tokens so far, and the digests of those that were generated.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The request.
    pub request: Arc<Request>,
    /// The number of the sample.
    pub number: usize,
    /// The prompt, then the generated tokens.
    pub tokens: Vec<u32>,
    /// The digests of the generated tokens' logits.
    pub digests: Vec<u64>,
    /// Samples that are still to be forked from this one.
    pub forks: usize,
    /// True if some of its logits were NaN: a slot was read that was never written.
    pub has_nan: bool,
    /// True if a copy on write was made for it.
    pub copied: bool,
}

impl Sample {
    /// Returns the first sample of a request, from which the others are forked.
    pub fn first(request: &Arc<Request>) -> Self {
        Self {
            request: request.clone(),
            number: 0,
            tokens: request.prompt.clone(),
            digests: Vec::new(),
            forks: request.samples - 1,
            has_nan: false,
            copied: false,
        }
    }

    /// Returns the number of tokens that are still to be generated.
    pub fn missing(&self) -> usize {
        self.request.count - self.digests.len()
    }
}
