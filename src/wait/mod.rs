//! Waiting for room: [`Waiting`] makes requests, each a [`Wait`] that is awaited or blocks, served in turn.
//!
//! A request that finds no room asks again when it is its turn and there is room for it, and holds
//! nothing until then. First come, first served, unless
//! [`Fairness::Bypass`] says otherwise: a large request is not starved by
//! small ones behind it. While a request waits, new sequences that ask without waiting are refused, with
//! `OutOfMemory` and 0 available. Two kinds of requests pass all that wait: appends of sequences that are in
//! the cache, and requests that take no block (an empty sequence or reservation, a prompt all of whose
//! blocks are in use).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use paged_kv::{PagedKvCache, PagedKvError, SeqId};
//!
//! let cache = Arc::new(PagedKvCache::new(8, 16, 1, 1));
//! cache.allocate(SeqId(1), 7 * 16)?;
//! let brief = Duration::from_millis(1);
//! let refused = cache.waiting().allocate(SeqId(2), 48).timeout(brief).block();
//! assert_eq!(refused, Err(PagedKvError::DeadlinePassed));
//! std::thread::scope(|scope| {
//!     let waiter = scope.spawn(|| cache.waiting().allocate(SeqId(2), 48).block());
//!     cache.free(SeqId(1))?; // and the waiter is served
//!     waiter.join().expect("the thread does not panic")
//! })?;
//! # Ok::<(), PagedKvError>(())
//! ```
//!
//! # Causes of a wake-up
//!
//! - Room: free, truncate, trim, evict, a block that becomes idle, a dropped handle, copy or reservation,
//!   the end of a lease that kept a freed sequence or of a step that held released blocks, and a waiter that
//!   leaves before it was served.
//! - A smaller need. More of a prompt can be matched after a commit, or idle blocks of it were matched by
//!   another sequence. A sequence was truncated within its last block, grew otherwise, or is now the only
//!   owner of the block that it would have copied.
//! - The end of its sequence. A request to grow is for one admission of its id. When that is freed or evicted,
//!   the request ends with [`SequenceNotFound`](crate::PagedKvError::SequenceNotFound) or
//!   [`SequenceEvicted`](crate::PagedKvError::SequenceEvicted), and never grows a later sequence of the id.
//! - A deadlock; see below.
//!
//! One waiter is woken at a time, when there is room for all that it needs, or when it is its turn and its need
//! may be smaller. It wakes the next. So while no operation runs, and all tasks that were woken have been
//! polled, the first in turn would be refused if it asked, and so would all that may pass it. While no request
//! waits, all this costs an operation one load.
//!
//! # Deadlines
//!
//! A request that is polled first tries, if it is its turn, and then reads the clock. So one whose deadline
//! has passed is still served if that is possible at once. Else it is refused at once, with
//! [`DeadlinePassed`](crate::PagedKvError::DeadlinePassed), and leaves. That holds of a timeout of 0 and of a
//! deadline in the past too: they ask once, and never wait.
//!
//! # Cancelling
//!
//! Dropping a future leaves the queue, at any time: nothing is held, and the next one is woken if it is
//! due. A future that is neither polled nor dropped after it was woken keeps its place, and
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
//! # When all sequences wait
//!
//! Sequences that wait to grow ([`Waiting::append`]) keep their blocks.
//! If every sequence of the cache that has blocks waits so, and nothing else has blocks, or shares one that
//! would be copied (handles, reservations, open steps, copies), no room will ever appear. Then one of them fails
//! with [`Stalled`](crate::PagedKvError::Stalled): the one that
//! [`select_eviction_target`](crate::PagedKvCache::select_eviction_target) names. Its owner frees it,
//! which serves the others, and admits it again, waiting.

mod future;
mod requests;
mod waiting;

pub use self::future::{Request, Wait};
pub use self::requests::{AdmitRequest, AllocateRequest, AppendRequest, ReserveRequest};
pub use self::waiting::Waiting;
pub use crate::pool::Fairness;
