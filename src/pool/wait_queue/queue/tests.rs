//! Tests of the queue: it chooses the right waiter, and no waiter is passed more often than allowed.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::id::AdmissionEpoch;
use crate::sync::PlainArc;

/// Counts its wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl std::task::Wake for Bell {
    fn wake(self: PlainArc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A waiter of a queue, and the count of its wake-ups.
struct Waiter {
    place: QueueKey,
    bell: PlainArc<Bell>,
}

impl Waiter {
    fn new(queue: &mut Queue, short: Short) -> Self {
        Self { place: queue.enter(short), bell: PlainArc::default() }
    }

    fn register(&self, queue: &mut Queue) -> NextAction {
        queue.register(self.place, PlainArc::clone(&self.bell).into()).0
    }

    /// Creates a waiter that was refused and is asleep.
    fn asleep(queue: &mut Queue, short: Short) -> Self {
        let waiter = Self::new(queue, short);
        if let NextAction::Ask = waiter.register(queue) {
            queue.refused(waiter.place, short);
        }
        waiter
    }

    fn wakes(&self) -> usize {
        self.bell.0.load(Ordering::Relaxed)
    }
}

fn grower(id: u64) -> Grower {
    Grower { id: SeqId(id), epoch: AdmissionEpoch(id) }
}

fn growing(id: u64, need: usize) -> Short {
    Short { need, shortage: Shortage::Growth(grower(id)) }
}

fn prompt_of(need: usize) -> Short {
    Short { need, shortage: Shortage::Prompt }
}

fn bypass(at_most: u32) -> Queue {
    let mut queue = Queue::new();
    queue.set_fairness(Fairness::Bypass { at_most });
    queue
}

/// Creates a queue of sequence 1, which needs two blocks, and sequence 2 after it, both asleep.
fn two_that_grow() -> (Queue, [Waiter; 2]) {
    let mut queue = Queue::new();
    let waiters = [1, 2].map(|id| Waiter::asleep(&mut queue, growing(id, 2)));
    (queue, waiters)
}

/// Wakes the next waiter. Returns true if there was one.
fn wakes_next(queue: &mut Queue, room: usize) -> bool {
    queue.next(room).map(|called| called.waker.wake()).is_some()
}

#[test]
fn waiters_are_counted_by_class_and_the_first_states_its_need() {
    let (mut queue, [first, second]) = two_that_grow();
    queue.enter(Short::of_blocks(1));
    assert_eq!((queue.len(Class::Growing), queue.len(Class::New)), (2, 1));
    assert_eq!((queue.demand(), queue.growing().len()), (2, 2));
    drop(queue.leave(first.place, true));
    drop(queue.leave(second.place, false));
    assert_eq!((queue.len(Class::Growing), queue.len(Class::New)), (0, 1));
    assert_eq!(queue.demand(), NO_ROOM_SUFFICES, "the next has not left its waker");
}

#[test]
fn of_those_that_wait_for_each_other_one_is_told_and_once() {
    let all: BTreeSet<Grower> = [1, 2].map(grower).into();
    let (mut queue, [_, second]) = two_that_grow();
    assert!(queue.stall(grower(2), &all, 2).is_none(), "there is room for the first");
    let one = [grower(1)].into();
    assert!(queue.stall(grower(2), &one, 1).is_none(), "others wait than was thought");
    queue.stall(grower(2), &all, 1).expect("all wait").waker.wake();
    assert_eq!(second.wakes(), 1);
    assert!(queue.stall(grower(1), &all, 1).is_none(), "the one that was told has not left yet");
    assert!(matches!(second.register(&mut queue), NextAction::Stalled(SeqId(2))));
}

#[test]
fn no_waiter_is_told_of_a_stall_while_the_first_is_awake() {
    let all: BTreeSet<Grower> = [1, 2].map(grower).into();
    let (mut queue, _) = two_that_grow();
    assert!(wakes_next(&mut queue, 2), "there is room for the first");
    assert!(queue.stall(grower(2), &all, 0).is_none());
}

#[test]
fn all_waiters_of_a_sequence_that_is_gone_are_told_and_no_other() {
    let (mut queue, [first, second]) = two_that_grow();
    let third = Waiter::asleep(&mut queue, growing(2, 1));
    let refusal = PagedKvError::SequenceEvicted(SeqId(2));
    let later = Grower { epoch: AdmissionEpoch(9), ..grower(2) };
    assert!(queue.mark_gone(later, &refusal).is_empty(), "another admission of the id");
    queue.mark_gone(grower(2), &refusal).into_iter().for_each(|called| called.waker.wake());
    assert_eq!([first.wakes(), second.wakes(), third.wakes()], [0, 1, 1]);
    assert_eq!(queue.growing(), [grower(1)].into());
    assert!(matches!(second.register(&mut queue), NextAction::Gone(gone) if gone == refusal));
}

#[test]
fn of_new_ones_the_smallest_passes_the_first_where_there_is_room_for_it() {
    let mut queue = bypass(1);
    let [first, large, small] =
        [5, 3, 1].map(|need| Waiter::new(&mut queue, Short::of_blocks(need)));
    assert!(matches!(first.register(&mut queue), NextAction::Ask));
    assert!(matches!(small.register(&mut queue), NextAction::Ask), "it may pass, and tries");
    queue.refused(small.place, Short::of_blocks(1));
    assert!(matches!(large.register(&mut queue), NextAction::Sleep), "a smaller one comes first");
    assert!(!wakes_next(&mut queue, 0));
    assert!(wakes_next(&mut queue, 2));
    assert_eq!([&first, &large, &small].map(Waiter::wakes), [0, 0, 1]);
    assert!(!wakes_next(&mut queue, 4), "no more than one passes");
}

#[test]
fn a_change_of_contents_wakes_one_prompt_behind_the_first_at_a_time() {
    let mut queue = bypass(3);
    let first = Waiter::asleep(&mut queue, Short::of_blocks(5));
    let prompts = [4, 4].map(|need| Waiter::asleep(&mut queue, prompt_of(need)));
    assert!(!wakes_next(&mut queue, 1));
    queue.note_contents();
    for prompt in &prompts {
        assert!(wakes_next(&mut queue, 1));
        assert_eq!(prompt.wakes(), 1);
        assert!(!wakes_next(&mut queue, 1), "one looks at a time");
        assert!(matches!(prompt.register(&mut queue), NextAction::Ask));
        queue.refused(prompt.place, prompt_of(4));
    }
    assert!(!wakes_next(&mut queue, 1), "all have looked");
    assert_eq!((first.wakes(), queue.passed), (0, 0));
}

#[test]
fn a_leave_to_pass_ends_when_a_sequence_that_grows_comes_first() {
    let mut queue = bypass(1);
    let _first = Waiter::asleep(&mut queue, Short::of_blocks(5));
    let small = Waiter::asleep(&mut queue, Short::of_blocks(1));
    assert!(wakes_next(&mut queue, 1));
    assert_eq!(queue.passed, 1);
    let _grows = Waiter::asleep(&mut queue, growing(1, 2));
    assert!(matches!(small.register(&mut queue), NextAction::Sleep));
    assert_eq!(queue.passed, 0);
}

#[test]
fn the_new_first_waiter_rechecks_a_need_that_may_have_fallen() {
    let (mut queue, [first, second]) = two_that_grow();
    let copies = Short { need: 2, shortage: Shortage::GrowthWithCopy(grower(3)) };
    let copying = Waiter::asleep(&mut queue, copies);
    let prompts = [3, 3].map(|need| Waiter::asleep(&mut queue, prompt_of(need)));
    let fixed = Waiter::asleep(&mut queue, Short::of_blocks(3));
    queue.note_contents();
    queue.note_change_of(SeqId(1));
    assert!(wakes_next(&mut queue, 0) && first.wakes() == 1, "it has changed");
    drop(queue.leave(first.place, true));
    assert!(!wakes_next(&mut queue, 0), "the need of the next stays");
    for waiter in [second, copying].into_iter().chain(prompts) {
        drop(queue.leave(waiter.place, true));
        let is_fixed = queue.is_first(fixed.place);
        assert_eq!(wakes_next(&mut queue, 0), !is_fixed);
    }
}

/// The model's record of a waiter.
struct Known {
    waiter: Waiter,
    /// Places of the waiters that were served before it though they came later.
    passed_by: Vec<QueueKey>,
}

/// Waiters enter, ask, are served or refused, and cancel, at random. Each is passed by `at_most` at most. The
/// queue's count is the number of passes, done and allowed, over the first new request.
#[test]
fn no_waiter_is_passed_by_more_than_allowed_of_those_behind_it() {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |end: usize| {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        (random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    };
    let mut most_passes = [0; 4];
    for history in 0..4_000 {
        let at_most = history % 4;
        let mut queue = bypass(at_most as u32);
        let mut known: Vec<Known> = Vec::new();
        for _ in 0..60 {
            let chosen = if known.is_empty() { 0 } else { below(known.len()) };
            match below(8) {
                _ if known.is_empty() => known.push(enter(&mut queue, &mut below)),
                0 | 1 if known.len() < 8 => known.push(enter(&mut queue, &mut below)),
                2 => queue.note_contents(),
                3 => {
                    let left = known.remove(chosen);
                    drop(queue.leave(left.waiter.place, false));
                }
                4 => drop(queue.next(below(6))),
                _ => {
                    let place = known[chosen].waiter.place;
                    let asks = matches!(known[chosen].waiter.register(&mut queue), NextAction::Ask);
                    // Calls of other threads while it asks.
                    match below(4) {
                        0 => drop(queue.next(below(6))),
                        1 => {
                            queue.note_contents();
                            drop(queue.next(below(6)));
                        }
                        _ => {}
                    }
                    if asks && below(2) == 0 {
                        known.remove(chosen);
                        let passed = known.iter_mut().filter(|other| other.waiter.place < place);
                        passed.for_each(|other| other.passed_by.push(place));
                        drop(queue.leave(place, true));
                    } else if asks {
                        let short = queue.places[&place].short;
                        queue.refused(place, Short { need: below(6), ..short });
                    }
                }
            }
            let is_new = |known: &&Known| known.waiter.place.0 == Class::New;
            for waiter in known.iter().filter(is_new) {
                let place = waiter.waiter.place;
                let allowed =
                    queue.places.range(place..).skip(1).filter(|(_, other)| other.passing);
                let passes = waiter.passed_by.len() + allowed.count();
                assert!(passes <= at_most, "{place:?} of history {history}");
                let counted = queue.places.range(place..).map(|(_, other)| other.passed_last);
                assert_eq!(passes, counted.sum::<u32>() as usize, "{place:?} of {history}");
                most_passes[at_most] = passes.max(most_passes[at_most]);
            }
            let first = queue.places.range((Class::New, 0)..).next().map(|(&place, _)| place);
            let all = first.map(|first| queue.places.range(first..));
            let all = all.into_iter().flatten().map(|(_, waiting)| waiting.passed_last);
            assert_eq!(queue.passed, all.sum::<u32>());
        }
    }
    assert_eq!(most_passes, [0, 1, 2, 3], "the bounds are reached");
}

fn enter(queue: &mut Queue, below: &mut impl FnMut(usize) -> usize) -> Known {
    let need = below(6);
    let short = match below(6) {
        0 => growing(below(3) as u64, need),
        1 | 2 => prompt_of(need),
        _ => Short::of_blocks(need),
    };
    Known { waiter: Waiter::new(queue, short), passed_by: Vec::new() }
}
