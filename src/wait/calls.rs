//! How does a new request come in that may have to wait? Each way to come in, as a future and as a call
//! that blocks.

use super::Patience;
use super::request::Request;
use crate::cache::{Admission, AdmitOptions, PagedKvCache, Prompt, Reservation, refuse_salt};
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::pool::waiters::{Ask, Attempt, Class, Short, Shortage, Turn};
use crate::pool::watermark::Admit;

impl PagedKvCache {
    /// [`reserve`](Self::reserve), when it is this request's turn and there is room for all of it.
    /// `O(log waiters)` to begin and to end; nothing between.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) at once when it can never fit;
    /// [`DeadlinePassed`](PagedKvError::DeadlinePassed).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{PagedKvCache, PagedKvError};
    ///
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
    /// #             return output;
    /// #         }
    /// #     }
    /// # }
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// let room = block_on(cache.reserve_wait(8, Patience::default()))?;
    /// assert_eq!(room.num_blocks(), 8);
    /// let refused = block_on(cache.reserve_wait(9, Patience::default())).unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 9, available: 8 });
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn reserve_wait(
        &self,
        num_blocks: usize,
        patience: Patience,
    ) -> impl Future<Output = Result<Reservation>> + Send + Unpin + use<> {
        self.reservation(num_blocks, patience)
    }

    /// [`reserve_wait`](Self::reserve_wait), on this thread.
    ///
    /// # Errors
    /// As [`reserve_wait`](Self::reserve_wait).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    ///
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert_eq!(cache.reserve_blocking(8, Patience::default())?.num_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reserve_blocking(&self, num_blocks: usize, patience: Patience) -> Result<Reservation> {
        self.reservation(num_blocks, patience).block()
    }

    /// [`allocate`](Self::allocate), when it is this request's turn and there is room for all of it.
    ///
    /// # Errors
    /// As [`reserve_wait`](Self::reserve_wait) and [`allocate`](Self::allocate).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// async fn serve(cache: &PagedKvCache) -> paged_kv::Result<()> {
    ///     cache.allocate_wait(SeqId(1), 100, Patience::default()).await?;
    ///     cache.free(SeqId(1))
    /// }
    /// ```
    pub fn allocate_wait(
        &self,
        id: SeqId,
        num_tokens: usize,
        patience: Patience,
    ) -> impl Future<Output = Result<()>> + Send + Unpin + use<'_> {
        self.allocation(id, num_tokens, patience)
    }

