//! `Waiters`: the queue of requests that found too little room, and the choice of the waiter to wake.
//!
//! ```text
//!   release ──> blocks are room ──> demand? ── 0 ──> done
//!                                     │ else (cold)
//!                                     ▼
//!                            room for the waiter in turn? ──> wake that one
//! ```
//!
//! The queue holds no blocks for its waiters. A woken waiter asks the pool as any other caller does. If
//! it is served, it leaves the queue and checks whether the next one is due. If it is refused, it keeps
//! its place. So a release wakes at most one waiter. A waiter cancels by leaving the queue.
//!
//! **No wake-up is lost, though a release pays one load and no fence.** Blocks come back under the
//! claim of a home shard, and the release loads `demand` after it. A waiter that is about to sleep
//! states its demand, then claims and unlocks each shard in turn, and then counts the room. It counts a
//! release whose claim came before its own. A release whose claim came after sees the demand, because
//! the hand-over of the claim passes it on. Two releases may each see too little room alone. The fence
//! in [`Blocks::wake_next`](super::Blocks) makes one of them see both; only releases that see a demand
//! execute it.
//!
//! **The need of a waiter may fall.** Then it is woken to ask again, although no block came back:
//!
//! | waiter | cause of a lower need | why the waiter or the change sees the other |
//! |---|---|---|
//! | prompt | blocks are published; a reset, for a first chunk | a fence before `demand` is loaded, and one before the waiter asks |
//! | prompt | idle blocks are matched; or are reclaimed, for a first chunk | the claim under which that happens |
//! | growing sequence | another owner of its last block leaves: no copy | the claim under which that happens |
//! | growing sequence | any other change of the sequence | the sequence's lock |
//!
//! Invariants:
//!
//! - Wakers are cloned, called and dropped outside the queue's lock, and called while the thread holds
//!   no lock of a cache (see [`wake`]).
//! - `demand` is 0 exactly when the queue has no waiter that can be woken.
//! - While no operation runs and every woken waiter has been polled, the first in turn would be
//!   refused, and so would all that may pass it.
//!
//! The queue has two classes of requests: sequences that grow are served before new ones.

mod queue;
mod ticket;
mod wake;
mod wake_causes;

use std::collections::BTreeSet;
use std::task::Waker;

use self::queue::{NextAction, Queue};
pub(crate) use self::ticket::WaitTicket;
pub(crate) use self::ticket::{Ask, Attempt};
use self::wake::Called;
use crate::error::PagedKvError;
use crate::id::{AdmissionEpoch, SeqId};
use crate::sync::{AtomicBool, AtomicUsize, CachePadded, Mutex, Ordering, PlainArc, foreign};

/// The order in which requests that wait for room are served.
///
/// ```
/// use paged_kv::{Fairness, PagedKvCache};
///
/// let builder = PagedKvCache::builder().num_blocks(8);
/// let cache = builder.fairness(Fairness::Bypass { at_most: 4 }).build()?;
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Fairness {
    /// First come, first served: a later small request never passes an earlier large one.
    #[default]
    Fifo,
    /// While there is too little room for the first request, later ones that fit may pass it, the
    /// smallest first. At most `at_most` later requests pass any one request.
    Bypass {
        /// The most requests that may pass a request while it waits.
        at_most: u32,
    },
}

/// The class of a waiter. Classes are served in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A sequence that is in the cache and keeps its blocks while it waits.
    Growing,
    /// A new request, which holds no block.
    New,
}

/// A sequence that waits to grow: one admission of its id, and no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grower {
    pub(crate) id: SeqId,
    pub(crate) epoch: AdmissionEpoch,
}

/// The room that a request lacks, and the kind of need, which says after which changes it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// The room that it needs.
    pub(crate) need: usize,
    pub(crate) shortage: Shortage,
}

/// The kind of a request that lacks room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// A fixed number of blocks.
    Blocks,
    /// A prompt, which needs less when more of it can be matched.
    Prompt,
    /// The first chunk of a prompt. It may also need less when less of the prompt can be matched,
    /// because then it is another chunk.
    ChunkOfPrompt,
    /// A sequence that grows.
    Growth(Grower),
    /// A sequence that grows into a block that other tables own too. It needs one more block for a
    /// copy, but only as long as they own it.
    GrowthWithCopy(Grower),
}

impl Short {
    /// Creates the need of a fixed number of blocks.
    pub(crate) fn of_blocks(need: usize) -> Self {
        Self { need, shortage: Shortage::Blocks }
    }

    /// Returns the sequence that grows, if the request is one.
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
type QueueKey = (Class, u64);

/// The requests that wait for room in one pool.
pub(crate) struct Waiters {
    /// 0 if no request waits, else the least room with which a waiter is to be woken.
    demand: CachePadded<AtomicUsize>,
    /// True if the first waiter is a sequence that grows, and asleep.
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

