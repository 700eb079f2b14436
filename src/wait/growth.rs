//! How does a sequence grow that may have to wait? It keeps what it has meanwhile, goes before new ones,
//! and is told if everybody waits for everybody.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::Patience;
use super::calls::unless_short;
use super::request::{Attempt, Request};
use crate::cache::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::pool::waiters::Turn;
use crate::sequence::Append;

/// A request to grow, which looks whether everybody waits when it begins to.
struct Growth<'a, A> {
    cache: &'a PagedKvCache,
    request: Request<A>,
}

impl PagedKvCache {
    /// [`append`](Self::append), as soon as there is room for it. It asks at once, past everybody; if
    /// it must wait, it goes before new sequences, and behind others that wait to grow.
    ///
    /// # Errors
    /// As [`append`](Self::append), but [`OutOfMemory`](PagedKvError::OutOfMemory) only, and at once,
    /// when it can never fit; [`DeadlinePassed`](PagedKvError::DeadlinePassed);
    /// [`Stalled`](PagedKvError::Stalled), see [`wait`](crate::wait).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// async fn step(cache: &PagedKvCache, id: SeqId) -> paged_kv::Result<()> {
    ///     match cache.append_wait(id, 1, Patience::default()).await {
    ///         Ok(append) => drop(append), // after its copy, if there is one
    ///         Err(PagedKvError::Stalled(_)) => cache.free(id)?, // and admit it again, waiting
    ///         Err(refusal) => return Err(refusal),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn append_wait(
        &self,
        id: SeqId,
        num_new_tokens: usize,
        patience: Patience,
    ) -> impl Future<Output = Result<Append>> + Send + Unpin + use<'_> {
        self.growth(id, num_new_tokens, patience)
    }

    /// [`append_wait`](Self::append_wait), on this thread.
    ///
    /// # Errors
    /// As [`append_wait`](Self::append_wait).
    ///
    /// ```
    /// use paged_kv::wait::Patience;
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(2, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.allocate(SeqId(2), 4)?;
    /// cache.touch(SeqId(1))?; // sequence 2 is the least recently used now
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| cache.append_blocking(SeqId(1), 1, Patience::default()).map(drop));
    ///     let stalled = cache.append_blocking(SeqId(2), 1, Patience::default());
    ///     assert_eq!(stalled.unwrap_err(), PagedKvError::Stalled(SeqId(2)));
    ///     cache.free(SeqId(2))?;
    ///     other.join().expect("it does not panic")
    /// })?;
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn append_blocking(
        &self,
        id: SeqId,
        num_new_tokens: usize,
        patience: Patience,
    ) -> Result<Append> {
        let deadline = patience.until();
        let growth = self.growth(id, num_new_tokens, Patience::default());
        let appended = crate::sync::block_on_until(growth, deadline);
        appended.unwrap_or(Err(PagedKvError::DeadlinePassed))
    }

    fn growth(
        &self,
        id: SeqId,
        num_new_tokens: usize,
        patience: Patience,
    ) -> Growth<'_, impl FnMut() -> Attempt<Append> + Send + Unpin + use<'_>> {
        let ask = move || {
            let appended = self.append(id, num_new_tokens);
            if let Err(PagedKvError::OutOfMemory { requested, .. }) = appended
                && let Some(refusal) = self.never_grows(id, requested)
            {
                return Ok(Err(refusal));
            }
            unless_short(appended, |requested| requested)
        };
        let turn = Turn::of_growing(self.handle(), id);
        Growth { cache: self, request: Request::of_growing(turn, id, patience, ask) }
    }

    /// The refusal of a sequence that would be too long if it had all blocks.
    fn never_grows(&self, id: SeqId, requested: usize) -> Option<PagedKvError> {
        let held = self.with_sequence(id, |sequence| sequence.num_blocks())?;
        let available = self.total_blocks().saturating_sub(held);
        (requested > available).then_some(PagedKvError::OutOfMemory { requested, available })
    }
}

impl<A: FnMut() -> Attempt<Append> + Unpin> Future for Growth<'_, A> {
    type Output = Result<Append>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Append>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.request).poll(context);
        if polled.is_pending() {
            this.cache.tell_if_stalled();
        }
        polled
    }
}
