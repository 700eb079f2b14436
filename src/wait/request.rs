//! What is it that waits? A request that asks, until it is served, refused for good, or late.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Patience;
use crate::error::{PagedKvError, Result};
use crate::pool::waiters::{Ask, Attempt, Turn};
use crate::sync::{Alarm, block_on_until};

/// A future that asks when it is its turn.
#[must_use = "a future does nothing until it is polled"]
pub(super) struct Request<A> {
    /// Error for the first poll: the request can never fit.
    refusal: Option<PagedKvError>,
    turn: Turn,
    ask: A,
    deadline: Option<Instant>,
    alarm: Option<Alarm>,
}

impl<A> Request<A> {
    pub(super) fn new(turn: Turn, patience: Patience, ask: A) -> Self {
        Self { refusal: None, turn, ask, deadline: patience.until(), alarm: None }
    }

    /// The same, or one that is refused at once: it will never fit.
    pub(super) fn unless(self, never_fits: Option<PagedKvError>) -> Self {
        Self { refusal: never_fits, ..self }
    }

    /// True while it is in the queue.
    pub(super) fn is_waiting(&self) -> bool {
        self.turn.is_waiting()
    }

    /// Leaves the queue unserved.
    pub(super) fn leave(&mut self) {
        self.turn.leave(false);
    }
}

impl<T, A: FnMut(Ask) -> Attempt<T> + Unpin> Request<A> {
    /// Waits on this thread.
    pub(super) fn block(mut self) -> Result<T> {
        // The thread itself knows when to get up: no alarm.
        let deadline = self.deadline.take();
        block_on_until(self, deadline).unwrap_or(Err(PagedKvError::DeadlinePassed))
    }
}

impl<T, A: FnMut(Ask) -> Attempt<T> + Unpin> Future for Request<A> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Err(refusal));
        }
        // Before the deadline is read: a request that can be served at once is never late.
        if let Poll::Ready(done) = this.turn.poll(context, &mut this.ask) {
            this.alarm = None;
            return Poll::Ready(done);
        }
        if let Some(deadline) = this.deadline {
            if Instant::now() >= deadline {
                this.alarm = None;
                this.turn.leave(false);
                return Poll::Ready(Err(PagedKvError::DeadlinePassed));
            }
            // Anew each time: the task may have moved to another waker.
            this.alarm = Some(Alarm::set(deadline, context.waker().clone()));
        }
        Poll::Pending
    }
}
