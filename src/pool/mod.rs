//! The blocks of a pool: [`BlockPool`], and [`Blocks`], the state that its tables, runs and steps share.
//!
//! [`Blocks`] joins the words ([`word`]), the free ids ([`free_list`]) and their counts ([`accounting`]).
//! Tables and runs hold a [`PoolHandle`], a reference to one of several stripes of the pool. So creating and
//! dropping a table writes no cache line that all threads write.
//!
//! Invariant: the pool lives until the last block is released, because every owner of blocks holds a handle.
//! It imports no table, sequence or prefix.

pub(crate) mod accounting;
mod announce;
mod block_pool;
mod cached;
pub(crate) mod content_key;
pub(crate) mod free_list;
pub(crate) mod idle;
pub(crate) mod in_flight;
mod level;
#[cfg(feature = "metrics")]
pub(crate) mod observed;
mod owner_counts;
pub(crate) mod pins;
mod release_note;
mod set_levels;
pub(crate) mod shared_run;
#[cfg(feature = "async")]
pub(crate) mod wait_queue;
pub(crate) mod watermark;
pub(crate) mod word;

use std::panic::{RefUnwindSafe, UnwindSafe};

pub use self::block_pool::BlockPool;
pub(crate) use self::block_pool::{
    MOST_BLOCKS, checked_shards, default_shards, default_shards_of_cache,
};
use self::cached::CachedCount;
use self::content_key::{ContentKey, KeyedView, Mark, NewKey};
use self::free_list::{FreeList, Matching};
#[cfg(paged_kv_loom)]
pub use self::idle::hit_density::LearnedCounts;
pub use self::idle::hit_density::ReuseHint;
pub(crate) use self::idle::hit_density::{HitDensity, PromptUses, ReleasedPrompt};
pub(crate) use self::idle::levels::Levels;
pub use self::idle::policy::ReclaimPolicy;
pub(crate) use self::idle::policy::Retention;
use self::in_flight::InFlightSteps;
pub use self::level::Level;
pub(crate) use self::level::LevelNote;
use self::owner_counts::OwnerCounts;
use self::pins::Pins;
pub(crate) use self::release_note::ReleaseMark;
#[cfg(feature = "async")]
pub use self::wait_queue::Fairness;
#[cfg(feature = "async")]
use self::wait_queue::Waiters;
pub(crate) use self::word::BlockState;
use self::word::BlockWords;
use crate::clock::RecencyClock;
use crate::counter::ShardedCounter;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::id::BlockId;
use crate::sync::{Arc, AtomicU64, CachePadded, Ordering, PlainArc};
use crate::trace::TraceEvent;

/// The state that all handles of a pool share.
pub(crate) struct Blocks {
    /// The lowest id that can be allocated: 1 if block 0 is the null block, else 0.
    first: u32,
    words: BlockWords,
    free: FreeList,
    owner_counts: OwnerCounts,
    in_flight: InFlightSteps,
    observers: Option<Box<Observers>>,
    /// Orders the uses of the sequences of a cache.
    clock: RecencyClock,
    cached: CachedCount,
    pins: Pins,
    /// Blocks that were taken for a new sequence and given back, because it was refused after all.
    undone: ShardedCounter,
    #[cfg(feature = "async")]
    waiters: PlainArc<Waiters>,
}

// Every panic leaves words, lists and counts consistent: see the guide's page on panics.
impl UnwindSafe for Blocks {}
impl RefUnwindSafe for Blocks {}

impl Blocks {
    /// Refuses a block that is not of this pool.
    pub(crate) fn check(&self, id: BlockId) -> Result<()> {
        let index = id.0.checked_sub(self.first);
        if index.is_some_and(|index| (index as usize) < self.free.total()) {
            Ok(())
        } else {
            Err(PagedKvError::BlockNotFound(id))
        }
    }

    pub(crate) fn retain(&self, id: BlockId) -> Result<()> {
        self.words.retain(id).map_err(|refused| match refused.owners() {
            0 => PagedKvError::BlockNotFound(id),
            _ => PagedKvError::TooManyOwners(id),
        })
    }

