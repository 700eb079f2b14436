//! What do the names of [`sync`](super) mean under the model checker?
//!
//! loom's types, each behind the interface of the one that ships. Three things are added: atomics
//! and fences whose orderings a run can change ([`atomic`]), a queue on modelled atomics in place of
//! `crossbeam`'s, which loom cannot see into ([`ArrayQueue`]), and a home shard for each thread that
//! the model chooses ([`place_thread`]), so that an execution does not depend on who asked first.

mod atomic;

use std::cell::Cell;
use std::fmt;

pub(crate) use self::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
pub use super::queue::ArrayQueue;
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use loom::sync::Arc;
pub(crate) use loom::sync::MutexGuard;
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::Ordering;

/// What the queue runs on.
pub(super) mod ground {
    pub(crate) use super::atomic::every_access_is_an_exchange;
    pub(crate) use loom::sync::atomic::AtomicUsize;
    pub(crate) use loom::thread::yield_now;
}

loom::thread_local! {
    static ORDINAL: Cell<Option<usize>> = Cell::new(None);
}

/// Gives the calling thread its ordinal, and so its home shard. Once a thread, before it calls
/// the pool.
pub fn place_thread(ordinal: usize) {
    ORDINAL.with(|place| place.set(Some(ordinal)));
}

pub(crate) fn thread_ordinal() -> usize {
    ORDINAL.with(Cell::get).expect("a model places each of its threads at a home shard")
}

/// As in the build that ships, but that of several last holders it may be the drop of the one
/// refused that ends the contents.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    Arc::try_unwrap(arc).ok()
}

/// Nothing: there is no distance.
pub(crate) fn bring_near(_looks: impl Iterator<Item = u64>) {}

/// A mutex whose `lock` gives the guard: there is no poison.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("loom's mutexes do not poison")
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Mutex { .. }")
    }
}

/// Waiting for another thread: the model checker runs somebody else first.
pub(crate) struct Backoff;

impl Backoff {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn wait(&mut self) {
        loom::thread::yield_now();
    }
}
