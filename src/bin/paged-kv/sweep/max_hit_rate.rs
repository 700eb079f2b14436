//! `Ceiling`: the hits of an unlimited cache.
//!
//! A prompt hits its leading blocks that any earlier prompt had, but not the block of its last token. The
//! count is by content, not by block, because a request may be larger than any cache.

use std::collections::HashMap;

use crate::trace::contents::Content;
use crate::trace::request::Request;

/// The most blocks that can hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    pub prompt_blocks: u64,
    pub hit_blocks: u64,
    pub distinct_blocks: usize,
}

impl Ceiling {
    pub fn hit_rate(&self) -> f64 {
        self.rate_of(self.hit_blocks)
    }

    /// Returns the hit rate of a cache with so many hits.
    pub fn rate_of(&self, hit_blocks: u64) -> f64 {
        hit_blocks as f64 / self.prompt_blocks.max(1) as f64
    }
}

pub fn of(requests: &[Request], block_size: usize, id_tokens: usize) -> Ceiling {
    let parts = id_tokens / block_size;
    // For each content, the number of its blocks that prompts have had.
    let mut seen: HashMap<Content, usize> = HashMap::new();
    let mut ceiling = Ceiling { prompt_blocks: 0, hit_blocks: 0, distinct_blocks: 0 };
    for request in requests {
        let named = request.named_blocks(block_size, id_tokens);
        let most = (request.prompt_tokens().saturating_sub(1) / block_size).min(named);
        let (mut rest, mut hits, mut misses) = (named, 0, false);
        for &content in request.contents() {
            let wanted = parts.min(rest);
            let known = seen.entry(content).or_default();
            if !misses {
                hits += wanted.min(*known);
                misses = *known < wanted;
            }
            ceiling.distinct_blocks =
                ceiling.distinct_blocks.saturating_add(wanted.saturating_sub(*known));
            *known = wanted.max(*known);
            rest -= wanted;
        }
        ceiling.prompt_blocks += named as u64;
        ceiling.hit_blocks += hits.min(most) as u64;
    }
    ceiling
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::trace::contents::Contents;

    /// Counts block by block, as the definition says.
    fn by_block(requests: &[Request], block_size: usize, id_tokens: usize) -> Ceiling {
        let mut seen = HashSet::new();
        let mut ceiling = Ceiling { prompt_blocks: 0, hit_blocks: 0, distinct_blocks: 0 };
        for request in requests {
            let hashes = request.hashes(block_size, id_tokens);
            let most = request.prompt_tokens().saturating_sub(1) / block_size;
            let hits = hashes.iter().take(most).take_while(|&hash| seen.contains(hash)).count();
            ceiling.prompt_blocks += hashes.len() as u64;
            ceiling.hit_blocks += hits as u64;
            seen.extend(hashes);
        }
        ceiling.distinct_blocks = seen.len();
        ceiling
    }

    #[test]
    fn counting_by_content_is_counting_by_block() {
        let mut contents = Contents::default();
        let mut request = |tokens, ids: &[u64]| {
            Request::new(tokens, 1).unwrap().with_contents(contents.chain(ids).unwrap())
        };
        let mut requests = Vec::new();
        for tokens in [48, 40, 33, 64, 47, 20, 48, 100, 5] {
            for ids in [&[1, 2, 3][..], &[1, 2], &[2, 1, 3], &[1, 2, 4], &[1], &[]] {
                requests.push(request(tokens, ids));
            }
        }
        for block_size in [1, 2, 4, 8, 16] {
            assert_eq!(of(&requests, block_size, 16), by_block(&requests, block_size, 16));
        }
    }

    #[test]
    fn the_last_token_is_always_computed() {
        let mut contents = Contents::default();
        let mut request = |tokens, ids: &[u64]| {
            Request::new(tokens, 1).unwrap().with_contents(contents.chain(ids).unwrap())
        };
        let requests = [request(8, &[1, 2]), request(8, &[1, 2]), request(9, &[1, 2, 3])];
        let ceiling = of(&requests, 4, 4);
        assert_eq!(ceiling, Ceiling { prompt_blocks: 6, hit_blocks: 3, distinct_blocks: 2 });
    }
}
