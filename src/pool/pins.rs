//! `Pins`: cached blocks that callers keep in use until a deadline, up to a budget of blocks.
//!
//! A pin is one more owner of each of its blocks. So pinned blocks are not room, and all counts stay exact. The guard of
//! the caller ends a pin; after its deadline any thread does. No thread of the pool watches the deadlines:
//!
//! - Before a request is refused, one load compares the earliest deadline with the clock, and pins that have expired
//!   are ended first.
//! - A waiting request wakes at the earliest deadline, and ends expired pins before it asks.
//! - A pin is refused while requests wait: a waiter that has fallen asleep knows all deadlines.
//!
//! Invariant: `earliest` is at most the first deadline of the pins, except while a thread holds the lock.

use std::collections::{BTreeMap, HashMap};
#[cfg(feature = "async")]
use std::time::Duration;
use std::time::Instant;

use super::Blocks;
use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, fence};

/// The deadline of no pin.
const NEVER: u64 = u64::MAX;

/// The pins of a pool.
pub(crate) struct Pins {
    /// The first deadline, in nanoseconds after `begin`.
    earliest: AtomicU64,
    begin: Instant,
    most_blocks: AtomicUsize,
    are_used: AtomicBool,
    /// The blocks of all pins. Written under the lock.
    num_blocks: AtomicUsize,
    held: Mutex<HeldPins>,
}

struct HeldPins {
    /// By deadline and number.
    by_deadline: BTreeMap<(u64, u64), Box<[BlockId]>>,
    next: u64,
    /// The blocks of the budget for which a pin is being made.
    num_reserved: usize,
}

/// A pin among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PinKey(u64, u64);

impl Pins {
    /// Creates pins without a budget.
    pub(crate) fn new() -> Self {
        Self {
            earliest: AtomicU64::new(NEVER),
            begin: Instant::now(),
            most_blocks: AtomicUsize::new(0),
            are_used: AtomicBool::new(false),
            num_blocks: AtomicUsize::new(0),
            held: Mutex::new(HeldPins { by_deadline: BTreeMap::new(), next: 0, num_reserved: 0 }),
        }
    }

    /// Sets the most blocks that all pins may have.
    pub(crate) fn set_budget(&self, num_blocks: usize) {
        // Relaxed: a pin may use the budget before for a moment, as if it had come earlier.
        self.most_blocks.store(num_blocks, Ordering::Relaxed);
    }

