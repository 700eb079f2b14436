//! `Prompts`: makes the prompts of requests, by tokens or by hashes, when a request arrives and when it comes
//! back, and publishes the blocks of a request that is preempted.
//!
//! A request that comes back has a longer prompt: its own, and the tokens generated so far. The trace names
//! only contents of prompts. All other blocks get contents of their request alone ([`Content::own_hash`]).
//! No other request ever matches them, so they are published only when their request is preempted.

use paged_kv::{BlockHash, PagedKvCache, PagedKvError, Prompt, SeqId};

use crate::trace::contents::Content;
use crate::trace::request::Request;

/// How prompts are made.
#[derive(Clone, Copy, Debug)]
pub struct Prompts {
    /// Tokens of a content, if prompts share their common contents.
    pub id_tokens: Option<usize>,
    /// Whether prompts are made of tokens, which published events need, or of hashes only.
    pub as_tokens: bool,
    /// Tokens that one hash covers: those of a block, if there are no groups of layers.
    pub unit: usize,
}

/// A request, and how much of it was there before.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub request: &'a Request,
    /// Place in the order of arrival.
    pub arrival: usize,
    /// Leading tokens that the request had when it was last preempted or evicted; 0 if it never was.
    pub had_tokens: usize,
}

impl Part<'_> {
    /// Returns how many tokens the prompt has: at first those of the trace, later also generated ones.
    pub fn prompt_tokens(&self) -> usize {
        self.request.prompt_tokens().max(self.had_tokens)
    }

    fn own_hashes(&self, blocks: std::ops::Range<usize>) -> impl Iterator<Item = BlockHash> {
        let arrival = self.arrival;
        blocks.map(move |block| Content::own_hash(arrival, block))
    }
}

impl Prompts {
    /// Returns how many full blocks of the trace's prompt have contents that other prompts may share. A block is of
    /// `unit` tokens.
    pub fn named_blocks(&self, request: &Request) -> usize {
        self.id_tokens.map_or(0, |id_tokens| request.named_blocks(self.unit, id_tokens))
    }

    /// Returns the prompt with which a request is admitted.
    pub fn prompt(&self, cache: &PagedKvCache, part: Part<'_>) -> Prompt {
        let (request, num_tokens) = (part.request, part.prompt_tokens());
        if let (true, Some(id_tokens)) = (self.as_tokens, self.id_tokens) {
            let own = Content::own_token(part.arrival);
            return cache.prompt(&request.tokens(id_tokens, own, num_tokens));
        }
        let hashes = self.hashes(part);
        Prompt::from_hashes(&hashes, num_tokens)
    }

    /// Returns the part of the prompt whose contents are known. In a cache with groups of layers a request is admitted
    /// with this part, and grows by the rest: a cache that keeps only the blocks that are needed at the end of a prompt
    /// ([`GroupRetention::PromptEnd`](paged_kv::GroupRetention::PromptEnd)) then keeps those that a later prompt can
    /// hit. An id of the trace rarely ends where the prompt does.
    pub fn known_prompt(&self, cache: &PagedKvCache, part: Part<'_>) -> Prompt {
        if self.as_tokens && self.id_tokens.is_some() {
            return self.prompt(cache, part);
        }
        let hashes = self.hashes(part);
        Prompt::from_hashes(&hashes, hashes.len() * self.unit)
    }

    /// Returns the hashes that are known at an admission: of the named blocks, and of a request that comes
    /// back all.
    fn hashes(&self, part: Part<'_>) -> Vec<BlockHash> {
        let named = |id_tokens| part.request.hashes(self.unit, id_tokens);
        let mut hashes = self.id_tokens.map_or_else(Vec::new, named);
        let own = hashes.len()..self.known_blocks(part);
        hashes.extend(part.own_hashes(own));
        hashes
    }

    fn known_blocks(&self, part: Part<'_>) -> usize {
        let had_blocks = if self.publishes_own() { part.had_tokens / self.unit } else { 0 };
        had_blocks.max(self.named_blocks(part.request))
    }

    /// Returns false if events need tokens, and the trace names none.
    fn publishes_own(&self) -> bool {
        !self.as_tokens || self.id_tokens.is_some()
    }

    /// Publishes all full blocks of a running request, whose first `written` tokens are computed.
    ///
    /// # Errors
    /// Those of [`PagedKvCache::commit`].
    pub fn publish(
        &self,
        cache: &PagedKvCache,
        sequence: SeqId,
        part: Part<'_>,
        written: usize,
    ) -> Result<(), PagedKvError> {
        if !self.publishes_own() {
            return Ok(());
        }
        let known_tokens = part.prompt_tokens();
        if self.as_tokens && written > known_tokens {
            let generated = vec![Content::own_token(part.arrival); written - known_tokens];
            return cache.commit(sequence, &generated).map(drop);
        }
        let full = written / self.unit;
        let known = if self.as_tokens { full } else { self.known_blocks(part) };
        let hashes: Vec<_> = part.own_hashes(known..full).collect();
        if hashes.is_empty() {
            return cache.commit(sequence, full * self.unit).map(drop);
        }
        cache.commit(sequence, &hashes).map(drop)
    }
}
