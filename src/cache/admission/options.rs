//! `AdmitOptions`: the parameters of an admission, apart from its prompt.

use std::time::Duration;

use super::prompt::Prompt;
use crate::groups::GroupLayout;
use crate::id::Worker;
use crate::pool::watermark::BlockWatermark;
use crate::pool::{Level, LevelNote};
use crate::sequence::retain::{Retain, RetainedRanges};

/// The parameters of an admission.
///
/// ```
/// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let options = AdmitOptions::default().first_chunk(8).priority(3);
/// let admission = cache.admit_with(SeqId(1), &cache.prompt(&[7; 20]), &options)?;
/// assert_eq!(admission.num_tokens, 8);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct AdmitOptions {
    first_chunk: Option<usize>,
    max_cached_tokens: Option<usize>,
    allow_full_hit: bool,
    leave_free: usize,
    reserve_whole: Option<usize>,
    priority: u32,
    worker: Option<Worker>,
    retained: Option<Box<RetainedRanges>>,
}

impl AdmitOptions {
    /// Allocates slots for `num_tokens` tokens after the cached ones only (chunked prefill). The caller
    /// appends further chunks.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(2, 4, 1, 1);
    /// assert!(cache.admit(SeqId(1), &[7; 20]).is_err());
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7; 20]), &AdmitOptions::default().first_chunk(8))?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn first_chunk(self, num_tokens: usize) -> Self {
        Self { first_chunk: Some(num_tokens), ..self }
    }

    /// Lets at most `num_tokens` tokens hit, for example for a request that needs the logits of its prompt.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 9)?;
    /// let options = AdmitOptions::default().max_cached_tokens(0);
    /// assert_eq!(cache.admit_with(SeqId(2), &cache.prompt(&[7; 9]), &options)?.cached_tokens, 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn max_cached_tokens(self, num_tokens: usize) -> Self {
        Self { max_cached_tokens: Some(num_tokens), ..self }
    }

    /// Lets the block of the prompt's last token hit too, if it is full. By default the last token is always
    /// left to compute, because its logits are needed. With this option
    /// [`cached_tokens`](crate::Admission::cached_tokens) may equal the prompt's length. Such a caller has the
    /// logits from elsewhere, or computes a cached token again, and so writes the same values.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 8])?;
    /// cache.commit(SeqId(1), 8)?;
    /// let (prompt, options) = (cache.prompt(&[7; 8]), AdmitOptions::default());
    /// assert_eq!(cache.admit_with(SeqId(2), &prompt, &options)?.cached_tokens, 4);
    /// assert_eq!(cache.admit_with(SeqId(3), &prompt, &options.allow_full_hit())?.cached_tokens, 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allow_full_hit(self) -> Self {
        Self { allow_full_hit: true, ..self }
    }

    /// Refuses the admission if fewer than `num_blocks` blocks would be available after it, for the growth of
    /// running requests. The larger of this and the cache's [`Watermark`](crate::Watermark) counts. An
    /// admission that takes no block (all of it is shared with running requests) is not refused. 0 by default.
    ///
    /// [`OutOfMemory`](crate::PagedKvError::OutOfMemory) then counts the blocks beyond these as available.
    /// A request may exceed the pool with this option, also when nothing else runs: then it is always refused.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let (prompt, options) = (cache.prompt(&[7; 20]), AdmitOptions::default());
    /// let refused = cache.admit_with(SeqId(1), &prompt, &options.clone().leave_free(4)).unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 5, available: 4 });
    /// cache.admit_with(SeqId(1), &prompt, &options.leave_free(3))?;
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn leave_free(self, num_blocks: usize) -> Self {
        Self { leave_free: num_blocks, ..self }
    }

    /// Sets the priority of a sequence that is admitted by id, 0 by default; see
    /// [`PagedKvCache::set_priority`](crate::PagedKvCache::set_priority).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7]), &AdmitOptions::default().priority(2))?;
    /// assert_eq!(cache.get_sequence(SeqId(1)).unwrap().priority, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }

    /// Sets the worker of a sequence that is admitted by id; see
    /// [`PagedKvCache::set_worker`](crate::PagedKvCache::set_worker).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, Worker, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7]), &AdmitOptions::default().worker(Worker(3)))?;
    /// cache.evict()?;
    /// assert_eq!(cache.touch(SeqId(1)), Err(PagedKvError::SequenceEvicted(SeqId(1))));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn worker(self, worker: Worker) -> Self {
        Self { worker: Some(worker), ..self }
    }

    /// Gives the contents of a range of the prompt's tokens a level, for a cache with
    /// [`retention_levels`](crate::PagedKvCacheBuilder::retention_levels). May be called several times: of ranges that
    /// overlap, the one that was added first counts.
    ///
    /// The level is that of all cached contents of the range, matched or new, from the release of their blocks on, also if
    /// an open step publishes them after it. It overrides an earlier one. Other requests that use the contents leave their
    /// level alone, unless they have one for them. A content that another block holds when this sequence computes it gets
    /// the level in that block at the commit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use paged_kv::{AdmitOptions, Level, PagedKvCache, Retain, SeqId};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = builder.retention_levels(true).build()?;
    /// let system_prompt = Retain::new(0..8, Level::High).ttl(Duration::from_secs(300));
    /// let options = AdmitOptions::default().retain(system_prompt);
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7; 16]), &options)?;
    /// cache.commit(SeqId(1), 16)?;
    /// cache.free(SeqId(1))?;
    /// cache.admit(SeqId(2), &[8; 24])?; // two blocks are reclaimed, and the range keeps its own
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 17])), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn retain(self, retain: Retain) -> Self {
        let mut retained = self.retained.unwrap_or_default();
        retained.add(retain);
        Self { retained: Some(retained), ..self }
    }

    /// Gives the blocks of tokens that are generated after the prompt a level, as [`retain`](Self::retain) does for a
    /// range of the prompt. A block that begins in the prompt belongs to the prompt.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, Level, PagedKvCache, SeqId};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = builder.retention_levels(true).build()?;
    /// let options = AdmitOptions::default().retain_generated(Level::Lowest, None);
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7; 8]), &options)?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn retain_generated(self, level: Level, ttl: Option<Duration>) -> Self {
        let mut retained = self.retained.unwrap_or_default();
        retained.set_generated(LevelNote::new(level, ttl));
        Self { retained: Some(retained), ..self }
    }

    /// Holds the blocks that the whole request needs: later growth up to `num_tokens` tokens takes these. While every
    /// request of the cache holds its own, growth is not refused; only that of a window which has left blocks that
    /// other requests matched may be, until these requests go on, and one of them always can. `num_tokens` counts the prompt and all tokens that may
    /// be generated. Without windows, the sequence holds a block for each `block_size` tokens. A window needs few
    /// blocks at a time: the sequence holds as many as it needs at most while it grows by the
    /// [first chunk](Self::first_chunk) at a time (by one token without; by up to
    /// [`max_rewind`](crate::PagedKvCacheBuilder::max_rewind) more in any case). The blocks that a window leaves are held again.
    /// Held blocks count as used, and a fork holds none.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, LayerGroup, PagedKvCache, SeqId};
    ///
    /// let groups = [
    ///     LayerGroup::Full { block_size: 16 },
    ///     LayerGroup::SlidingWindow { block_size: 16, window: 64 },
    /// ];
    /// let cache = PagedKvCache::builder().num_blocks(64).groups(&groups).build()?;
    /// let options = AdmitOptions::default().first_chunk(128).reserve_whole(512);
    /// cache.admit_with(SeqId(1), &cache.prompt(&[7; 512]), &options)?;
    /// assert_eq!(cache.used_block_count(), 45); // not 64: 32, and 13 for the window
    /// for _ in 0..3 {
    ///     cache.append(SeqId(1), 128)?;
    /// }
    /// assert_eq!(cache.used_block_count(), 45);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reserve_whole(self, num_tokens: usize) -> Self {
        Self { reserve_whole: Some(num_tokens), ..self }
    }

    /// Returns the most blocks of a prompt that may hit. The block of its last token does only if the options
    /// allow it.
    pub(in crate::cache) fn most_hits(&self, prompt: &Prompt, block_size: usize) -> usize {
        (self.most_cached_tokens(prompt) / block_size).min(prompt.hashes().len())
    }

    /// Returns the most tokens of a prompt that may hit.
    pub(in crate::cache) fn most_cached_tokens(&self, prompt: &Prompt) -> usize {
        let left_to_compute = usize::from(!self.allow_full_hit);
        let most = prompt.num_tokens().saturating_sub(left_to_compute);
        most.min(self.max_cached_tokens.unwrap_or(most))
    }

    /// Returns the length for which blocks are held, and the most tokens by which the sequence grows at a time.
    pub(in crate::cache) fn held_length(&self, layout: &GroupLayout) -> Option<(usize, usize)> {
        let chunk = self.first_chunk.unwrap_or(0).max(layout.max_rewind() + 1);
        self.reserve_whole.map(|length| (length, chunk))
    }

    /// Returns the same options with a first chunk of at least `num_tokens` tokens, if it is limited.
    pub(in crate::cache) fn at_least_first_chunk(self, num_tokens: usize) -> Self {
        let first_chunk = self.first_chunk.map(|chunk| chunk.saturating_add(num_tokens));
        Self { first_chunk, ..self }
    }

    /// Returns true if blocks are held for later growth.
    #[inline]
    pub(in crate::cache) fn holds_blocks(&self) -> bool {
        self.reserve_whole.is_some()
    }

    /// Returns the blocks that are held in a cache without groups, beyond the `owned` ones.
    #[inline]
    pub(in crate::cache) fn blocks_held_without_groups(
        &self,
        owned: usize,
        block_size: usize,
    ) -> usize {
        self.reserve_whole.map_or(0, |length| length.div_ceil(block_size).saturating_sub(owned))
    }

    /// Returns true for a prompt that has no full block which may hit.
    pub(in crate::cache) fn is_too_short(&self, prompt: &Prompt, block_size: usize) -> bool {
        prompt.num_tokens() < block_size + usize::from(!self.allow_full_hit)
    }

    /// Returns the number of tokens that get slots if `cached_tokens` tokens hit.
    pub(crate) fn room_for(&self, prompt: &Prompt, cached_tokens: usize) -> usize {
        let chunk = self.first_chunk.unwrap_or(usize::MAX);
        prompt.num_tokens().min(cached_tokens.saturating_add(chunk))
    }

    /// Returns the watermark of this admission to a cache with the given one.
    #[inline]
    pub(crate) fn watermark(&self, of_cache: BlockWatermark) -> BlockWatermark {
        of_cache.at_least(self.leave_free)
    }

    /// Returns true if slots are allocated for a first chunk only.
    #[cfg(feature = "async")]
    pub(crate) fn is_chunked(&self) -> bool {
        self.first_chunk.is_some()
    }

    /// Returns the levels of the prompt's tokens, if the caller gave any.
    #[inline]
    pub(in crate::cache) fn retained(&self) -> Option<&RetainedRanges> {
        self.retained.as_deref()
    }

    pub(in crate::cache) fn priority_of_sequence(&self) -> u32 {
        self.priority
    }

    pub(in crate::cache) fn worker_of_sequence(&self) -> Option<Worker> {
        self.worker
    }
}