    /// Returns the number of pinned blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        // Relaxed: a statistic, and exact for a thread with the lock.
        self.num_blocks.load(Ordering::Relaxed)
    }

    /// Returns the blocks of the budget that no pin has.
    pub(crate) fn available(&self) -> usize {
        self.available_now(&self.held.lock())
    }

    fn available_now(&self, held: &HeldPins) -> usize {
        // Relaxed: as in `set_budget`.
        let most = self.most_blocks.load(Ordering::Relaxed);
        most.saturating_sub(self.num_blocks() + held.num_reserved)
    }

    /// Reserves up to `n` blocks of the budget for a pin, and returns their number.
    pub(crate) fn reserve(&self, n: usize) -> usize {
        let mut held = self.held.lock();
        let reserved = n.min(self.available_now(&held));
        held.num_reserved += reserved;
        reserved
    }

    /// Gives `n` reserved blocks back to the budget.
    pub(crate) fn unreserve(&self, n: usize) {
        if n > 0 {
            self.held.lock().num_reserved -= n;
        }
    }

    fn time(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.begin).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER).min(NEVER - 1)
    }

    fn insert(&self, until: u64, ids: Vec<BlockId>) -> PinKey {
        // Relaxed: as in `are_used`.
        self.are_used.store(true, Ordering::Relaxed);
        let mut held = self.held.lock();
        let key = (until, held.next);
        held.next += 1;
        held.num_reserved -= ids.len();
        self.add_blocks(ids.len());
        held.by_deadline.insert(key, ids.into());
        self.note_earliest(&held);
        PinKey(key.0, key.1)
    }

    /// Removes a pin, if it has not expired, and passes its blocks to `release`. Returns false otherwise.
    fn remove(&self, PinKey(until, number): PinKey, release: impl FnOnce(&[BlockId])) -> bool {
        let mut held = self.held.lock();
        let Some(ids) = held.by_deadline.remove(&(until, number)) else {
            return false;
        };
        self.remove_blocks(ids.len());
        release(&ids);
        self.note_earliest(&held);
        true
    }

    /// Removes the pins whose deadlines are at most `now`, and passes their blocks to `release`. Returns the number of
    /// pins.
    fn end_expired(&self, now: u64, release: impl Fn(&[BlockId])) -> usize {
        let mut held = self.held.lock();
        let later = held.by_deadline.split_off(&(now.saturating_add(1), 0));
        let expired = std::mem::replace(&mut held.by_deadline, later);
        for ids in expired.values() {
            self.remove_blocks(ids.len());
            release(ids);
        }
        self.note_earliest(&held);
        expired.len()
    }

    /// Counts `n` more pinned blocks, under the lock.
    fn add_blocks(&self, n: usize) {
        // Relaxed: as in `num_blocks`.
        self.num_blocks.store(self.num_blocks() + n, Ordering::Relaxed);
    }

    /// Counts `n` fewer pinned blocks, under the lock.
    fn remove_blocks(&self, n: usize) {
        // Relaxed: as in `num_blocks`.
        self.num_blocks.store(self.num_blocks() - n, Ordering::Relaxed);
    }

    fn note_earliest(&self, held: &HeldPins) {
        let earliest = held.by_deadline.first_key_value().map_or(NEVER, |(key, _)| key.0);
        // Release: pairs with the load in `earliest`; a thread that finds no expired pin finds the blocks of those that
        // ended before. Loom: an_expired_pin_refuses_none_of_two, an_expired_pin_that_is_dropped_refuses_no_request.
        self.earliest.store(earliest, Ordering::Release);
    }

    fn earliest(&self) -> u64 {
        // Acquire: as in `note_earliest`.
        self.earliest.load(Ordering::Acquire)
    }

    /// Returns the first fault of the counts, of the first deadline, or of the blocks' `owners`. Exact also under load.
    fn fault(&self, owners: impl Fn(BlockId) -> u32) -> Option<String> {
        let held = self.held.lock();
        let of_pins: usize = held.by_deadline.values().map(|ids| ids.len()).sum();
        if self.num_blocks() != of_pins {
            return Some(format!("pins have {of_pins} blocks, {} are counted", self.num_blocks()));
        }
        let first = held.by_deadline.first_key_value().map_or(NEVER, |(key, _)| key.0);
        if self.earliest() > first {
            return Some(format!("a pin ends at {first}, the earliest at {}", self.earliest()));
        }
        let mut pins: HashMap<BlockId, u32> = HashMap::new();
        held.by_deadline.values().flatten().for_each(|&id| *pins.entry(id).or_default() += 1);
        let is_faulty = |(id, pins): &(BlockId, u32)| owners(*id) < *pins;
        let (id, pins) = pins.into_iter().find(is_faulty)?;
        Some(format!("{id} has {} owners and {pins} pins", owners(id)))
    }

    /// Returns false if there never was a pin.
    pub(crate) fn are_used(&self) -> bool {
        // Relaxed: a pin that is made at the same time has not expired.
        self.are_used.load(Ordering::Relaxed)
    }
}

impl Blocks {
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Pins blocks of which the caller is an owner, and which are reserved, until a deadline. Releases them and returns
    /// `None` if requests wait.
    pub(crate) fn pin(&self, ids: Vec<BlockId>, until: Instant) -> Option<PinKey> {
        let key = self.pins.insert(self.pins.time(until), ids);
        // SeqCst: pairs with the fence in `room_after_all_claims`. Of this pin and a waiter that is about to sleep, one
        // sees the other. Loom: a_waiter_knows_the_deadline_of_each_pin.
        fence(Ordering::SeqCst);
        let is_refused = self.is_waited_for() && self.unpin(key);
        (!is_refused).then_some(key)
    }

    /// Returns a fault of the pins, if there is one.
    pub(crate) fn fault_of_pins(&self) -> Option<String> {
        self.pins.fault(|id| self.owners(id))
    }

