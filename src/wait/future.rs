//! [`Wait`]: a request that waits for room, as a future or on the calling thread.
//!
//! It keeps the place in the queue and the deadline. Its [`Request`] asks the cache.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use self::sealed::Asks;
use crate::error::{PagedKvError, Result};
use crate::pool::wait_queue::{Ask, Attempt, WaitTicket};
use crate::sync::{Alarm, block_on_until};

/// A request for room: `.await` it, or [`block`](Self::block) on it.
///
/// Does nothing until it is polled or blocks. Waits without limit unless a [`timeout`](Self::timeout) or a
/// [`deadline`](Self::deadline) is set. Dropping it leaves the queue.
///
/// ```
/// use std::time::Duration;
///
/// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
///
/// let cache = PagedKvCache::new(8, 16, 1, 1);
/// cache.waiting().allocate(SeqId(1), 8 * 16).block()?;
/// let late = cache.waiting().allocate(SeqId(2), 1).timeout(Duration::from_millis(1)).block();
/// assert_eq!(late, Err(PagedKvError::DeadlinePassed));
///
/// async fn serve(cache: &PagedKvCache) -> paged_kv::Result<()> {
///     cache.waiting().allocate(SeqId(2), 100).timeout(Duration::from_secs(1)).await?;
///     cache.free(SeqId(2))
/// }
/// # Ok::<(), PagedKvError>(())
/// ```
#[must_use = "it asks for nothing until it is awaited or blocks"]
pub struct Wait<R: Request> {
    request: R,
    /// Error for the first poll: the request can never fit.
    refusal: Option<PagedKvError>,
    turn: WaitTicket,
    deadline: Option<Instant>,
    alarm: Option<Alarm>,
}

/// An operation that can wait for room. Implemented by the requests of this module, and by no other type.
pub trait Request: Asks<Output = Self::Value> + Unpin {
    /// The result of a served request.
    type Value;
}

impl<R: Request> Wait<R> {
    /// Creates a request, which is refused at the first poll if it `never_fits`.
    pub(super) fn new(turn: WaitTicket, request: R, never_fits: Option<PagedKvError>) -> Self {
        Self { request, refusal: never_fits, turn, deadline: None, alarm: None }
    }

    /// Sets a deadline `timeout` from now; see [`deadline`](Self::deadline). Sets none if that is beyond
    /// the range of the clock.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert!(cache.waiting().reserve(8).timeout(Duration::ZERO).block().is_ok());
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Instant::now().checked_add(timeout);
        self
    }

    /// Sets a deadline. A request that was not served by then is refused with
    /// [`DeadlinePassed`](PagedKvError::DeadlinePassed), and holds nothing. Even if `deadline` has passed
    /// already, it asks once, and is served if that is possible immediately.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert!(cache.waiting().reserve(8).deadline(Instant::now()).block().is_ok());
    /// ```
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Waits on this thread.
    ///
    /// # Errors
    /// Those of the request, as if it were awaited.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert_eq!(cache.waiting().reserve(8).block()?.num_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block(mut self) -> Result<R::Value> {
        // The thread itself wakes up at the deadline: no alarm.
        let deadline = self.deadline.take();
        block_on_until(self, deadline).unwrap_or(Err(PagedKvError::DeadlinePassed))
    }

    fn ask(&mut self, context: &Context<'_>) -> Poll<Result<R::Value>> {
        if let Some(refusal) = self.refusal.take() {
            return Poll::Ready(Err(refusal));
        }
        // Their blocks may be for this request: then it is called, and asks.
        self.turn.pool().expire_pins();
        // Before the deadline is read: a request that can be served immediately is never late.
        let request = &mut self.request;
        if let Poll::Ready(done) = self.turn.poll(context, |ask| request.ask(ask)) {
            self.alarm = None;
            return Poll::Ready(done);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.turn.leave(false);
            self.alarm = None;
            return Poll::Ready(Err(PagedKvError::DeadlinePassed));
        }
        let times = self.deadline.into_iter().chain(self.turn.pool().earliest_pin());
        // A new alarm each time: the task may have moved to another waker.
        self.alarm = times.min().map(|at| Alarm::set(at, context.waker().clone()));
        Poll::Pending
    }
}

impl<R: Request> Future for Wait<R> {
    type Output = Result<R::Value>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R::Value>> {
        let this = self.get_mut();
        let waited = this.turn.is_waiting();
        let polled = this.ask(context);
        let is_served = matches!(polled, Poll::Ready(Ok(_)));
        this.request.asked(is_served, waited || polled.is_pending());
        polled
    }
}

impl<R: Request> Drop for Wait<R> {
    fn drop(&mut self) {
        if self.turn.is_waiting() {
            self.turn.leave(false);
            self.request.asked(false, true);
        }
    }
}

impl<R: Request> fmt::Debug for Wait<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("is_waiting", &self.turn.is_waiting())
            .field("deadline", &self.deadline)
            .field("has_alarm", &self.alarm.is_some())
            .finish_non_exhaustive()
    }
}

pub(super) mod sealed {
    use super::{Ask, Attempt};

    /// An operation that asks the cache for room.
    pub trait Asks {
        type Output;

        /// Asks once.
        fn ask(&mut self, ask: Ask) -> Attempt<Self::Output>;

        /// Runs after each poll, and when the request leaves the queue. `waits`: it was in the queue
        /// before, or is now.
        fn asked(&self, _is_served: bool, _waits: bool) {}
    }
}
