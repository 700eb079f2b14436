//! `HashedTokens`: the known tokens of a sequence, the hashes of its blocks, and how far the blocks were
//! published.
//!
//! Tokens are *named* when they are known: a prompt's at admission, later ones as they are accepted. Tokens
//! are *computed* when their keys and values are. A block is published only when it is full, and
//! never after a gap that a trim left: keys and values computed there do not depend on all tokens before
//! them.
//!
//! Invariant: the hash of block b is a function of the tokens before and in b, which the sequence holds.

mod by_caller;
mod in_groups;

use std::ops::Range;

use self::in_groups::GroupOffers;
pub(in crate::cache) use self::in_groups::OfferedRun;
use super::computed::Computed;
use crate::cache::Published;
use crate::cache::admission::prompt::Prompt;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::id::GroupId;
use crate::prefix::{BlockHash, BlockHasher, EventContext, Generation, PublishRequest};
use crate::sequence::Sequence;

/// The most blocks that are offered again in one batch.
const AT_ONCE: usize = 64;

/// The named tokens of a sequence.
///
/// `repr(C)`: the fields that one more token touches come first and are adjacent.
#[derive(Clone)]
#[repr(C)]
pub struct HashedTokens {
    /// Tokens of the prompt. If only hashes are known: the named tokens, those of the prompt and later ones.
    prompt_tokens: usize,
    /// False if the caller hashes the blocks: then only their hashes are known, and the number of named tokens.
    knows_tokens: bool,
    /// The number of known tokens at which the next block is full (hashing waits until then). Before the
    /// first hashing: one token after the prompt.
    full_at: usize,
    /// Tokens after the prompt.
    tokens: Vec<u32>,
    /// Blocks that were offered for publication.
    offered: usize,
    /// From this block on, some of the offered blocks were offered to steps, which may have failed since.
    unsure_from: usize,
    /// Failed steps of the cache when the first of these blocks was offered.
    failures_seen: u64,
    /// All blocks before this one were found to be published.
    published_to: usize,
    /// Copies that the cache had left out when the sequence was admitted.
    left_out_seen: u64,
    /// Hashes of the blocks after those of the prompt: computed from the tokens, or given by the caller.
    hashes: Vec<BlockHash>,
    /// Number of those tokens that were hashed.
    num_hashed: usize,
    /// The chain after the last of them, once there are some.
    hasher: Option<BlockHasher>,
    prompt: Prompt,
    generation: Generation,
    published_blocks: Published,
    /// In a cache with groups, in place of `offered` and the fields beside it.
    groups: Option<Box<GroupOffers>>,
}

impl HashedTokens {
    /// Creates the hashed tokens of a sequence whose first `matched` blocks are published.
    pub(in crate::cache) fn new(
        published_blocks: Published,
        prompt: Prompt,
        matched: usize,
        generation: Generation,
    ) -> Self {
        Self {
            prompt_tokens: prompt.num_tokens(),
            knows_tokens: prompt.hasher().is_some(),
            full_at: prompt.num_tokens().saturating_add(1),
            tokens: Vec::new(),
            offered: matched,
            unsure_from: matched,
            failures_seen: 0,
            published_to: matched,
            left_out_seen: published_blocks.left_out(),
            hashes: Vec::new(),
            num_hashed: 0,
            hasher: None,
            prompt,
            generation,
            published_blocks,
            groups: None,
        }
    }

    /// Returns the tokens of a sequence in a cache with groups, of which `matched` tokens were matched.
    pub(in crate::cache) fn in_groups(self, layout: &GroupLayout, matched: usize) -> Self {
        let generation_of = |group| self.published_blocks.of_group(self.generation, group);
        let offers = GroupOffers::new(layout, matched, generation_of);
        Self { groups: Some(Box::new(offers)), ..self }
    }

    pub(in crate::cache) fn num_named(&self) -> usize {
        // A prompt that is known by its hashes may have any length, and then no tokens follow.
        self.prompt_tokens.saturating_add(self.tokens.len())
    }

