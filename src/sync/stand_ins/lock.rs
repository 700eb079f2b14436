//! `RwLock`: a lock for many readers or one writer, in place of `parking_lot`'s, with its rule for readers.
//!
//! A reader waits while a writer waits, but a recursive reader does not. Otherwise a thread whose closure reads
//! twice would wait for itself. The locks of loom and shuttle have neither this rule nor recursive reads.
//!
//! The checker chooses the thread that the lock admits next.

use std::ops::{Deref, DerefMut};

use super::ground::{Condvar, Mutex, MutexGuard};

/// A lock for many readers or one writer.
pub(crate) struct RwLock<T> {
    gate: Gate,
    /// Never contended: the gate admits no thread that would have to wait.
    value: parking_lot::RwLock<T>,
}

/// The threads that hold the lock, and those that wait.
struct Gate {
    holders: Mutex<Holders>,
    changed: Condvar,
}

struct Holders {
    readers: usize,
    writing: bool,
    writers_waiting: usize,
    /// Threads that wait for a change.
    waiting: usize,
}

impl Holders {
    fn admits_reader(&self) -> bool {
        !self.writing && self.writers_waiting == 0
    }

    fn admits_recursive_reader(&self) -> bool {
        !self.writing
    }

    fn admits_writer(&self) -> bool {
        !self.writing && self.readers == 0
    }
}

impl Gate {
    fn wait_from<'a>(
        &self,
        mut holders: MutexGuard<'a, Holders>,
        admits: impl Fn(&Holders) -> bool,
    ) -> MutexGuard<'a, Holders> {
        while !admits(&holders) {
            holders.waiting += 1;
            let waited = self.changed.wait(holders);
            holders = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
            holders.waiting -= 1;
        }
        holders
    }

    fn leave(&self, leave: impl FnOnce(&mut Holders)) {
        let mut holders = self.holders.lock();
        leave(&mut holders);
        // Mostly no thread waits, and a notification is one more step to schedule.
        if holders.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        let holders = Holders { readers: 0, writing: false, writers_waiting: 0, waiting: 0 };
        let gate = Gate { holders: Mutex::new(holders), changed: Condvar::new() };
        Self { gate, value: parking_lot::RwLock::new(value) }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.read_once(Holders::admits_reader)
    }

    /// Reads before threads that wait to write.
    pub(crate) fn read_past_writers(&self) -> RwLockReadGuard<'_, T> {
        self.read_once(Holders::admits_recursive_reader)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let mut holders = self.gate.holders.lock();
        holders.writers_waiting += 1;
        let mut holders = self.gate.wait_from(holders, Holders::admits_writer);
        holders.writers_waiting -= 1;
        holders.writing = true;
        drop(holders);
        self.writing()
    }

    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        let mut holders = self.gate.holders.lock();
        if !holders.admits_writer() {
            return None;
        }
        holders.writing = true;
        drop(holders);
        Some(self.writing())
    }

    fn read_once(&self, admits: impl Fn(&Holders) -> bool) -> RwLockReadGuard<'_, T> {
        self.gate.wait_from(self.gate.holders.lock(), admits).readers += 1;
        let value = self.value.try_read_recursive().expect("no writer is in");
        RwLockReadGuard { value, _pass: ReadPass(&self.gate) }
    }

    fn writing(&self) -> RwLockWriteGuard<'_, T> {
        let value = self.value.try_write().expect("no other thread is in");
        RwLockWriteGuard { value, _pass: WritePass(&self.gate) }
    }
}

/// A reader holds the lock.
pub(crate) struct RwLockReadGuard<'a, T> {
    value: parking_lot::RwLockReadGuard<'a, T>,
    /// Declared after `value`, which ends first.
    _pass: ReadPass<'a>,
}

/// A writer holds the lock.
pub(crate) struct RwLockWriteGuard<'a, T> {
    value: parking_lot::RwLockWriteGuard<'a, T>,
    /// Declared after `value`, which ends first.
    _pass: WritePass<'a>,
}

struct ReadPass<'a>(&'a Gate);

impl Drop for ReadPass<'_> {
    fn drop(&mut self) {
        self.0.leave(|holders| holders.readers -= 1);
    }
}

struct WritePass<'a>(&'a Gate);

impl Drop for WritePass<'_> {
    fn drop(&mut self) {
        self.0.leave(|holders| holders.writing = false);
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Reads before threads that wait to write.
pub(crate) fn read_past_writers<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read_past_writers()
}
