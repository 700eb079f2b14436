//! `Queue`: the order of a pool's waiters, a plain value under one lock.
//!
//! A waiter is *asleep* while the queue has its waker. It is *awake* from the moment that the queue returns
//! its waker until it registers again. The queue itself wakes no waiter.
//!
//! A waiter is woken when there is room for its need, and when it has to ask again because its need may have
//! fallen:
//! - a growing sequence that is the first, after each release and after each change of the sequence;
//! - a prompt that is the first or may pass the first, after each change of the matchable contents;
//! - a request of a fixed number of blocks never.
//!
//! A prompt that only has to ask again takes a leave to pass too, and returns it if it is refused. One such
//! prompt is awake at a time, however many wait: a change of contents wakes at most one prompt after the
//! first.
//!
//! Invariants: growing sequences come before new requests; a leave to pass is counted from the moment that it
//! is given; `passed` is at most `at_most`.

mod passing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::task::Waker;

use super::wake::Called;
use super::{Class, Fairness, Grower, QueueKey, Short, Shortage};
use crate::error::PagedKvError;
use crate::id::SeqId;

/// The demand while the first waiter is awake: no amount of room wakes a waiter.
const NO_ROOM_SUFFICES: usize = usize::MAX;

/// The next action of a waiter that polls.
#[derive(Debug)]
pub(super) enum NextAction {
    /// Ask the pool.
    Ask,
    Sleep,
    /// Leave: every sequence waits for blocks of the others (deadlock), and this one is to yield.
    Stalled(SeqId),
    /// Leave: its sequence was freed or evicted.
    Gone(PagedKvError),
}

/// The waiters of a pool, in the order in which they are served.
pub(super) struct Queue {
    fairness: Fairness,
    places: BTreeMap<QueueKey, QueuedRequest>,
    /// New requests by need; only where they may pass each other.
    by_need: BTreeSet<(usize, QueueKey)>,
    /// Prompts by the time of their last attempt; only where they may pass each other.
    by_asked_at: BTreeSet<(u64, QueueKey)>,
    /// Passes over the first new request.
    passed: u32,
    /// Changes of the matchable contents, counted from 1.
    contents: u64,
    /// The waiter after the first that was woken to ask again and has not been refused yet.
    asking_again: Option<QueueKey>,
    /// Prompts in the queue that may need less when less can be matched.
    chunked: usize,
    arrivals: u64,
    /// Waiters whose waker panicked, until they ask again. They have no place in the order.
    deaf: BTreeMap<QueueKey, QueuedRequest>,
    /// Waiters to wake when the thread has released its locks.
    to_wake: Vec<Called>,
}