    /// Checks, for a block that the caller owns, whether [`retain`](Self::retain) would be refused now.
    pub(crate) fn check_retain(&self, id: BlockId) -> Result<()> {
        let has_room = self.words.state(id).retain().is_some();
        if has_room { Ok(()) } else { Err(PagedKvError::TooManyOwners(id)) }
    }

    /// Lets blocks have owners that their other owners do not know of. From then on every release is an exchange.
    pub(crate) fn expect_counts_by_id(&self) {
        self.words.expect_counts_by_id();
    }

    /// Turns one owner of each of `ids` into an owner by id. The block's word has counted it already.
    pub(crate) fn count_by_id(&self, ids: &[BlockId]) {
        self.words.expect_counts_by_id();
        ids.iter().for_each(|&id| self.owner_counts.add(id));
    }

    /// Removes an owner from each of `ids`, the last id first.
    #[inline]
    pub(crate) fn give(&self, ids: &[BlockId]) {
        self.free.give(ids, &self.words);
        self.announce_room();
        self.keep_max_cached();
    }

    /// Removes an owner from each of `ids`, which all have other owners. So no block becomes room, and no
    /// waiter is woken.
    #[cold]
    pub(crate) fn release_extra(&self, ids: &[BlockId]) {
        self.free.give(ids, &self.words);
    }

    /// Returns true if `id` has one owner and is not cached: that owner may write it.
    #[inline]
    pub(crate) fn is_sole(&self, id: BlockId) -> bool {
        self.words.state(id) == BlockState::SOLE
    }

    /// Returns true if `id` has exactly `owners` owners and is not cached: the last of these may write it.
    pub(crate) fn has_only_owners(&self, id: BlockId, owners: u32) -> bool {
        self.words.state(id).has_only_owners(owners)
    }

    /// Returns the id of the last block, or 0 in a pool without blocks.
    pub(crate) fn largest_id(&self) -> u32 {
        self.first + self.free.total().saturating_sub(1) as u32
    }

    /// Returns true if a block can have owners by id.
    #[inline]
    pub(crate) fn is_counted_by_id(&self) -> bool {
        self.words.is_counted_by_id()
    }

    /// Calls `read` with the state of each block, in the order of the ids.
    pub(crate) fn read_words(&self, read: impl FnMut(BlockState)) {
        self.words.view().read_all(read);
    }

    pub(crate) fn owners(&self, id: BlockId) -> u32 {
        self.words.state(id).owners()
    }

    #[inline]
    pub(crate) fn clock(&self) -> &RecencyClock {
        &self.clock
    }
}

impl Blocks {
    /// Appends `n` blocks to `out`, all or none. Returns how many of them were cached; these are the
    /// last ones.
    #[inline]
    pub(crate) fn take(&self, n: usize, out: &mut Vec<BlockId>) -> Result<usize> {
        let start = out.len();
        let reclaimed = match self.free.take(n, &self.words, out) {
            Ok(reclaimed) => reclaimed,
            Err(available) => self.take_from_pins(n, available, out)?,
        };
        if let Some(observers) = &self.observers {
            observers.taken(&out[start..]);
        }
        if reclaimed > 0 {
            self.announce_loss();
        }
        Ok(reclaimed)
    }

    /// Takes as [`take`](Self::take) does, after pins have expired. `available` blocks were too few before.
    #[cold]
    fn take_from_pins(&self, n: usize, available: usize, out: &mut Vec<BlockId>) -> Result<usize> {
        if !self.pins.are_used() {
            return Err(refusal(n, available));
        }
        self.expire_pins();
        // Once more, even if none has expired now: another thread may have ended one since the first attempt.
        self.free.take(n, &self.words, out).map_err(|available| refusal(n, available))
    }

    /// Appends `n` blocks to `out` if that takes no search and no waiting. Returns false otherwise. The
    /// caller may hold a lock. It calls [`announce_loss`](Self::announce_loss) after it has released
    /// the lock, because contents may have been reclaimed.
    #[inline]
    pub(crate) fn try_take_fast(&self, n: usize, out: &mut Vec<BlockId>) -> bool {
        match &self.observers {
            None => self.free.try_take_fast(n, &self.words, out).is_some(),
            Some(observers) => self.try_take_observed(observers, n, out),
        }
    }