    /// Ends a pin. Returns false if it has ended before.
    pub(crate) fn unpin(&self, key: PinKey) -> bool {
        // Under the lock: a thread that finds the pin neither there nor expired finds its blocks.
        let is_ended = self.pins.remove(key, |ids| self.give_pinned(ids));
        if is_ended {
            self.announce_room();
            self.keep_max_cached();
        }
        is_ended
    }

    /// Releases the blocks of a pin, which count as just released.
    fn give_pinned(&self, ids: &[BlockId]) {
        self.free.renew_notes(ids, &self.words);
        self.free.give(ids, &self.words);
    }

    /// Ends the pins that have expired, and returns once their blocks are room. One load if there is no pin.
    #[inline]
    pub(crate) fn expire_pins(&self) {
        if self.pins.earliest() != NEVER {
            self.expire_pins_until_now();
        }
    }

    #[cold]
    fn expire_pins_until_now(&self) {
        let now = self.pins.time(Instant::now());
        if self.pins.earliest() > now {
            return;
        }
        // Another thread that ends pins has the lock until their blocks are room.
        let ended = self.pins.end_expired(now, |ids| self.give_pinned(ids));
        if ended > 0 {
            self.announce_room();
            self.keep_max_cached();
        }
    }

    /// Returns the first deadline of a pin, for a waiter that is in the queue and has counted the room there
    /// (`room_after_all_claims`).
    #[cfg(feature = "async")]
    pub(crate) fn earliest_pin(&self) -> Option<Instant> {
        match self.pins.earliest() {
            NEVER => None,
            nanos => self.pins.begin.checked_add(Duration::from_nanos(nanos)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<u32>) -> Vec<BlockId> {
        range.map(BlockId).collect()
    }

    #[test]
    fn the_budget_is_that_of_all_pins() {
        let pins = Pins::new();
        pins.set_budget(10);
        assert_eq!((pins.reserve(6), pins.reserve(6), pins.reserve(1)), (6, 4, 0));
        let key = pins.insert(100, ids(0..6));
        pins.unreserve(4);
        assert_eq!((pins.num_blocks(), pins.available()), (6, 4));
        assert!(pins.remove(key, |ids| assert_eq!(ids.len(), 6)));
        assert!(!pins.remove(key, |_| panic!("it was removed before")));
        assert_eq!((pins.num_blocks(), pins.available()), (0, 10));
    }

    #[test]
    fn pins_expire_in_the_order_of_their_deadlines() {
        let pins = Pins::new();
        pins.set_budget(10);
        for (until, range) in [(300, 0..1), (100, 1..3), (200, 3..6), (200, 6..10)] {
            pins.reserve(range.len());
            pins.insert(until, ids(range));
        }
        let earliest = || pins.earliest();
        assert_eq!(earliest(), 100);
        let expired = |now| {
            let ended = std::cell::Cell::new(0);
            pins.end_expired(now, |ids| ended.set(ended.get() + ids.len()));
            ended.get()
        };
        assert_eq!((expired(99), expired(199), earliest()), (0, 2, 200));
        assert_eq!((expired(200), pins.num_blocks(), earliest()), (7, 1, 300));
        assert_eq!((expired(NEVER - 1), pins.num_blocks(), earliest()), (1, 0, NEVER));
    }

    #[test]
    fn a_wrong_count_deadline_or_owner_is_found() {
        let pins = Pins::new();
        pins.set_budget(10);
        pins.reserve(5);
        pins.insert(100, ids(0..2));
        let last = pins.insert(200, ids(1..4));
        let owners = |BlockId(id)| if id == 1 { 2 } else { 1 };
        assert_eq!(pins.fault(owners), None);
        pins.add_blocks(1);
        assert_eq!(pins.fault(owners), Some("pins have 5 blocks, 6 are counted".to_owned()));
        pins.remove_blocks(1);
        pins.earliest.store(101, Ordering::Relaxed);
        let fault = "a pin ends at 100, the earliest at 101".to_owned();
        assert_eq!(pins.fault(owners), Some(fault));
        pins.earliest.store(99, Ordering::Relaxed);
        assert_eq!(pins.fault(owners), None, "a thread may note it later");
        let fault = format!("{} has 1 owners and 2 pins", BlockId(1));
        assert_eq!(pins.fault(|_| 1), Some(fault));
        assert!(pins.remove(last, |_| ()));
        assert_eq!(pins.fault(|_| 1), None);
    }
}
