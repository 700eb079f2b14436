//! Passing: which waiter may pass the first, and how passes are counted.
//!
//! A new request may pass while each waiter that it passes was passed by fewer than `at_most`. All requests
//! that passed a waiter also passed the waiters that arrived before it. So the first new request decides.
//! Each waiter counts the passes over it that passed no waiter after it. The passes over a waiter are the sum
//! of these counts over itself and all waiters after it. `passed` is that sum for the first. A waiter that
//! leaves adds its count to the waiter before it, so all sums stay right.
//!
//! Example: A, B and C wait in this order, and `at_most` is 2.
//!
//! | event | count of A | count of B | passes over A (`passed`) | passes over B |
//! |---|---|---|---|---|
//! | C passes; the waiter before it, B, counts that | 0 | 1 | 0 + 1 = 1 | 1 |
//! | B passes; the waiter before it, A, counts that | 1 | 1 | 1 + 1 = 2 | 1 |
//! | B is served and leaves its count to A | 2 | - | 2 | - |
//!
//! A was passed twice, so no request may pass it again.

use std::mem;
use std::ops::Bound;

use super::Queue;
use crate::pool::wait_queue::{Class, Fairness, QueueKey};

impl Queue {
    /// Returns the new request that arrived just before `place`.
    pub(super) fn before(&self, place: QueueKey) -> Option<QueueKey> {
        let before = self.places.range((Class::New, 0)..place.max((Class::New, 0)));
        before.last().map(|(&before, _)| before)
    }

    /// Returns true if new requests may pass each other; the queue then lists them by need.
    pub(super) fn lists(&self, place: QueueKey) -> bool {
        self.fairness != Fairness::Fifo && place.0 == Class::New
    }

    /// Returns true if a new request may pass the first waiter.
    pub(super) fn may_pass(&self) -> bool {
        let Fairness::Bypass { at_most } = self.fairness else {
            return false;
        };
        let first = self.places.first_key_value();
        self.passed < at_most && first.is_some_and(|(first, _)| first.0 == Class::New)
    }

    /// Returns true if the waiter, which is awake, may ask now. Gives it a leave to pass if it needs one.
    pub(super) fn has_turn(&mut self, place: QueueKey) -> bool {
        // A growing sequence asks again once it is in the queue, because from then on its changes are noted.
        let is_entering = place.0 == Class::Growing && self.places[&place].asked_at == 0;
        if self.is_first(place) || is_entering {
            return true;
        }
        if self.places[&place].passing {
            let first = self.places.first_key_value();
            return first.is_some_and(|(first, _)| first.0 == Class::New);
        }
        let is_passer = self.passer().is_some_and(|(_, passer)| passer == place);
        if !is_passer {
            let has_to_ask = self.places[&place].has_to_ask(self.contents);
            if !has_to_ask || self.asking_again.is_some() || !self.may_pass() {
                return false;
            }
            self.asking_again = Some(place);
        }
        self.allow_to_pass(place);
        true
    }

    /// Returns the smallest new request and its need, if it may pass the first and is asleep.
    pub(super) fn passer(&self) -> Option<(usize, QueueKey)> {
        let &(need, place) = self.by_need.first().filter(|_| self.may_pass())?;
        (!self.is_first(place) && self.places[&place].waker.is_some()).then_some((need, place))
    }

    /// Returns the next prompt that may pass the first, is asleep, and has to ask again.
    pub(super) fn next_asking_again(&self) -> Option<QueueKey> {
        if self.asking_again.is_some() || !self.may_pass() {
            return None;
        }
        let old = self.by_asked_at.iter().take_while(|(asked_at, _)| *asked_at < self.contents);
        let is_asleep = |place: &QueueKey| self.places[place].waker.is_some();
        old.map(|&(_, place)| place).find(|place| !self.is_first(*place) && is_asleep(place))
    }

    pub(super) fn note_asking(&mut self, place: QueueKey) {
        let contents = self.contents;
        let waiting = self.waiting(place);
        waiting.must_ask = false;
        let before = mem::replace(&mut waiting.asked_at, contents);
        if self.by_asked_at.remove(&(before, place)) {
            self.by_asked_at.insert((contents, place));
        }
    }

    pub(super) fn allow_to_pass(&mut self, place: QueueKey) {
        // The waiter may be called again while it asks.
        if mem::replace(&mut self.waiting(place).passing, true) {
            return;
        }
        let before = self.before(place).expect("a waiter passes the one before it");
        self.waiting(before).passed_last += 1;
        self.passed += 1;
    }

    /// Moves a count to a waiter that returned to the queue. The next waiter may have leave to pass, counted
    /// on the waiter before the returned one, or on none. From now on that leave counts on the returned one.
    pub(super) fn count_leave_behind(&mut self, place: QueueKey) {
        let behind = self.places.range((Bound::Excluded(place), Bound::Unbounded)).next();
        let passes = behind.is_some_and(|(_, waiting)| waiting.passing);
        if !passes || place.0 != Class::New {
            return;
        }
        match self.before(place) {
            Some(before) => self.waiting(before).passed_last -= 1,
            None => self.passed += 1,
        }
        self.waiting(place).passed_last += 1;
    }

    /// Takes back the unused leave to pass of a waiter, if it has one.
    pub(super) fn return_leave(&mut self, place: QueueKey) {
        self.asking_again = self.asking_again.filter(|&asking_again| asking_again != place);
        if !mem::take(&mut self.waiting(place).passing) {
            return;
        }
        // If no waiter is before it now, the last one that left took the count of this leave with it.
        if let Some(before) = self.before(place) {
            self.waiting(before).passed_last -= 1;
            self.passed -= 1;
        }
    }
}
