//! The types of [`sync`](super) in the build that ships.
//!
//! Most are re-exports. This module adds the ordinal that maps a thread to a home shard, and the wait of a
//! thread that can only wait for another one.

use std::cell::Cell;
use std::time::Duration;

pub(crate) use crossbeam::queue::ArrayQueue;
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use dashmap::{DashMap, Entry};
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use std::sync::{Arc, OnceLock};
pub(crate) use std::thread_local;

const UNPLACED: usize = usize::MAX;

thread_local! {
    static ORDINAL: Cell<usize> = const { Cell::new(UNPLACED) };
}

/// Returns the ordinal of the calling thread: 0 for the first thread that asked, then 1, and so on.
///
/// A thread's home shard is this number modulo the number of shards, so that threads started together get
/// different home shards.
#[inline]
pub(crate) fn thread_ordinal() -> usize {
    let ordinal = ORDINAL.get();
    if ordinal == UNPLACED { place_thread() } else { ordinal }
}

#[cold]
fn place_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: only the number itself passes between threads.
    let ordinal = NEXT.fetch_add(1, Ordering::Relaxed) % UNPLACED;
    ORDINAL.set(ordinal);
    ordinal
}

/// Returns the contents of `arc` if this was its last holder. If several last holders drop it concurrently,
/// exactly one gets the contents.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    Arc::into_inner(arc)
}

/// Prefetches words that are about to be written. A locked instruction delays later loads, so without this
/// the cache misses are served one by one.
#[inline]
pub(crate) fn prefetch(looks: impl Iterator<Item = u64>) {
    std::hint::black_box(looks.fold(0, |all, word| all ^ word));
}

/// Reads a value as soon as no thread is changing it, before threads that wait to change it.
///
/// Retries instead of waiting in the lock's queue. There a thread queued after a waiting writer stays after it,
/// even if other readers hold the lock: [`RwLock::read_recursive`] is served immediately only if this thread
/// itself has the lock. A thread that changes a sequence never waits for a caller's closure.
pub(crate) fn read_past_writers<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    let mut backoff = Backoff::new();
    loop {
        match lock.try_read_recursive() {
            Some(guard) => return guard,
            None => backoff.wait(),
        }
    }
}

/// The wait for a thread that is inside a few instructions, or was descheduled there.
///
/// Spins, then yields, then sleeps: sleeping lets a thread of lower real-time priority finish.
pub(crate) struct Backoff {
    spins: crossbeam::utils::Backoff,
    yields: u32,
}

impl Backoff {
    const YIELDS: u32 = 64;
    const SLEEP: Duration = Duration::from_micros(50);

    pub(crate) fn new() -> Self {
        Self { spins: crossbeam::utils::Backoff::new(), yields: 0 }
    }

    pub(crate) fn wait(&mut self) {
        if !self.spins.is_completed() {
            self.spins.snooze();
        } else if self.yields < Self::YIELDS {
            self.yields += 1;
            std::thread::yield_now();
        } else {
            std::thread::sleep(Self::SLEEP);
        }
    }
}
