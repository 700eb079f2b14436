//! How does a sequence grow that may have to wait? `append_wait`: a waiting sequence keeps its blocks, is
//! served before new sequences, and fails with `Stalled` on deadlock.
//!
//! A request to grow is for one admission of its id, the one that it found when it asked first. When that
//! is freed or evicted, the request ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::Patience;
use super::request::Request;
use crate::cache::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::pool::waiters::{Ask, Attempt, Turn};
use crate::sequence::Append;

/// A request to grow, which checks whether all sequences wait when it begins to wait and when it stops.
struct Growth<'a, A> {
    cache: &'a PagedKvCache,
    id: SeqId,
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
    ) -> Growth<'_, impl FnMut(Ask) -> Attempt<Append> + Send + Unpin + use<'_>> {
        let mut epoch = None;
        let ask = move |_| {
            let appended = self.append_or_wait(id, epoch, num_new_tokens);
            if let Err(short) = &appended {
                epoch = short.grower().map(|grower| grower.epoch);
            }
            appended
        };
        let turn = Turn::new(self.handle());
        Growth { cache: self, id, request: Request::new(turn, patience, ask) }
    }
}

impl<A: FnMut(Ask) -> Attempt<Append> + Unpin> Future for Growth<'_, A> {
    type Output = Result<Append>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Append>> {
        let this = self.get_mut();
        let waited = this.request.is_waiting();
        let polled = Pin::new(&mut this.request).poll(context);
        if let Poll::Ready(Ok(_)) = polled {
            // Another append that waits for the same sequence may have needed the same block.
            this.cache.blocks().announce_change_of(this.id);
        }
        if waited || polled.is_pending() {
            this.cache.tell_if_stalled();
        }
        polled
    }
}

impl<A> Drop for Growth<'_, A> {
    fn drop(&mut self) {
        if self.request.is_waiting() {
            self.request.leave();
            self.cache.tell_if_stalled();
        }
    }
}
