//! What would a cache without end hit?
//!
//! All that was ever asked for before, from the first block on, but for the last token's block. It
//! knows no cache.

use std::collections::HashSet;

use crate::request::Request;

/// The most that can hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    pub prompt_blocks: u64,
    pub hit_blocks: u64,
    pub distinct_blocks: usize,
}

impl Ceiling {
    pub fn hit_rate(&self) -> f64 {
        self.hit_blocks as f64 / self.prompt_blocks.max(1) as f64
    }
}

pub fn of(requests: &[Request], block_size: usize, id_tokens: usize) -> Ceiling {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_is_always_computed() {
        let request =
            |tokens, ids: &[u64]| Request::new(tokens, 1).unwrap().with_content_ids(ids.into());
        let requests = [request(8, &[1, 2]), request(8, &[1, 2]), request(9, &[1, 2, 3])];
        let ceiling = of(&requests, 4, 4);
        assert_eq!(ceiling, Ceiling { prompt_blocks: 6, hit_blocks: 3, distinct_blocks: 2 });
    }
}
