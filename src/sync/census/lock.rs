//! `Mutex` and `RwLock`: the shipped locks, whose guards are counted.

use std::panic::Location;

use super::coherence::{Access, Site, access_at};
use super::{MutexGuard, Place, RwLockReadGuard, RwLockWriteGuard, count_shared, shipped};

/// Counts the taking and the release of a lock.
fn count_guard<L>(lock: &L, place: Place, caller: &'static Location<'static>) {
    count_shared(place, 2);
    access_at(std::ptr::from_ref(lock).addr(), Access::Write, Site::of(caller), place);
}

/// A mutex whose guard counts twice: when it is taken and when it is released.
pub(crate) struct Mutex<T>(shipped::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shipped::Mutex::new(value))
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        count_guard(self, Place::Rare, Location::caller());
        self.0.lock()
    }

    #[track_caller]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let caller = Location::caller();
        self.0.try_lock().inspect(|_| count_guard(self, Place::Rare, caller))
    }
}

#[track_caller]
pub(crate) fn read_past_writers<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    count_guard(lock, Place::Sequence, Location::caller());
    shipped::read_past_writers(&lock.0)
}

/// A lock whose guards count twice: when they are taken and when they are released.
pub(crate) struct RwLock<T>(shipped::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shipped::RwLock::new(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    #[track_caller]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        count_guard(self, Place::Sequence, Location::caller());
        self.0.read()
    }

    #[track_caller]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        count_guard(self, Place::Sequence, Location::caller());
        self.0.write()
    }

    #[track_caller]
    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        count_guard(self, Place::Sequence, Location::caller());
        self.0.try_write()
    }
}
