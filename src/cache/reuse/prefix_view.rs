//! [`Prefix`]: the operations on the cached contents of all prompts, and on none of the sequences.
//!
//! It is a view that borrows the cache. It holds no blocks, and every operation acts on the published
//! blocks.

use crate::cache::PagedKvCache;
use crate::cache::admission::options::AdmitOptions;
use crate::cache::admission::prompt::Prompt;

/// The cached contents, which prompts can match: see [`PagedKvCache::prefix`].
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// cache.admit(SeqId(1), &[7; 8])?;
/// cache.commit(SeqId(1), 8)?;
/// let (prefix, prompt) = (cache.prefix(), cache.prompt(&[7; 9]));
/// assert_eq!(prefix.probe(&prompt), 8);
/// prefix.reset();
/// assert_eq!(prefix.probe(&prompt), 0);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Prefix<'a> {
    cache: &'a PagedKvCache,
}

/// # Prefix reuse: the cached contents
impl PagedKvCache {
    /// Returns a view of the cached contents, with operations to probe, reset and announce them.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 0);
    /// ```
    pub fn prefix(&self) -> Prefix<'_> {
        Prefix { cache: self }
    }
}

impl Prefix<'_> {
    /// Returns the number of tokens at the beginning of `prompt` that an admission would find cached now.
    /// Returns 0 for a prompt that an admission would refuse, because it was hashed for another block size,
    /// algorithm or key. Holds and writes nothing. Reads one cache line for a block that follows where it
    /// did before, else up to three.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 8])?;
    /// cache.commit(SeqId(1), 8)?;
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 8);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 8])), 4); // the last token is always computed
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn probe(self, prompt: &Prompt) -> usize {
        let cache = self.cache;
        if cache.check_prompt(prompt).is_err() {
            return 0;
        }
        let most = AdmitOptions::default().most_hits(prompt, cache.block_size);
        let probed = cache.published().probe(cache.pool.blocks(), &prompt.hashes()[..most]);
        probed.cached * cache.block_size
    }

    /// Makes all contents computed so far unmatchable, because the weights were updated. Running requests
    /// keep their blocks; blocks that they commit later are not matched either. `O(1)`.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 4)?;
    /// cache.prefix().reset();
    /// cache.commit(SeqId(1), 9)?; // of old weights
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reset(self) {
        self.cache.published().reset(self.cache.pool.blocks());
    }

    /// Emits an [`AllBlocksCleared`](crate::KvEvent::AllBlocksCleared), and then the events of all cached
    /// contents, for an event sink that lost its place. `O(blocks)`, under the lock under which commits and
    /// allocations emit their events. Does nothing without an event sink.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// cache.prefix().announce_all(); // no event sink: nothing to do
    /// ```
    pub fn announce_all(self) {
        self.cache.published().announce_all();
    }
}
