//! What do the names of [`sync`](super) mean where a scheduler chooses who runs next?
//!
//! shuttle's types, each behind the interface of the one that ships. One thread runs at a time, and
//! every atomic access, every lock and every reference count is a place where another may go on.
//! shuttle is sequentially consistent: orderings are loom's business. Added are the
//! [`stand_ins`](super::stand_ins) that loom's models use too, and reference counts that the scheduler
//! sees ([`arc`]).
//!
//! A thread's ordinal is the number shuttle gives it, so that a seed is all that an execution
//! depends on.

mod arc;

use std::fmt;

pub(crate) use self::arc::{Arc, into_last};
pub(crate) use super::stand_ins::{
    ArrayQueue, DashMap, Entry, RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers,
};
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use shuttle::sync::MutexGuard;
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
pub(crate) use shuttle::thread_local;
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::Ordering;

/// The stand-ins run on this.
pub(super) mod ground {
    pub(crate) use super::{Mutex, MutexGuard};
    pub(crate) use shuttle::sync::Condvar;
    pub(crate) use shuttle::sync::atomic::AtomicUsize;
    pub(crate) use shuttle::thread::yield_now;

    /// As it is by itself: everybody reads the newest value.
    pub(crate) fn every_access_is_an_exchange() -> bool {
        false
    }
}

pub(crate) fn thread_ordinal() -> usize {
    shuttle::current::me().into()
}

/// A place where another thread may go on, before something that shuttle does not see.
fn let_others_run() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

/// Nothing: there is no distance.
pub(crate) fn bring_near(_looks: impl Iterator<Item = u64>) {}

/// A mutex whose `lock` gives the guard: there is no poison.
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Mutex { .. }")
    }
}

/// Waiting for another thread: somebody else runs first.
pub(crate) struct Backoff;

impl Backoff {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn wait(&mut self) {
        shuttle::thread::yield_now();
    }
}

/// Polls a future on this thread until it is done. Deadlines do not pass here.
#[cfg(feature = "async")]
pub(crate) fn block_on_until<F: Future>(
    future: F,
    _deadline: Option<std::time::Instant>,
) -> Option<F::Output> {
    super::later::perform_now();
    Some(shuttle::future::block_on(future))
}

/// An alarm that never rings.
#[cfg(feature = "async")]
pub(crate) struct Alarm;

#[cfg(feature = "async")]
impl Alarm {
    pub(crate) fn set(_at: std::time::Instant, _waker: std::task::Waker) -> Self {
        Self
    }
}
