//! How does a request come in? What of its prompt is cached is matched, room for the rest is taken, all
//! or nothing.
//!
//! Hits are acquired before anything is reclaimed, so that no request reclaims what it is about to
//! match. What is short is refused before anything is acquired, as long as nobody else is at it; a race
//! lost after that gives the hits back.

mod take;

use super::PagedKvCache;
use super::admit_options::AdmitOptions;
use super::cached_sequence::CachedSequence;
use super::prompt::Prompt;
use super::slot::Live;
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::pool::watermark::Admit;

/// What an admission found.
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let admission = cache.admit(SeqId(1), &[1, 2, 3, 4, 5])?;
/// assert_eq!(admission.cached_tokens, 0);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission {
    /// Tokens at the beginning of the prompt whose keys and values are there: a multiple of the
    /// block size, and fewer than the prompt has.
    pub cached_tokens: usize,
    /// Tokens that there are slots for: all of the prompt, unless only a first chunk was asked for.
    pub num_tokens: usize,
    /// This admission, told from others of the same id.
    pub epoch: AdmissionEpoch,
}

/// # Prefix reuse: admission
impl PagedKvCache {
    /// A new sequence of these tokens: what is cached of them is shared, room for the rest is taken,
    /// all or nothing. Their keys and values behind
    /// [`cached_tokens`](Admission::cached_tokens) are the caller's to compute, and to
    /// [`commit`](Self::commit). `O(tokens)` hashed before any lock; one exchange a block that hits;
    /// otherwise as [`allocate`](Self::allocate).
    ///
    /// # Errors
    /// [`SequenceExists`](PagedKvError::SequenceExists), and
    /// [`OutOfMemory`](PagedKvError::OutOfMemory): `requested` counts new blocks, and hits that
    /// nobody uses, which are room until they are matched.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[1, 2, 3, 4, 5, 6])?;
    /// cache.commit(SeqId(1), 6)?; // computed: block 0 may be matched
    /// cache.free(SeqId(1))?; // and is still there
    /// let admission = cache.admit(SeqId(2), &[1, 2, 3, 4, 7, 8])?;
    /// assert_eq!(admission.cached_tokens, 4);
    /// let refused = cache.admit(SeqId(3), &[9; 12]).unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 3, available: 2 });
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn admit(&self, id: SeqId, tokens: &[u32]) -> Result<Admission> {
        self.admit_with(id, &self.prompt(tokens), &AdmitOptions::default())
    }

    /// [`admit`](Self::admit), of a prompt that is hashed already, and otherwise than by default. Keep the
    /// prompt across retries. For a caller that hashes itself, see
    /// [`Prompt::from_hashes`](Prompt::from_hashes).
    ///
    /// # Errors
    /// As [`admit`](Self::admit), [`PromptMismatch`](PagedKvError::PromptMismatch) for a prompt that was
    /// hashed for another block size, algorithm or key, and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for one with more hashes than full blocks.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, BlockHash, PagedKvCache, Prompt, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (prompt, options) = (cache.prompt(&[7; 20]), AdmitOptions::default());
    /// assert!(cache.admit_with(SeqId(1), &prompt, &options).is_err()); // 5 blocks
    /// let first_chunk = options.first_chunk(4);
    /// assert_eq!(cache.admit_with(SeqId(1), &prompt, &first_chunk)?.num_tokens, 4);
    ///
    /// let hashed = Prompt::from_hashes(&[BlockHash::from_u128(7)], 7);
    /// cache.admit_with(SeqId(2), &hashed, &AdmitOptions::default())?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_with(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<Admission> {
        self.admit_as(id, prompt, options, Admit::Now)
    }

    /// [`admit`](Self::admit) as an owned handle, which the map does not know: freed by dropping it,
    /// never evicted.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) as [`admit`](Self::admit), and
    /// [`PromptMismatch`](PagedKvError::PromptMismatch) and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) as [`admit_with`](Self::admit_with).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (sequence, admission) =
    ///     cache.admit_sequence(&cache.prompt(&[7; 10]), &AdmitOptions::default())?;
    /// assert_eq!((sequence.num_tokens(), admission.cached_tokens), (10, 0));
    /// assert!(cache.admit_sequence(&cache.prompt(&[8; 10]), &AdmitOptions::default()).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_sequence(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<(CachedSequence, Admission)> {
        let (sequence, admission) = self.match_and_allocate(prompt, options, Admit::Now)?;
        self.note_prompt(prompt, admission.cached_tokens);
        Ok((sequence, admission))
    }

    /// [`admit_with`](Self::admit_with), also of a request that waited.
    pub(crate) fn admit_as(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        admit: Admit,
    ) -> Result<Admission> {
        self.refuse_known(id)?;
        let admitted = self.match_and_allocate(prompt, options, admit)?;
        let (live, admission) = self.admitted(admitted, options);
        self.insert_taken(id, live)?;
        self.note_prompt(prompt, admission.cached_tokens);
        Ok(admission)
    }

    /// An admitted sequence as the map knows it.
    pub(super) fn admitted(
        &self,
        (sequence, admission): (CachedSequence, Admission),
        options: &AdmitOptions,
    ) -> (Live, Admission) {
        let (priority, stamp) = (options.priority_of_sequence(), self.stamp());
        let mut live = Live::of_admitted(sequence, priority, stamp, admission.epoch);
        live.worker = options.worker_of_sequence();
        (live, admission)
    }

    pub(super) fn refuse_known(&self, id: SeqId) -> Result<()> {
        if self.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
        Ok(())
    }

    pub(super) fn note_prompt(&self, prompt: &Prompt, cached_tokens: usize) {
        self.reuse.asked.add(prompt.num_tokens() as u64);
        self.reuse.hit.add(cached_tokens as u64);
        if prompt.num_tokens() <= self.block_size {
            self.reuse.too_short.add(prompt.num_tokens() as u64);
        }
    }
}