    #[cold]
    fn try_take_observed(&self, observers: &Observers, n: usize, out: &mut Vec<BlockId>) -> bool {
        // The caller may hold a lock, and then the observer of overwritten contents cannot be called.
        if observers.overwrites.is_some() {
            return false;
        }
        let start = out.len();
        let taken = self.free.try_take_fast(n, &self.words, out).is_some();
        if taken {
            observers.taken(&out[start..]);
        }
        taken
    }

    /// Returns true if overwritten contents are reported, so that blocks are taken outside of all locks.
    #[inline]
    pub(crate) fn reports_overwrites(&self) -> bool {
        self.observers.as_ref().is_some_and(|observers| observers.overwrites.is_some())
    }

    /// Calls the observer of overwritten contents for reclaimed blocks of the caller, which holds no lock.
    pub(crate) fn report_overwritten(&self, ids: &[BlockId]) {
        if let Some(observer) = self.observers.as_ref().and_then(|all| all.overwrites.as_ref()) {
            observer.report(ids);
        }
    }

    /// Notes that `num_blocks` blocks were given back by a request that was refused after all.
    #[cold]
    pub(crate) fn count_undone(&self, num_blocks: usize) {
        self.undone.add(num_blocks as u64);
    }
}

/// Returns the refusal of a request for blocks, and emits its trace event.
#[cold]
#[inline(never)]
pub(crate) fn refusal(requested: usize, available: usize) -> PagedKvError {
    TraceEvent::Refused { requested, available }.emit();
    PagedKvError::OutOfMemory { requested, available }
}

/// Operations on cached blocks: those that have a key by which a prompt can match them.
impl Blocks {
    /// Claims a shard, to acquire cached blocks under that claim.
    pub(crate) fn matching(&self) -> Matching<'_> {
        self.free.matching(&self.words)
    }

    /// Returns true if the block is cached under `key` at a moment during the call.
    #[inline]
    pub(crate) fn is_cached_as(&self, id: BlockId, key: ContentKey) -> bool {
        self.words.is_cached_as(id, key)
    }

    /// Returns the words and keys of all blocks, for a loop over many blocks.
    #[inline]
    pub(crate) fn keyed(&self) -> KeyedView<'_> {
        self.words.keyed()
    }

    /// Returns the key that was last given to a block of the caller, if it was given with `mark`.
    pub(crate) fn last_key(&self, id: BlockId, mark: Mark) -> Option<ContentKey> {
        self.words.keyed().last_key_with(id, mark)
    }

    /// Returns true if released blocks keep their contents.
    #[cfg(feature = "metrics")]
    pub(crate) fn keep_contents(&self) -> bool {
        self.words.have_keys()
    }

    /// Returns true if the block is cached and has no owner.
    pub(crate) fn is_idle(&self, id: BlockId) -> bool {
        self.words.state(id).is_idle()
    }

    /// Returns the idle blocks whose key was given with one of `marks`. Reads every block.
    pub(crate) fn num_idle_with(&self, marks: &[Mark]) -> usize {
        let ids = (self.first..=self.largest_id()).map(BlockId);
        let is_meant = |id| marks.contains(&self.words.keyed().last_mark(id));
        ids.filter(|&id| self.is_idle(id) && is_meant(id)).count()
    }

    /// Returns true if the block's content was asked for again since it was cached, or had come back by
    /// then.
    pub(crate) fn is_hot(&self, id: BlockId) -> bool {
        self.words.state(id).is_hot()
    }

    /// Gives a key to a block of the caller; see `BlockWords::set_key`.
    pub(crate) fn set_key(
        &self,
        id: BlockId,
        new: NewKey,
        is_private: bool,
        replaced: impl FnOnce(ContentKey),
    ) -> bool {
        self.words.set_key(id, new, is_private, replaced)
    }

    /// Takes back the key of a block of the caller; see `BlockWords::clear_key`.
    pub(crate) fn clear_key(&self, id: BlockId) {
        self.words.clear_key(id);
        self.clear_levels(&[id]);
    }

    /// Returns true if a prompt may match the block by its key.
    #[inline]
    pub(crate) fn is_cached(&self, id: BlockId) -> bool {
        self.words.state(id).is_cached()
    }

    /// Returns true for a further copy of a content, which no match has asked for.
    pub(crate) fn is_spare(&self, id: BlockId) -> bool {
        self.words.state(id).is_spare()
    }

    /// Returns the learned order of reclaim, if the pool has one.
    #[inline]
    pub(crate) fn density(&self) -> Option<&HitDensity> {
        self.free.density()
    }

    /// Notes beside the caller's blocks by which sequence they are released; see [`HitDensity::note_release`].
    #[cold]
    pub(crate) fn note_release<'a>(
        &self,
        parts: impl Iterator<Item = (usize, &'a [BlockId])>,
        of: &ReleasedPrompt<'_>,
    ) {
        if let Some(density) = self.density() {
            density.note_release(self.words.keyed(), parts, of);
        }
    }

    /// Returns true if the content with this `key` was recently reclaimed, as far as the policy
    /// remembers that.
    pub(crate) fn was_recently_reclaimed(&self, key: ContentKey) -> bool {
        self.free.was_recently_reclaimed(key)
    }
}