    /// Publishes the full blocks of the first `num_tokens` tokens, which are computed.
    pub(in crate::cache) fn commit(&mut self, sequence: &Sequence, num_tokens: usize) -> usize {
        if self.groups.is_some() {
            return self.commit_groups(sequence, num_tokens);
        }
        let full = self.full_blocks(sequence, num_tokens);
        let promised = self.publish_promised(sequence, full);
        if self.offered >= full {
            return promised;
        }
        let offered = std::mem::replace(&mut self.offered, full);
        if self.unsure_from == offered {
            self.unsure_from = full;
        }
        let mut again = promised;
        while let Some(left_out) = self.left_out(sequence, offered) {
            let first = left_out.start;
            again += self.publish(sequence, left_out);
            if !self.is_published(sequence, first) {
                break;
            }
        }
        again + self.publish(sequence, offered..full)
    }

    /// Publishes those of the first `full` blocks that were only offered to steps, which may still be open
    /// or may have failed.
    #[inline]
    fn publish_promised(&mut self, sequence: &Sequence, full: usize) -> usize {
        let end = full.min(self.offered);
        if self.unsure_from >= end {
            return 0;
        }
        let promised = std::mem::replace(&mut self.unsure_from, end)..end;
        self.publish(sequence, promised)
    }

    /// Publishes the full blocks of the computed tokens.
    pub(in crate::cache) fn commit_computed(
        &mut self,
        sequence: &Sequence,
        computed: Computed<'_>,
    ) -> Result<usize> {
        match computed {
            Computed::Tokens(num_tokens) => {
                self.name_length(sequence, num_tokens)?;
                Ok(self.commit(sequence, num_tokens))
            }
            Computed::Named(tokens) => self.commit_tokens(sequence, tokens),
            Computed::Hashed(hashes) => {
                self.add_hashes(sequence, hashes)?;
                if hashes.is_empty() {
                    return Ok(0);
                }
                Ok(self.commit(sequence, self.num_named()))
            }
        }
    }

    /// Returns the number of blocks whose hashes are known.
    fn num_hashes(&self) -> usize {
        self.prompt.hashes().len() + self.hashes.len()
    }

    fn publish(&self, sequence: &Sequence, range: Range<usize>) -> usize {
        let start = range.start;
        let (before, ids) = sequence.block_ids()[..range.end].split_at(start);
        let offer = PublishRequest {
            ids,
            before: before.last().copied(),
            private_from: sequence.table().shared_len().saturating_sub(start),
            generation: self.generation,
        };
        let hash_of = |at: usize| self.hash(start + at);
        let context = || self.context(start, sequence.block_size());
        let (published, pool) = (&self.published_blocks, sequence.table().pool());
        let num_published = published.publish(pool, &offer, hash_of, context);
        if let Some(uses) = sequence.uses().filter(|uses| uses.has_levels()) {
            let level_of = |at| uses.level_of(start + at);
            published.set_levels_of_copies(pool, &offer, hash_of, level_of);
        }
        num_published
    }

    fn is_published(&self, sequence: &Sequence, block: usize) -> bool {
        let (id, pool) = (sequence.block_ids()[block], sequence.table().pool());
        self.published_blocks.is_published(pool, id, self.hash(block), self.generation)
    }

    /// Returns the first offered blocks before `end` whose copies were left out because there were enough
    /// copies. A commit that fills a block offers them again. (Some may be of a step that is still open:
    /// publishing them twice changes nothing.)
    #[inline]
    pub(in crate::cache) fn left_out(
        &mut self,
        sequence: &Sequence,
        end: usize,
    ) -> Option<Range<usize>> {
        if self.published_blocks.left_out() == self.left_out_seen {
            return None;
        }
        self.look_for_left_out(sequence, end)
    }

    #[cold]
    fn look_for_left_out(&mut self, sequence: &Sequence, end: usize) -> Option<Range<usize>> {
        let end = end.min(sequence.whole_blocks());
        while self.published_to < end && self.is_published(sequence, self.published_to) {
            self.published_to += 1;
        }
        let end = end.min(self.published_to + AT_ONCE);
        (self.published_to < end).then_some(self.published_to..end)
    }