/// The queue's record of a waiter.
pub(super) struct QueuedRequest {
    short: Short,
    /// `None` from the wake-up until it registers again.
    pub(super) waker: Option<Called>,
    /// The count of content changes at its last attempt; 0 if it has not asked since it entered the queue.
    asked_at: u64,
    /// True if it grows, and its need may have fallen since its last attempt.
    must_ask: bool,
    /// True if it has leave to pass the first.
    passing: bool,
    /// Passes over this waiter that passed no waiter after it.
    passed_last: u32,
    stalled: bool,
    gone: Option<PagedKvError>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            fairness: Fairness::default(),
            places: BTreeMap::new(),
            by_need: BTreeSet::new(),
            by_asked_at: BTreeSet::new(),
            passed: 0,
            contents: 1,
            asking_again: None,
            chunked: 0,
            arrivals: 0,
            deaf: BTreeMap::new(),
            to_wake: Vec::new(),
        }
    }

    pub(super) fn set_fairness(&mut self, fairness: Fairness) {
        self.fairness = fairness;
    }

    pub(super) fn len(&self, class: Class) -> usize {
        let of_class = |places: &BTreeMap<QueueKey, QueuedRequest>| {
            places.range((class, 0)..=(class, u64::MAX)).count()
        };
        of_class(&self.places) + of_class(&self.deaf)
    }

    /// Returns the sequences that wait to grow and still exist.
    pub(super) fn growing(&self) -> BTreeSet<Grower> {
        let all = self.places.values().chain(self.deaf.values());
        all.filter(|waiting| waiting.gone.is_none()).filter_map(QueuedRequest::grower).collect()
    }

    /// Returns 0 if no request waits, else the least room that wakes a waiter.
    pub(super) fn demand(&self) -> usize {
        let Some((_, first)) = self.places.first_key_value() else {
            return 0;
        };
        if first.waker.is_none() {
            return NO_ROOM_SUFFICES;
        }
        let passer = self.passer().map_or(NO_ROOM_SUFFICES, |(need, _)| need);
        first.short.need.min(passer).max(1)
    }

    /// Returns true if the first waiter is a growing sequence, and asleep.
    pub(super) fn is_growing(&self) -> bool {
        let first = self.places.first_key_value();
        first.is_some_and(|(place, first)| place.0 == Class::Growing && first.waker.is_some())
    }

    /// Returns true if a prompt waits that may need less when less can be matched.
    pub(super) fn may_gain_by_loss(&self) -> bool {
        self.chunked > 0
    }

    pub(super) fn enter(&mut self, short: Short) -> QueueKey {
        let place = (short.class(), self.arrivals);
        self.arrivals += 1;
        let waiting = QueuedRequest {
            short,
            waker: None,
            asked_at: 0,
            must_ask: true,
            passing: false,
            passed_last: 0,
            stalled: false,
            gone: None,
        };
        self.insert(place, waiting);
        place
    }

    fn insert(&mut self, place: QueueKey, waiting: QueuedRequest) {
        self.chunked += usize::from(waiting.short.shortage == Shortage::ChunkOfPrompt);
        if self.lists(place) {
            self.by_need.insert((waiting.short.need, place));
            if waiting.is_prompt() {
                self.by_asked_at.insert((waiting.asked_at, place));
            }
        }
        self.places.insert(place, waiting);
    }

    /// Keeps the waker of a waiter and returns the waiter's next action, with the waker that it had.
    pub(super) fn register(
        &mut self,
        place: QueueKey,
        waker: Waker,
    ) -> (NextAction, Option<Called>) {
        if let Some(deaf) = self.deaf.remove(&place) {
            self.insert(place, deaf);
            self.count_leave_behind(place);
        }
        let waiting = self.waiting(place);
        let old = waiting.waker.replace(Called { place, waker });
        if let Some(gone) = waiting.gone.clone() {
            return (NextAction::Gone(gone), old);
        }
        if let (true, Some(grower)) = (waiting.stalled, waiting.grower()) {
            return (NextAction::Stalled(grower.id), old);
        }
        let next = if self.has_turn(place) {
            self.note_asking(place);
            NextAction::Ask
        } else {
            // A growing sequence may have entered before it since it got its leave.
            self.return_leave(place);
            NextAction::Sleep
        };
        (next, old)
    }

    /// Notes that a waiter was refused, and its need now. Returns true if another waiter may be due.
    pub(super) fn refused(&mut self, place: QueueKey, short: Short) -> bool {
        if let Some(deaf) = self.deaf.get_mut(&place) {
            // The waiter was called while it asked, and its waker panicked.
            deaf.short = short;
            return true;
        }
        self.return_leave(place);
        let old = mem::replace(&mut self.waiting(place).short, short);
        if self.by_need.remove(&(old.need, place)) {
            self.by_need.insert((short.need, place));
        }
        self.passer().is_some() || self.next_asking_again().is_some()
    }

    /// Removes a waiter, which was served or not. The next in turn may be due.
    pub(super) fn leave(&mut self, place: QueueKey, served: bool) -> QueuedRequest {
        if let Some(deaf) = self.deaf.remove(&place) {
            return deaf;
        }
        let was_first = self.is_first(place);
        if !served {
            self.return_leave(place);
        }
        self.asking_again = self.asking_again.filter(|&asking_again| asking_again != place);
        let left = self.places.remove(&place).expect(IN_THE_QUEUE);
        self.by_need.remove(&(left.short.need, place));
        self.by_asked_at.remove(&(left.asked_at, place));
        self.chunked -= usize::from(left.short.shortage == Shortage::ChunkOfPrompt);
        match self.before(place) {
            Some(before) => self.waiting(before).passed_last += left.passed_last,
            None => self.passed -= left.passed_last,
        }
        if was_first && let Some(mut first) = self.places.first_entry() {
            let first = first.get_mut();
            // While it was not the first, releases of the block that it would copy were not noted.
            first.must_ask |= matches!(first.short.shortage, Shortage::GrowthWithCopy(_));
        }
        left
    }

    /// Returns the waiter to wake while there is `room`, if any.
    pub(super) fn next(&mut self, room: usize) -> Option<Called> {
        let contents = self.contents;
        let first = self.places.first_entry()?.into_mut();
        if first.waker.is_none() || first.short.need <= room || first.has_to_ask(contents) {
            return first.waker.take();
        }
        let passer = self.passer().filter(|&(need, _)| need <= room).map(|(_, place)| place);
        let place = passer.or_else(|| self.next_asking_again())?;
        if passer.is_none() {
            self.asking_again = Some(place);
        }
        self.allow_to_pass(place);
        self.waiting(place).waker.take()
    }

    /// Takes a waiter whose waker panicked out of the order, if it missed a call by that. Returns the waiters
    /// that are due instead: the first, and one that may pass it. They check themselves whether there is
    /// room.
    pub(super) fn pass_over(&mut self, place: QueueKey) -> Vec<Called> {
        // A waiter that has left, or has asked since it was called, has missed no call.
        let missed = self.places.get(&place).is_some_and(|waiting| waiting.waker.is_none());
        if !missed {
            return Vec::new();
        }
        let left = self.leave(place, false);
        let deaf = QueuedRequest { passed_last: 0, must_ask: true, asked_at: 0, ..left };
        self.deaf.insert(place, deaf);
        let first = self.places.first_entry().and_then(|mut first| first.get_mut().waker.take());
        let passer = self.passer().map(|(_, place)| place);
        let asking_again = if passer.is_none() { self.next_asking_again() } else { None };
        self.asking_again = self.asking_again.or(asking_again);
        let passer = passer.or(asking_again).and_then(|place| {
            self.allow_to_pass(place);
            self.waiting(place).waker.take()
        });
        first.into_iter().chain(passer).collect()
    }

    /// Keeps a waiter to wake when the thread has released its locks.
    pub(super) fn wake_later(&mut self, called: Called) {
        self.to_wake.push(called);
    }

    /// Takes the waiters to wake now that a thread has released its locks.
    pub(super) fn take_to_wake(&mut self) -> Vec<Called> {
        mem::take(&mut self.to_wake)
    }

    /// Notes that blocks were released: a growing sequence may no longer need a copy, or all may be stalled.
    pub(super) fn note_release(&mut self) {
        if let Some(mut first) = self.places.first_entry() {
            first.get_mut().must_ask |= first.key().0 == Class::Growing;
        }
    }

    /// Notes that the matchable contents have changed.
    pub(super) fn note_contents(&mut self) {
        self.contents += 1;
    }

    /// Notes that the sequence of that id has changed.
    pub(super) fn note_change_of(&mut self, id: SeqId) {
        for waiting in self.places.range_mut(..(Class::New, 0)).map(|(_, waiting)| waiting) {
            waiting.must_ask |= waiting.grower().is_some_and(|grower| grower.id == id);
        }
    }

    /// Marks the waiters of a freed or evicted sequence with their refusal. Returns those to wake.
    pub(super) fn mark_gone(&mut self, grower: Grower, refusal: &PagedKvError) -> Vec<Called> {
        let all = self.places.values_mut().chain(self.deaf.values_mut());
        let of_sequence = all.filter(|waiting| waiting.grower() == Some(grower));
        let mark = |waiting: &mut QueuedRequest| {
            waiting.gone.get_or_insert_with(|| refusal.clone());
            waiting.waker.take()
        };
        of_sequence.filter_map(mark).collect()
    }

    /// Marks the first waiter of `victim` as stalled: all sequences wait for each other. Returns it, to be
    /// woken.
    ///
    /// Marks no waiter in these cases:
    /// - the first of all is awake or has room;
    /// - a waiter was marked before and has not left yet;
    /// - the growing sequences that wait are not those of `growing`, on which the judgement rests.
    pub(super) fn stall(
        &mut self,
        victim: Grower,
        growing: &BTreeSet<Grower>,
        room: usize,
    ) -> Option<Called> {
        let (_, first) = self.places.first_key_value()?;
        let is_called = first.waker.is_none() || first.short.need <= room;
        let is_stalled = self.places.values().any(|waiting| waiting.stalled);
        if is_called || is_stalled || self.growing() != *growing {
            return None;
        }
        let is_victims = |waiting: &QueuedRequest| waiting.grower() == Some(victim);
        let is_in_order = self.places.values().any(is_victims);
        let mut waiters = self.places.values_mut();
        let waiting = match is_in_order {
            true => waiters.find(|waiting| is_victims(waiting)),
            // The victim's waker has panicked: mark another waiter.
            false => waiters.rfind(|waiting| waiting.grower().is_some()),
        };
        let waiting = waiting?;
        waiting.stalled = true;
        waiting.waker.take()
    }

    fn waiting(&mut self, place: QueueKey) -> &mut QueuedRequest {
        self.places.get_mut(&place).expect(IN_THE_QUEUE)
    }

    fn is_first(&self, place: QueueKey) -> bool {
        self.places.first_key_value().is_some_and(|(&first, _)| first == place)
    }
}

impl QueuedRequest {
    fn grower(&self) -> Option<Grower> {
        self.short.grower()
    }

    fn is_prompt(&self) -> bool {
        matches!(self.short.shortage, Shortage::Prompt | Shortage::ChunkOfPrompt)
    }

    fn has_to_ask(&self, contents: u64) -> bool {
        match self.short.class() {
            Class::Growing => self.must_ask,
            Class::New => self.is_prompt() && self.asked_at < contents,
        }
    }
}

const IN_THE_QUEUE: &str = "a waiter with a place is in the queue";
