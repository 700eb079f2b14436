//! The number of cached blocks of a pool, its limit, and the end of contents that no allocation overwrites.
//!
//! A block is cached from the publication of its content until it is reclaimed or uncached. Under a limit, the
//! number of cached blocks follows from a count of publications and from the counts of reclaims, which exist for
//! statistics. Without a limit publications are not counted.

use super::Blocks;
use super::content_key::ContentKey;
use super::free_list::Matching;
use super::idle::AgedBlock;
use crate::counter::ShardedCounter;
use crate::id::BlockId;
use crate::sync::{AtomicU64, Later, Mutex, Ordering};

/// The limit of a pool that has had none yet. No block is counted then.
const NEVER_LIMITED: u64 = u64::MAX;

/// The blocks that were cached since the first limit was set, and those that were uncached.
pub(super) struct CachedCount {
    cached: ShardedCounter,
    uncached: ShardedCounter,
    /// Above this number of cached blocks, idle ones are uncached.
    most: AtomicU64,
    /// Held by the thread that uncaches for the limit, so that no two do it for the same excess.
    keeping: Mutex<()>,
}

impl CachedCount {
    pub(super) fn new() -> Self {
        let (cached, uncached) = (ShardedCounter::new(), ShardedCounter::new());
        let most = AtomicU64::new(NEVER_LIMITED);
        Self { cached, uncached, most, keeping: Mutex::new(()) }
    }

    fn most(&self) -> u64 {
        // Relaxed: a thread may use the limit before for a moment, as if it had called earlier.
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
        if self.num_beyond(most) > 0 {
            // A sink's events are emitted after the lock is released.
            let _later = Later::begin();
            let _keeping = self.cached.keeping.lock();
            self.uncache_idle(self.num_beyond(most));
        }
    }

    /// Returns the number of cached blocks beyond a limit.
    fn num_beyond(&self, most: u64) -> usize {
        let ended = self.cached.uncached.sum() + self.free.idle_totals().reclaimed;
        let cached = self.cached.cached.sum().saturating_sub(ended);
        cached.saturating_sub(most) as usize
    }

    /// Returns the number of free blocks that hold no content.
    pub(crate) fn num_free(&self) -> usize {
        self.free.room().saturating_sub(self.free.idle_totals().idle)
    }

    /// Returns up to `n` idle blocks in about the reclaim order, without an owner.
    pub(crate) fn list_oldest(&self, n: usize) -> Vec<AgedBlock> {
        if self.words.have_keys() { self.free.list_oldest(n, &self.words) } else { Vec::new() }
    }

    /// Makes the caller an owner of a block that was listed, if it is cached under `key`. The content does not count as
    /// used.
    pub(crate) fn acquire_unused(
        &self,
        AgedBlock { id, time, .. }: AgedBlock,
        key: ContentKey,
    ) -> bool {
        let mut matching = self.matching();
        if self.words.keyed().key(id) != key || !matching.hold(id) {
            return false;
        }
        drop(matching);
        // A block keeps its key while it is cached and has an owner.
        let is_same = self.words.keyed().key(id) == key;
        if !is_same {
            self.give_as_old(&[(id, time)]);
        }
        is_same
    }

    /// Removes an owner from each block that [`acquire_unused`](Self::acquire_unused) acquired, the oldest first. They
    /// are as old as before, unless a match has used them since. The times are those that
    /// [`list_oldest`](Self::list_oldest) returned.
    pub(crate) fn give_as_old(&self, blocks: &[(BlockId, u64)]) {
        self.free.give_as_old(blocks, &self.words);
        self.announce_room();
        self.keep_max_cached();
    }

    /// Frees up to `n` idle blocks, in reclaim order, whose contents end. Returns their number.
    pub(crate) fn uncache_idle(&self, n: usize) -> usize {
        let _later = Later::begin();
        let mut num_uncached = 0;
        self.end_contents(&mut || {
            let ids = self.free.forget_idle(n, &self.words);
            num_uncached = ids.len();
            ids
        });
        self.count_uncached(num_uncached);
        self.announce_loss();
        num_uncached
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
            let _later = Later::begin();
            let mut ended = 0;
            self.end_contents(&mut || {
                // Another thread may have uncached a block since.
                let is_ended = |&id: &BlockId| self.words.view().try_end_caching(id);
                let ids: Vec<BlockId> = held.iter().copied().filter(is_ended).collect();
                self.clear_levels(&ids);
                ended = ids.len();
                ids
            });
            self.count_uncached(ended);
            num_uncached += ended;
            // Not `give`, which would uncache again. The idle ones count as not taken.
            self.free.give(&held, &self.words);
            self.undone.add(num_idle as u64);
            self.announce_room();
            self.announce_loss();
        }
        num_uncached
    }

    /// Ends contents by `end`, which returns their blocks, and informs the observer of taken blocks.
    fn end_contents(&self, end: &mut dyn FnMut() -> Vec<BlockId>) {
        match self.observers.as_ref().and_then(|observers| observers.takes.as_ref()) {
            Some(observer) => observer.ending(end),
            None => drop(end()),
        }
    }
}
