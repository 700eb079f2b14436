//! The types of [`sync`](super) under shuttle, a scheduler that chooses the next thread.
//!
//! They are shuttle's types, with the interface of the shipped ones. One thread runs at a time, and every
//! atomic access, lock and reference count is a point where another thread may continue. shuttle is
//! sequentially consistent; loom checks the orderings. Two things are added: the
//! [`stand_ins`](super::stand_ins) that loom's models use too, and reference counts that the scheduler sees
//! ([`arc`]).
//!
//! A thread's ordinal is its number in shuttle, so that an execution depends on the seed only.

mod arc;

use std::fmt;
use std::sync::TryLockError;

pub(crate) use self::arc::{Arc, into_last};
pub(crate) use super::stand_ins::Backoff;
#[cfg(feature = "async")]
pub(crate) use super::stand_ins::{Alarm, block_on_until};
pub(crate) use super::stand_ins::{
    ArrayQueue, DashMap, Entry, RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers,
};
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use shuttle::sync::MutexGuard;
pub(crate) use shuttle::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence,
};
pub(crate) use shuttle::thread_local;
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::Ordering;

/// The types on which the stand-ins are built.
pub(super) mod ground {
    pub(crate) use super::{Mutex, MutexGuard};
    #[cfg(feature = "async")]
    pub(crate) use shuttle::future::block_on;
    pub(crate) use shuttle::sync::Condvar;
    pub(crate) use shuttle::sync::atomic::AtomicUsize;
    pub(crate) use shuttle::thread::yield_now;

    /// Returns false: under shuttle every thread reads the newest value in any case.
    pub(crate) fn every_access_is_an_exchange() -> bool {
        false
    }
}

pub(crate) fn thread_ordinal() -> usize {
    shuttle::current::me().into()
}

/// Lets another thread continue before an operation that shuttle does not see.
fn let_others_run() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

/// Does nothing: a model has no caches.
pub(crate) fn prefetch(_looks: impl Iterator<Item = u64>) {}

/// A mutex whose `lock` returns the guard: it cannot be poisoned.
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Mutex { .. }")
    }
}
