//! Waiting for room: [`Waiting`] makes requests, each a [`Wait`] that is awaited or blocks, served in turn.
//!
//! A request that finds no room asks again when it is its turn and there is room for it. It holds no blocks
//! until then. Requests are served first come, first served, unless [`Fairness::Bypass`] is set: a large
//! request is not starved by small ones after it. While a request waits, new sequences that ask without
//! waiting are refused, with `OutOfMemory` and 0 available. Three kinds of requests pass all waiting ones:
//! appends to sequences in the cache, requests from a reservation, and requests that take no block (an empty
//! sequence or reservation, or a prompt all of whose blocks are in use).
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
//! - Room: free, truncate, trim, evict, a block that becomes idle, and a dropped handle, copy or
//!   reservation. Also the end of a lease that kept a freed sequence, the end of a step that held released
//!   blocks, and a waiter that leaves before it was served.
//! - A smaller need. More of a prompt can be matched after a commit, or another sequence matched idle
//!   blocks of it. A sequence was truncated within its last block, grew by another call, or is now the only
//!   owner of the block that it would have copied.
//! - The end of its sequence. A request to grow is for one admission of its id. When that is freed or
//!   evicted, the request ends with [`SequenceNotFound`](crate::PagedKvError::SequenceNotFound) or
//!   [`SequenceEvicted`](crate::PagedKvError::SequenceEvicted), and never grows a later sequence of the id.
//! - A deadlock; see below.
//!
//! One waiter is woken at a time: when there is room for its whole need, or when it is its turn and its
//! need may be smaller. It wakes the next. Consider a moment when no operation runs and all woken tasks
//! have been polled. The first waiter in turn would then be refused if it asked, and so would all that may
//! pass it. While no request waits, all this costs an operation one load.
//!
//! # Deadlines
//!
//! A poll first tries to serve the request, if it is its turn, and then reads the clock. So a request whose
//! deadline has passed is still served if that is possible immediately. Otherwise it is refused
//! immediately, with [`DeadlinePassed`](crate::PagedKvError::DeadlinePassed), and leaves the queue. The
//! same holds for a timeout of 0 and for a deadline in the past: such a request asks once, and never waits.
//!
//! # Cancelling
//!
//! Dropping a future leaves the queue, at any time. The request holds nothing then, and the next waiter is
//! woken if it is due. A future that is neither polled nor dropped after it was woken keeps its place, and
//! blocks the waiters after it; do not `mem::forget` one.
//!
//! # Wakers
//!
//! The futures need no runtime. The thread that releases the room calls the waker, with no lock of the
//! cache held. So a waker may poll its task, or call the cache. Inside a closure of
//! [`with_sequence`](crate::PagedKvCache::with_sequence) wake-ups are delayed until its end.
//!
//! If a waker panics, its own task loses that wake-up, and no other effect follows. The panic is caught
//! (the panic hook has reported it), and the next waiter is woken instead. The task keeps its place until
//! it is polled again.
//!
//! # When all sequences wait
//!
//! Sequences that wait to grow ([`Waiting::append`]) keep their blocks. Suppose that every sequence of the
//! cache with blocks waits so. Suppose also that no other owner (handle, reservation, open step, copy) has
//! blocks, or shares one that would be copied. Then no room will ever appear, and one of the sequences
//! fails with [`Stalled`](crate::PagedKvError::Stalled): the one that
//! [`select_eviction_target`](crate::PagedKvCache::select_eviction_target) names. Its owner frees it, which
//! serves the others, and admits it again, waiting.

mod future;
mod requests;
mod waiting;

pub use self::future::{Request, Wait};
pub use self::requests::{AdmitRequest, AllocateRequest, AppendRequest, ReserveRequest};
pub use self::waiting::Waiting;
pub use crate::pool::Fairness;
