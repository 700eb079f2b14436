//! How does one wait for its turn? It asks, and if it is refused, it leaves its waker and looks again.
//!
//! Dropping a [`Turn`] leaves the queue, and wakes the next one if that had waited for this one only.
//! It does not know what is asked for: the caller's closure asks the pool.

use std::task::{Context, Poll, Waker};

use super::{Call, Class, Place};
use crate::id::SeqId;
use crate::pool::{Blocks, PoolHandle};
use crate::sync::{Ordering, fence};

/// How often somebody asks in a row, finding room between and then none, before others run.
const ATTEMPTS: usize = 8;

/// One that waits for room, or will.
pub(crate) struct Turn {
    pool: PoolHandle,
    class: Class,
    owner: Option<SeqId>,
    /// The room it needs, as far as is known.
    need: usize,
    place: Option<Place>,
}

/// Every live sequence waits for room that only the others could give, and this one is to yield.
#[derive(Debug)]
pub(crate) struct Stalled;

impl Turn {
    /// For a new sequence that needs so much room.
    pub(crate) fn of_new(pool: PoolHandle, need: usize) -> Self {
        Self { pool, class: Class::New, owner: None, need, place: None }
    }

    /// For `owner`, which holds what it has while it waits.
    pub(crate) fn of_growing(pool: PoolHandle, owner: SeqId) -> Self {
        Self { pool, class: Class::Growing, owner: Some(owner), need: 1, place: None }
    }

    pub(crate) fn pool(&self) -> &PoolHandle {
        &self.pool
    }

    /// Calls `attempt` when it is this one's turn. That is done, or says how much room it needs.
    pub(crate) fn poll<T>(
        &mut self,
        context: &Context<'_>,
        mut attempt: impl FnMut() -> Result<T, usize>,
    ) -> Poll<Result<T, Stalled>> {
        // A sequence that lives passes those who wait, as its appends that do not wait pass.
        if self.place.is_none() && (self.class == Class::Growing || self.pool.waiters.demand() == 0)
        {
            match attempt() {
                Ok(done) => return Poll::Ready(Ok(done)),
                Err(need) => self.need = need,
            }
        }
        let waiters = &self.pool.waiters;
        let (class, need, owner) = (self.class, self.need, self.owner);
        let place = *self.place.get_or_insert_with(|| waiters.enter(class, need, owner));
        for _ in 0..ATTEMPTS {
            match waiters.register(place, context.waker().clone()) {
                Call::Sleep => return Poll::Pending,
                Call::Stalled => {
                    self.leave(false);
                    return Poll::Ready(Err(Stalled));
                }
                Call::Ask => {}
            }
            match attempt() {
                Ok(done) => {
                    self.leave(true);
                    return Poll::Ready(Ok(done));
                }
                Err(need) => self.need = need,
            }
            waiters.refused(place, self.need);
            if self.pool.room_after_all_claims() < self.need {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Leaves the queue. The next one may have room already.
    pub(crate) fn leave(&mut self, served: bool) {
        if let Some(place) = self.place.take() {
            self.pool.waiters.leave(place, served);
            if self.pool.waiters.demand() != 0
                && self.pool.room_after_all_claims() >= self.pool.waiters.demand()
            {
                self.pool.wake_next();
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl Blocks {
    /// The room, with everything that came back under a claim before this thread held it.
    fn room_after_all_claims(&self) -> usize {
        self.free.meet_all_claims();
        // SeqCst: pairs with the fence in `wake_next`. Of this thread and one whose claim came behind
        // one of this one's, one at least counts all that either saw.
        fence(Ordering::SeqCst);
        self.free.room()
    }

    /// Wakes the one whose turn it is, if there is room for it. If there is not, and it is a sequence that
    /// grows, it has to look whether everybody waits: what came back may have been the last that others
    /// held.
    #[cold]
    pub(in crate::pool) fn wake_next(&self) {
        // SeqCst: two threads that each gave back a part of what is needed; whoever is here second
        // counts both. Loom: two_releases_that_suffice_together_wake_the_waiter.
        fence(Ordering::SeqCst);
        let room = self.free.room();
        let waker = if room >= self.waiters.demand() {
            self.waiters.call_next(room)
        } else {
            self.waiters.call_to_look()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}
