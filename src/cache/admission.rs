//! Admission of a prompt: matches its cached blocks and allocates the rest, or changes nothing.
//!
//! An admission acquires its hits before it reclaims any block, so no request reclaims a block that it is
//! about to match. A shortage is refused before any block is acquired, as long as no other thread takes
//! blocks at the same time. If the admission loses a race after that, it gives the hits back.

mod grouped;
pub(crate) mod options;
pub(crate) mod prompt;
pub(crate) mod reservation;
mod take;

use self::options::AdmitOptions;
use self::prompt::Prompt;
use super::PagedKvCache;
use super::entry::TrackedSequence;
use super::reuse::cached_sequence::CachedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, GroupId, SeqId};
use crate::pool::watermark::Admit;

/// The outcome of an admission.
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
    /// Tokens at the beginning of the prompt whose keys and values are cached: a multiple of the block
    /// size, and fewer than the prompt has unless the options [allow more](AdmitOptions::allow_full_hit).
    pub cached_tokens: usize,
    /// Tokens that have slots: all tokens of the prompt, or fewer if the options ask for a first chunk
    /// only.
    pub num_tokens: usize,
    /// Identifies this admission among all admissions of the same id.
    pub epoch: AdmissionEpoch,
    /// The longest hit of a group of full attention alone, in tokens; without such a group, of any group. If it is
    /// longer than `cached_tokens`, the contents of `limiting_group` are missing. In a cache without groups, the same
    /// as `cached_tokens`.
    pub longest_group_hit: usize,
    /// The group that made the hit shorter than `longest_group_hit`.
    pub limiting_group: Option<GroupId>,
}

/// # Prefix reuse: admission
impl PagedKvCache {
    /// Creates a sequence of these tokens: it shares their cached blocks and allocates the rest, or changes
    /// nothing. The caller computes the keys and values after [`cached_tokens`](Admission::cached_tokens),
    /// and [`commit`](Self::commit)s them. Hashes `O(tokens)` before it takes a lock; one exchange a block
    /// that hits; otherwise costs as [`allocate`](Self::allocate).
    ///
    /// # Errors
    /// [`SequenceExists`](PagedKvError::SequenceExists), and [`OutOfMemory`](PagedKvError::OutOfMemory):
    /// `requested` counts new blocks and idle hits. Idle hits are available until they are matched.
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

    /// Admits a prompt that is hashed already, with `options`; otherwise as [`admit`](Self::admit). Keep
    /// the prompt across retries. A caller that hashes the blocks itself uses
    /// [`Prompt::from_hashes`](Prompt::from_hashes).
    ///
    /// # Errors
    /// As [`admit`](Self::admit), [`PromptMismatch`](PagedKvError::PromptMismatch) for a prompt that was
    /// hashed for another block size, algorithm or key, and [`InvalidConfig`](PagedKvError::InvalidConfig)
    /// for one with more hashes than full blocks.
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

    /// Admits a prompt as an owned handle, which is not in the map: dropping the handle frees it, and it is
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
        self.note_prompt(prompt, options, &admission);
        Ok((sequence, admission))
    }

    /// Does as [`admit_with`](Self::admit_with), also for a request that waited.
    pub(crate) fn admit_as(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        admit: Admit,
    ) -> Result<Admission> {
        self.refuse_known(id)?;
        let admitted = self.match_and_allocate(prompt, options, admit)?;
        let (tracked, admission) = self.admitted(admitted, options);
        self.insert_taken(id, tracked)?;
        self.note_prompt(prompt, options, &admission);
        Ok(admission)
    }

    /// Returns an admitted sequence in the form that the map holds.
    pub(super) fn admitted(
        &self,
        (sequence, admission): (CachedSequence, Admission),
        options: &AdmitOptions,
    ) -> (TrackedSequence, Admission) {
        let (priority, stamp) = (options.priority_of_sequence(), self.stamp());
        let mut tracked = TrackedSequence::of_admitted(sequence, priority, stamp, admission.epoch);
        tracked.worker = options.worker_of_sequence();
        (tracked, admission)
    }

    pub(super) fn refuse_known(&self, id: SeqId) -> Result<()> {
        if self.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
        Ok(())
    }

    pub(super) fn note_prompt(
        &self,
        prompt: &Prompt,
        options: &AdmitOptions,
        admission: &Admission,
    ) {
        self.reuse.asked.add(prompt.num_tokens() as u64);
        self.reuse.hit.add(admission.cached_tokens as u64);
        if let Some(group) = admission.limiting_group {
            let lost = admission.longest_group_hit - admission.cached_tokens;
            self.reuse.lost[group.index()].add(lost as u64);
        }
        if options.is_too_short(prompt, self.shortest_hit()) {
            self.reuse.too_short.add(prompt.num_tokens() as u64);
        }
    }
}
