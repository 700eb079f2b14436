//! `Overlap`: serves a trace by its timestamps, with requests that hold their blocks while they are computed.
//!
//! A request arrives at its time. It is admitted in turn, as soon as there is room for its prompt and its whole
//! output, and holds these blocks for its prefill (so long for each token that did not hit) and its decode (so long for each
//! token of the output). Its prompt can be hit from its admission on. Time is simulated: nothing waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::{Result, bail};
use paged_kv::{AdmitOptions, CachedSequence, PagedKvCache};

use super::clairvoyant::Clairvoyant;
use crate::serve::prompts::{Part, Prompts};
use crate::trace::request::Request;

/// The times of a token, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTimes {
    prefill: u64,
    decode: u64,
}

/// A cache that serves requests by their numbers.
pub trait Served {
    /// Admits a request. Returns false if there is no room.
    fn admit(&mut self, at: usize) -> bool;

    /// Releases the blocks of an admitted request.
    fn release(&mut self, at: usize);
}

/// A cache of blocks, and the requests that run.
pub struct Running<'a> {
    cache: &'a PagedKvCache,
    requests: &'a [Request],
    prompts: Prompts,
    gives_hints: bool,
    live: Vec<Option<CachedSequence>>,
    pub hit_blocks: u64,
}

impl TokenTimes {
    /// Parses the milliseconds of a token at the prefill and at the decode.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parse = |text: &str| {
            let time = text.parse::<f64>().ok().filter(|time| (0.0..1e9).contains(time));
            time.map(|time| (time * 1e3).round() as u64)
        };
        let times = text.split_once(',').and_then(|(prefill, decode)| {
            Some(Self { prefill: parse(prefill)?, decode: parse(decode)? })
        });
        times.ok_or_else(|| "expected two numbers of milliseconds, as 0.05,15".to_owned())
    }
}

impl<'a> Running<'a> {
    pub fn new(
        cache: &'a PagedKvCache,
        requests: &'a [Request],
        prompts: Prompts,
        gives_hints: bool,
    ) -> Self {
        let live = requests.iter().map(|_| None).collect();
        Self { cache, requests, prompts, gives_hints, live, hit_blocks: 0 }
    }

    fn try_admit(&mut self, at: usize) -> paged_kv::Result<()> {
        let request = &self.requests[at];
        let (prompt_tokens, output_tokens) = (request.prompt_tokens(), request.output_tokens());
        let prompt = self.prompts.prompt(self.cache, Part { request, arrival: at, had_tokens: 0 });
        let options = AdmitOptions::default().reserve_whole(prompt_tokens + output_tokens);
        let (mut sequence, admission) = self.cache.admit_sequence(&prompt, &options)?;
        let named = self.prompts.named_blocks(request);
        sequence.commit(named * self.prompts.unit)?;
        let _ = sequence.append(output_tokens)?;
        if self.gives_hints {
            sequence.set_reuse_hint(request.hint());
        }
        self.hit_blocks += (admission.cached_tokens / self.prompts.unit).min(named) as u64;
        self.live[at] = Some(sequence);
        Ok(())
    }
}

impl Served for Running<'_> {
    fn admit(&mut self, at: usize) -> bool {
        self.try_admit(at).is_ok()
    }

    fn release(&mut self, at: usize) {
        self.live[at] = None;
    }
}

/// The hits of a cache, to know the tokens that a prefill computes.
pub trait HitCount {
    fn hit_blocks(&self) -> u64;
}

impl HitCount for Running<'_> {
    fn hit_blocks(&self) -> u64 {
        self.hit_blocks
    }
}

impl HitCount for Clairvoyant<'_> {
    fn hit_blocks(&self) -> u64 {
        self.hit_blocks
    }
}

/// Serves all requests for which `fits` is true, and returns the blocks that hit.
///
/// # Errors
/// The trace has no timestamps, or a request found no room in the empty cache.
pub fn serve(
    mut cache: impl Served + HitCount,
    requests: &[Request],
    block_size: usize,
    times: TokenTimes,
    fits: impl Fn(&Request) -> bool,
) -> Result<u64> {
    let mut running: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut now = 0;
    for (at, request) in requests.iter().enumerate().filter(|(_, request)| fits(request)) {
        let Some(arrival) = request.arrival_us() else { bail!("the trace has no timestamps") };
        now = now.max(arrival);
        let before = cache.hit_blocks();
        loop {
            while let Some(&Reverse((end, ended))) = running.peek()
                && end <= now
            {
                running.pop();
                cache.release(ended);
            }
            if cache.admit(at) {
                break;
            }
            // The next one that ends makes room.
            let Some(&Reverse((end, _))) = running.peek() else {
                bail!("request {at} finds no room in an empty cache");
            };
            now = end;
        }
        let hit_tokens = (cache.hit_blocks() - before) as usize * block_size;
        let computed = request.prompt_tokens().saturating_sub(hit_tokens) as u64;
        let end = now + computed * times.prefill + request.output_tokens() as u64 * times.decode;
        running.push(Reverse((end, at)));
    }
    Ok(cache.hit_blocks())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds_with_fractions() {
        let parsed = TokenTimes::parse("0.02,5");
        assert_eq!(parsed, Ok(TokenTimes { prefill: 20, decode: 5_000 }));
        for text in ["", "1", "1,", "-1,2", "1,2,3", "1,NaN"] {
            assert!(TokenTimes::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
