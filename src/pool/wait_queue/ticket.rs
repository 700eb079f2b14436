//! `WaitTicket`: a request that waits for room. It asks the pool; if it is refused, it registers its waker and asks
//! again when woken.
//!
//! Dropping a [`WaitTicket`] leaves the queue, and wakes the next waiter if that is due. The caller's closure asks
//! the pool.

use std::task::{Context, Poll};

use super::queue::NextAction;
use super::{QueueKey, Short, Shortage};
use crate::error::{PagedKvError, Result as Answer};
use crate::pool::PoolHandle;
use crate::sync::foreign;
use crate::trace::TraceEvent;

/// The most attempts of a waiter in a row, before other tasks run. It tries again when room appeared after a
/// refusal.
const ATTEMPTS: usize = 8;

/// A request that waits for room, or will.
pub(crate) struct WaitTicket {
    pool: PoolHandle,
    place: Option<QueueKey>,
    /// True if its need may fall while it waits.
    may_need_less: bool,
}

/// How a request asks the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// As a request that does not wait, before it enters the queue.
    AtOnce,
    /// As the waiter whose turn it is.
    InTurn,
}

/// The result of an attempt: final, or short of room.
pub(crate) type Attempt<T> = Result<Answer<T>, Short>;

impl WaitTicket {
    pub(crate) fn new(pool: PoolHandle) -> Self {
        Self { pool, place: None, may_need_less: false }
    }

    pub(crate) fn pool(&self) -> &PoolHandle {
        &self.pool
    }

    /// Returns true while the request is in the queue.
    pub(crate) fn is_waiting(&self) -> bool {
        self.place.is_some()
    }

    /// Calls `attempt` once before the request waits, and then whenever it is its turn. `attempt` returns its
    /// final result, or the room that it lacks.
    pub(crate) fn poll<T>(
        &mut self,
        context: &Context<'_>,
        mut attempt: impl FnMut(Ask) -> Attempt<T>,
    ) -> Poll<Answer<T>> {
        let mut entered = None;
        let place = match self.place {
            Some(place) => place,
            None => match attempt(Ask::AtOnce) {
                Ok(done) => return Poll::Ready(done),
                Err(short) => {
                    self.may_need_less = short.shortage != Shortage::Blocks;
                    // Clone before the request enters the queue: a clone may panic.
                    let waker = context.waker().clone();
                    let (place, next) = self.pool.waiters.enter(short, waker);
                    entered = Some(next);
                    *self.place.insert(place)
                }
            },
        };
        for _ in 0..ATTEMPTS {
            let waiters = &self.pool.waiters;
            let next = entered.take();
            let next =
                next.unwrap_or_else(|| waiters.register(place, waiters.waker_of(context, place)));
            let refusal = match next {
                NextAction::Sleep => return Poll::Pending,
                NextAction::Ask => None,
                NextAction::Stalled(id) => Some(PagedKvError::Stalled(id)),
                NextAction::Gone(refusal) => {
                    self.leave(false);
                    return Poll::Ready(Err(refusal));
                }
            };
            if self.may_need_less {
                self.pool.see_all_changes();
            }
            let short = match attempt(Ask::InTurn) {
                Ok(done) => {
                    self.leave(done.is_ok());
                    return Poll::Ready(done);
                }
                Err(short) => short,
            };
            if let Some(refusal) = refusal {
                self.leave(false);
                if let PagedKvError::Stalled(id) = refusal {
                    TraceEvent::Stalled { id }.emit();
                }
                return Poll::Ready(Err(refusal));
            }
            let is_another_due = self.pool.waiters.refused(place, short);
            let room = self.pool.room_after_all_claims();
            if room < short.need {
                if is_another_due {
                    self.pool.waiters.call_next(room);
                }
                return Poll::Pending;
            }
        }
        foreign::call(|| context.waker().wake_by_ref());
        Poll::Pending
    }

    /// Leaves the queue, and wakes the next waiter if it is due.
    pub(crate) fn leave(&mut self, served: bool) {
        if let Some(place) = self.place.take() {
            self.pool.waiters.leave(place, served);
            if self.pool.waiters.demand() != 0 {
                let room = self.pool.room_after_all_claims();
                self.pool.waiters.call_next(room);
            }
        }
    }
}

impl Drop for WaitTicket {
    fn drop(&mut self) {
        self.leave(false);
    }
}
