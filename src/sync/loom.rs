//! The types of [`sync`](super) under the model checker: loom's types, with the interface of the shipped ones.
//!
//! Three things are added:
//!
//! - atomics and fences whose orderings a run can change ([`atomic`]);
//! - the [`stand_ins`](super::stand_ins), for types whose atomics and locks loom does not see;
//! - a home shard for each thread that the model chooses ([`place_thread`]), so that an execution does not
//!   depend on which thread asked first.

mod atomic;

use std::cell::Cell;
use std::fmt;

pub(crate) use self::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};
pub use super::stand_ins::ArrayQueue;
pub(crate) use super::stand_ins::Backoff;
#[cfg(feature = "async")]
pub(crate) use super::stand_ins::{Alarm, block_on_until};
pub(crate) use super::stand_ins::{
    DashMap, Entry, RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers,
};
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use loom::sync::Arc;
pub(crate) use loom::sync::MutexGuard;
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::Ordering;

/// The types on which the stand-ins are built.
pub(super) mod ground {
    pub(crate) use super::atomic::every_access_is_an_exchange;
    pub(crate) use super::{Mutex, MutexGuard};
    #[cfg(feature = "async")]
    pub(crate) use loom::future::block_on;
    pub(crate) use loom::sync::Condvar;
    pub(crate) use loom::sync::atomic::AtomicUsize;
    pub(crate) use loom::thread::yield_now;
}

/// Declares loom's thread-local variables in the syntax of the library: with a constant initial value.
macro_rules! thread_local_of_loom {
    ($($(#[$attribute:meta])* static $name:ident: $value:ty = const { $first:expr };)*) => {
        loom::thread_local! { $($(#[$attribute])* static $name: $value = $first;)* }
    };
}
pub(crate) use thread_local_of_loom as thread_local;

thread_local! {
    static ORDINAL: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Sets the ordinal of the calling thread, and so its home shard. Called once a thread, before it calls the
/// pool.
pub fn place_thread(ordinal: usize) {
    ORDINAL.with(|place| place.set(Some(ordinal)));
}

pub(crate) fn thread_ordinal() -> usize {
    ORDINAL.with(Cell::get).expect("a model places each of its threads at a home shard")
}

/// Returns the contents as the shipped build does, with one difference: if several last holders drop
/// concurrently, all may be refused, and the drop of one of them ends the contents.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    Arc::try_unwrap(arc).ok()
}

/// Does nothing: a model has no caches.
pub(crate) fn prefetch(_looks: impl Iterator<Item = u64>) {}

/// A mutex whose `lock` returns the guard: it cannot be poisoned.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("loom's mutexes do not poison")
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Mutex { .. }")
    }
}