    /// Returns the context that the event sink receives for the blocks of group 0 from `block` on.
    pub(in crate::cache) fn context(&self, block: usize, block_size: usize) -> EventContext<'_> {
        let (start, prompt) = (block * block_size, self.prompt.tokens());
        let generated = start.saturating_sub(self.prompt_tokens).min(self.tokens.len());
        let (first, second) = (&prompt[start.min(prompt.len())..], &self.tokens[generated..]);
        EventContext {
            group: GroupId(0),
            parent: block.checked_sub(1).map(|before| self.hash(before)),
            tokens: if self.knows_tokens { [first, second] } else { [&[]; 2] },
            block_size,
            extra: self.prompt.hasher().and_then(BlockHasher::extra_keys),
            index: block,
        }
    }

    /// Returns the number of blocks that may be published once the first `num_tokens` tokens are computed.
    pub(in crate::cache) fn full_blocks(&self, sequence: &Sequence, num_tokens: usize) -> usize {
        let full = num_tokens.min(self.num_named()) / sequence.block_size();
        let full = full.min(self.num_hashes());
        full.min(sequence.whole_blocks())
    }

    /// Hashes the next tokens, and publishes the blocks up to their end: all tokens up to there are
    /// computed. An empty slice publishes nothing.
    fn commit_tokens(&mut self, sequence: &Sequence, tokens: &[u32]) -> Result<usize> {
        self.name_tokens(sequence, tokens)?;
        if tokens.is_empty() {
            return Ok(0);
        }
        Ok(self.commit(sequence, self.num_named()))
    }

    /// If a step has failed since, counts the blocks as offered only up to the first that is not published.
    /// (That block may be of a step that is still open: publishing it twice changes nothing.)
    #[inline]
    pub(in crate::cache) fn offer_failed_again(&mut self, sequence: &Sequence) {
        if self.unsure_from < self.offered {
            let failures = self.published_blocks.failed_steps();
            if failures != self.failures_seen {
                self.look_for_failed(sequence, failures);
            }
        }
    }

    #[cold]
    fn look_for_failed(&mut self, sequence: &Sequence, failures: u64) {
        self.failures_seen = failures;
        let end = self.offered.min(sequence.whole_blocks());
        let failed = (self.unsure_from..end).find(|&at| !self.is_published(sequence, at));
        self.offered = failed.unwrap_or(self.offered);
        self.unsure_from = self.offered;
    }

    /// Names the next tokens, for which there are slots, and hashes the blocks that they fill. Refuses tokens
    /// that fill a block whose hash only the caller knows.
    pub(in crate::cache) fn name_tokens(
        &mut self,
        sequence: &Sequence,
        tokens: &[u32],
    ) -> Result<()> {
        let num_tokens = self.num_named().saturating_add(tokens.len());
        if !self.knows_tokens {
            return if tokens.is_empty() { Ok(()) } else { self.name_length(sequence, num_tokens) };
        }
        refuse_beyond_end(sequence, num_tokens)?;
        self.tokens.extend_from_slice(tokens);
        if self.num_named() >= self.full_at {
            self.hash_tokens(sequence.hash_unit());
        }
        Ok(())
    }

    /// Hashes the blocks that are full by now.
    #[inline(never)]
    fn hash_tokens(&mut self, block_size: usize) {
        if let Some(start) = self.prompt.hasher() {
            let hasher = self.hasher.get_or_insert_with(|| start.clone());
            hasher.extend(&self.tokens[self.num_hashed..], &mut self.hashes);
            self.num_hashed = self.tokens.len();
            self.full_at = (self.num_named() / block_size + 1) * block_size;
        }
    }

    /// Returns the number of named tokens, or `None` if no token can be named.
    pub(in crate::cache) fn names_up_to(&self) -> Option<usize> {
        self.knows_tokens.then(|| self.num_named())
    }

    /// Returns the number of blocks that were offered for publication.
    pub(in crate::cache) fn offered(&self) -> usize {
        self.offered
    }

    /// Notes that the first `blocks` blocks are offered for publication, the last of them to an open step.
    pub(in crate::cache) fn offer_to_step(&mut self, blocks: usize) {
        if self.unsure_from == self.offered {
            self.failures_seen = self.published_blocks.failed_steps();
        }
        self.offered = blocks;
    }

    /// Takes back the last offer to a step.
    pub(in crate::cache) fn take_offer_back(&mut self, blocks: usize) {
        self.offered = blocks;
        self.unsure_from = self.unsure_from.min(blocks);
    }

    /// Forgets the generated tokens from `num_tokens` on. The prompt's tokens stay: they are known before
    /// they have slots.
    pub(in crate::cache) fn forget_generated(&mut self, num_tokens: usize, block_size: usize) {
        self.truncate(num_tokens.max(self.prompt.num_tokens()), block_size);
        self.offered = self.offered.min(num_tokens / block_size);
        self.unsure_from = self.unsure_from.min(self.offered);
        self.published_to = self.published_to.min(self.offered);
        if let Some(groups) = &mut self.groups {
            groups.truncate(num_tokens);
        }
    }

    /// Returns true if the tokens named from `start` on equal those of `tokens`, as far as both go.
    pub(in crate::cache) fn agrees_with(&self, start: usize, tokens: &[u32]) -> bool {
        let prompt = self.prompt.tokens();
        let of_prompt = &prompt[start.min(prompt.len())..];
        let generated = &self.tokens[start.saturating_sub(prompt.len()).min(self.tokens.len())..];
        of_prompt.iter().chain(generated).zip(tokens).all(|(named, token)| named == token)
    }

    pub(in crate::cache) fn generation(&self) -> Generation {
        self.generation
    }

    pub(in crate::cache) fn published(&self) -> &Published {
        &self.published_blocks
    }

    /// Forgets the tokens from `num_tokens` on, of a sequence that was truncated. `O(tokens)` if that drops
    /// named tokens.
    pub(in crate::cache) fn truncate(&mut self, num_tokens: usize, block_size: usize) {
        if num_tokens >= self.num_named() {
            return;
        }
        self.tokens.truncate(num_tokens.saturating_sub(self.prompt_tokens));
        if num_tokens < self.prompt.num_tokens() {
            self.prompt = self.prompt.truncated(num_tokens, block_size);
        }
        if self.knows_tokens {
            self.prompt_tokens = self.prompt.num_tokens();
            self.hashes.clear();
            (self.hasher, self.num_hashed) = (None, 0);
            self.hash_tokens(block_size);
        } else {
            self.prompt_tokens = num_tokens;
            let of_prompt = self.prompt.hashes().len();
            self.hashes.truncate((num_tokens / block_size).saturating_sub(of_prompt));
        }
        self.offered = self.offered.min(num_tokens / block_size);
        self.unsure_from = self.unsure_from.min(self.offered);
        self.published_to = self.published_to.min(self.offered);
        if let Some(groups) = &mut self.groups {
            groups.truncate(num_tokens);
        }
    }

    /// Returns true if truncating to `num_tokens` drops named tokens.
    pub(in crate::cache) fn reaches_beyond(&self, num_tokens: usize) -> bool {
        num_tokens < self.num_named()
    }

    pub(in crate::cache) fn hash(&self, block: usize) -> BlockHash {
        let of_prompt = self.prompt.hashes();
        of_prompt.get(block).copied().unwrap_or_else(|| self.hashes[block - of_prompt.len()])
    }
}

