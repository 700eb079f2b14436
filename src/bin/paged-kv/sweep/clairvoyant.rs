//! `Clairvoyant`: the hits of a cache that knows the trace, and reclaims the block whose next use is the furthest
//! (Belady's `min`).
//!
//! Of a chain the later blocks are used no earlier than the ones before them, and go first. So it keeps beginnings of
//! chains, as hits need them. With one request at a time no order of reclaim hits more. With requests that overlap, the
//! order of the trace stands for that of the uses.

use std::collections::{BinaryHeap, HashMap};

use super::overlap::Served;
use crate::trace::contents::Content;
use crate::trace::request::Request;

/// The next use of a content that is not used again.
const NEVER: u32 = u32::MAX;

/// The blocks of all prompts, as numbers of their contents.
pub struct Chains {
    block_size: usize,
    /// The contents of each request.
    prompts: Vec<Vec<u32>>,
    num_contents: usize,
}

/// A cache of a number of blocks, for the requests of some chains in their order.
pub struct Clairvoyant<'a> {
    chains: &'a Chains,
    requests: &'a [Request],
    /// The next request that asks for each block of each prompt.
    next: Vec<Vec<u32>>,
    blocks_left: usize,
    num_idle: usize,
    states: Vec<State>,
    /// Blocks that no request holds: the next use, the place in the chain and the content. Older entries are stale.
    idle: BinaryHeap<(u32, u32, u32)>,
    pub hit_blocks: u64,
}

/// The state of a content.
#[derive(Clone, Copy, Default)]
struct State {
    is_cached: bool,
    holders: u32,
    next_use: u32,
}

impl State {
    fn is_idle(&self) -> bool {
        self.is_cached && self.holders == 0
    }
}

impl Chains {
    /// Numbers the contents of the requests that caches of up to `most_blocks` blocks can serve.
    pub fn new(
        requests: &[Request],
        block_size: usize,
        id_tokens: usize,
        most_blocks: usize,
    ) -> Self {
        let parts = id_tokens / block_size;
        let mut numbers: HashMap<(Content, usize), u32> = HashMap::new();
        let mut number = |part: (Content, usize)| {
            let next = u32::try_from(numbers.len()).expect("a trace has fewer than 2^32 contents");
            *numbers.entry(part).or_insert(next)
        };
        let chain = |one: &Request| {
            if needed(one, block_size) > most_blocks {
                return Vec::new();
            }
            let parts = one.contents().iter().flat_map(|&id| (0..parts).map(move |at| (id, at)));
            parts.take(one.named_blocks(block_size, id_tokens)).map(&mut number).collect()
        };
        let prompts = requests.iter().map(chain).collect();
        Self { block_size, prompts, num_contents: numbers.len() }
    }

    fn needed(&self, request: &Request) -> usize {
        needed(request, self.block_size)
    }
}

fn needed(request: &Request, block_size: usize) -> usize {
    (request.prompt_tokens() + request.output_tokens()).div_ceil(block_size)
}

impl<'a> Clairvoyant<'a> {
    /// Creates a cache of `blocks` blocks. Requests that need more are never served.
    pub fn new(chains: &'a Chains, requests: &'a [Request], blocks: usize) -> Self {
        let mut later = vec![NEVER; chains.num_contents];
        let mut next = vec![Vec::new(); requests.len()];
        for (at, chain) in chains.prompts.iter().enumerate().rev() {
            if chains.needed(&requests[at]) <= blocks {
                let use_now = |&id: &u32| std::mem::replace(&mut later[id as usize], at as u32);
                next[at] = chain.iter().map(use_now).collect();
            }
        }
        let states = vec![State::default(); chains.num_contents];
        let (idle, blocks_left, num_idle) = (BinaryHeap::new(), blocks, 0);
        Self { chains, requests, next, blocks_left, num_idle, states, idle, hit_blocks: 0 }
    }

    /// Serves the requests one at a time, and returns the blocks that hit.
    pub fn serve_in_turn(mut self) -> u64 {
        for at in 0..self.requests.len() {
            if self.admit(at) {
                self.release(at);
            }
        }
        self.hit_blocks
    }

