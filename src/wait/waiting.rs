//! [`Waiting`]: the operations of one cache that wait for room.

use super::future::Wait;
use super::requests::{AdmitRequest, AllocateRequest, AppendRequest, ReserveRequest};
use crate::cache::{AdmitOptions, PagedKvCache, Prompt};
use crate::error::PagedKvError;
use crate::id::SeqId;
use crate::pool::wait_queue::{Class, WaitTicket};
use crate::pool::watermark::BlockWatermark;

/// The operations of a cache that wait for room instead of being refused: see
/// [`PagedKvCache::waiting`] and [`wait`](crate::wait).
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// cache.waiting().allocate(SeqId(1), 9).block()?;
/// assert!(cache.waiting().is_empty());
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Waiting<'a> {
    cache: &'a PagedKvCache,
}

/// # Waiting
impl PagedKvCache {
    /// Returns a view whose operations wait for room: each is `.await`ed, or blocks.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// let room = cache.waiting().reserve(8).block()?;
    /// assert_eq!(room.num_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn waiting(&self) -> Waiting<'_> {
        Waiting { cache: self }
    }
}

impl<'a> Waiting<'a> {
    /// Does [`reserve`](PagedKvCache::reserve), when it is this request's turn and there is room for all of
    /// it. `O(log waiters)` to begin and to end; no cost between. The [`Wait`] does not borrow the cache.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) immediately if it can never fit;
    /// [`DeadlinePassed`](PagedKvError::DeadlinePassed).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError};
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// let refused = cache.waiting().reserve(9).block().unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 9, available: 8 });
    /// ```
    pub fn reserve(self, num_blocks: usize) -> Wait<ReserveRequest> {
        let cache = self.cache;
        let turn = WaitTicket::new(cache.handle());
        let pool = turn.pool().clone();
        let (watermark, block_size) = (cache.watermark(), cache.block_size());
        let request = ReserveRequest { pool, watermark, num_blocks, block_size };
        Wait::new(turn, request, self.never_fits(num_blocks))
    }

    /// Does [`allocate`](PagedKvCache::allocate), when it is this request's turn and there is room for all
    /// of it.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve) and [`PagedKvCache::allocate`].
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// async fn serve(cache: &PagedKvCache) -> paged_kv::Result<()> {
    ///     cache.waiting().allocate(SeqId(1), 100).await?;
    ///     cache.free(SeqId(1))
    /// }
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// assert!(cache.waiting().allocate(SeqId(2), 1_000).block().is_err());
    /// ```
    pub fn allocate(self, id: SeqId, num_tokens: usize) -> Wait<AllocateRequest<'a>> {
        let cache = self.cache;
        let never_fits = self.never_fits(cache.blocks_for(num_tokens));
        let request = AllocateRequest { cache, id, num_tokens };
        Wait::new(WaitTicket::new(cache.handle()), request, never_fits)
    }

    /// Does [`admit_with`](PagedKvCache::admit_with), when it is this request's turn and there is room for
    /// the blocks that are not cached. The prompt is matched again each time the request asks.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve) and [`PagedKvCache::admit_with`]. "Never" ignores blocks that other
    /// sequences share.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// async fn serve(cache: &PagedKvCache, tokens: &[u32]) -> paged_kv::Result<usize> {
    ///     let (prompt, options) = (cache.prompt(tokens), AdmitOptions::default());
    ///     let admission = cache.waiting().admit(SeqId(1), &prompt, &options).await?;
    ///     Ok(admission.cached_tokens)
    /// }
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let (prompt, options) = (cache.prompt(&[7; 9]), AdmitOptions::default());
    /// let admission = cache.waiting().admit(SeqId(1), &prompt, &options).block()?;
    /// assert_eq!(admission.num_tokens, 9);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit(
        self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Wait<AdmitRequest<'a>> {
        let cache = self.cache;
        let most = cache.required_without_hits(prompt, options);
        let watermark = options.watermark(cache.watermark());
        let never_fits = || self.never_fits_above(watermark, most);
        let refusal = cache.check_prompt(prompt).err().or_else(never_fits);
        let (prompt, options) = (prompt.clone(), options.clone());
        let request = AdmitRequest { cache, id, prompt, options };
        Wait::new(WaitTicket::new(cache.handle()), request, refusal)
    }

    /// Does [`append`](PagedKvCache::append), as soon as there is room for it. It asks immediately, also
    /// past waiting requests. If it must wait, it goes before new sequences, and after others that wait to
    /// grow.
    ///
    /// # Errors
    /// As [`PagedKvCache::append`], but [`OutOfMemory`](PagedKvError::OutOfMemory) only, and immediately,
    /// if it can never fit; [`DeadlinePassed`](PagedKvError::DeadlinePassed);
    /// [`Stalled`](PagedKvError::Stalled), see [`wait`](crate::wait).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// async fn step(cache: &PagedKvCache, id: SeqId) -> paged_kv::Result<()> {
    ///     match cache.waiting().append(id, 1).await {
    ///         Ok(append) => drop(append), // after its copy, if there is one
    ///         Err(PagedKvError::Stalled(_)) => cache.free(id)?, // and admit it again, waiting
    ///         Err(refusal) => return Err(refusal),
    ///     }
    ///     Ok(())
    /// }
    ///
    /// let cache = PagedKvCache::new(2, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.allocate(SeqId(2), 4)?;
    /// cache.touch(SeqId(1))?; // sequence 2 is the least recently used now
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| cache.waiting().append(SeqId(1), 1).block().map(drop));
    ///     let stalled = cache.waiting().append(SeqId(2), 1).block();
    ///     assert_eq!(stalled.unwrap_err(), PagedKvError::Stalled(SeqId(2)));
    ///     cache.free(SeqId(2))?;
    ///     other.join().expect("the thread does not panic")
    /// })?;
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn append(self, id: SeqId, num_new_tokens: usize) -> Wait<AppendRequest<'a>> {
        let cache = self.cache;
        let request = AppendRequest { cache, id, num_new_tokens, epoch: None };
        Wait::new(WaitTicket::new(cache.handle()), request, None)
    }

    /// Returns the number of requests that wait now, new ones and those that wait to grow. `O(waiters)`,
    /// under the lock that they take.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert_eq!(cache.waiting().len(), 0);
    /// ```
    pub fn len(self) -> usize {
        let waiters = self.cache.blocks().waiters();
        waiters.len(Class::New) + waiters.len(Class::Growing)
    }

    /// Returns true if no request waits now; cost as [`len`](Self::len).
    ///
    /// ```
    /// assert!(paged_kv::PagedKvCache::new(8, 4, 1, 1).waiting().is_empty());
    /// ```
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn never_fits(self, requested: usize) -> Option<PagedKvError> {
        self.never_fits_above(self.cache.watermark(), requested)
    }

    fn never_fits_above(self, watermark: BlockWatermark, requested: usize) -> Option<PagedKvError> {
        let available = watermark.most(self.cache.blocks());
        (requested > available).then_some(PagedKvError::OutOfMemory { requested, available })
    }
}
