//! [`Retained`]: the view of contents that callers keep cached, by a level or by a pin, and [`CachePin`], the guard of a
//! pin.

use std::fmt;
use std::time::Instant;

use super::PagedKvCache;
use super::admission::prompt::Prompt;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::pool::pins::PinKey;
use crate::pool::{Levels, PoolHandle};
use crate::sequence::retain::Retain;

/// Keeps contents cached: see [`PagedKvCache::retention`].
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use paged_kv::{PagedKvCache, PinAnswer, SeqId};
///
/// let cache = PagedKvCache::builder().num_blocks(20).block_size(4).build()?;
/// cache.admit(SeqId(1), &[7; 12])?;
/// cache.commit(SeqId(1), 12)?;
/// cache.free(SeqId(1))?;
/// let until = Instant::now() + Duration::from_secs(60);
/// let PinAnswer::Accepted(pin) = cache.retention().pin(&cache.prompt(&[7; 12]), until)? else {
///     panic!("three blocks of twenty are within the budget");
/// };
/// assert_eq!((pin.num_tokens(), cache.free_block_count()), (12, 17));
/// drop(pin);
/// assert_eq!(cache.free_block_count(), 20);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Retained<'a> {
    cache: &'a PagedKvCache,
}

/// The answer to a request for a pin.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the pin ends when its guard is dropped"]
pub enum PinAnswer {
    /// All full blocks of the prompt are pinned.
    Accepted(CachePin),
    /// Only blocks at the beginning of the prompt are pinned: the others are not cached, or beyond the budget.
    Clipped {
        /// The guard, with the number of tokens that are pinned.
        pin: CachePin,
        /// The tokens of all full blocks of the prompt.
        requested_tokens: usize,
    },
    /// Nothing is pinned.
    Refused {
        /// The tokens of all full blocks of the prompt.
        requested_tokens: usize,
        /// The tokens at its beginning that are cached now.
        cached_tokens: usize,
        /// The blocks of the budget that no pin has.
        available_blocks: usize,
        /// True if requests wait for room, which pins must not take from them.
        is_waited_for: bool,
    },
}

/// Keeps blocks in use until it is dropped, or until its deadline.
#[must_use = "the pin ends when it is dropped"]
pub struct CachePin {
    pool: PoolHandle,
    key: PinKey,
    num_tokens: usize,
    until: Instant,
}

/// # Prefix reuse: retention
impl PagedKvCache {
    /// Returns a view with the operations that keep contents cached.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// assert_eq!(cache.retention().pinned_blocks(), 0);
    /// ```
    pub fn retention(&self) -> Retained<'_> {
        Retained { cache: self }
    }

    /// Returns the levels of contents, or the error of a cache without them.
    #[cold]
    pub(super) fn checked_levels(&self) -> Result<&Levels> {
        self.pool.blocks().levels().ok_or_else(|| {
            let reason = "false, and a request gives contents a level".to_owned();
            PagedKvError::InvalidConfig { parameter: "retention_levels", reason }
        })
    }
}

