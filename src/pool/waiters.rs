//! Who waits for room, and whose turn is it? A queue of those who asked for more than there was.
//!
//! ```text
//!   release ──> blocks are room ──> demand? ── 0 ──> done
//!                                     │ else (cold)
//!                                     ▼
//!                            room for whose turn it is? ──> wake that one
//! ```
//!
//! Those in the queue hold nothing. Whoever is woken asks the pool like anybody else; served, it
//! leaves and looks whether the next one has room too, refused, it keeps its place. So a release wakes
//! one at most, and leaving the queue is all there is to cancelling.
//!
//! **No wake-up is lost, though a release pays one load and no fence.** Blocks come back under the
//! claim of a home shard, and `demand` is loaded behind it. Who is about to sleep states its demand,
//! then claims and lets go each shard in turn, and then counts the room. A release whose claim came
//! before the sleeper's is counted; one whose claim came after has seen the demand, for the claim's
//! hand-over brings it along. Two releases that each see too little room alone are told apart by the
//! fence in [`Blocks::wake_next`](super::Blocks), which only releases behind a demand pay.
//!
//! Invariants: wakers are cloned, called and dropped outside the queue's lock; `demand` is 0 exactly
//! when nobody is in the queue.
//!
//! It does not know what the room is for, but for two classes: sequences that grow go before new ones.

mod turn;

#[cfg(paged_kv_loom)]
pub mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::task::Waker;

pub(crate) use self::turn::Turn;
use crate::id::SeqId;
use crate::sync::{AtomicBool, AtomicUsize, CachePadded, Mutex, Ordering};

/// In which order those who wait for room are served.
///
/// ```
/// use paged_kv::{Fairness, PagedKvCache};
///
/// let builder = PagedKvCache::builder().num_blocks(8);
/// let cache = builder.with_fairness(Fairness::Bypass { at_most: 4 }).build()?;
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fairness {
    /// First come, first served: a large request is never passed by a small one behind it.
    #[default]
    Fifo,
    /// While there is not enough room for the first, others that there is room for may pass it, the
    /// smallest first, but no more than so many of them.
    Bypass {
        /// How many may pass one that is the first.
        at_most: u32,
    },
}

/// Who is served before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A sequence that lives, and holds blocks meanwhile.
    Growing,
    /// One that is to be, and holds nothing.
    New,
}

/// A place in the queue: they are served in this order.
type Place = (Class, u64);

/// Those who wait for room in one pool.
pub(crate) struct Waiters {
    /// 0 if nobody waits, else the least room with which somebody is to be woken.
    demand: CachePadded<AtomicUsize>,
    /// True if the first is a sequence that grows, and asleep.
    is_growing: AtomicBool,
    queue: Mutex<Queue>,
}

/// Nobody is to be woken: who has the turn was woken, and has not asked yet.
const NO_ROOM_SUFFICES: usize = usize::MAX;

/// What to do for one that asks whether it has the turn.
enum Call {
    /// Ask the pool.
    Ask,
    Sleep,
    /// Leave: everybody waits for everybody.
    Stalled,
}

#[derive(Default)]
struct Queue {
    fairness: Fairness,
    places: BTreeMap<Place, Waiting>,
    /// Those of class `New`, by the room they need; only where they may pass each other.
    by_need: BTreeSet<(usize, Place)>,
    /// How many have passed the first.
    passed: u32,
    arrivals: u64,
}

