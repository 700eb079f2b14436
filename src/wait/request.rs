//! What is it that waits? A request that asks, until it is served, refused for good, or late.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Patience;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::pool::waiters::Turn;
use crate::sync::{Alarm, block_on_until};

/// How an attempt ended: for good, or for want of so much room.
pub(super) type Attempt<T> = Result<Result<T>, usize>;

/// A future that asks when it is its turn.
#[must_use = "a future does nothing until it is polled"]
pub(super) struct Request<A> {
    /// What it will say at once.
    refusal: Option<PagedKvError>,
    turn: Turn,
    owner: Option<SeqId>,
    ask: A,
    deadline: Option<Instant>,
    alarm: Option<Alarm>,
}

impl<A> Request<A> {
    /// One for a new sequence.
    pub(super) fn of_new(turn: Turn, patience: Patience, ask: A) -> Self {
        Self { refusal: None, turn, owner: None, ask, deadline: patience.until(), alarm: None }
    }

    /// One for a sequence that lives.
    pub(super) fn of_growing(turn: Turn, owner: SeqId, patience: Patience, ask: A) -> Self {
        Self { owner: Some(owner), ..Self::of_new(turn, patience, ask) }
    }

    /// The same, or one that is refused at once: it will never fit.
    pub(super) fn unless(self, never_fits: Option<PagedKvError>) -> Self {
        Self { refusal: never_fits, ..self }
    }
}

impl<T, A: FnMut() -> Attempt<T> + Unpin> Request<A> {
    /// Waits on this thread.
    pub(super) fn block(mut self) -> Result<T> {
        // The thread itself knows when to get up: no alarm.
        let deadline = self.deadline.take();
        block_on_until(self, deadline).unwrap_or(Err(PagedKvError::DeadlinePassed))
    }
}

impl<T, A: FnMut() -> Attempt<T> + Unpin> Future for Request<A> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Err(refusal));
        }
        if let Poll::Ready(done) = this.turn.poll(context, &mut this.ask) {
            this.alarm = None;
            let stalled = || this.owner.map_or(PagedKvError::DeadlinePassed, PagedKvError::Stalled);
            return Poll::Ready(done.unwrap_or_else(|_| Err(stalled())));
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
