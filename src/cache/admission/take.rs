//! `match_and_allocate`: an admission matches the cached blocks of a prompt and allocates the others, or
//! neither.

use super::super::PagedKvCache;
use super::Admission;
use super::options::AdmitOptions;
use super::prompt::Prompt;
use crate::cache::reuse::cached_sequence::CachedSequence;
use crate::cache::reuse::hashed_tokens::HashedTokens;
use crate::epochs::next_epoch;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::groups::joint::JointHit;
use crate::pool::Blocks;
use crate::pool::watermark::{Admit, BlockWatermark, Need, NewBlocks};
use crate::prefix::{Generation, GroupHits, Sought};
use crate::sequence::Sequence;
use crate::sync::Arc;

/// A sequence that holds the cached blocks of its prompt, and new blocks for the rest.
struct Matched {
    sequence: Sequence,
    hit: JointHit,
    generation: Generation,
}

/// A sequence of hits, which are given back as if they had not been matched, unless it is taken out: after a
/// refusal, and if the observer of overwritten contents panics.
struct UndoneHits<'a> {
    sequence: Option<Sequence>,
    blocks: &'a Blocks,
}

impl Drop for UndoneHits<'_> {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            self.blocks.undo(sequence);
        }
    }
}

impl NewBlocks for Matched {
    fn num_blocks_freed(&self) -> usize {
        self.sequence.num_blocks_freed()
    }

    fn forget_uses(&mut self) {
        self.sequence.forget_uses();
    }
}

/// The room that a prompt needs. Until the prompt is looked up, every block that could match counts as
/// idle.
struct NeedOfPrompt<'a> {
    cache: &'a PagedKvCache,
    prompt: &'a Prompt,
    options: &'a AdmitOptions,
}

