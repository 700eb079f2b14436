//! The number of cached blocks of a pool, its limit, and the end of contents that no allocation overwrites.
//!
//! A block is cached from the publication of its content until it is reclaimed or uncached. Under a limit, the
//! number of cached blocks follows from a count of publications and from the counts of reclaims, which exist for
//! statistics. Without a limit publications are not counted.

use super::Blocks;
use super::free_list::Matching;
use crate::counter::ShardedCounter;
use crate::id::BlockId;
use crate::sync::{AtomicU64, Later, Ordering};

/// The limit of a pool that has had none yet. No block is counted then.
const NEVER_LIMITED: u64 = u64::MAX;

/// The blocks that were cached since the first limit was set, and those that were uncached.
pub(super) struct CachedCount {
    cached: ShardedCounter,
    uncached: ShardedCounter,
    /// Above this number of cached blocks, idle ones are uncached.
    most: AtomicU64,
}

impl CachedCount {
    pub(super) fn new() -> Self {
        let (cached, uncached) = (ShardedCounter::new(), ShardedCounter::new());
        Self { cached, uncached, most: AtomicU64::new(NEVER_LIMITED) }
    }

    fn most(&self) -> u64 {
        // Relaxed: a limit that a thread learns of late is kept late.
        self.most.load(Ordering::Relaxed)
    }
}

impl Blocks {
    /// Notes that `num_blocks` blocks got a key.
    pub(crate) fn count_cached(&self, num_blocks: usize) {
        if self.cached.most() != NEVER_LIMITED && num_blocks > 0 {
            self.cached.cached.add(num_blocks as u64);
        }
    }

    fn count_uncached(&self, num_blocks: usize) {
        if self.cached.most() != NEVER_LIMITED {
            self.cached.uncached.add(num_blocks as u64);
        }
    }

    /// Counts the cached blocks, in use or idle, by their words. `O(blocks)`.
    pub(crate) fn num_cached(&self) -> usize {
        (self.first..=self.largest_id()).filter(|&id| self.is_cached(BlockId(id))).count()
    }

    /// Sets the number of cached blocks above which idle ones are uncached. The first call counts the blocks.
    pub(crate) fn set_max_cached(&self, num_blocks: usize) {
        let most = (num_blocks as u64).min(NEVER_LIMITED - 1);
        let limit = &self.cached.most;
        // Relaxed: as in `most`.
        match limit.compare_exchange(NEVER_LIMITED, most, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                // Blocks that are cached or reclaimed beside this count may count twice, or as cached still.
                let reclaimed = self.free.idle_totals().reclaimed;
                self.cached.cached.add(self.num_cached() as u64 + reclaimed);
            }
            Err(_) => limit.store(most, Ordering::Relaxed),
        }
        self.keep_max_cached();
    }

    /// Uncaches the oldest idle blocks if more blocks are cached than the limit allows.
    #[inline]
    pub(crate) fn keep_max_cached(&self) {
        let most = self.cached.most();
        if most != NEVER_LIMITED {
            self.uncache_beyond(most);
        }
    }

    #[cold]
    fn uncache_beyond(&self, most: u64) {
        let ended = self.cached.uncached.sum() + self.free.idle_totals().reclaimed;
        let cached = self.cached.cached.sum().saturating_sub(ended);
        let beyond = cached.saturating_sub(most);
        if beyond > 0 {
            self.uncache_idle(beyond as usize);
        }
    }

    /// Frees up to `n` idle blocks, in reclaim order, whose contents end. Returns their number.
    pub(crate) fn uncache_idle(&self, n: usize) -> usize {
        let mut ids = Vec::new();
        self.free.take_idle(n, &self.words, &mut ids);
        self.count_uncached(ids.len());
        let num_idle = ids.len();
        self.end_contents(&ids, num_idle, &mut || ());
        num_idle
    }

    /// Makes blocks unmatchable, in use or idle, of those that `acquire` makes the caller an owner of. Idle ones
    /// become free. Returns the number of blocks that were cached.
    pub(crate) fn uncache(
        &self,
        ids: &[BlockId],
        mut acquire: impl FnMut(&mut Matching<'_>, BlockId) -> bool,
    ) -> usize {
        let mut num_uncached = 0;
        for part in ids.chunks(Matching::AT_MOST) {
            let mut matching = self.matching();
            let mut held = part.to_vec();
            held.retain(|&id| self.check(id).is_ok() && acquire(&mut matching, id));
            let num_idle = matching.num_revived();
            drop(matching);
            let mut ended = 0;
            self.end_contents(&held, num_idle, &mut || {
                // Another thread may have uncached a block since.
                let words = self.words.view();
                ended = held.iter().filter(|&&id| words.try_end_caching(id)).count();
            });
            self.count_uncached(ended);
            num_uncached += ended;
        }
        num_uncached
    }

    /// Ends the contents of blocks of the caller by `end`, and gives the blocks back. `num_idle` of them had no
    /// other owner, and count as not taken.
    fn end_contents(&self, ids: &[BlockId], num_idle: usize, end: &mut dyn FnMut()) {
        let _later = Later::begin();
        match self.observers.as_ref().and_then(|observers| observers.takes.as_ref()) {
            Some(observer) => observer.ending(ids, end),
            None => end(),
        }
        // Not `give`, which would uncache again.
        self.free.give(ids, &self.words);
        self.announce_room();
        self.undone.add(num_idle as u64);
        self.announce_loss();
    }
}
