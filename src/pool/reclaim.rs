//! What stays of a block that nobody uses, and which goes first? The choices, not the order itself.
//!
//! It does not know blocks; the free list keeps the order.

use std::fmt;

/// Which cached block that nobody uses is reclaimed first, when free blocks run out.
///
/// Either order gives the tail of a released sequence up before its head, exactly on one thread and
/// to within a batch of 128 blocks a home shard between threads. Uses of a block are told apart modulo
/// 256: one that was left idle a multiple of 256 times while others lay untouched may go with them.
///
/// ```
/// use paged_kv::{PagedKvCache, ReclaimPolicy};
///
/// assert_eq!(ReclaimPolicy::default(), ReclaimPolicy::Lru);
/// let builder = PagedKvCache::builder().num_blocks(8);
/// let cache = builder.reclaim_policy(ReclaimPolicy::TwoQueue).build()?;
/// assert_eq!(cache.free_block_count(), 8);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReclaimPolicy {
    /// The one that nobody has used for the longest time.
    #[default]
    Lru,
    /// One that was asked for once before one that was asked for again, unless the latter has lain
    /// idle three times as long. A content that comes back after it was reclaimed counts as asked
    /// for again if not much more than the pool's size was reclaimed in between; that is remembered
    /// by 4 bytes a block, as in 2Q (Johnson and Shasha, VLDB 1994). Some 15 bytes a block more than
    /// [`Lru`](Self::Lru) in all.
    ///
    /// The prefix of a content that came back counts as come back too, within one commit.
    ///
    /// Better where many prompts never come back, as in chats of one turn; about the same elsewhere.
    /// `BENCHMARKS.md` has the hit rates on real traces.
    TwoQueue,
}

impl fmt::Display for ReclaimPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lru => "lru",
            Self::TwoQueue => "two-queue",
        })
    }
}

/// What stays of a block that its last owner has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: it is free.
    Nothing,
    /// Its contents, if it has a name, until the block is needed; which goes first then.
    Contents(ReclaimPolicy),
}