impl Need for NeedOfPrompt<'_> {
    fn at_most(&self) -> usize {
        if let Some(layout) = self.cache.layout() {
            return self.cache.most_in_groups(layout, self.prompt, self.options);
        }
        let block_size = self.cache.block_size;
        let most_hits = self.options.most_hits(self.prompt, block_size);
        let owned = self.options.room_for(self.prompt, most_hits * block_size).div_ceil(block_size);
        owned.saturating_add(self.options.blocks_held_without_groups(owned, block_size))
    }

    fn exactly(&self) -> usize {
        self.cache.room_required(self.prompt, self.options)
    }

    /// Returns true: a refusal after the match would have changed the order of idle contents.
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
        self.match_and_allocate_by(prompt, options, admit, |sequence, num_tokens| {
            sequence.append(num_tokens).map(drop)
        })
    }

    /// Does as [`match_and_allocate`](Self::match_and_allocate). `grow` takes the sequence and the number of its new
    /// tokens.
    #[inline]
    pub(in crate::cache) fn match_and_allocate_by(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        admit: Admit,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<(CachedSequence, Admission)> {
        self.check_prompt(prompt)?;
        let need = NeedOfPrompt { cache: self, prompt, options };
        let watermark = options.watermark(self.watermark);
        let matched = watermark
            .take(self.pool.blocks(), need, admit, || self.match_and_grow(prompt, options, grow))?;
        Ok(self.admission_of(prompt, options, matched))
    }

    /// Does as [`match_and_allocate`](Self::match_and_allocate), with new blocks from a stock of
    /// `available` blocks. `grow` takes the sequence and the number of its new tokens.
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

    /// Acquires the cached blocks of the prompt and grows by the rest, or does neither.
    fn match_and_grow(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<Matched> {
        let retained = options.retained();
        if retained.is_some() {
            self.checked_levels()?;
        }
        if let Some(layout) = self.layout() {
            return self.match_and_grow_groups(layout, prompt, options, grow);
        }
        let published = self.published();
        let hashes = &prompt.hashes()[..options.most_hits(prompt, self.block_size)];
        let generation = published.generation();
        // Capacity for all of the hits, if not for the rest of the prompt.
        let most = options.room_for(prompt, hashes.len() * self.block_size);
        let most = most.div_ceil(self.block_size).min(self.pool.total_blocks());
        let mut hits = Vec::with_capacity(most + most / 8 + 4);
        published.acquire(self.pool.blocks(), hashes, generation, &mut hits);
        let uses = match self.pool.blocks().density() {
            None => None,
            Some(_) => {
                let asked = (prompt.hashes(), prompt.num_tokens());
                published.count_uses(self.pool.blocks(), asked, &hits, generation)
            }
        };
        if !hits.is_empty() {
            self.pool.blocks().announce_contents();
        }
        let cached_tokens = hits.len() * self.block_size;
        let num_tokens = options.room_for(prompt, cached_tokens);
        let mut sequence = self.pool.sequence_of(hits, self.block_size);
        if options.holds_blocks() {
            sequence.enter_group()?;
        }
        let hit = JointHit { length: cached_tokens, longest: cached_tokens, limiting: None };
        let mut sequence = self.grow_hits(sequence, num_tokens, options, grow)?;
        if uses.is_some() || retained.is_some() {
            sequence.set_uses(uses, retained, prompt.num_tokens(), generation.number());
        }
        Ok(Matched { sequence, hit, generation })
    }

    /// Does the work of [`match_and_grow`](Self::match_and_grow) in a cache with groups.
    #[cold]
    fn match_and_grow_groups(
        &self,
        layout: &Arc<GroupLayout>,
        prompt: &Prompt,
        options: &AdmitOptions,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<Matched> {
        let generation = self.published().generation();
        let hits = self.acquire_joint(layout, prompt, options, generation);
        self.grow_group_hits(layout, (prompt, options), hits, generation, grow)
    }

    /// Grows a sequence of the hits of all groups.
    fn grow_group_hits(
        &self,
        layout: &Arc<GroupLayout>,
        (prompt, options): (&Prompt, &AdmitOptions),
        GroupHits { hit, ids, loads: _ }: GroupHits,
        generation: Generation,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<Matched> {
        let num_tokens = options.room_for(prompt, hit.length);
        let sequence = Sequence::of_hits(&self.pool.handle(), ids, hit.length, layout);
        self.grow_hits(sequence, num_tokens, options, grow).map(|sequence| Matched {
            sequence,
            hit,
            generation,
        })
    }

    /// Does as [`match_and_allocate_by`](Self::match_and_allocate_by) in a cache with groups, with the hits that
    /// `acquire` returns. It puts blocks in the places of those that are to be loaded.
    #[cold]
    pub(in crate::cache) fn match_groups_by(
        &self,
        layout: &Arc<GroupLayout>,
        (prompt, options): (&Prompt, &AdmitOptions),
        generation: Generation,
        acquire: impl FnOnce(Sought<'_>) -> Result<GroupHits>,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<(CachedSequence, Admission)> {
        let need = NeedOfPrompt { cache: self, prompt, options };
        let watermark = options.watermark(self.watermark);
        let matched = watermark.take(self.pool.blocks(), need, Admit::Now, || {
            let hits = acquire(self.sought(layout, prompt, options))?;
            self.grow_group_hits(layout, (prompt, options), hits, generation, grow)
        })?;
        Ok(self.admission_of(prompt, options, matched))
    }

    /// Grows a sequence of hits to `num_tokens` tokens, and takes the blocks that it is to hold. If that fails, the
    /// hits are given back as if they had not been matched.
    #[inline]
    fn grow_hits(
        &self,
        sequence: Sequence,
        num_tokens: usize,
        options: &AdmitOptions,
        grow: impl FnOnce(&mut Sequence, usize) -> Result<()>,
    ) -> Result<Sequence> {
        let num_new_tokens = num_tokens - sequence.num_tokens();
        let mut undone = UndoneHits { sequence: Some(sequence), blocks: self.pool.blocks() };
        let sequence = undone.sequence.as_mut().expect("it was just put there");
        grow(sequence, num_new_tokens)?;
        if options.holds_blocks() {
            self.hold_for_growth(sequence, options)?;
        }
        Ok(undone.sequence.take().expect("only its drop takes it otherwise"))
    }

    /// Returns the admitted sequence. Emits the events of matched contents that were not reported before.
    fn admission_of(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        Matched { sequence, hit, generation }: Matched,
    ) -> (CachedSequence, Admission) {
        let published = self.published();
        let num_hits = hit.length / self.block_size;
        let mut hashed = HashedTokens::new(published.clone(), prompt.clone(), num_hits, generation);
        let JointHit { length: cached_tokens, longest: longest_group_hit, limiting } = hit;
        let num_tokens = options.room_for(prompt, cached_tokens);
        let (epoch, limiting_group) = (next_epoch(), limiting);
        let admission =
            Admission { cached_tokens, num_tokens, epoch, longest_group_hit, limiting_group };
        if let Some(layout) = self.layout() {
            hashed = hashed.in_groups(layout, cached_tokens);
            hashed.emit_matched(&sequence, cached_tokens);
            return (CachedSequence::new(sequence, hashed), admission);
        }
        let matched = &sequence.block_ids()[..num_hits];
        let context = || hashed.context(0, self.block_size);
        published.emit_matched(matched, |at| hashed.hash(at), generation, context);
        (CachedSequence::new(sequence, hashed), admission)
    }

    /// Refuses a request that needs more than the `available` blocks of its reservation, or whose idle hits
    /// would leave fewer blocks than its options say.
    fn refuse_beyond(
        &self,
        available: usize,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<()> {
        options.watermark(BlockWatermark::default()).refuse_below(self.pool.blocks(), || {
            let (_, idle) = self.required(prompt, options);
            idle
        })?;
        if self.required_without_hits(prompt, options) <= available && !options.holds_blocks() {
            return Ok(());
        }
        match self.required(prompt, options) {
            (requested, _) if requested > available => {
                Err(PagedKvError::OutOfMemory { requested, available })
            }
            _ => Ok(()),
        }
    }

    /// Returns the number of blocks by which an admission of `prompt` would lower
    /// [`free_block_count`](Self::free_block_count) now: new blocks, and hits that no sequence holds. A
    /// scheduler admits a prompt when this many are free and others need no more; see
    /// [`AdmitOptions::leave_free`]. Holds and writes nothing. Costs as [`Prefix::probe`](crate::Prefix::probe).
    ///
    /// # Errors
    /// [`PromptMismatch`](PagedKvError::PromptMismatch) and [`InvalidConfig`](PagedKvError::InvalidConfig) as
    /// [`admit_with`](Self::admit_with).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let (prompt, options) = (cache.prompt(&[7; 10]), AdmitOptions::default());
    /// assert_eq!(cache.required_blocks(&prompt, &options)?, 3);
    /// cache.admit_with(SeqId(1), &prompt, &options)?;
    /// cache.commit(SeqId(1), 10)?;
    /// assert_eq!(cache.required_blocks(&prompt, &options)?, 1); // two are shared
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn required_blocks(&self, prompt: &Prompt, options: &AdmitOptions) -> Result<usize> {
        self.check_prompt(prompt)?;
        Ok(self.room_required(prompt, options))
    }

    /// Returns the room that an admission would take now: new blocks, and idle hits.
    pub(crate) fn room_required(&self, prompt: &Prompt, options: &AdmitOptions) -> usize {
        let (new, idle) = self.required(prompt, options);
        new + idle
    }

    /// Returns the number of new blocks, and the number of idle hits.
    fn required(&self, prompt: &Prompt, options: &AdmitOptions) -> (usize, usize) {
        if let Some(layout) = self.layout() {
            return self.required_in_groups(layout, prompt, options);
        }
        let hashes = &prompt.hashes()[..options.most_hits(prompt, self.block_size)];
        let (published, blocks) = (self.published(), self.pool.blocks());
        let probed = match prompt.is_hashed_by_caller() {
            false => published.probe(blocks, hashes),
            // Equal hashes lead to one block, which is idle for the first of them only.
            true => published.probe_distinct(blocks, hashes),
        };
        let num_tokens = options.room_for(prompt, probed.cached * self.block_size);
        let owned = num_tokens.div_ceil(self.block_size);
        let held = options.blocks_held_without_groups(owned, self.block_size);
        (owned - probed.cached + held, probed.idle)
    }
}
