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
use crate::prefix::{BlockHash, ExtraKeys};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        self.admit_with(id, tokens, &AdmitOptions::default())
    }

    /// [`admit`](Self::admit), otherwise than by default.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let options = AdmitOptions::default().first_chunk(4);
    /// assert_eq!(cache.admit_with(SeqId(1), &[7; 20], &options)?.num_tokens, 4);
    /// assert!(cache.admit_with(SeqId(1), &[7; 20], &options).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_with(
        &self,
        id: SeqId,
        tokens: &[u32],
        options: &AdmitOptions,
    ) -> Result<Admission> {
        let extra = ExtraKeys::default();
        let extra = match options.salt() {
            Some(salt) => extra.with_salt(salt),
            None => extra,
        };
        self.admit_prompt_as(id, &self.prompt_with(tokens, &extra), options, Admit::Now)
    }

    /// [`admit`](Self::admit), of a prompt that is hashed already.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), [`PromptMismatch`](PagedKvError::PromptMismatch) for a prompt that was
    /// hashed for another block size, algorithm or key, and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for options with a salt: the prompt has its own.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let prompt = cache.prompt(&[7; 20]);
    /// while cache.admit_prompt(SeqId(1), &prompt, &AdmitOptions::default()).is_err() {
    ///     break; // until there is room; the prompt is not hashed again
    /// }
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_prompt(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<Admission> {
        refuse_salt(options)?;
        self.admit_prompt_as(id, prompt, options, Admit::Now)
    }

    /// [`admit`](Self::admit), for a caller that hashes itself: one hash for each full block of a
    /// prompt of `num_tokens` tokens, each a function of all tokens up to its end.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), and [`InvalidConfig`](PagedKvError::InvalidConfig) for more hashes
    /// than full blocks.
    ///
    /// ```
    /// use paged_kv::{BlockHash, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let hashes = [BlockHash::from_u128(7), BlockHash::from_u128(8)];
    /// cache.admit_hashed(SeqId(1), &hashes, 8)?;
    /// cache.commit(SeqId(1), 8)?;
    /// assert_eq!(cache.admit_hashed(SeqId(2), &hashes, 9)?.cached_tokens, 8);
    /// assert!(cache.admit_hashed(SeqId(3), &hashes, 7).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_hashed(
        &self,
        id: SeqId,
        hashes: &[BlockHash],
        num_tokens: usize,
    ) -> Result<Admission> {
        let (prompt, options) = (Prompt::from_hashes(hashes, num_tokens), AdmitOptions::default());
        self.admit_prompt_as(id, &prompt, &options, Admit::Now)
    }

    /// [`admit`](Self::admit) as an owned handle, which the map does not know: freed by dropping it,
    /// never evicted.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) as [`admit`](Self::admit), and
    /// [`PromptMismatch`](PagedKvError::PromptMismatch) and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) as [`admit_prompt`](Self::admit_prompt).
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
        refuse_salt(options)?;
        let (sequence, admission) = self.match_and_allocate(prompt, options, Admit::Now)?;
        self.note_prompt(prompt, admission.cached_tokens);
        Ok((sequence, admission))
    }

    /// Tokens at the beginning of `tokens` that an admission would find cached now. Holds and writes
    /// nothing. `O(tokens)` hashed; one cache line read a block that follows where it did before, else
    /// up to three.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 8])?;
    /// cache.commit(SeqId(1), 8)?;
    /// assert_eq!(cache.probe(&[7; 9]), 8);
    /// assert_eq!(cache.probe(&[7; 8]), 4); // the last token is always computed
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn probe(&self, tokens: &[u32]) -> usize {
        self.probe_prompt(&self.prompt(tokens))
    }

    /// [`probe`](Self::probe), of a prompt that is hashed already. 0 for one that an admission would
    /// refuse, because it was hashed for another block size, algorithm or key.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// assert_eq!(cache.probe_prompt(&cache.prompt(&[7; 9])), 0);
    /// ```
    pub fn probe_prompt(&self, prompt: &Prompt) -> usize {
        if self.check_prompt(prompt).is_err() {
            return 0;
        }
        let most = AdmitOptions::default().most_hits(prompt, self.block_size);
        let probed = self.published().probe(self.pool.blocks(), &prompt.hashes()[..most]);
        probed.cached * self.block_size
    }

    /// From now on nothing matches that was computed before: the weights were updated. Running
    /// requests keep their blocks; what they commit later is not matched either. `O(1)`.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 4)?;
    /// cache.reset_prefix_cache();
    /// cache.commit(SeqId(1), 9)?; // of old weights
    /// assert_eq!(cache.probe(&[7; 9]), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reset_prefix_cache(&self) {
        self.published().reset(self.pool.blocks());
    }

    /// Tells the event sink everything that is cached once more, behind an
    /// [`AllBlocksCleared`](crate::KvEvent::AllBlocksCleared): for a listener that lost its place.
    /// `O(blocks)`, under the lock that commits and allocations tell their events under.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// cache.announce_again(); // nobody listens
    /// ```
    pub fn announce_again(&self) {
        self.published().announce_again();
    }

    /// [`admit_prompt`](Self::admit_prompt), also for one that waited.
    pub(crate) fn admit_prompt_as(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        admit: Admit,
    ) -> Result<Admission> {
        if self.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
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
        let (priority, stamp) = (options.priority_of_sequence(), self.clock.stamp());
        let mut live = Live::of_admitted(sequence, priority, stamp, admission.epoch);
        live.owner = options.owner_of_sequence();
        (live, admission)
    }

    pub(super) fn refuse_admission(&self, id: SeqId, options: &AdmitOptions) -> Result<()> {
        refuse_salt(options)?;
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

pub(crate) fn refuse_salt(options: &AdmitOptions) -> Result<()> {
    if options.salt().is_some() {
        let reason = "a prompt's salt is given when it is hashed".to_owned();
        return Err(PagedKvError::InvalidConfig { parameter: "salt", reason });
    }
    Ok(())
}