struct Waiting {
    need: usize,
    /// `None` once it was woken, until it asks.
    waker: Option<Waker>,
    /// Whose room it is, for sequences that grow.
    owner: Option<SeqId>,
    /// It has leave to pass the first.
    passing: bool,
    stalled: bool,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        let demand = CachePadded::new(AtomicUsize::new(0));
        Self { demand, is_growing: AtomicBool::new(false), queue: Mutex::new(Queue::default()) }
    }

    /// Sets who may pass whom, before anybody waits.
    pub(crate) fn set_fairness(&self, fairness: Fairness) {
        self.queue.lock().fairness = fairness;
    }

    /// 0 if nobody waits, else the least room with which somebody is to be woken.
    #[inline]
    pub(crate) fn demand(&self) -> usize {
        // Relaxed: what was read or written under a claim before orders it; see above.
        self.demand.load(Ordering::Relaxed)
    }

    /// Those who wait, by class.
    pub(crate) fn len(&self, class: Class) -> usize {
        self.queue.lock().places.range((class, 0)..=(class, u64::MAX)).count()
    }

    /// The sequences that wait to grow.
    pub(crate) fn growing(&self) -> BTreeSet<SeqId> {
        self.queue.lock().growing()
    }

    /// Tells the first one that waits for `owner` to grow that everybody waits for everybody, unless
    /// the first of all was called and has not asked yet, so much room suffices for it, or somebody
    /// was told who has not left yet. Nor if others wait to grow than `growing`, on which the judgement
    /// rests: somebody was told and has left, say.
    pub(crate) fn stall(&self, owner: SeqId, growing: &BTreeSet<SeqId>, room: usize) {
        let waker = self.change(|queue| {
            let (_, first) = queue.places.first_key_value()?;
            let is_called = first.waker.is_none() || first.need <= room;
            let told = queue.places.values().any(|waiting| waiting.stalled);
            if is_called || told || queue.growing() != *growing {
                return None;
            }
            let waiting = queue.places.values_mut().find(|waiting| waiting.owner == Some(owner))?;
            waiting.stalled = true;
            waiting.waker.take()
        });
        waker.into_iter().for_each(Waker::wake);
    }

    /// The waker of the one for whom so much room suffices, if it is to be woken.
    fn call_next(&self, room: usize) -> Option<Waker> {
        self.change(|queue| queue.call_next(room))
    }

    fn enter(&self, class: Class, need: usize, owner: Option<SeqId>) -> Place {
        self.change(|queue| {
            let place = (class, queue.arrivals);
            queue.arrivals += 1;
            let waiting = Waiting { need, waker: None, owner, passing: false, stalled: false };
            queue.places.insert(place, waiting);
            queue.list(place, need);
            place
        })
    }

    /// The first, if it is a sequence that grows and sleeps.
    fn call_to_look(&self) -> Option<Waker> {
        // Relaxed: as `demand`.
        if !self.is_growing.load(Ordering::Relaxed) {
            return None;
        }
        self.change(|queue| {
            let mut first = queue.places.first_entry()?;
            if first.key().0 == Class::Growing { first.get_mut().waker.take() } else { None }
        })
    }

    /// Leaves the waker of one that is about to ask or to sleep.
    fn register(&self, place: Place, waker: Waker) -> Call {
        let (call, old) = self.change(|queue| queue.register(place, waker));
        drop(old);
        call
    }

    /// Notes that one was refused, and what it needs.
    fn refused(&self, place: Place, need: usize) {
        self.change(|queue| queue.refused(place, need));
    }

    fn leave(&self, place: Place, served: bool) {
        let left = self.change(|queue| queue.leave(place, served));
        drop(left);
    }

    /// Changes the queue, and then the demand.
    fn change<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let mut queue = self.queue.lock();
        let changed = change(&mut queue);
        // Relaxed: who is about to sleep hands it on with the claims that it takes next.
        self.demand.store(queue.demand(), Ordering::Relaxed);
        self.is_growing.store(queue.is_growing(), Ordering::Relaxed);
        changed
    }
}

impl Queue {
    /// True if the first is a sequence that grows, and asleep.
    fn is_growing(&self) -> bool {
        let first = self.places.first_key_value();
        first.is_some_and(|(place, first)| place.0 == Class::Growing && first.waker.is_some())
    }

    fn growing(&self) -> BTreeSet<SeqId> {
        self.places.values().filter_map(|waiting| waiting.owner).collect()
    }

    fn demand(&self) -> usize {
        let Some((_, first)) = self.places.first_key_value() else {
            return 0;
        };
        if first.waker.is_none() {
            return NO_ROOM_SUFFICES;
        }
        let passer = self.passer().map_or(NO_ROOM_SUFFICES, |(need, _)| need);
        first.need.min(passer).max(1)
    }

    /// Who may pass the first, if anybody may and is not at it already.
    fn passer(&self) -> Option<(usize, Place)> {
        let Fairness::Bypass { at_most } = self.fairness else {
            return None;
        };
        let (&first, _) = self.places.first_key_value()?;
        let &(need, place) = self.by_need.first()?;
        let may = first.0 == Class::New && place != first && self.passed < at_most;
        (may && self.places[&place].waker.is_some()).then_some((need, place))
    }

    fn call_next(&mut self, room: usize) -> Option<Waker> {
        let mut first = self.places.first_entry()?;
        if first.get().need <= room || first.get().waker.is_none() {
            return first.get_mut().waker.take();
        }
        let (need, place) = self.passer()?;
        if need > room {
            return None;
        }
        self.allow_to_pass(place);
        self.places.get_mut(&place).and_then(|waiting| waiting.waker.take())
    }

    fn register(&mut self, place: Place, waker: Waker) -> (Call, Option<Waker>) {
        let waiting = self.places.get_mut(&place).expect(IN_THE_QUEUE);
        let old = waiting.waker.replace(waker);
        let (stalled, passing) = (waiting.stalled, waiting.passing);
        let is_first = self.places.first_key_value().is_some_and(|(&first, _)| first == place);
        let call = if stalled {
            Call::Stalled
        } else if is_first || passing {
            Call::Ask
        } else if self.passer().is_some_and(|(_, passer)| passer == place) {
            self.allow_to_pass(place);
            Call::Ask
        } else {
            Call::Sleep
        };
        (call, old)
    }

