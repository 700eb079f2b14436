//! `ArrayQueue`: the shipped queue, whose operations are counted.

use std::panic::Location;
use std::sync::atomic::AtomicUsize;

use super::coherence::{Access, Site, access_line, new_lines};
use super::{Ordering, Place, count_shared, shipped};

/// The lines before those of the slots.
const HEAD: usize = 0;
/// The shipped queue keeps its ends 128 bytes apart.
const TAIL: usize = 2;
const SLOTS: usize = 4;

/// A queue that counts each operation.
pub(crate) struct ArrayQueue<T> {
    queue: shipped::ArrayQueue<T>,
    lines: Option<usize>,
    /// Elements that left the queue, and elements that entered it.
    popped: AtomicUsize,
    pushed: AtomicUsize,
}

impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let [popped, pushed] = [0, 0].map(AtomicUsize::new);
        let lines = new_lines(SLOTS + capacity);
        Self { queue: shipped::ArrayQueue::new(capacity), lines, popped, pushed }
    }

    #[track_caller]
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        let site = Site::of(Location::caller());
        count_shared(Place::Depot, 1);
        let slot = self.slot(&self.pushed);
        let pushed = self.queue.push(value);
        self.access(slot, Access::Read, site);
        match pushed {
            Ok(()) => {
                self.access(TAIL, Access::Write, site);
                self.access(slot, Access::Write, site);
                self.pushed.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.access_ends(site),
        }
        pushed
    }

    #[track_caller]
    pub(crate) fn pop(&self) -> Option<T> {
        let site = Site::of(Location::caller());
        count_shared(Place::Depot, 1);
        let slot = self.slot(&self.popped);
        let popped = self.queue.pop();
        self.access(slot, Access::Read, site);
        if popped.is_some() {
            self.access(HEAD, Access::Write, site);
            self.access(slot, Access::Write, site);
            self.popped.fetch_add(1, Ordering::Relaxed);
        } else {
            self.access_ends(site);
        }
        popped
    }

    #[track_caller]
    pub(crate) fn len(&self) -> usize {
        self.access_ends(Site::of(Location::caller()));
        self.queue.len()
    }

    /// Returns the line of the slot of the next element that leaves or enters.
    fn slot(&self, elements: &AtomicUsize) -> usize {
        SLOTS + elements.load(Ordering::Relaxed) % self.queue.capacity()
    }

    fn access_ends(&self, site: Site) {
        self.access(TAIL, Access::Read, site);
        self.access(HEAD, Access::Read, site);
    }

    fn access(&self, line: usize, access: Access, site: Site) {
        if let Some(first) = self.lines {
            access_line(first + line, access, site, Place::Depot);
        }
    }
}