/// Truncates a sequence and forgets the tokens that it drops. A truncation that drops no token changes
/// nothing: the prompt's tokens after the last one with a slot stay known.
pub(in crate::cache) fn truncate_parts(
    (sequence, hashed): (&mut Sequence, Option<&mut HashedTokens>),
    num_tokens: usize,
) -> Result<()> {
    let drops_tokens = num_tokens < sequence.num_tokens();
    sequence.truncate(num_tokens)?;
    if let Some(hashed) = hashed.filter(|_| drops_tokens) {
        hashed.truncate(num_tokens, sequence.hash_unit());
    }
    Ok(())
}

/// Refuses computed tokens of a sequence whose tokens are not known: those for which it has no slots, and hashes, which it
/// cannot hold. Accepts `Named` tokens, which such a sequence ignores.
pub(in crate::cache) fn refuse_uncomputable(
    sequence: &Sequence,
    computed: Computed<'_>,
) -> Result<()> {
    match computed {
        Computed::Tokens(num_tokens) => refuse_beyond_end(sequence, num_tokens),
        Computed::Named(_) | Computed::Hashed([]) => Ok(()),
        Computed::Hashed(hashes) => Err(PagedKvError::HashesUnknown {
            known: 0,
            requested: hashes.len().saturating_mul(sequence.hash_unit()),
        }),
    }
}

/// Refuses computed tokens for which the sequence has no slots.
pub(in crate::cache) fn refuse_beyond_end(sequence: &Sequence, num_tokens: usize) -> Result<()> {
    if num_tokens > sequence.num_tokens() {
        let refusal = PagedKvError::CommitBeyondEnd {
            requested: num_tokens,
            num_tokens: sequence.num_tokens(),
        };
        return Err(refusal);
    }
    Ok(())
}
