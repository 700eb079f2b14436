//! Who waits for room, and whose turn is it? `Waiters`: the queue of requests that found too little room.
//!
//! ```text
//!   release ──> blocks are room ──> demand? ── 0 ──> done
//!                                     │ else (cold)
//!                                     ▼
//!                            room for the waiter in turn? ──> wake that one
//! ```
//!
//! Waiters hold nothing. A waiter that is woken asks the pool as any other caller does. If it is served,
//! it leaves and checks whether the next one is due. If it is refused, it keeps its place. So a release
//! wakes one waiter at most, and to cancel a wait is to leave the queue.
//!
//! **No wake-up is lost, though a release pays one load and no fence.** Blocks come back under the
//! claim of a home shard, and `demand` is loaded after it. A waiter that is about to sleep states its demand,
//! then claims and unlocks each shard in turn, and then counts the room. A release whose claim came
//! before the waiter's is counted; one whose claim came after has seen the demand, for the claim's
//! hand-over brings it along. Two releases that each see too little room alone are told apart by the
//! fence in [`Blocks::wake_next`](super::Blocks), which only releases that see a demand pay.
//!
//! **What a waiter needs may fall**, and then it is woken to look, though no block came back:
//!
//! | waiter | what lowers its need | what makes the waiter or the change see the other |
//! |---|---|---|
//! | prompt | blocks are published; a reset, for a first chunk | a fence before `demand` is loaded, and one before the waiter asks |
//! | prompt | idle blocks are matched; or are reclaimed, for a first chunk | the claim under which that happens |
//! | growing sequence | another owner of its last block leaves: no copy | the claim under which that happens |
//! | growing sequence | any other change of the sequence | the sequence's lock |
//!
//! Invariants: wakers are cloned, called and dropped outside the queue's lock, and called while the
//! thread holds no lock of a cache (see [`calling`]); `demand` is 0 exactly when the queue is empty of
//! waiters that can be woken. While no operation runs and every waiter that was woken has been polled,
//! the first in turn would be refused, and so would all that may pass it.
//!
//! It does not know what the room is for, but for two classes: sequences that grow go before new ones.

mod calling;
mod calls;
mod queue;
mod turn;

use std::collections::BTreeSet;
use std::task::Waker;

use self::calling::Called;
use self::queue::{Call, Queue};
pub(crate) use self::turn::Turn;
pub(crate) use self::turn::{Ask, Attempt};
use crate::error::PagedKvError;
use crate::id::{AdmissionEpoch, SeqId};
use crate::sync::{AtomicBool, AtomicUsize, CachePadded, Mutex, Ordering, PlainArc, foreign};

/// In which order requests that wait for room are served.
///
/// ```
/// use paged_kv::{Fairness, PagedKvCache};
///
/// let builder = PagedKvCache::builder().num_blocks(8);
/// let cache = builder.fairness(Fairness::Bypass { at_most: 4 }).build()?;
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fairness {
    /// First come, first served: a large request is never passed by a small one behind it.
    #[default]
    Fifo,
    /// While there is not enough room for the first, others that there is room for may pass it, the
    /// smallest first. No request is passed by more than `at_most` of those behind it.
    Bypass {
        /// How many may pass a request while it waits.
        at_most: u32,
    },
}

/// Which waiters are served before which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A sequence that is in the cache and keeps its blocks while it waits.
    Growing,
    /// A request that is to come in, and holds nothing.
    New,
}

/// A sequence that waits to grow: one admission of its id, and no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grower {
    pub(crate) id: SeqId,
    pub(crate) epoch: AdmissionEpoch,
}

/// What a request lacks, and so when it has to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// The room that it needs.
    pub(crate) need: usize,
    pub(crate) shortage: Shortage,
}

/// What a request is that lacks room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// A number of blocks, which stays.
    Blocks,
    /// A prompt, which needs less when more of it can be matched.
    Prompt,
    /// The first chunk of a prompt, which may also need less when less of it can be matched: then it is
    /// another chunk.
    ChunkOfPrompt,
    /// A sequence that grows.
    Growth(Grower),
    /// A sequence that grows into a block that others own too, so that it needs a block for a copy, but only
    /// as long as they own it.
    GrowthWithCopy(Grower),
}

impl Short {
    /// Of a number of blocks.
    pub(crate) fn of_blocks(need: usize) -> Self {
        Self { need, shortage: Shortage::Blocks }
    }

    /// The sequence that grows, if it is one.
    pub(crate) fn grower(self) -> Option<Grower> {
        match self.shortage {
            Shortage::Growth(grower) | Shortage::GrowthWithCopy(grower) => Some(grower),
            _ => None,
        }
    }

    fn class(self) -> Class {
        if self.grower().is_some() { Class::Growing } else { Class::New }
    }
}

/// A place in the queue: waiters are served in this order.
type Place = (Class, u64);