    /// Sets the order of service, before any request waits.
    pub(crate) fn set_fairness(&self, fairness: Fairness) {
        self.queue.lock().set_fairness(fairness);
    }

    /// Returns 0 if no request waits, else the least room with which a waiter is to be woken.
    #[inline]
    pub(crate) fn demand(&self) -> usize {
        // Relaxed: accesses under a claim or before a fence order it; see above.
        self.demand.load(Ordering::Relaxed)
    }

    /// Returns true if a prompt waits that may need less when less can be matched.
    fn may_gain_by_loss(&self) -> bool {
        // Relaxed: as in `demand`.
        self.may_gain_by_loss.load(Ordering::Relaxed)
    }

    /// Returns the number of waiters of a class.
    pub(crate) fn len(&self, class: Class) -> usize {
        self.queue.lock().len(class)
    }

    /// Returns the sequences that wait to grow, except those that are known to be gone.
    pub(crate) fn growing(&self) -> BTreeSet<Grower> {
        self.queue.lock().growing()
    }

    /// Wakes the waiters of a sequence that is gone. They return `refusal`.
    pub(crate) fn mark_gone(self: &PlainArc<Self>, grower: Grower, refusal: &PagedKvError) {
        self.wake_by(|queue| queue.mark_gone(grower, refusal));
    }

    /// Wakes the first waiter of `victim`, which then fails because of the deadlock. Does nothing if
    /// the set of growing waiters is no longer `growing`, or if a waiter was chosen already. Nor does
    /// it if the head of the queue is awake, or `room` suffices for it. If `victim` has no waiter in
    /// the order, because its waker panicked, the last growing waiter is chosen.
    pub(crate) fn stall(
        self: &PlainArc<Self>,
        victim: Grower,
        growing: &BTreeSet<Grower>,
        room: usize,
    ) {
        self.wake_by(|queue| queue.stall(victim, growing, room));
    }

    /// Wakes the waiter that is due with this `room`.
    fn call_next(self: &PlainArc<Self>, room: usize) {
        self.wake_by(|queue| queue.next(room));
    }

    /// Wakes the waiter in turn after blocks came back.
    fn call_after_release(self: &PlainArc<Self>, room: usize) {
        // Relaxed: as in `demand`.
        if room >= self.demand() || self.is_growing.load(Ordering::Relaxed) {
            self.wake_by(|queue| {
                queue.note_release();
                queue.next(room)
            });
        }
    }

    /// Wakes the waiter in turn after a change of the contents that can be matched.
    fn call_after_contents(self: &PlainArc<Self>, room: usize) {
        self.wake_by(|queue| {
            queue.note_contents();
            queue.next(room)
        });
    }

    /// Wakes the waiter in turn, if it belongs to that sequence, after the sequence changed.
    fn call_after_change_of(self: &PlainArc<Self>, id: SeqId, room: usize) {
        self.wake_by(|queue| {
            queue.note_change_of(id);
            queue.next(room)
        });
    }

    /// Enters the queue together with a waker, so that no waiter is in it without one if the clone
    /// panics.
    fn enter(&self, short: Short, waker: Waker) -> (QueueKey, NextAction) {
        self.change(|queue| {
            let place = queue.enter(short);
            let (next, _) = queue.register(place, waker);
            (place, next)
        })
    }

    /// Stores the waker of a waiter that is about to ask or to sleep.
    fn register(&self, place: QueueKey, waker: Waker) -> NextAction {
        let (next, old) = self.change(|queue| queue.register(place, waker));
        foreign::discard(old);
        next
    }

    /// Notes that a waiter was refused, and the room that it lacks. Returns true if another waiter may
    /// be due.
    fn refused(&self, place: QueueKey, short: Short) -> bool {
        self.change(|queue| queue.refused(place, short))
    }

    fn leave(&self, place: QueueKey, served: bool) {
        let left = self.change(|queue| queue.leave(place, served));
        foreign::discard(left.waker);
    }

    /// Changes the queue, and wakes the waiters that `change` returns, outside the queue's lock.
    fn wake_by<W>(self: &PlainArc<Self>, change: impl FnOnce(&mut Queue) -> W)
    where
        W: IntoIterator<Item = Called>,
    {
        self.change(change).into_iter().for_each(|called| self.wake(called));
    }

    /// Changes the queue, and then updates the demand and the two flags.
    fn change<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let mut queue = self.queue.lock();
        let changed = change(&mut queue);
        // Relaxed: the waiter passes the stores on by the claims that it takes and the fence that it
        // executes next.
        self.demand.store(queue.demand(), Ordering::Relaxed);
        self.is_growing.store(queue.is_growing(), Ordering::Relaxed);
        self.may_gain_by_loss.store(queue.may_gain_by_loss(), Ordering::Relaxed);
        changed
    }
}
