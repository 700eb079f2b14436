//! A KV-cache block manager that many scheduler threads share.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod batch;
#[cfg(not(paged_kv_loom))]
mod cache;
#[cfg(not(paged_kv_loom))]
mod clock;
#[cfg(not(paged_kv_loom))]
mod counter;
mod error;
mod evict;
pub mod export;
mod id;
mod pool;
mod sequence;
mod stats;
mod sync;
mod table;

pub use batch::{AppendBatch, BatchRow, Fitted, append_batch, append_batch_fitting};
#[cfg(not(paged_kv_loom))]
pub use cache::{Lease, PagedKvCache, PagedKvCacheBuilder};
pub use error::{PagedKvError, Result};
pub use evict::EvictionStrategy;
pub use id::{BlockId, SeqId};
pub use pool::BlockPool;
pub use sequence::{Append, BlockCopy, Sequence};
pub use stats::{CacheStats, SequenceInfo};
pub use table::BlockTable;
