//! `ReclaimPolicy` and `Retention`: whether a block without owners keeps its contents, and which block is
//! reclaimed first.
//!
//! These are the choices only; the idle lists ([`idle`](super)) keep the order.

use std::fmt;

/// Which idle block (cached, and used by no sequence) is reclaimed first when free blocks run out.
///
/// All policies reclaim the tail of a released sequence before its head. The order is exact on one
/// thread. Of several threads, each prefers blocks that became idle through its own home shard, as long as
/// no block is older by more than a sixteenth in the other shards that it looks at, five at a time. Uses of a
/// block are counted modulo 256. A block that became idle a multiple of 256 times while other blocks
/// stayed unused may be reclaimed together with these.
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ReclaimPolicy {
    /// The least recently used block first.
    #[default]
    Lru,
    /// As in 2Q (Johnson and Shasha, VLDB 1994): a block that was used once is reclaimed before a
    /// reused one, unless the latter has been idle three times as long. A content that comes back after
    /// it was reclaimed counts as reused, if not much more than the pool's size was reclaimed in
    /// between. A table of 4 bytes a block remembers the reclaimed contents.
    ///
    /// If a content came back, the blocks of its prefix in the same commit count as reused too.
    ///
    /// It gives higher hit rates where many prompts never come back, as in chats of one turn, and about
    /// the same rates elsewhere. `BENCHMARKS.md` has the hit rates on real traces.
    TwoQueue,
    /// The block that is least worth its place, by hit density (as in LHD, Beckmann et al., NSDI 2018), if it is
    /// clearly worth less than the least recently used one; else that one.
    ///
    /// A released content has a class: by the length of the last answer after it and by the number of requests that
    /// had it, or a class for contents that different conversations share. The cache counts for each class
    /// how many blocks are used again at which age, and learns from that the worth of a block. An age is counted in
    /// prompt blocks that were asked for. Only admissions by prompt are counted. See
    /// [`ReuseHint`](crate::ReuseHint) for hints of the caller.
    ///
    /// It gives clearly higher hit rates where the cache is small for its contents, and about those of
    /// [`Lru`](Self::Lru) elsewhere. Where the kind of requests changes suddenly it may lose a part of a point, and is set
    /// aside for a while. See `BENCHMARKS.md`. Takes 8 bytes a block, 60 KB for each home shard,
    /// and one lookup of each block of a prompt. In a cache with groups of layers it is [`Lru`](Self::Lru).
    HitDensity,
}

impl fmt::Display for ReclaimPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lru => "lru",
            Self::TwoQueue => "two-queue",
            Self::HitDensity => "hit-density",
        })
    }
}

/// Whether a block keeps its contents after its last owner has released it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    /// It keeps nothing: the block is free.
    Nothing,
    /// It keeps its contents, if it has a key, until it is reclaimed. The policy says which block is
    /// reclaimed first.
    Contents(ReclaimPolicy),
    /// It does so, and callers may give contents a level.
    Levels(ReclaimPolicy),
}

impl Retention {
    /// Returns the policy by which contents are reclaimed, if they are kept.
    pub(crate) fn policy(self) -> Option<ReclaimPolicy> {
        match self {
            Self::Nothing => None,
            Self::Contents(policy) | Self::Levels(policy) => Some(policy),
        }
    }
}
