//! `AdmitOptions`: the parameters of an admission, apart from its prompt.

use super::prompt::Prompt;
use crate::id::Worker;

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
    priority: u32,
    worker: Option<Worker>,
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

    /// Returns the most blocks of a prompt that may hit. The block of its last token never does.
    pub(in crate::cache) fn most_hits(&self, prompt: &Prompt, block_size: usize) -> usize {
        let most = prompt.num_tokens().saturating_sub(1);
        let most = most.min(self.max_cached_tokens.unwrap_or(most)) / block_size;
        most.min(prompt.hashes().len())
    }

    /// Returns the number of tokens that get slots if `cached_tokens` tokens hit.
    pub(crate) fn room_for(&self, prompt: &Prompt, cached_tokens: usize) -> usize {
        let chunk = self.first_chunk.unwrap_or(usize::MAX);
        prompt.num_tokens().min(cached_tokens.saturating_add(chunk))
    }

    /// Returns true if slots are allocated for a first chunk only.
    #[cfg(feature = "async")]
    pub(crate) fn is_chunked(&self) -> bool {
        self.first_chunk.is_some()
    }

    pub(in crate::cache) fn priority_of_sequence(&self) -> u32 {
        self.priority
    }

    pub(in crate::cache) fn worker_of_sequence(&self) -> Option<Worker> {
        self.worker
    }
}