    /// Reclaims the block whose next use is the furthest. Returns false if no block is idle.
    fn reclaim(&mut self) -> bool {
        while let Some((next_use, _, id)) = self.idle.pop() {
            let state = &mut self.states[id as usize];
            if state.is_idle() && state.next_use == next_use {
                state.is_cached = false;
                self.num_idle -= 1;
                self.blocks_left += 1;
                return true;
            }
        }
        false
    }

    /// Adds a holder of a block.
    fn hold(&mut self, id: u32) {
        let state = &mut self.states[id as usize];
        self.num_idle -= usize::from(state.is_idle());
        state.holders += 1;
    }

    /// Removes a holder of a block.
    fn put_down(&mut self, id: u32, at: usize) {
        let state = &mut self.states[id as usize];
        state.holders -= 1;
        if state.is_idle() {
            self.num_idle += 1;
            self.idle.push((state.next_use, at as u32, id));
        }
    }
}

impl Served for Clairvoyant<'_> {
    fn admit(&mut self, at: usize) -> bool {
        let (request, chain) = (&self.requests[at], &self.chains.prompts[at]);
        let needed = self.chains.needed(request);
        let is_cached = |&&id: &&u32| self.states[id as usize].is_cached;
        let hits = chain.iter().take_while(is_cached).count();
        let new = needed - hits;
        let idle_hits = chain[..hits].iter().filter(|&&id| self.states[id as usize].is_idle());
        // A refused request may be served later, so that it takes no content.
        if self.blocks_left + self.num_idle < new + idle_hits.count() {
            return false;
        }
        chain[..hits].iter().for_each(|&id| self.hold(id));
        while self.blocks_left < new {
            assert!(self.reclaim(), "as many blocks are idle as are counted");
        }
        self.blocks_left -= new;
        for (place, &id) in chain.iter().enumerate() {
            if place >= hits {
                self.hold(id);
                // A copy of a cached block takes no room of its own for long.
                self.blocks_left += usize::from(self.states[id as usize].is_cached);
            }
            let state = &mut self.states[id as usize];
            state.is_cached = true;
            state.next_use = self.next[at].get(place).copied().unwrap_or(NEVER);
        }
        let most = request.prompt_tokens().saturating_sub(1) / self.chains.block_size;
        self.hit_blocks += hits.min(most) as u64;
        true
    }

    fn release(&mut self, at: usize) {
        let chain = &self.chains.prompts[at];
        self.blocks_left += self.chains.needed(&self.requests[at]) - chain.len();
        (0..chain.len()).rev().for_each(|place| self.put_down(chain[place], place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::contents::Contents;

    fn requests(prompts: &[&[u64]]) -> Vec<Request> {
        let mut contents = Contents::default();
        let request = |ids: &&[u64]| {
            let contents = contents.chain(ids).unwrap();
            Request::new(4 * ids.len() + 1, 0).unwrap().with_contents(contents)
        };
        prompts.iter().map(request).collect()
    }

    #[test]
    fn the_furthest_use_gives_way_and_of_a_chain_its_end() {
        let prompts = requests(&[&[1, 2], &[3, 4], &[1, 2], &[3, 4], &[1, 2]]);
        let chains = Chains::new(&prompts, 4, 4, 5);
        let hits = |blocks| Clairvoyant::new(&chains, &prompts, blocks).serve_in_turn();
        // Each prompt needs a block for its last token, too. With four blocks, one of the other prompt stays.
        assert_eq!([2, 3, 4, 5].map(hits), [0, 0, 3, 6]);
    }

    #[test]
    fn a_refused_request_reclaims_nothing() {
        let prompts = requests(&[&[1], &[2, 3, 4], &[5, 6], &[1]]);
        let chains = Chains::new(&prompts, 4, 4, 6);
        let mut cache = Clairvoyant::new(&chains, &prompts, 6);
        assert!(cache.admit(0));
        cache.release(0);
        assert!(cache.admit(1));
        assert!(!cache.admit(2), "three blocks of six are needed, and four are held");
        cache.release(1);
        assert!(cache.admit(2));
        cache.release(2);
        assert!(cache.admit(3));
        assert_eq!(cache.hit_blocks, 1);
    }
}
