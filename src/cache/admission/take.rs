//! An admission takes its blocks: it matches the cached ones, grows by new ones, and does both or neither.

use super::super::PagedKvCache;
use super::super::admit_options::AdmitOptions;
use super::super::cached_sequence::CachedSequence;
use super::super::naming::Naming;
use super::super::prompt::Prompt;
use super::Admission;
use crate::epochs::next_epoch;
use crate::error::{PagedKvError, Result};
use crate::pool::watermark::{Admit, Need, NewBlocks};
use crate::prefix::Generation;
use crate::sequence::Sequence;

/// A sequence that holds what was cached of its prompt, and room for the rest.
struct Matched {
    sequence: Sequence,
    num_hits: usize,
    generation: Generation,
}

impl NewBlocks for Matched {
    fn num_blocks(&self) -> usize {
        self.sequence.num_blocks()
    }

    fn num_blocks_freed(&self) -> usize {
        self.sequence.table().num_blocks_freed()
    }
}

/// The room that a prompt needs: all that could be matched may be idle, until it is looked up.
struct NeedOfPrompt<'a> {
    cache: &'a PagedKvCache,
    prompt: &'a Prompt,
    options: &'a AdmitOptions,
}

impl Need for NeedOfPrompt<'_> {
    fn at_most(&self) -> usize {
        let block_size = self.cache.block_size;
        let most_hits = self.options.most_hits(self.prompt, block_size);
        self.options.room_for(self.prompt, most_hits * block_size).div_ceil(block_size)
    }

    fn exactly(&self) -> usize {
        self.cache.room_required(self.prompt, self.options)
    }

    /// A refusal in the middle would have taken idle contents out of their order.
    fn refuses_early(&self) -> bool {
        true
    }
}

impl PagedKvCache {
    pub(in crate::cache) fn match_and_allocate(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        admit: Admit,
    ) -> Result<(CachedSequence, Admission)> {
        self.check_prompt(prompt)?;
        let need = NeedOfPrompt { cache: self, prompt, options };
        let matched = self.watermark.take(self.pool.blocks(), need, admit, || {
            self.match_and_grow(prompt, options, |sequence, num_tokens| {
                sequence.append(num_tokens).map(drop)
            })
        })?;
        Ok(self.admission_of(prompt, options, matched))
    }

    /// [`match_and_allocate`](Self::match_and_allocate), whose new blocks come from a stock of `available`
    /// blocks by `grow`, which takes the sequence and its new tokens.
    pub(in crate::cache) fn match_and_grow_from(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        available: usize,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<(CachedSequence, Admission)> {
        self.check_prompt(prompt)?;
        self.refuse_beyond(available, prompt, options)?;
        let matched = self.match_and_grow(prompt, options, grow)?;
        Ok(self.admission_of(prompt, options, matched))
    }

    /// Acquires the blocks of the prompt that are cached, and grows by the rest, or neither.
    fn match_and_grow(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<Matched> {
        let published = self.published();
        let hashes = &prompt.hashes()[..options.most_hits(prompt, self.block_size)];
        let generation = published.generation();
        // There is room for all of these, if not for the rest of the prompt.
        let most = options.room_for(prompt, hashes.len() * self.block_size);
        let most = most.div_ceil(self.block_size).min(self.pool.total_blocks());
        let mut hits = Vec::with_capacity(most + most / 8 + 4);
        published.acquire(self.pool.blocks(), hashes, generation, &mut hits);
        match hits.is_empty() {
            true => self.pool.blocks().announce_room(),
            false => self.pool.blocks().announce_contents(),
        }
        let num_hits = hits.len();
        let cached_tokens = num_hits * self.block_size;
        let num_tokens = options.room_for(prompt, cached_tokens);
        let mut sequence = self.pool.sequence_of(hits, self.block_size);
        match grow(&mut sequence, num_tokens - cached_tokens) {
            Ok(()) => Ok(Matched { sequence, num_hits, generation }),
            Err(refusal) => {
                self.pool.blocks().undo(sequence.into_table());
                Err(refusal)
            }
        }
    }

    /// The admitted sequence. Tells the event sink of contents that it matched untold.
    fn admission_of(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        Matched { sequence, num_hits, generation }: Matched,
    ) -> (CachedSequence, Admission) {
        let published = self.published();
        let naming = Naming::new(published.clone(), prompt.clone(), num_hits, generation);
        let matched = &sequence.block_ids()[..num_hits];
        let told = || naming.told(0, self.block_size);
        published.tell_matched(matched, |at| naming.hash(at), generation, told);
        let cached_tokens = num_hits * self.block_size;
        let num_tokens = options.room_for(prompt, cached_tokens);
        let admission = Admission { cached_tokens, num_tokens, epoch: next_epoch() };
        (CachedSequence::new(sequence, naming), admission)
    }

    /// Refuses a request that needs more than the `available` blocks of its own.
    fn refuse_beyond(
        &self,
        available: usize,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<()> {
        if options.room_for(prompt, 0).div_ceil(self.block_size) <= available {
            return Ok(());
        }
        match self.required(prompt, options) {
            (requested, _) if requested > available => {
                Err(PagedKvError::OutOfMemory { requested, available })
            }
            _ => Ok(()),
        }
    }

    /// The room that an admission takes as things stand: new blocks, and hits that nobody uses.
    pub(crate) fn room_required(&self, prompt: &Prompt, options: &AdmitOptions) -> usize {
        let (new, idle) = self.required(prompt, options);
        new + idle
    }

    /// New blocks, and hits that nobody uses.
    fn required(&self, prompt: &Prompt, options: &AdmitOptions) -> (usize, usize) {
        let hashes = &prompt.hashes()[..options.most_hits(prompt, self.block_size)];
        let probed = self.published().probe(self.pool.blocks(), hashes);
        let num_tokens = options.room_for(prompt, probed.cached * self.block_size);
        (num_tokens.div_ceil(self.block_size) - probed.cached, probed.idle)
    }
}
