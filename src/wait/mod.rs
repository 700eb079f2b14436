//! When will there be room for me? Futures, and calls that block, which take their turn.
//!
//! A request that finds no room asks again when it is its turn and there is room for it, and holds
//! nothing until then. First come, first served, unless
//! [`Fairness::Bypass`] says otherwise: a large request is not starved by
//! small ones behind it. While anybody waits, new sequences that ask without waiting are refused, with
//! `OutOfMemory` and 0 available; appends of sequences that live pass everybody.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use paged_kv::wait::Patience;
//! use paged_kv::{PagedKvCache, PagedKvError, SeqId};
//!
//! let cache = Arc::new(PagedKvCache::new(8, 16, 1, 1));
//! cache.allocate(SeqId(1), 7 * 16)?;
//! let brief = Patience::default().timeout(Duration::from_millis(1));
//! let refused = cache.allocate_blocking(SeqId(2), 48, brief);
//! assert_eq!(refused, Err(PagedKvError::DeadlinePassed));
//! std::thread::scope(|scope| {
//!     let waiter = scope.spawn(|| cache.allocate_blocking(SeqId(2), 48, Patience::default()));
//!     cache.free(SeqId(1))?; // and the waiter is served
//!     waiter.join().expect("it does not panic")
//! })?;
//! # Ok::<(), PagedKvError>(())
//! ```
//!
//! # What wakes a waiter
//!
//! Every way in which room appears: free, truncate, trim, evict, a block that becomes idle, a dropped
//! handle, copy or reservation, the end of a lease that kept a freed sequence or of a step that held what
//! was let go of, and a waiter that leaves before it was served. One waiter is woken at a time, when there is room for all that it needs; it
//! wakes the next. When nobody waits, giving blocks back costs one load for all this.
//!
//! # Cancelling
//!
//! Dropping a future leaves the queue, at any time: nothing is held, and the next one is woken if there
//! is room for it. A future that is neither polled nor dropped after it was woken keeps its place, and
//! with it those behind; do not `mem::forget` one.
//!
//! # Wakers
//!
//! The futures need no runtime. A waker is called by the thread that gives room, which holds no lock of
//! the cache then: a waker may poll its task, or call the cache. Inside a closure of
//! [`with_sequence`](crate::PagedKvCache::with_sequence) wake-ups wait for its end.
//!
//! A waker that panics costs its own task that wake-up, and nothing else: the panic is caught (the panic
//! hook has reported it), and the next waiter is woken instead. The task keeps its place for the
//! time when it is polled again.
//!
//! # When everybody waits
//!
//! Sequences that wait to grow ([`append_wait`](crate::PagedKvCache::append_wait)) keep their blocks
//! meanwhile. If every sequence of the cache that has blocks waits so, and nobody else has blocks
//! (handles, reservations, open steps), no room will ever appear. Then one of them is told so,
//! [`Stalled`](crate::PagedKvError::Stalled): the one that
//! [`select_eviction_target`](crate::PagedKvCache::select_eviction_target) names. Its owner frees it,
//! which serves the others, and admits it again, waiting.

mod calls;
mod growth;
mod patience;
mod request;

pub use self::patience::Patience;
pub use crate::pool::Fairness;