    fn refused(&mut self, place: Place, need: usize) {
        let waiting = self.places.get_mut(&place).expect(IN_THE_QUEUE);
        let old = mem::replace(&mut waiting.need, need);
        if mem::take(&mut waiting.passing) {
            self.passed = self.passed.saturating_sub(1);
        }
        self.by_need.remove(&(old, place));
        self.list(place, need);
    }

    fn leave(&mut self, place: Place, served: bool) -> Waiting {
        let is_first = self.places.first_key_value().is_some_and(|(&first, _)| first == place);
        let left = self.places.remove(&place).expect(IN_THE_QUEUE);
        self.by_need.remove(&(left.need, place));
        if is_first {
            self.passed = 0;
        } else if left.passing && !served {
            self.passed = self.passed.saturating_sub(1);
        }
        left
    }

    fn allow_to_pass(&mut self, place: Place) {
        self.passed += 1;
        self.places.get_mut(&place).expect(IN_THE_QUEUE).passing = true;
    }

    fn list(&mut self, place: Place, need: usize) {
        if self.fairness != Fairness::Fifo && place.0 == Class::New {
            self.by_need.insert((need, place));
        }
    }
}

const IN_THE_QUEUE: &str = "who has a place is in the queue";

#[cfg(all(test, not(any(paged_kv_loom, paged_kv_shuttle))))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::sync::PlainArc;

    /// Counts how often it was woken.
    struct Bell(AtomicUsize);

    impl std::task::Wake for Bell {
        fn wake(self: PlainArc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sequence 1, which needs two blocks and sleeps, and sequence 2 behind it.
    fn two_that_grow() -> (Waiters, PlainArc<Bell>, [Place; 2]) {
        let (waiters, bell) = (Waiters::new(), PlainArc::new(Bell(AtomicUsize::new(0))));
        let places = [1, 2].map(|id| waiters.enter(Class::Growing, 2, Some(SeqId(id))));
        for place in places {
            waiters.register(place, PlainArc::clone(&bell).into());
        }
        (waiters, bell, places)
    }

    #[test]
    fn who_waits_is_counted_by_class_and_says_what_it_needs() {
        let (waiters, _, [first, second]) = two_that_grow();
        waiters.enter(Class::New, 1, None);
        assert_eq!((waiters.len(Class::Growing), waiters.len(Class::New)), (2, 1));
        assert_eq!((waiters.demand(), waiters.growing().len()), (2, 2));
        waiters.leave(first, true);
        waiters.leave(second, false);
        assert_eq!((waiters.len(Class::Growing), waiters.len(Class::New)), (0, 1));
        assert_eq!(waiters.demand(), NO_ROOM_SUFFICES, "the next has not left its waker");
    }

    #[test]
    fn of_those_that_wait_for_each_other_one_is_told_and_once() {
        let growing: BTreeSet<SeqId> = [1, 2].map(SeqId).into();
        let (waiters, bell, _) = two_that_grow();
        let told = || bell.0.load(Ordering::Relaxed);
        waiters.stall(SeqId(2), &growing, 2);
        assert_eq!(told(), 0, "there is room for the first");
        waiters.stall(SeqId(2), &[SeqId(1)].into(), 1);
        assert_eq!(told(), 0, "others wait than was thought");
        waiters.stall(SeqId(2), &growing, 1);
        assert_eq!(told(), 1);
        waiters.stall(SeqId(1), &growing, 1);
        assert_eq!(told(), 1, "the one that was told has not left yet");
    }

    #[test]
    fn nobody_is_told_while_the_first_was_called_and_has_not_asked() {
        let growing: BTreeSet<SeqId> = [1, 2].map(SeqId).into();
        let (waiters, bell, _) = two_that_grow();
        waiters.call_next(2).expect("there is room for the first").wake();
        waiters.stall(SeqId(2), &growing, 0);
        assert_eq!(bell.0.load(Ordering::Relaxed), 1, "the call only");
    }

    #[test]
    fn of_new_ones_the_smallest_passes_the_first_where_there_is_room_for_it() {
        let waiters = Waiters::new();
        waiters.set_fairness(Fairness::Bypass { at_most: 1 });
        let [first, large, small] = [5, 3, 1].map(|need| {
            let bell = PlainArc::new(Bell(AtomicUsize::new(0)));
            (waiters.enter(Class::New, need, None), bell)
        });
        let register = |(place, bell): &(Place, PlainArc<Bell>)| {
            waiters.register(*place, PlainArc::clone(bell).into())
        };
        assert!(matches!(register(&first), Call::Ask));
        assert!(matches!(register(&small), Call::Ask), "it may pass, and tries");
        waiters.refused(small.0, 1);
        assert!(matches!(register(&large), Call::Sleep), "a smaller one comes first");
        assert!(waiters.call_next(0).is_none());
        waiters.call_next(2).expect("there is room for the small one").wake();
        let woken = [&first, &large, &small].map(|(_, bell)| bell.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 0, 1]);
        assert!(waiters.call_next(4).is_none(), "no more than one passes");
    }
}
