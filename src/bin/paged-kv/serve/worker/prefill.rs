//! `bring_in` and `grow`: the calls of the cache that admit a prompt and that extend a sequence.
//!
//! In a cache without groups a prompt is admitted as a whole. In a cache with groups it is computed in chunks, so that
//! windows release blocks between them, and states are published at the end of each.

use std::ops::Range;

use paged_kv::{Admission, AdmitOptions, PagedKvError, SeqId};

use super::{Admitted, Worker, unless_evicted};
use crate::serve::needs::Chunks;
use crate::serve::prompts::Part;

impl Worker<'_> {
    /// Admits the prompt by its contents, as far as it has some. The contents that other prompts may share count
    /// as computed immediately. It must leave its share of the growth free.
    pub(super) fn bring_in(
        &mut self,
        sequence: SeqId,
        part: Part<'_>,
        growth: usize,
    ) -> Result<Admitted, PagedKvError> {
        let reserve = (growth as f64 * self.service.plan.leave_free).ceil() as usize;
        match (self.service.plan.offload, self.service.needs.chunks()) {
            (Some(offload), _) => self.bring_in_through(offload, sequence, part, reserve),
            (None, None) => self.bring_in_whole(sequence, part, reserve),
            (None, Some(chunks)) => self.bring_in_chunks(sequence, part, reserve, chunks),
        }
    }

    fn bring_in_whole(
        &mut self,
        sequence: SeqId,
        part: Part<'_>,
        reserve: usize,
    ) -> Result<Admitted, PagedKvError> {
        let (cache, prompts) = (self.service.cache, self.service.plan.prompts);
        let prompt = prompts.prompt(cache, part);
        // An empty prompt takes no block, so no admission refuses it.
        let available = cache.free_block_count();
        if prompt.num_tokens() == 0 && reserve > available {
            return Err(PagedKvError::OutOfMemory { requested: reserve, available });
        }
        let options = AdmitOptions::default().leave_free(reserve);
        let admission = self.meter.time(|| cache.admit_with(sequence, &prompt, &options))?;
        self.count_hits(part, &admission);
        self.commit_named(sequence, part, prompt.num_tokens())?;
        Ok(Admitted { cached_tokens: admission.cached_tokens, written: prompt.num_tokens() })
    }

    /// Admits the hits of a prompt, and computes the rest in chunks. Other workers may take the blocks between two
    /// chunks. Then the prompt is freed and refused; the blocks that it published stay cached.
    fn bring_in_chunks(
        &mut self,
        sequence: SeqId,
        part: Part<'_>,
        reserve: usize,
        chunks: Chunks,
    ) -> Result<Admitted, PagedKvError> {
        let (cache, prompts) = (self.service.cache, self.service.plan.prompts);
        let (prompt, num_tokens) = (prompts.known_prompt(cache, part), part.prompt_tokens());
        let hits = match prompt.num_tokens() < num_tokens {
            true => AdmitOptions::default().allow_full_hit(),
            false => AdmitOptions::default(),
        };
        let whole = hits.clone().first_chunk(chunks.tokens()).reserve_whole(num_tokens);
        let requested = reserve + cache.required_blocks(&prompt, &whole)?;
        let available = cache.free_block_count();
        if requested > available {
            return Err(PagedKvError::OutOfMemory { requested, available });
        }
        let options = hits.first_chunk(0);
        let admission = self.meter.time(|| cache.admit_with(sequence, &prompt, &options))?;
        let (cached_tokens, mut written) = (admission.cached_tokens, admission.cached_tokens);
        let named_tokens = prompts.named_blocks(part.request) * prompts.unit;
        while written < num_tokens {
            let end = chunks.end_after(written, num_tokens, named_tokens);
            match self.grow(sequence, written..end) {
                Ok(()) => self.commit_named(sequence, part, end)?,
                Err(PagedKvError::SequenceNotFound(_)) => break,
                Err(error) => {
                    unless_evicted(self.meter.time(|| cache.free(sequence)))?;
                    return Err(error);
                }
            }
            written = end;
        }
        self.count_hits(part, &admission);
        Ok(Admitted { cached_tokens, written })
    }

    /// Publishes those of the first `written` tokens of a prompt whose contents the trace names.
    pub(super) fn commit_named(
        &mut self,
        sequence: SeqId,
        part: Part<'_>,
        written: usize,
    ) -> Result<(), PagedKvError> {
        let (cache, prompts) = (self.service.cache, self.service.plan.prompts);
        if prompts.id_tokens.is_none() {
            return Ok(());
        }
        let named_tokens = prompts.named_blocks(part.request) * prompts.unit;
        let commit = || cache.commit(sequence, named_tokens.min(written)).map(drop);
        unless_evicted(self.meter.time(commit))
    }

    pub(super) fn count_hits(&mut self, part: Part<'_>, admission: &Admission) {
        let prompts = self.service.plan.prompts;
        let named_blocks = prompts.named_blocks(part.request);
        let named = |tokens: usize| (tokens / prompts.unit).min(named_blocks) as u64;
        self.meter.prompt_blocks += named_blocks as u64;
        self.meter.hit_blocks += named(admission.cached_tokens);
        self.meter.longest_hit_blocks += named(admission.longest_group_hit);
        self.meter.prompt_tokens_hit += admission.cached_tokens as u64;
        self.meter.prompt_tokens_computed +=
            (part.prompt_tokens() - admission.cached_tokens) as u64;
    }

    /// Extends a sequence by the tokens at these positions, and takes the copies of states that it asks for then.
    pub(super) fn grow(
        &mut self,
        sequence: SeqId,
        tokens: Range<usize>,
    ) -> Result<(), PagedKvError> {
        let (cache, needs) = (self.service.cache, self.service.needs);
        let begins_block = tokens.start.next_multiple_of(needs.unit()) < tokens.end;
        if begins_block && self.service.plan.offload.is_some() {
            return self.append_in_step(sequence, tokens.len());
        }
        let append = self.meter.time(|| cache.append(sequence, tokens.len()))?;
        debug_assert!(append.copy.is_none(), "nothing is forked, so nothing is copied");
        if needs.has_states() && begins_block {
            return self.take_copies(sequence);
        }
        Ok(())
    }

    /// Takes the copies that are pending, as an engine does before it computes a state. No tensor is stored, so there
    /// is nothing to copy; a copy that is not taken holds its source.
    fn take_copies(&mut self, sequence: SeqId) -> Result<(), PagedKvError> {
        let cache = self.service.cache;
        let lease = match cache.lease(&[sequence]) {
            Err(PagedKvError::SequenceNotFound(_)) => return Ok(()),
            lease => lease?,
        };
        let mut step = cache.step(Default::default());
        for mut row in lease.rows() {
            unless_evicted(step.join(&mut row))?;
        }
        step.copies(&mut Vec::<[u32; 2]>::new())?;
        step.complete();
        Ok(())
    }
}
