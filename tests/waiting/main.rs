//! Tests of waiting: a request that waits for room is served in turn, and one that stops waiting holds
//! nothing.
#![cfg(feature = "async")]

mod cancelled;
#[path = "../common/mod.rs"]
mod common;
mod deadlines;
mod futures;
mod gone;
mod histories;
mod needs;
mod nothing;
mod order;
mod room;
mod stalled;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use paged_kv::PagedKvCache;

/// Long enough that only a defect makes a test wait so long.
const HANG: Duration = Duration::from_secs(30);

/// Creates a cache of blocks of 4 tokens.
fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, 4, 1, 1)
}

/// The number of times that a task was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand.
struct Task<F> {
    future: F,
    wakes: Arc<Wakes>,
}

impl<F: Future + Unpin> Task<F> {
    fn new(future: F) -> Self {
        Self { future, wakes: Arc::default() }
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::SeqCst)
    }

    /// Creates a task that has begun to wait.
    fn waiting(future: F) -> Self {
        let mut task = Self::new(future);
        assert!(task.poll().is_pending(), "there is no room for it");
        assert_eq!(task.wakes(), 0);
        task
    }

    /// Asserts that the task was woken, and returns its result.
    #[track_caller]
    fn served(&mut self) -> F::Output {
        assert!(self.wakes() > 0, "it was not woken");
        match self.poll() {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it was woken, and there was no room"),
        }
    }
}

/// Asserts that at rest all blocks are back, and that no request waits.
#[track_caller]
fn assert_all_back(cache: &PagedKvCache) {
    assert_eq!((cache.used_block_count(), cache.waiting().len()), (0, 0));
    cache.validate().expect("the free list and the words agree");
    let stats = cache.stats();
    assert_eq!(stats.total_allocations, stats.total_frees);
}
