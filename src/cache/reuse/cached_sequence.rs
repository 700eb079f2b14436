//! `CachedSequence`: an owned handle to a sequence whose tokens are known and whose blocks have hashes.

use super::computed::Computed;
use super::hashed_tokens::{HashedTokens, truncate_parts};
use crate::error::Result;
use crate::pool::ReuseHint;
use crate::sequence::{Append, GroupCopy, Sequence};

/// The halves of a row: its sequence, and its hashed tokens if it has any.
pub(in crate::cache) type Parts<'a> = (&'a mut Sequence, Option<&'a mut HashedTokens>);

/// A sequence that was admitted by its tokens: an owned handle, which is not in the map.
///
/// It derefs to its [`Sequence`], and is never evicted. Dropping it, on any thread, leaves the blocks that
/// it published cached until they are needed.
///
/// ```
/// use paged_kv::{AdmitOptions, PagedKvCache};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let prompt = cache.prompt(&[1, 2, 3, 4, 5, 6]);
/// let (mut first, _) = cache.admit_sequence(&prompt, &AdmitOptions::default())?;
/// first.commit(6)?; // its keys and values are computed
/// let (second, admission) = cache.admit_sequence(&prompt, &AdmitOptions::default())?;
/// assert_eq!(admission.cached_tokens, 4);
/// assert_eq!(first.block_ids()[0], second.block_ids()[0]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub struct CachedSequence {
    sequence: Sequence,
    hashed: Box<HashedTokens>,
}

impl CachedSequence {
    pub(in crate::cache) fn new(sequence: Sequence, hashed: HashedTokens) -> Self {
        Self { sequence, hashed: Box::new(hashed) }
    }

    /// Returns both halves, for a step.
    pub(in crate::cache) fn parts_mut(&mut self) -> (&mut Sequence, &mut HashedTokens) {
        (&mut self.sequence, &mut self.hashed)
    }

    pub(in crate::cache) fn into_parts(self) -> (Sequence, Box<HashedTokens>) {
        (self.sequence, self.hashed)
    }

    /// Reports computed keys and values. A number reports the first `computed` tokens. A slice reports all
    /// known tokens and the given ones, whose slots were taken by [`append`](Self::append) before. Full
    /// blocks up to there can be matched from now on. Returns how many blocks became matchable. Changes no
    /// table. `O(blocks published)`.
    ///
    /// # Errors
    /// [`CommitBeyondEnd`](crate::PagedKvError::CommitBeyondEnd);
    /// [`HashesUnknown`](crate::PagedKvError::HashesUnknown) and
    /// [`InvalidConfig`](crate::PagedKvError::InvalidConfig) as [`PagedKvCache::commit`](crate::PagedKvCache::commit).
    /// No token was named and no block published.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let prompt = cache.prompt(&[1, 2, 3]);
    /// let (mut sequence, _) = cache.admit_sequence(&prompt, &Default::default())?;
    /// assert_eq!(sequence.commit(3)?, 0); // of the prompt
    /// sequence.append(3)?; // drafts
    /// assert_eq!(sequence.commit(&[4])?, 1); // one was right
    /// sequence.truncate(4)?;
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    /// assert!(sequence.commit(5).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit<'a>(&mut self, computed: impl Into<Computed<'a>>) -> Result<usize> {
        self.hashed.commit_computed(&self.sequence, computed.into())
    }

    /// Returns the number of named tokens: those of the prompt, with or without slots, and those that were
    /// accepted. The next token to be named is the one at this position.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let prompt = cache.prompt(&[1, 2, 3]);
    /// let (mut sequence, _) = cache.admit_sequence(&prompt, &Default::default())?;
    /// sequence.append(3)?; // drafts
    /// sequence.commit(&[4])?;
    /// assert_eq!((sequence.num_named_tokens(), sequence.num_tokens()), (4, 6));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_named_tokens(&self) -> usize {
        self.hashed.num_named()
    }

    /// Allocates slots for tokens that are not known yet; see [`Sequence::append`].
    ///
    /// # Errors
    /// As [`Sequence::append`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(2, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2, 3]), &Default::default())?;
    /// assert_eq!(sequence.append(2)?.new_blocks, 1..2);
    /// assert!(sequence.append(4).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append(&mut self, num_new_tokens: usize) -> Result<Append> {
        self.sequence.append(num_new_tokens)
    }

    /// Returns the copies that no step has listed yet, and forgets them; see [`Sequence::take_copies`].
    ///
    /// ```
    /// use paged_kv::{LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::State { block_size: 4 }];
    /// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
    /// let prompt = cache.prompt(&[1, 2, 3, 4]);
    /// let (mut sequence, _) = cache.admit_sequence(&prompt, &Default::default())?;
    /// sequence.append(1)?;
    /// assert_eq!(sequence.take_copies().len(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn take_copies(&mut self) -> Vec<GroupCopy> {
        self.sequence.take_copies()
    }

    /// Creates a second sequence of the same tokens and blocks; see [`Sequence::fork`].
    ///
    /// # Errors
    /// As [`Sequence::fork`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(2, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2, 3]), &Default::default())?;
    /// assert_eq!(sequence.fork()?.block_ids(), sequence.block_ids());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn fork(&mut self) -> Result<CachedSequence> {
        Ok(Self { sequence: self.sequence.fork()?, hashed: self.hashed.clone() })
    }

    /// Says whether the conversation goes on, for the reclaim order after the release of this sequence; see
    /// [`ReuseHint`]. The last hint counts. A fork has the hint of its source.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, ReclaimPolicy, ReuseHint};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).reclaim_policy(ReclaimPolicy::HitDensity);
    /// let cache = builder.build()?;
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[7; 20]), &Default::default())?;
    /// sequence.set_reuse_hint(ReuseHint::BackSoon); // it calls a tool
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn set_reuse_hint(&mut self, hint: ReuseHint) {
        self.sequence.set_reuse_hint(hint);
    }

    /// Drops the tokens from `num_tokens` on; see [`Sequence::truncate`]. Published blocks stay published.
    /// If the partly filled last block was published, the next append copies it before it is written.
    ///
    /// # Errors
    /// As [`Sequence::truncate`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2, 3, 4]), &Default::default())?;
    /// sequence.commit(4)?;
    /// sequence.truncate(3)?;
    /// assert!(sequence.append(1)?.copy.is_some());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn truncate(&mut self, num_tokens: usize) -> Result<()> {
        truncate_parts((&mut self.sequence, Some(&mut *self.hashed)), num_tokens)
    }

    /// Trims to sink and window; see [`Sequence::apply_streaming_llm`]. Blocks after the gap are no longer
    /// published: keys and values computed from now on do not depend on all tokens before them.
    ///
    /// # Errors
    /// As [`Sequence::apply_streaming_llm`].
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&[7; 32]), &Default::default())?;
    /// assert_eq!(sequence.apply_streaming_llm(4, 8)?, 20);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn apply_streaming_llm(
        &mut self,
        sink_tokens: usize,
        window_tokens: usize,
    ) -> Result<usize> {
        self.sequence.apply_streaming_llm(sink_tokens, window_tokens)
    }
}

impl std::ops::Deref for CachedSequence {
    type Target = Sequence;

    fn deref(&self) -> &Sequence {
        &self.sequence
    }
}

impl std::fmt::Debug for CachedSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedSequence").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
