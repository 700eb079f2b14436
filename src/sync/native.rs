//! What do the names of [`sync`](super) mean in the build that ships?
//!
//! Besides re-exports: the number that places a thread at a home shard, and the wait of a thread
//! that can do nothing but wait for another.

use std::cell::Cell;
use std::time::Duration;

pub(crate) use crossbeam::queue::ArrayQueue;
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use dashmap::{DashMap, Entry};
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use std::sync::{Arc, OnceLock};
pub(crate) use std::thread_local;

const UNPLACED: usize = usize::MAX;

thread_local! {
    static ORDINAL: Cell<usize> = const { Cell::new(UNPLACED) };
}

/// The ordinal of the calling thread: 0 for the first thread that asked, then 1, and so on.
///
/// A home shard is this number modulo the number of shards, so that threads started together
/// get homes of their own.
#[inline]
pub(crate) fn thread_ordinal() -> usize {
    let ordinal = ORDINAL.get();
    if ordinal == UNPLACED { place_thread() } else { ordinal }
}

#[cold]
fn place_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the number itself is all that passes between threads.
    let ordinal = NEXT.fetch_add(1, Ordering::Relaxed) % UNPLACED;
    ORDINAL.set(ordinal);
    ordinal
}

/// The contents of `arc` if this was its last holder. Of several holders that let go at once
/// exactly one gets them.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    Arc::into_inner(arc)
}

/// Looks at words that are about to be written, all at once: behind an exchange nothing begins early,
/// so that one after the other each would be waited for by itself.
#[inline]
pub(crate) fn bring_near(looks: impl Iterator<Item = u64>) {
    std::hint::black_box(looks.fold(0, |all, word| all ^ word));
}

/// Reads a value as soon as no thread is changing it, before threads that wait to change it.
///
/// Tries again instead of waiting in the lock's queue, where a thread behind a waiting writer stays behind it
/// even if other readers hold the lock: [`RwLock::read_recursive`] is served at once only where this thread
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

/// Waiting for a thread that is inside a few instructions, or was descheduled there.
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
