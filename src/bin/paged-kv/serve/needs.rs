//! `Needs`: the blocks that requests need, in a cache with or without groups of layers.
//!
//! In a cache with groups a request does not hold a block for each of its tokens in each group: windows release blocks
//! while it grows. A cache of one block with the same groups counts them
//! ([`required_blocks`](PagedKvCache::required_blocks)), so the arithmetic is the library's own.
//!
//! The blocks to come are those of a sequence that shares no window: as long as others hold the blocks of a window that a
//! sequence leaves, it takes more.
//!
//! Invariant: a request that is admitted to an empty cache, with the growth of its output, needs at most as many blocks
//! as [`Needs::most`] says.

use paged_kv::{AdmitOptions, PagedKvCache, Prompt};

use crate::layer_groups::LayerGroups;
use crate::trace::request::Request;

/// The blocks that requests need.
pub struct Needs {
    /// Tokens that one hash covers: those of a block, if there are no groups.
    unit: usize,
    groups: Option<Groups>,
}

struct Groups {
    counter: PagedKvCache,
    chunks: Chunks,
    has_states: bool,
}

/// The lengths up to which a prompt is computed at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    tokens: usize,
    alignment: usize,
}

impl Needs {
    /// Creates the needs in a cache of blocks of `block_size` tokens.
    pub fn of_blocks(block_size: usize) -> Self {
        Self { unit: block_size, groups: None }
    }

    /// Creates the needs in a cache with these groups, where prompts are computed in chunks of `chunk` tokens, rounded
    /// up to whole blocks of all groups.
    ///
    /// # Errors
    /// Those of [`build`](paged_kv::PagedKvCacheBuilder::build).
    pub fn of_groups(groups: &LayerGroups, chunk: usize) -> Result<Self, paged_kv::PagedKvError> {
        let counter = PagedKvCache::builder().num_blocks(1).groups(groups.kinds()).build()?;
        let alignment = groups.alignment();
        let most = usize::MAX / alignment * alignment;
        let tokens = chunk.checked_next_multiple_of(alignment).unwrap_or(most);
        let chunks = Chunks { tokens, alignment };
        let of_groups = Groups { counter, chunks, has_states: groups.has_states() };
        Ok(Self { unit: groups.unit(), groups: Some(of_groups) })
    }

    /// Returns the tokens that one hash covers.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Returns the chunks of prompts, in a cache with groups. Without groups a prompt is admitted as a whole.
    pub fn chunks(&self) -> Option<Chunks> {
        self.groups.as_ref().map(|groups| groups.chunks)
    }

    /// Returns true if sequences ask for copies of states.
    pub fn has_states(&self) -> bool {
        self.groups.as_ref().is_some_and(|groups| groups.has_states)
    }

    /// Returns the most blocks that a request holds at a time.
    ///
    /// Trimming (`StreamingLLM`) does not count: a request is trimmed only when others need its room. The
    /// oldest request, which must be able to end, is never trimmed.
    pub fn most(&self, request: &Request) -> usize {
        let tokens = request.prompt_tokens() + request.output_tokens();
        match &self.groups {
            None => tokens.div_ceil(self.unit),
            Some(groups) => groups.held(tokens, groups.chunks.tokens),
        }
    }

    /// Returns the most blocks that a sequence of `tokens` tokens holds at a time, if it grows by one token at a time.
    fn held(&self, tokens: usize) -> usize {
        match &self.groups {
            None => tokens.div_ceil(self.unit),
            Some(groups) => groups.held(tokens, 1),
        }
    }

    /// Returns the blocks that a request will still take when its first `written` tokens are written.
    pub fn to_come(&self, request: &Request, written: usize) -> usize {
        self.held(request.prompt_tokens() + request.output_tokens()) - self.held(written)
    }

    /// Returns how many of the blocks [to come](Self::to_come) the token after `written` tokens takes.
    pub fn begun(&self, written: usize) -> usize {
        match &self.groups {
            _ if !written.is_multiple_of(self.unit) => 0,
            None => 1,
            Some(_) => self.held(written + 1) - self.held(written),
        }
    }
}

impl Groups {
    /// Returns the most blocks of a sequence that grows to `tokens` tokens, by `chunk` at a time.
    fn held(&self, tokens: usize, chunk: usize) -> usize {
        let options = AdmitOptions::default().first_chunk(chunk).reserve_whole(tokens);
        let blocks = self.counter.required_blocks(&Prompt::from_hashes(&[], tokens), &options);
        blocks.expect("a prompt without hashes fits each cache")
    }
}

impl Chunks {
    /// Returns the most tokens of a chunk.
    pub fn tokens(self) -> usize {
        self.tokens
    }

    /// Returns the length up to which a prompt of `num_tokens` tokens is computed next, after `written` tokens. Its
    /// first `named_tokens` tokens can be shared: a chunk ends where the longest hit of a later prompt can.
    pub fn end_after(self, written: usize, num_tokens: usize, named_tokens: usize) -> usize {
        let longest_hit = named_tokens - named_tokens % self.alignment;
        let of_chunk = (written - written % self.tokens).saturating_add(self.tokens);
        let end = of_chunk.min(num_tokens);
        if (written + 1..end).contains(&longest_hit) { longest_hit } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_groups_a_partly_filled_block_is_a_block() {
        let needs = Needs::of_blocks(16);
        for (prompt, output, blocks) in [(0, 0, 0), (0, 1, 1), (15, 1, 1), (16, 1, 2)] {
            let request = Request::new(prompt, output).unwrap();
            assert_eq!(needs.most(&request), blocks);
            assert_eq!(needs.to_come(&request, prompt), blocks - prompt.div_ceil(16));
        }
    }

    /// The gate of prompts relies on this: such a request, alone in the cache, is not refused.
    #[test]
    fn a_prompt_and_its_growth_fit_where_the_request_does() {
        for text in [
            "full:16",
            "full:16,window:16:64",
            "full:16,window:32:100,window:16:1",
            "full:4,chunked:4:64,chunked:4:50",
            "full:16,state:64",
            "sink:8:20:40,state:8",
        ] {
            let groups = LayerGroups::parse(text).unwrap();
            let needs = Needs::of_groups(&groups, 48).unwrap();
            let chunk = needs.chunks().unwrap().tokens();
            let of_groups = needs.groups.as_ref().unwrap();
            for total in (0..400).step_by(13) {
                for prompt in 0..=total {
                    let request = Request::new(prompt, total - prompt).unwrap();
                    let first = of_groups.held(prompt, chunk);
                    let all = first + needs.to_come(&request, prompt);
                    assert!(all <= needs.most(&request), "{text}: {prompt} of {total}");
                }
                let begun: usize = (0..total).map(|written| needs.begun(written)).sum();
                assert_eq!(begun, needs.held(total), "{text}: {total}");
            }
        }
    }

    #[test]
    fn chunks_end_at_multiples_and_where_a_hit_can() {
        let chunks = Chunks { tokens: 128, alignment: 32 };
        let ends = |mut written, num_tokens, named| {
            let mut ends = Vec::new();
            while written < num_tokens {
                written = chunks.end_after(written, num_tokens, named);
                ends.push(written);
            }
            ends
        };
        assert_eq!(ends(0, 300, 0), [128, 256, 300]);
        assert_eq!(ends(96, 300, 300), [128, 256, 288, 300]);
        assert_eq!(ends(0, 256, 256), [128, 256]);
        assert_eq!(ends(0, 20, 20), [20]);
        assert_eq!(ends(288, 300, 300), [300]);
    }
}
