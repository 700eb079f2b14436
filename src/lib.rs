//! A KV-cache block manager that many scheduler threads share.
//!
//! A paged KV cache (PagedAttention) keeps the keys and values of each sequence in fixed-size blocks. This
//! crate allocates the blocks, lets sequences share them (fork, copy-on-write) and takes them back. When
//! memory is short, it chooses the contents to reclaim and the sequences to evict. It writes the block tables
//! that kernels read, and moves no tensor bytes itself. There is no lock that all operations take.
//!
//! ```
//! use paged_kv::export::{Gaps, TableShape};
//! use paged_kv::{PagedKvCache, PagedKvError, SeqId};
//!
//! let cache = PagedKvCache::new(1024, 16, 8, 128); // blocks, tokens a block, heads, head size
//! std::thread::scope(|scope| {
//!     for worker in 0..4 {
//!         let cache = &cache;
//!         scope.spawn(move || -> Result<(), PagedKvError> {
//!             let (prompt, sample) = (SeqId(2 * worker), SeqId(2 * worker + 1));
//!             cache.allocate(prompt, 100)?; // 7 blocks, or OutOfMemory and nothing taken
//!             cache.fork(prompt, sample)?; // shares them
//!             if let Some(copy) = cache.append(sample, 1)?.copy {
//!                 println!("copy block {} to {}", copy.src, copy.dst);
//!             }
//!             let mut table = [0_i32; 2 * 8];
//!             let shape = TableShape { stride: 8, pad: -1, gaps: Gaps::Show };
//!             cache.lease(&[prompt, sample])?.block_tables(&mut table, shape)?;
//!             cache.free(prompt)?;
//!             cache.free(sample)
//!         });
//!     }
//! });
//! assert_eq!(cache.used_block_count(), 0);
//! cache.validate()?;
//! # Ok::<(), PagedKvError>(())
//! ```
//!
//! # Three layers
//!
//! | type | holds | for |
//! |---|---|---|
//! | [`PagedKvCache`] | sequences by [`SeqId`] | threads that share requests; eviction, leases |
//! | [`Sequence`] | one request's tokens | a scheduler that owns its requests: no map, no lock |
//! | [`BlockPool`], [`BlockTable`] | blocks | another layout on the same allocator |
//!
//! # Consistency
//!
//! Every operation is linearizable per sequence (a fork at its snapshot of the source and at the insertion of
//! the destination). An operation that fails has changed nothing. No block is ever allocated to two owners, and
//! nothing leaks when a thread panics. `OutOfMemory` means that at some moment during the call there was less
//! room than requested.
//!
//! The [`guide`] has the rest: the life of a block, the cost of each operation, which thread can wait for
//! which, and why the orderings suffice.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod array;
mod cache;
mod clock;
mod counter;
mod epochs;
mod error;
pub mod event;
pub mod export;
mod groups;
#[cfg(any(doc, doctest))]
pub mod guide;
mod id;
mod lease_count;
#[cfg(paged_kv_loom)]
pub mod loom_api;
#[cfg(feature = "metrics")]
pub mod metrics;
mod pool;
mod prefix;
mod sequence;
mod stats;
mod sync;
mod table;
mod tier;
#[cfg(feature = "tier-store")]
pub mod tier_store;
mod trace;
#[cfg(feature = "async")]
pub mod wait;

pub use cache::{
    AbortRefused, Aborted, Admission, AdmitOptions, AppendBatch, CachePin, CachedSequence,
    Completed, Computed, Evicted, EvictionStrategy, Grown, Lease, LeaseRow, Load, LoadLimit,
    LoadTicket, Loaded, Namespace, Overwriting, PagedKvCache, PagedKvCacheBuilder, PinAnswer,
    Prefix, Prompt, Reservation, Retained, Row, Snapshot, Step, StepBuffers, StoreFrom,
    TierAdmission, TierRestore, Tiers, Watermark, append_batch,
};
pub use error::{ErrorKind, PagedKvError, Result};
pub use event::{EventSink, KvEvent};
pub use groups::planner::{GroupPlan, KvHeads, Layer, LayerPlace};
pub use groups::{GroupRetention, LayerGroup};
pub use id::{AdmissionEpoch, BlockId, GroupId, SeqId, Worker};
#[cfg(feature = "async")]
pub use pool::Fairness;
pub use pool::{BlockPool, Level, ReclaimPolicy, ReuseHint};
pub use prefix::{BlockHash, BlockHasher, ExtraKeys, HashAlgorithm, Overwritten};
pub use sequence::retain::Retain;
pub use sequence::{Append, BlockCopy, GroupCopy, Sequence};
pub use stats::{CacheStats, GroupStats, SequenceInfo, TierStats};
#[cfg(paged_kv_census)]
#[doc(hidden)]
pub use sync::census;
pub use table::BlockTable;
pub use tier::store::{Store, StoreTicket};
pub use tier::{CopyOutcome, Medium, Place, TicketNumber, Tier, TierId, TierSlot};
