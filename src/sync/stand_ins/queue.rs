//! `ArrayQueue`: a queue with the interface and algorithm of `crossbeam`'s, which loom and shuttle can check.
//!
//! A thread claims the head or the tail by an exchange. Each slot has a stamp that gives its next operation.
//! Only the slot's stamp orders the memory that an element hands over. The exchanges on head and tail are
//! `Relaxed` here, though `crossbeam`'s are stronger. So no other code can rely on an ordering that the queue
//! does not promise. For the same reason the newest position of the other end is read by an exchange,
//! where `crossbeam` has a fence: loom treats two fences as a hand-over.
//!
//! A run that demotes the library's orderings does not change those of this file. The build's `ground` has the
//! atomics.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::ground::{AtomicUsize, every_access_is_an_exchange, yield_now};

/// A bounded queue of many producers and consumers.
pub struct ArrayQueue<T> {
    head: Position,
    tail: Position,
    slots: Box<[Slot<T>]>,
}

/// Increases by one for each element; `position % capacity` is the slot.
struct Position(AtomicUsize);

/// Stamp `2 p`: free for the push at position `p`. Stamp `2 p + 1`: holds that push's element.
struct Slot<T> {
    stamp: Position,
    /// Never contended, and no model of a lock: only the stamp orders the accesses.
    element: Mutex<Option<T>>,
}

impl<T> ArrayQueue<T> {
    /// Creates an empty queue for up to `capacity` elements.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a queue has room for at least one element");
        let slot = |position| Slot { stamp: Position::new(position), element: Mutex::new(None) };
        Self {
            head: Position::new(0),
            tail: Position::new(0),
            slots: (0..capacity).map(|index| slot(2 * index)).collect(),
        }
    }

    /// Appends `element`, or returns it when the queue is full.
    pub fn push(&self, element: T) -> Result<(), T> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(tail);
            let stamp = slot.stamp.load(Ordering::Acquire);
            if stamp == 2 * tail {
                match self.tail.exchange(tail, tail + 1) {
                    Ok(()) => {
                        *slot.element.lock().expect("not poisoned") = Some(element);
                        slot.stamp.store(2 * tail + 1, Ordering::Release);
                        return Ok(());
                    }
                    Err(now) => tail = now,
                }
                continue;
            }
            let is_full = stamp + 2 * self.slots.len() == 2 * tail + 1;
            if is_full && self.head.newest() + self.slots.len() == tail {
                return Err(element);
            }
            yield_now();
            tail = self.tail.load(Ordering::Relaxed);
        }
    }

    /// Takes the element at the front.
    pub fn pop(&self) -> Option<T> {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(head);
            let stamp = slot.stamp.load(Ordering::Acquire);
            if stamp == 2 * head + 1 {
                match self.head.exchange(head, head + 1) {
                    Ok(()) => {
                        let element = slot.element.lock().expect("not poisoned").take();
                        let next_turn = 2 * (head + self.slots.len());
                        slot.stamp.store(next_turn, Ordering::Release);
                        return Some(element.expect("a slot whose stamp says so holds an element"));
                    }
                    Err(now) => head = now,
                }
                continue;
            }
            let is_empty = stamp == 2 * head;
            if is_empty && self.tail.newest() == head {
                return None;
            }
            yield_now();
            head = self.head.load(Ordering::Relaxed);
        }
    }

    /// Returns the number of elements at some moment of the call.
    pub fn len(&self) -> usize {
        loop {
            let tail = self.tail.newest();
            let head = self.head.newest();
            if self.tail.newest() == tail {
                return tail - head;
            }
        }
    }

    /// Returns true if there are no elements.
    #[allow(dead_code, reason = "what has a length says this too")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, position: usize) -> &Slot<T> {
        &self.slots[position % self.slots.len()]
    }
}

impl Position {
    fn new(position: usize) -> Self {
        Self(AtomicUsize::new(position))
    }

    fn load(&self, order: Ordering) -> usize {
        if every_access_is_an_exchange() {
            return self.0.fetch_or(0, order);
        }
        self.0.load(order)
    }

    /// Returns the newest position, without ordering any other memory.
    fn newest(&self) -> usize {
        self.0.fetch_or(0, Ordering::Relaxed)
    }

    fn store(&self, position: usize, order: Ordering) {
        if every_access_is_an_exchange() {
            self.0.swap(position, order);
        } else {
            self.0.store(position, order);
        }
    }

    fn exchange(&self, current: usize, next: usize) -> Result<(), usize> {
        let exchanged =
            self.0.compare_exchange(current, next, Ordering::Relaxed, Ordering::Relaxed);
        exchanged.map(|_| ())
    }
}
