//! Commits through a step: the blocks can be matched once the step completes. Until then the step is one
//! more owner of each, so that they stay and are not written.

use std::ops::Range;

use super::{Step, StepBuffers};
use crate::cache::reuse::cached_sequence::Parts;
use crate::cache::reuse::computed::Computed;
use crate::cache::reuse::hashed_tokens::{
    HashedTokens, OfferedRun, refuse_beyond_end, refuse_uncomputable,
};
use crate::cache::rows::{Row, update};
use crate::error::Result;
use crate::id::{BlockId, GroupId};
use crate::prefix::{BlockHash, EventContext, ExtraKeys, Generation, PublishRequest};
use crate::sequence::{Sequence, SequenceUses};
use crate::sync::PlainArc;

/// Blocks of one commit, in order.
pub(super) struct Committed {
    /// End of these blocks among all blocks of the step.
    end: usize,
    end_of_tokens: usize,
    /// The generation (of the weights) in which they were computed.
    generation: Generation,
    /// The block before them, and the hash of its content.
    before: Option<BlockId>,
    parent: Option<BlockHash>,
    group: GroupId,
    block_size: usize,
    extra: Option<PlainArc<ExtraKeys>>,
    /// Number of blocks of the sequence before the first of them.
    index: usize,
    /// The facts for the reclaim order: the sequence may be released before the step completes.
    uses: Option<PlainArc<SequenceUses>>,
}

/// Neighbouring blocks of one commit.
struct OfRun {
    /// The number of the first.
    start: usize,
    len: usize,
    /// The block before the first.
    before: Option<BlockId>,
    generation: Generation,
    uses: Option<PlainArc<SequenceUses>>,
}