/// Is informed of every block that is taken. It must not call the pool.
///
/// The contents of a block end when the block is taken. The taking thread calls the observer while it holds no
/// claim, and before the new owner can give the block another key.
pub(crate) trait TakeObserver: Send + Sync {
    /// Notes that each of `ids` has a new owner.
    fn taken(&self, ids: &[BlockId]);

    /// Calls `end`, which ends contents and returns their blocks. No content is published during the call.
    fn ending(&self, end: &mut dyn FnMut() -> Vec<BlockId>);
}

/// Learns of cached contents that are overwritten. It may call the cache, and may panic.
pub(crate) trait OverwriteObserver: Send + Sync {
    /// Reports the contents of reclaimed blocks. The caller owns the blocks and holds no lock or claim.
    fn report(&self, ids: &[BlockId]);
}

/// The observers of a pool.
#[derive(Default)]
pub(crate) struct Observers {
    pub(crate) takes: Option<Box<dyn TakeObserver>>,
    pub(crate) overwrites: Option<PlainArc<dyn OverwriteObserver>>,
}

impl Observers {
    fn taken(&self, ids: &[BlockId]) {
        if let Some(observer) = &self.takes {
            observer.taken(ids);
        }
    }
}

/// One of several counted references to a pool.
///
/// With a single `Arc` for all tables, every allocation and release of every thread would write one
/// cache line. The count of a stripe is mostly written by one thread.
#[derive(Clone)]
pub(crate) struct PoolHandle(Arc<CachePadded<Stripe>>);

struct Stripe {
    blocks: Arc<Blocks>,
    forks: AtomicU64,
    /// The groups of the cache, if it has any: a copy of this stripe's own.
    layout: Option<Arc<GroupLayout>>,
}

impl PoolHandle {
    /// Creates a stripe and returns its first reference.
    pub(super) fn new(blocks: Arc<Blocks>, layout: Option<&GroupLayout>) -> Self {
        let layout = layout.map(|layout| Arc::new(layout.clone()));
        Self(Arc::new(CachePadded::new(Stripe { blocks, forks: AtomicU64::new(0), layout })))
    }

    /// Returns the groups of the cache, if it has any.
    #[inline]
    pub(crate) fn layout(&self) -> Option<&Arc<GroupLayout>> {
        self.0.layout.as_ref()
    }

    pub(super) fn forks(&self) -> u64 {
        // Relaxed: a statistic.
        self.0.forks.load(Ordering::Relaxed)
    }

    pub(crate) fn is_of_same_pool(&self, other: &PoolHandle) -> bool {
        Arc::ptr_eq(&self.0.blocks, &other.0.blocks)
    }

    /// Returns a number that no other pool has during the life of this one.
    pub(crate) fn address(&self) -> usize {
        &*self.0.blocks as *const Blocks as usize
    }

    pub(crate) fn count_fork(&self) {
        // Relaxed: a statistic.
        self.0.forks.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::ops::Deref for PoolHandle {
    type Target = Blocks;

    #[inline]
    fn deref(&self) -> &Blocks {
        &self.0.blocks
    }
}
