//! `Called`: a waiter that the queue has chosen to wake, with its waker.
//!
//! ```text
//!   queue ──> Called ── is a scope open? ── no ──> wake
//!                          │ yes                     │ it panics
//!                          └─> the scope's end       └─> the waiter is deaf; call the next
//! ```
//!
//! A thread may release blocks while it holds a lock of the cache. Its scope ([`later`]) is open then, and
//! the waiter is woken when the scope ends.
//!
//! A waiter whose waker panicked is *deaf*: it has missed its call, and would block the waiters after it. It
//! leaves the order until its task polls it, or drops it. Until then its sequence still counts as waiting.
//! The queue decides in which order waiters are called.

use std::mem;
use std::task::{Context, Waker};

use super::{QueueKey, Waiters};
use crate::sync::later::{self, Postponed};
use crate::sync::{PlainArc, foreign};

/// A waiter to be woken.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) place: QueueKey,
    pub(super) waker: Waker,
}

impl Waiters {
    /// Wakes a called waiter: now, or when this thread holds no lock.
    pub(super) fn wake(self: &PlainArc<Self>, called: Called) {
        if later::is_open() {
            self.queue.lock().wake_later(called);
            later::postpone(PlainArc::clone(self) as PlainArc<dyn Postponed>);
        } else {
            later::call_nested(|| self.wake_now(called));
        }
    }

    /// Clones the waker of the task that polls the waiter of `place`. If the clone panics, the poll panics,
    /// and the next waiter is called instead.
    pub(super) fn waker_of(self: &PlainArc<Self>, context: &Context<'_>, place: QueueKey) -> Waker {
        struct PassedOver<'a>(&'a PlainArc<Waiters>, QueueKey);
        impl Drop for PassedOver<'_> {
            fn drop(&mut self) {
                let Self(waiters, place) = *self;
                waiters.wake_by(|queue| queue.pass_over(place));
            }
        }
        let unless_cloned = PassedOver(self, place);
        let waker = context.waker().clone();
        mem::forget(unless_cloned);
        waker
    }

    fn wake_now(&self, Called { place, waker }: Called) {
        if !foreign::wake(waker) {
            self.call_instead_of(place);
        }
    }

    /// Calls the waiters that are due now that the waiter of `place` is deaf. They check themselves whether
    /// there is room.
    #[cold]
    fn call_instead_of(&self, place: QueueKey) {
        let mut deaf = vec![place];
        while let Some(place) = deaf.pop() {
            let due = self.change(|queue| queue.pass_over(place));
            for Called { place, waker } in due {
                if !foreign::wake(waker) {
                    deaf.push(place);
                }
            }
        }
    }
}

impl Postponed for Waiters {
    fn perform(self: PlainArc<Self>) {
        let called = self.queue.lock().take_to_wake();
        called.into_iter().for_each(|called| self.wake_now(called));
    }
}
