//! Admission: a waiting sample gets its cached blocks. Steps take the others.

use paged_kv::{AdmitOptions, PagedKvError, Prompt, Result};

use super::hold::gone;
use super::{Engine, Hold};
use crate::request::Sample;

impl<H: Hold> Engine<'_, H> {
    /// Admits waiting samples in their order. Unless the engine is eager, there has to be room for all of their
    /// tokens.
    pub(super) fn admit(&mut self) -> Result<()> {
        while self.running.len() < self.options.most_running
            && let Some(sample) = self.waiting.pop_front()
        {
            let prompts = self.prompts(&sample);
            let cached = self.cached(&prompts);
            let has_room =
                self.options.is_eager || self.running.is_empty() || self.has_room(&sample, cached);
            if !has_room || !self.admit_sample(&sample, &prompts, cached)? {
                self.waiting.push_front(sample);
                break;
            }
        }
        Ok(())
    }

    fn prompts(&self, sample: &Sample) -> Vec<Prompt> {
        let keys = sample.request.extra_keys();
        let groups = self.server.groups.iter();
        groups.map(|group| group.cache.prompt_with(&sample.tokens, &keys)).collect()
    }

    /// Returns the tokens that are cached in all groups.
    fn cached(&self, prompts: &[Prompt]) -> usize {
        let groups = self.server.groups.iter().zip(prompts);
        let cached = groups.map(|(group, prompt)| group.cache.prefix().probe(prompt));
        cached.min().expect("a model has layers")
    }

    fn has_room(&self, sample: &Sample, cached: usize) -> bool {
        self.server.groups.iter().all(|group| {
            let block_size = group.cache.block_size();
            let new_tokens = match group.window {
                None => sample.tokens.len() + 1 - cached,
                Some(window) => window + self.options.chunk,
            };
            let promised: usize =
                self.running.values().map(|running| running.blocks_ahead(block_size)).sum();
            let needed = new_tokens.div_ceil(block_size) + sample.forks + 1 + promised;
            needed <= group.cache.free_block_count()
        })
    }

    /// Admits a sample in all groups. Returns false if the groups' hits differ, because another thread
    /// took blocks since they were counted.
    fn admit_sample(&mut self, sample: &Sample, prompts: &[Prompt], cached: usize) -> Result<bool> {
        let options = AdmitOptions::default().first_chunk(0).max_cached_tokens(cached);
        let mut holds = Vec::new();
        for (group, prompt) in self.server.groups.iter().zip(prompts) {
            let refusal = match H::admit(&mut self.ids, &group.cache, prompt, &options) {
                Ok((hold, admission)) => {
                    holds.push(hold);
                    if admission.cached_tokens == cached {
                        continue;
                    }
                    None
                }
                Err(refusal) => Some(refusal),
            };
            self.end(holds);
            return match refusal {
                Some(PagedKvError::OutOfMemory { .. }) | None => Ok(false),
                Some(refusal) if gone(&refusal).is_some() => Ok(false),
                Some(refusal) => Err(refusal),
            };
        }
        let prompt = sample.request.prompt.len();
        self.counts.hits += cached as u64;
        self.counts.hits_generated += cached.saturating_sub(prompt) as u64;
        self.start(sample.clone(), holds, cached);
        Ok(true)
    }
}