impl Step {
    /// Reports keys and values of a sequence that are computed once this step completes. Does as
    /// [`CachedSequence::commit`](crate::CachedSequence::commit), but publishes only then. Returns the
    /// number of blocks that wait for it, 0 for a sequence whose tokens are not known. The sequence joins the step.
    /// Takes one atomic operation a block, and the lock of the step's slot.
    ///
    /// If the step is dropped or aborted, nothing is published, and the same tokens can be committed again.
    ///
    /// # Errors
    /// [`WrongCache`](crate::PagedKvError::WrongCache) for a sequence of another cache,
    /// [`SequenceNotFound`](crate::PagedKvError::SequenceNotFound) for a row of a lease whose sequence is
    /// gone, [`CommitBeyondEnd`](crate::PagedKvError::CommitBeyondEnd),
    /// [`HashesUnknown`](crate::PagedKvError::HashesUnknown) and
    /// [`InvalidConfig`](crate::PagedKvError::InvalidConfig) as [`PagedKvCache::commit`](crate::PagedKvCache::commit),
    /// [`TooManyOwners`](crate::PagedKvError::TooManyOwners); no token is committed or named then, and the
    /// sequence has not joined.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[7; 9]), &AdmitOptions::default())?;
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.commit(&mut sequence, 9)?, 2);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 0);
    /// assert_eq!(step.complete().published, 2);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit<'a, R: Row>(
        &mut self,
        row: &mut R,
        computed: impl Into<Computed<'a>>,
    ) -> Result<usize> {
        let computed = computed.into();
        update(row, |(sequence, hashed), _| {
            self.refuse_other_cache(sequence)?;
            let before = sequence.join_step(self.in_flight);
            let committed = match (computed, hashed) {
                (computed, None) => refuse_uncomputable(sequence, computed).map(|()| 0),
                (Computed::Tokens(num_tokens), Some(hashed)) => {
                    self.commit_length((&mut *sequence, hashed), num_tokens)
                }
                (Computed::Named(tokens), Some(hashed)) => {
                    self.commit_named((&mut *sequence, hashed), tokens)
                }
                (Computed::Hashed(hashes), Some(hashed)) => {
                    self.commit_hashed((&mut *sequence, hashed), hashes)
                }
            };
            if committed.is_err() {
                sequence.leave_step(before);
            }
            committed
        })
    }

    /// Notes the number of tokens and commits them, or does neither.
    fn commit_length(
        &mut self,
        (sequence, hashed): (&mut Sequence, &mut HashedTokens),
        num_tokens: usize,
    ) -> Result<usize> {
        let named = hashed.num_named();
        hashed.name_length(sequence, num_tokens)?;
        let committed = self.commit_parts((sequence, Some(&mut *hashed)), num_tokens);
        if committed.is_err() {
            hashed.take_length_back(named);
        }
        committed
    }

    /// Hashes the next tokens and commits up to their end, or does neither.
    fn commit_named(
        &mut self,
        (sequence, hashed): (&mut Sequence, &mut HashedTokens),
        tokens: &[u32],
    ) -> Result<usize> {
        let named = hashed.num_named();
        hashed.name_tokens(sequence, tokens)?;
        if tokens.is_empty() {
            return Ok(0);
        }
        let num_tokens = hashed.num_named();
        let committed = self.commit_parts((sequence, Some(&mut *hashed)), num_tokens);
        if committed.is_err() {
            hashed.forget_generated(named, sequence.hash_unit());
        }
        committed
    }

    /// Adds the hashes of the next blocks and commits up to their end, or does neither.
    fn commit_hashed(
        &mut self,
        (sequence, hashed): (&mut Sequence, &mut HashedTokens),
        hashes: &[BlockHash],
    ) -> Result<usize> {
        let named = hashed.num_named();
        hashed.add_hashes(sequence, hashes)?;
        let num_tokens = hashed.num_named();
        let committed = self.commit_parts((sequence, Some(&mut *hashed)), num_tokens);
        if committed.is_err() {
            hashed.take_hashes_back(hashes.len(), named);
        }
        committed
    }

    pub(super) fn commit_parts(
        &mut self,
        (sequence, hashed): Parts<'_>,
        num_tokens: usize,
    ) -> Result<usize> {
        self.refuse_other_cache(sequence)?;
        refuse_beyond_end(sequence, num_tokens)?;
        let Some(hashed) = hashed else {
            return Ok(0);
        };
        if hashed.has_groups() {
            return self.commit_groups(sequence, hashed, num_tokens);
        }
        hashed.offer_failed_again(sequence);
        let offered = hashed.offered();
        // The usual case: no further block is full.
        if num_tokens < (offered + 1) * sequence.block_size() {
            return Ok(0);
        }
        let full = hashed.full_blocks(sequence, num_tokens);
        if full <= offered {
            return Ok(0);
        }
        if let Some(left_out) = hashed.left_out(sequence, offered) {
            // If this is refused, the step does not publish them.
            let _ = self.hold_until_published(sequence, hashed, left_out);
        }
        self.hold_until_published(sequence, hashed, offered..full)?;
        hashed.offer_to_step(full);
        Ok(full - offered)
    }

    /// Notes consecutive blocks of a sequence, to be published when the step completes.
    /// Does as [`commit_parts`](Self::commit_parts) in each group.
    fn commit_groups(
        &mut self,
        sequence: &Sequence,
        hashed: &mut HashedTokens,
        num_tokens: usize,
    ) -> Result<usize> {
        let runs = hashed.runs_for_step(sequence, num_tokens);
        for (done, run) in runs.iter().enumerate() {
            if let Err(refusal) = self.hold_run(sequence, hashed, run) {
                (0..done).for_each(|_| self.take_commit_back());
                hashed.take_runs_back(&runs);
                return Err(refusal);
            }
        }
        Ok(runs.iter().map(|run| run.ids(sequence).len()).sum())
    }

    fn hold_run(
        &mut self,
        sequence: &Sequence,
        hashed: &HashedTokens,
        run: &OfferedRun,
    ) -> Result<()> {
        let committed = run.ids(sequence);
        self.pool.retain_in_step(self.in_flight, committed)?;
        let StepBuffers { ids, hashes, .. } = &mut self.buffers;
        ids.extend_from_slice(committed);
        hashes.extend((0..committed.len()).map(|at| hashed.hash_in_run(run, at)));
        let of_run = OfRun {
            start: run.start(),
            len: committed.len(),
            before: None,
            generation: run.generation(),
            uses: None,
        };
        self.note_committed(hashed, hashed.context_of(run), of_run);
        Ok(())
    }

    fn hold_until_published(
        &mut self,
        sequence: &Sequence,
        hashed: &HashedTokens,
        blocks: Range<usize>,
    ) -> Result<()> {
        let StepBuffers { ids, hashes, .. } = &mut self.buffers;
        // One more owner: a block stays, and an append copies it instead of writing it.
        let committed = &sequence.block_ids()[blocks.clone()];
        self.pool.retain_in_step(self.in_flight, committed)?;
        ids.extend_from_slice(committed);
        hashes.extend(blocks.clone().map(|at| hashed.hash(at)));
        let context = hashed.context(blocks.start, sequence.block_size());
        let of_run = OfRun {
            start: blocks.start,
            len: blocks.len(),
            before: sequence.block_ids()[..blocks.start].last().copied(),
            generation: hashed.generation(),
            uses: sequence.uses().cloned(),
        };
        self.note_committed(hashed, context, of_run);
        Ok(())
    }

    /// Notes the last blocks of the step as one commit.
    #[inline]
    fn note_committed(&mut self, hashed: &HashedTokens, context: EventContext<'_>, run: OfRun) {
        let StepBuffers { ids, tokens, groups, .. } = &mut self.buffers;
        if hashed.published().has_event_sink() {
            tokens.extend_from_slice(context.tokens_of(0..run.len, &mut Vec::new()));
        }
        groups.push(Committed {
            end: ids.len(),
            end_of_tokens: tokens.len(),
            generation: run.generation,
            before: run.before,
            parent: context.parent,
            group: context.group,
            block_size: context.block_size,
            extra: context.extra.clone(),
            index: run.start,
            uses: run.uses,
        });
        self.published.get_or_insert_with(|| hashed.published().clone());
    }

    /// Takes the last commit back, of a sequence that could not be cut.
    #[cold]
    pub(super) fn take_commit_back(&mut self) {
        let StepBuffers { ids, hashes, tokens, groups, .. } = &mut self.buffers;
        groups.pop();
        let (end, end_of_tokens) =
            groups.last().map_or((0, 0), |last| (last.end, last.end_of_tokens));
        self.pool.release_in_step(self.in_flight, end);
        ids.truncate(end);
        hashes.truncate(end);
        tokens.truncate(end_of_tokens);
    }

    pub(super) fn publish(&mut self) -> usize {
        let StepBuffers { ids, hashes, tokens, groups, .. } = &self.buffers;
        let Some(published) = self.published.take() else {
            return 0;
        };
        let (mut count, mut start, mut start_of_tokens) = (0, 0, 0);
        for commit in groups {
            let (ids, hashes) = (&ids[start..commit.end], &hashes[start..commit.end]);
            let context = || EventContext {
                group: commit.group,
                parent: commit.parent,
                tokens: [&tokens[start_of_tokens..commit.end_of_tokens], &[]],
                block_size: commit.block_size,
                extra: commit.extra.clone(),
                index: commit.index,
            };
            let Committed { before, generation, index, .. } = *commit;
            // The step owns them too: none is private.
            let offer = PublishRequest { ids, before, private_from: ids.len(), generation };
            count += published.publish(&self.pool, &offer, |at| hashes[at], context);
            if let Some(uses) = &commit.uses {
                if uses.has_levels() {
                    let level_of = |at| uses.level_of(index + at);
                    published.set_levels_of_copies(&self.pool, &offer, |at| hashes[at], level_of);
                }
                uses.note_published(&self.pool, (index, ids), before);
            }
            (start, start_of_tokens) = (commit.end, commit.end_of_tokens);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::{
        AdmitOptions, CachedSequence, Level, PagedKvCache, PinAnswer, ReclaimPolicy, Retain,
    };

    fn cache() -> PagedKvCache {
        let builder = PagedKvCache::builder().num_blocks(64).block_size(4).retention_levels(true);
        builder.reclaim_policy(ReclaimPolicy::HitDensity).build().expect("valid parameters")
    }

    fn admit(cache: &PagedKvCache, tokens: std::ops::Range<u32>) -> CachedSequence {
        let (prompt, options) =
            (cache.prompt(&tokens.collect::<Vec<_>>()), AdmitOptions::default());
        cache.admit_sequence(&prompt, &options).expect("there is room").0
    }

    /// Returns the classes of the next turn of a conversation of 17 tokens that is alone in the cache.
    fn classes_of_next_turn(cache: &PagedKvCache) -> Vec<usize> {
        let mut next = admit(cache, 0..25);
        next.commit(25).expect("it has the tokens");
        let ids = next.block_ids()[..4].to_vec();
        drop(next);
        let keyed = cache.pool().blocks().keyed();
        ids.iter().map(|&id| keyed.note(id).class()).collect()
    }

    #[test]
    fn blocks_that_are_published_after_the_release_are_of_that_release() {
        let classes = [false, true].map(|is_released_first| {
            let cache = cache();
            let mut sequence = admit(&cache, 0..17);
            sequence.commit(12).expect("it has the tokens");
            let mut step = cache.step(Default::default());
            assert_eq!(step.commit(&mut sequence, 16), Ok(1));
            match is_released_first {
                true => (drop(sequence), drop(step.complete())),
                false => (drop(step.complete()), drop(sequence)),
            };
            classes_of_next_turn(&cache)
        });
        assert_eq!(classes[0], classes[1]);
    }

    /// A conversation shares nothing with itself, though the times of its blocks differ.
    #[test]
    fn blocks_whose_time_was_renewed_are_of_their_release() {
        let classes = [0, 1, 2, 3].map(|way| {
            let cache = cache();
            let mut sequence = admit(&cache, 0..17);
            sequence.commit(17).expect("it has the tokens");
            drop(sequence);
            drop(admit(&cache, 1_000..1_032));
            let half = cache.prompt(&[0, 1, 2, 3, 4, 5, 6, 7]);
            let level = |level| Retain::new(0..8, level);
            match way {
                1 => _ = cache.retention().set(&half, &level(Level::Default)),
                2 => match cache.retention().pin(&half, Instant::now() + Duration::from_secs(60)) {
                    Ok(PinAnswer::Accepted(pin)) => drop(pin),
                    answer => panic!("the budget suffices: {answer:?}"),
                },
                3 => {
                    let ends = level(Level::High).ttl(Duration::from_nanos(1));
                    assert_eq!(cache.retention().set(&half, &ends), Ok(2));
                    thread::sleep(Duration::from_millis(1));
                    drop(cache.pool().allocate(61).expect("there is room"));
                }
                _ => {}
            }
            // The last way has reclaimed the fourth block.
            classes_of_next_turn(&cache)[..3].to_vec()
        });
        assert_eq!(classes, [&classes[0][..]; 4]);
    }
}
