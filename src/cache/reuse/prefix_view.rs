//! [`Prefix`]: the operations on the cached contents of all prompts, and on none of the sequences.
//!
//! It is a view that borrows the cache and holds no blocks.

use crate::cache::PagedKvCache;
use crate::cache::admission::options::AdmitOptions;
use crate::cache::admission::prompt::Prompt;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::prefix::{BlockHash, EventContext, PublishRequest};
use crate::sync::Later;
use crate::table::BlockTable;

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
        if let Some(layout) = cache.layout() {
            return cache.probe_joint(layout, prompt);
        }
        let most = AdmitOptions::default().most_hits(prompt, cache.block_size);
        let probed = cache.published().probe(cache.pool.blocks(), &prompt.hashes()[..most]);
        probed.cached * cache.block_size
    }

    /// Makes the caller an owner of the cached blocks of `hashes`, from the first on, until one is not cached:
    /// for an engine with block tables of its own. Returns these blocks as a table, which releases them when
    /// it is dropped; [`BlockTable::take_ids`] turns it into counts by id. One exchange a block.
    ///
    /// ```
    /// use paged_kv::{BlockHash, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let [first, second] = [7, 8].map(BlockHash::from_u128);
    /// let table = cache.pool().allocate(2)?;
    /// assert_eq!(cache.prefix().publish(table.as_slice(), &[first, second], None)?, 2);
    /// drop(table);
    /// let hit = cache.prefix().acquire(&[first, second, BlockHash::from_u128(9)]);
    /// assert_eq!((hit.len(), cache.used_block_count()), (2, 2));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn acquire(self, hashes: &[BlockHash]) -> BlockTable {
        let Self { cache } = self;
        let (published, blocks) = (cache.published(), cache.pool.blocks());
        let mut ids = Vec::new();
        published.acquire(blocks, hashes, published.generation(), &mut ids);
        if !ids.is_empty() {
            blocks.announce_contents();
        }
        cache.pool.table_of(ids)
    }

    /// Publishes blocks under the caller's hashes, one a block, each chained on the one before; the first on
    /// `parent`. Prompts of the same hashes match them from now on. Returns how many contents became matchable:
    /// a block that is published already stays as it is.
    ///
    /// The blocks must hold the full keys and values of these contents, and must not be written any more. Each
    /// must have an owner, which the caller keeps for the time of the call: a table, or a count by id. `O(blocks)`,
    /// and two more exchanges a block than a commit. After the first call releases cost an exchange a block, as
    /// after [`BlockPool::retain`](crate::BlockPool::retain).
    ///
    /// # Errors
    /// [`BlockNotFound`](PagedKvError::BlockNotFound) for a block without owners or of another pool,
    /// [`TooManyOwners`](PagedKvError::TooManyOwners), and [`InvalidConfig`](PagedKvError::InvalidConfig) if
    /// there are not as many hashes as blocks. Nothing was published then.
    ///
    /// ```
    /// use paged_kv::{BlockHash, BlockId, PagedKvCache, PagedKvError, Prompt};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let hashes = [7, 8].map(BlockHash::from_u128);
    /// let table = cache.pool().allocate(2)?;
    /// assert_eq!(cache.prefix().publish(table.as_slice(), &hashes, None)?, 2);
    /// assert_eq!(cache.prefix().probe(&Prompt::from_hashes(&hashes, 9)), 8);
    /// let free = BlockId(3);
    /// let refused = cache.prefix().publish(&[free], &hashes[..1], None);
    /// assert_eq!(refused, Err(PagedKvError::BlockNotFound(free)));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn publish(
        self,
        ids: &[BlockId],
        hashes: &[BlockHash],
        parent: Option<BlockHash>,
    ) -> Result<usize> {
        let Self { cache } = self;
        if ids.len() != hashes.len() {
            let reason = format!("{} for {} blocks", hashes.len(), ids.len());
            return Err(PagedKvError::InvalidConfig { parameter: "hashes", reason });
        }
        // An owner of its own: a block that its owner releases too early stays as it is published.
        let held = cache.pool.hold(ids)?;
        let _later = Later::begin();
        let published = cache.published();
        let request = PublishRequest {
            ids: held.as_slice(),
            before: None,
            private_from: ids.len(),
            generation: published.generation(),
        };
        let context = || EventContext {
            group: GroupId(0),
            parent,
            tokens: [&[]; 2],
            block_size: cache.block_size,
            extra: None,
            index: 0,
        };
        Ok(published.publish(cache.pool.blocks(), &request, |at| hashes[at], context))
    }

    /// Forgets the contents of up to `num_blocks` idle blocks, in the order in which they would be reclaimed. The
    /// blocks are free then. Returns their number.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 12])?;
    /// cache.commit(SeqId(1), 12)?;
    /// cache.free(SeqId(1))?;
    /// assert_eq!(cache.prefix().forget(1), 1); // the tail of the prompt first
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 12])), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn forget(self, num_blocks: usize) -> usize {
        self.cache.pool.blocks().uncache_idle(num_blocks)
    }

    /// Forgets the contents of all full blocks of a prompt, and their copies: no prompt matches them until they
    /// are committed again. Running sequences keep their blocks. Returns the number of blocks that were cached.
    ///
    /// # Errors
    /// [`PromptMismatch`](PagedKvError::PromptMismatch) and [`InvalidConfig`](PagedKvError::InvalidConfig) as
    /// [`PagedKvCache::admit_with`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let prompt = cache.prompt(&[7; 12]);
    /// cache.admit_with(SeqId(1), &prompt, &Default::default())?;
    /// cache.commit(SeqId(1), 12)?;
    /// assert_eq!(cache.prefix().forget_prompt(&prompt)?, 3);
    /// assert_eq!(cache.prefix().probe(&prompt), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn forget_prompt(self, prompt: &Prompt) -> Result<usize> {
        let Self { cache } = self;
        cache.check_prompt(prompt)?;
        let (published, blocks) = (cache.published(), cache.pool.blocks());
        match cache.layout() {
            None => Ok(published.forget(blocks, prompt.hashes(), published.generation())),
            Some(layout) => Ok(published.forget_in_groups(blocks, layout, prompt.hashes())),
        }
    }

    /// Makes blocks unmatchable, in use or idle, for example because their contents turned out to be wrong.
    /// Idle ones become free; owners keep theirs. Returns the number of blocks that were cached. Ids of no block
    /// count as not cached. (A later commit of a sequence that owns the block may publish it again.)
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 12])?;
    /// cache.commit(SeqId(1), 12)?;
    /// let ids = cache.get_sequence(SeqId(1)).expect("it was admitted").block_ids;
    /// assert_eq!(cache.prefix().uncache(&ids[1..]), 2);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 12])), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn uncache(self, ids: &[BlockId]) -> usize {
        self.cache.pool.blocks().uncache(ids, |matching, id| matching.acquire_any(id))
    }

    /// Counts the cached blocks, in use or idle, copies included. Blocks that were cached before a
    /// [`reset`](Self::reset) count until they are reclaimed. `O(blocks)`: reads the word of each. Under load, each
    /// block counts as it is at a moment during the call.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 12])?;
    /// cache.commit(SeqId(1), 9)?;
    /// assert_eq!(cache.prefix().cached_blocks(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn cached_blocks(self) -> usize {
        self.cache.pool.blocks().num_cached()
    }

    /// Limits the number of cached blocks, in use and idle. While there are more, the oldest idle ones are
    /// forgotten: now, and whenever blocks are published or released. Blocks in use are not forgotten, so they
    /// alone may exceed the limit. `usize::MAX`, the default, is no limit. The first call is `O(blocks)`; blocks
    /// that are published beside it may count twice. From then on each commit that publishes writes one more
    /// counter, and each release of blocks reads the counts of each home shard.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.prefix().set_max_cached(2);
    /// cache.admit(SeqId(1), &[7; 16])?;
    /// cache.commit(SeqId(1), 16)?;
    /// assert_eq!(cache.prefix().cached_blocks(), 4); // in use
    /// cache.free(SeqId(1))?;
    /// assert_eq!(cache.prefix().cached_blocks(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn set_max_cached(self, num_blocks: usize) {
        self.cache.pool.blocks().set_max_cached(num_blocks);
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
        let number = self.cache.published().reset(self.cache.pool.blocks());
        if let Some(tiers) = &self.cache.tiers {
            tiers.reset(number);
        }
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

    /// Returns how many of the first `most` blocks of a prompt are cached on the device, from the first on.
    pub(in crate::cache) fn probe_hits(self, prompt: &Prompt, most: usize) -> usize {
        let cache = self.cache;
        cache.published().probe(cache.pool.blocks(), &prompt.hashes()[..most]).cached
    }
}

impl PagedKvCache {}