/// The requests that wait for room in one pool.
pub(crate) struct Waiters {
    /// 0 if no request waits, else the least room with which a waiter is to be woken.
    demand: CachePadded<AtomicUsize>,
    /// True if the first is a sequence that grows, and asleep.
    is_growing: AtomicBool,
    /// True if a prompt waits that may need less when less can be matched.
    may_gain_by_loss: AtomicBool,
    queue: Mutex<Queue>,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self {
            demand: CachePadded::new(AtomicUsize::new(0)),
            is_growing: AtomicBool::new(false),
            may_gain_by_loss: AtomicBool::new(false),
            queue: Mutex::new(Queue::new()),
        }
    }

    /// Sets which waiters may pass which, before any request waits.
    pub(crate) fn set_fairness(&self, fairness: Fairness) {
        self.queue.lock().set_fairness(fairness);
    }

    /// 0 if no request waits, else the least room with which a waiter is to be woken.
    #[inline]
    pub(crate) fn demand(&self) -> usize {
        // Relaxed: what was read or written under a claim or before a fence orders it; see above.
        self.demand.load(Ordering::Relaxed)
    }

    /// True if a prompt waits that may need less when less can be matched.
    fn may_gain_by_loss(&self) -> bool {
        // Relaxed: as `demand`.
        self.may_gain_by_loss.load(Ordering::Relaxed)
    }

    /// Waiters of a class.
    pub(crate) fn len(&self, class: Class) -> usize {
        self.queue.lock().len(class)
    }

    /// The sequences that wait to grow, but for those that are known to be gone.
    pub(crate) fn growing(&self) -> BTreeSet<Grower> {
        self.queue.lock().growing()
    }

    /// Tells the waiters of a sequence that it is gone, with the refusal that they return.
    pub(crate) fn tell_gone(self: &PlainArc<Self>, grower: Grower, refusal: &PagedKvError) {
        self.wake_by(|queue| queue.tell_gone(grower, refusal));
    }

    /// Tells the first waiter of `victim` that all sequences wait for each other, if that still holds of
    /// the set `growing` and so much room does not suffice for the first.
    pub(crate) fn stall(
        self: &PlainArc<Self>,
        victim: Grower,
        growing: &BTreeSet<Grower>,
        room: usize,
    ) {
        self.wake_by(|queue| queue.stall(victim, growing, room));
    }

    /// Wakes the waiter that is to be woken while there is so much room.
    fn call_next(self: &PlainArc<Self>, room: usize) {
        self.wake_by(|queue| queue.next(room));
    }

    /// Wakes the waiter in turn after blocks came back.
    fn call_after_release(self: &PlainArc<Self>, room: usize) {
        // Relaxed: as `demand`.
        if room >= self.demand() || self.is_growing.load(Ordering::Relaxed) {
            self.wake_by(|queue| {
                queue.note_release();
                queue.next(room)
            });
        }
    }

    /// Wakes the waiter in turn after a change of what can be matched.
    fn call_after_contents(self: &PlainArc<Self>, room: usize) {
        self.wake_by(|queue| {
            queue.note_contents();
            queue.next(room)
        });
    }

    /// Wakes the waiter in turn, if it is of that sequence, after the sequence changed.
    fn call_after_change_of(self: &PlainArc<Self>, id: SeqId, room: usize) {
        self.wake_by(|queue| {
            queue.note_change_of(id);
            queue.next(room)
        });
    }

    /// Enters the queue, with a waker from the first: no waiter is in it whose waker could not be cloned.
    fn enter(&self, short: Short, waker: Waker) -> (Place, Call) {
        self.change(|queue| {
            let place = queue.enter(short);
            let (call, _) = queue.register(place, waker);
            (place, call)
        })
    }

    /// Leaves the waker of a waiter that is about to ask or to sleep.
    fn register(&self, place: Place, waker: Waker) -> Call {
        let (call, old) = self.change(|queue| queue.register(place, waker));
        foreign::discard(old);
        call
    }

    /// Notes that a waiter was refused, and what it lacks. True if another waiter may be due.
    fn refused(&self, place: Place, short: Short) -> bool {
        self.change(|queue| queue.refused(place, short))
    }

    fn leave(&self, place: Place, served: bool) {
        let left = self.change(|queue| queue.leave(place, served));
        foreign::discard(left.waker);
    }

    /// Changes the queue, and wakes the waiters that this names, outside the queue's lock.
    fn wake_by<W>(self: &PlainArc<Self>, change: impl FnOnce(&mut Queue) -> W)
    where
        W: IntoIterator<Item = Called>,
    {
        self.change(change).into_iter().for_each(|called| self.wake(called));
    }

    /// Changes the queue, and then the demand.
    fn change<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let mut queue = self.queue.lock();
        let changed = change(&mut queue);
        // Relaxed: a waiter hands it on with the claims that it takes and the fence that it passes next.
        self.demand.store(queue.demand(), Ordering::Relaxed);
        self.is_growing.store(queue.is_growing(), Ordering::Relaxed);
        self.may_gain_by_loss.store(queue.may_gain_by_loss(), Ordering::Relaxed);
        changed
    }
}