impl Retained<'_> {
    /// Pins the cached full blocks of a prompt, from the first on, until `until` or until the guard is dropped. A pinned
    /// block is in use: it is not room, and its content stays. All pins together have at most the blocks of
    /// [`pin_budget`](crate::PagedKvCacheBuilder::pin_budget). A block that two pins have counts twice.
    ///
    /// Before a request is refused, and before numbers of blocks are shown, pins after their deadline are ended, and a
    /// waiting request wakes at a deadline. No thread watches the deadlines otherwise, so blocks may stay in use for longer
    /// while no request needs them. A deadline that has passed is accepted: such a pin ends at the next refusal or look.
    ///
    /// A pin keeps blocks from being reclaimed. [`forget_prompt`](crate::Prefix::forget_prompt) and a
    /// [`reset`](crate::Prefix::reset) end pinned contents too. Then no prompt matches the blocks, which stay in use until
    /// the pin ends.
    ///
    /// One look-up of the prompt and one exchange a block, and a mutex that all pins share.
    ///
    /// # Errors
    /// [`PromptMismatch`](PagedKvError::PromptMismatch), and [`InvalidConfig`](PagedKvError::InvalidConfig) in a cache
    /// with groups of layers.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// use paged_kv::{PagedKvCache, PinAnswer};
    ///
    /// let cache = PagedKvCache::new(20, 4, 1, 1);
    /// let answer = cache.retention().pin(&cache.prompt(&[7; 12]), Instant::now())?;
    /// assert!(matches!(answer, PinAnswer::Refused { cached_tokens: 0, available_blocks: 4, .. }));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn pin(self, prompt: &Prompt, until: Instant) -> Result<PinAnswer> {
        let Self { cache } = self;
        cache.check_prompt(prompt)?;
        if cache.layout().is_some() {
            let reason = "pins of caches with groups of layers are not supported".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "groups", reason });
        }
        let (blocks, block_size) = (cache.pool.blocks(), cache.block_size);
        let requested = prompt.hashes().len();
        blocks.expire_pins();
        if blocks.is_waited_for() {
            return Ok(self.refusal(prompt));
        }
        let ids = self.acquire_in_budget(prompt);
        if ids.is_empty() {
            return Ok(self.refusal(prompt));
        }
        blocks.announce_contents();
        let num_blocks = ids.len();
        let Some(key) = blocks.pin(ids, until) else {
            return Ok(self.refusal(prompt));
        };
        let pool = cache.pool.handle();
        let pin = CachePin { pool, key, num_tokens: num_blocks * block_size, until };
        Ok(match num_blocks == requested {
            true => PinAnswer::Accepted(pin),
            false => PinAnswer::Clipped { pin, requested_tokens: requested * block_size },
        })
    }

    /// Gives the cached contents of a range of a prompt a level; see [`AdmitOptions::retain`](crate::AdmitOptions::retain).
    /// The new level overrides an earlier one. Idle contents count as just released: their durations begin now. Returns the
    /// number of blocks, copies of a content included. Takes no block from any request. One look-up and one or two exchanges a block.
    ///
    /// # Errors
    /// [`PromptMismatch`](PagedKvError::PromptMismatch), and [`InvalidConfig`](PagedKvError::InvalidConfig) in a cache
    /// without [`retention_levels`](crate::PagedKvCacheBuilder::retention_levels).
    ///
    /// ```
    /// use paged_kv::{Level, PagedKvCache, Retain, SeqId};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = builder.retention_levels(true).build()?;
    /// cache.admit(SeqId(1), &[7; 16])?;
    /// cache.commit(SeqId(1), 16)?;
    /// cache.free(SeqId(1))?;
    /// let system_prompt = Retain::new(0..8, Level::High);
    /// assert_eq!(cache.retention().set(&cache.prompt(&[7; 16]), &system_prompt)?, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn set(self, prompt: &Prompt, retain: &Retain) -> Result<usize> {
        let Self { cache } = self;
        cache.check_prompt(prompt)?;
        cache.checked_levels()?;
        let first_blocks = |tokens: usize| tokens.div_ceil(cache.block_size);
        let end = first_blocks(retain.range.end).min(prompt.hashes().len());
        let start = first_blocks(retain.range.start).min(end);
        let (published, blocks) = (cache.published(), cache.pool.blocks());
        let hashes = &prompt.hashes()[start..end];
        Ok(published.set_levels(blocks, hashes, published.generation(), retain.note()))
    }

    /// Returns the number of blocks of all pins, without those after their deadlines, which it ends. A block that two
    /// pins have counts twice.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
    /// assert_eq!(cache.retention().pinned_blocks(), 0);
    /// ```
    pub fn pinned_blocks(self) -> usize {
        let blocks = self.cache.pool.blocks();
        blocks.expire_pins();
        blocks.pins().num_blocks()
    }

    /// Makes the caller an owner of the cached blocks of a prompt that the budget of pins allows, and reserves these.
    fn acquire_in_budget(self, prompt: &Prompt) -> Vec<BlockId> {
        let Self { cache } = self;
        let (blocks, published) = (cache.pool.blocks(), cache.published());
        // No more than a pin can have: the budget is also that of other pins, which are made at the same time.
        let cached = published.probe(blocks, prompt.hashes()).cached;
        let reserved = blocks.pins().reserve(cached);
        let mut ids = Vec::new();
        if reserved > 0 {
            let hashes = &prompt.hashes()[..reserved];
            published.acquire(blocks, hashes, published.generation(), &mut ids);
            blocks.pins().unreserve(reserved - ids.len());
        }
        ids
    }

    fn refusal(self, prompt: &Prompt) -> PinAnswer {
        let Self { cache } = self;
        let (blocks, hashes) = (cache.pool.blocks(), prompt.hashes());
        let cached = cache.published().probe(blocks, hashes).cached;
        PinAnswer::Refused {
            requested_tokens: hashes.len() * cache.block_size,
            cached_tokens: cached * cache.block_size,
            available_blocks: blocks.pins().available(),
            is_waited_for: blocks.is_waited_for(),
        }
    }
}

impl CachePin {
    /// Returns the number of tokens at the beginning of the prompt that are pinned.
    ///
    /// ```
    /// fn tokens(pin: &paged_kv::CachePin) -> usize {
    ///     pin.num_tokens()
    /// }
    /// ```
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Returns the deadline.
    ///
    /// ```
    /// fn is_over(pin: &paged_kv::CachePin) -> bool {
    ///     std::time::Instant::now() >= pin.until()
    /// }
    /// ```
    pub fn until(&self) -> Instant {
        self.until
    }
}

impl Drop for CachePin {
    fn drop(&mut self) {
        self.pool.unpin(self.key);
    }
}

impl fmt::Debug for CachePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachePin")
            .field("num_tokens", &self.num_tokens)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