    /// [`allocate_wait`](Self::allocate_wait), on this thread.
    ///
    /// # Errors
    /// As [`allocate_wait`](Self::allocate_wait).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// cache.allocate_blocking(SeqId(1), 100, Patience::default())?;
    /// assert!(cache.allocate_blocking(SeqId(2), 1_000, Patience::default()).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate_blocking(
        &self,
        id: SeqId,
        num_tokens: usize,
        patience: Patience,
    ) -> Result<()> {
        self.allocation(id, num_tokens, patience).block()
    }

    /// [`admit_prompt`](Self::admit_prompt), when it is this request's turn and there is room for what
    /// is not cached: the prompt is matched anew each time it asks.
    ///
    /// # Errors
    /// As [`reserve_wait`](Self::reserve_wait) and [`admit_prompt`](Self::admit_prompt). "Never" does
    /// not count on blocks that others share.
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// async fn serve(cache: &PagedKvCache, tokens: &[u32]) -> paged_kv::Result<usize> {
    ///     let (prompt, options) = (cache.prompt(tokens), AdmitOptions::default());
    ///     let admission = cache.admit_wait(SeqId(1), &prompt, &options, Patience::default()).await?;
    ///     Ok(admission.cached_tokens)
    /// }
    /// ```
    pub fn admit_wait(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        patience: Patience,
    ) -> impl Future<Output = Result<Admission>> + Send + Unpin + use<'_> {
        self.admission(id, prompt, options, patience)
    }

    /// [`admit_wait`](Self::admit_wait), on this thread.
    ///
    /// # Errors
    /// As [`admit_wait`](Self::admit_wait).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let (prompt, options) = (cache.prompt(&[7; 9]), AdmitOptions::default());
    /// let admission = cache.admit_blocking(SeqId(1), &prompt, &options, Patience::default())?;
    /// assert_eq!(admission.num_tokens, 9);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit_blocking(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        patience: Patience,
    ) -> Result<Admission> {
        self.admission(id, prompt, options, patience).block()
    }

    /// Requests that wait for room now, new ones and those that wait to grow. `O(waiters)`, under the
    /// lock that they take.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert_eq!(cache.num_waiting(), 0);
    /// ```
    pub fn num_waiting(&self) -> usize {
        let waiters = self.blocks().waiters();
        waiters.len(Class::New) + waiters.len(Class::Growing)
    }

    fn reservation(
        &self,
        num_blocks: usize,
        patience: Patience,
    ) -> Request<impl FnMut(Ask) -> Attempt<Reservation> + Send + Unpin + use<>> {
        let (watermark, block_size) = (self.watermark(), self.block_size());
        let turn = Turn::new(self.handle());
        let pool = turn.pool().clone();
        let ask = move |ask: Ask| {
            let pool = pool.clone();
            let taken = Reservation::take(pool, watermark, num_blocks, block_size, ask.into());
            unless_short(taken, |requested| Short::of_blocks(watermark.threshold(requested)))
        };
        Request::new(turn, patience, ask).unless(self.never_fits(num_blocks))
    }

    fn allocation(
        &self,
        id: SeqId,
        num_tokens: usize,
        patience: Patience,
    ) -> Request<impl FnMut(Ask) -> Attempt<()> + Send + Unpin + use<'_>> {
        let num_blocks = num_tokens.div_ceil(self.block_size());
        let ask = move |ask: Ask| {
            let allocated = self.allocate_as(id, num_tokens, ask.into());
            unless_short(allocated, |requested| {
                Short::of_blocks(self.watermark().threshold(requested))
            })
        };
        let turn = Turn::new(self.handle());
        Request::new(turn, patience, ask).unless(self.never_fits(num_blocks))
    }

    fn admission(
        &self,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
        patience: Patience,
    ) -> Request<impl FnMut(Ask) -> Attempt<Admission> + Send + Unpin + use<'_>> {
        let (prompt, options) = (prompt.clone(), options.clone());
        let most = options.room_for(&prompt, 0).div_ceil(self.block_size());
        let refusal = refuse_salt(&options).and_then(|()| self.check_prompt(&prompt)).err();
        let refusal = refusal.or_else(|| self.never_fits(most));
        let shortage =
            if options.is_chunked() { Shortage::ChunkOfPrompt } else { Shortage::Prompt };
        let ask = move |ask: Ask| {
            let admitted = self.admit_prompt_as(id, &prompt, &options, ask.into());
            // A race that was lost counts what was missing then, without the hits.
            let need = || self.watermark().threshold(self.room_required(&prompt, &options));
            unless_short(admitted, |_| Short { need: need(), shortage })
        };
        Request::new(Turn::new(self.handle()), patience, ask).unless(refusal)
    }

    fn never_fits(&self, requested: usize) -> Option<PagedKvError> {
        let available = self.watermark().most(self.blocks());
        (requested > available).then_some(PagedKvError::OutOfMemory { requested, available })
    }
}

/// The attempt that came out so: if it was refused for want of room, `short` says what it lacks.
fn unless_short<T>(result: Result<T>, short: impl FnOnce(usize) -> Short) -> Attempt<T> {
    match result {
        Err(PagedKvError::OutOfMemory { requested, .. }) => Err(short(requested)),
        done => Ok(done),
    }
}

impl From<Ask> for Admit {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::AtOnce => Self::Now,
            Ask::InTurn => Self::FromQueue,
        }
    }
}
