//! `IdleLists` and `IdleShard`: a pool's idle blocks in reclaim order, the least recently used block first.
//!
//! ```text
//!   last release ──> list of the home shard, by rank ──> reclaim, by its home or by a thread without older ones
//! ```
//!
//! Each time a block becomes idle it gets an entry with its epoch, in the releasing thread's home shard. A match
//! leaves the entry in place and writes only the block's word. The thread that reads the entry later finds that
//! the block has changed, and drops the entry. An epoch has 8 bits, marked with the block's key. If the block became
//! idle a multiple of 256 times since, or if the mark of a later content happens to fit (one in 256), an old entry
//! passes for its last one, and the block is reclaimed too early.
//!
//! A ticket *holds* a block that it copies ahead of the reclaim: its entry keeps its place, and counts again when the
//! block comes back unused. A reclaim that meets the entry removes it, and the block comes back as the first of its rank.
//!
//! A shard has a list for each rank: *spare*, *cold*, and under `ReclaimPolicy::TwoQueue` *hot*. A *spare* block
//! holds a further copy of a content that another block was cached under, and no match has asked for this copy.
//! Spare blocks are reclaimed before all others. Then the older of the first cold and the first hot block is;
//! the age of a hot block is divided by three. Under `ReclaimPolicy::HitDensity` the lists of classes take the place of
//! *cold* and *hot* ([`ranked`]). Contents with a level have lists of the whole pool, before and after these
//! ([`levels`]).
//!
//! **Time** orders entries of different shards. It is the number of entries that were added to all lists. A shard
//! reads the shared clock before it adds a batch, and adds its entries to the clock once there are [`STRIDE`] of them. A
//! shard shows the time of its first entry to other threads, which read it without a claim.
//!
//! Invariant: an idle block has an entry of its epoch in a list, for a thread with all claims. So has a held one that was
//! not passed.

mod age;
mod first;
mod ghosts;
pub(crate) mod hit_density;
mod kept_slot;
pub(crate) mod levels;
mod list;
mod listed;
mod noted_ghosts;
pub(crate) mod policy;
mod ranked;
mod slab;

use self::age::Oldest;
pub(crate) use self::age::{AgeBound, AgedBlock};
pub(crate) use self::first::ShownFirst;
use self::ghosts::Ghosts;
use self::hit_density::HitDensity;
use self::kept_slot::KeptSlot;
use self::levels::Levels;
use self::list::IdleList;
use self::policy::{ReclaimPolicy, Retention};
use self::ranked::{RANKS, RankedLists};
pub(super) use self::slab::BATCH;
use self::slab::IdleSlab;
use super::content_key::ContentKey;
use super::word::{BlockWords, IdleBlock, ReleasedIdle};
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU64, CachePadded, Ordering};

/// Entries of a shard after which it adds them to the clock.
const STRIDE: u64 = 64;

/// A shard drops its stale entries again once entries for a share of the pool were added: one over this.
const DROPS_A_POOL: usize = 16;

/// The lists of a shard, by rank.
const SPARE: usize = 0;
const COLD: usize = 1;
const HOT: usize = 2;
const MOST_RANKS: usize = 3;

/// The rank of a block in the list of its class.
const BY_CLASS: usize = usize::MAX;

/// The memory of the idle lists, their clock, and the keys of recently reclaimed contents.
pub(crate) struct IdleLists {
    slab: IdleSlab,
    ghosts: Ghosts,
    num_ranks: usize,
    /// The learned order, if the pool has it. Then blocks that are not spare are in the lists of their classes.
    density: Option<Box<HitDensity>>,
    levels: Option<Box<Levels>>,
    /// True in a pool with a learned order or levels.
    has_notes: bool,
    /// Entries that shards have added.
    clock: CachePadded<AtomicU64>,
    /// Turns of shards to drop their stale entries.
    turns: AtomicU64,
    /// Entries that are added between two drops of a shard's stale ones.
    between_drops: u64,
}

/// The idle lists of one shard. Written only under its claim.
pub(crate) struct IdleShard {
    /// The time of the first cold entry and of the first hot one; see [`Oldest`]. Other threads read it.
    oldest: CachePadded<[AtomicU64; 2]>,
    /// The time of the last entry.
    time: AtomicU64,
    /// Entries that the clock does not count yet.
    uncounted: AtomicU64,
    kept: KeptSlot,
    /// True if the shard took a slot while the slab was crowded, or was claimed when its turn came.
    is_due: AtomicBool,
    /// The time at which stale entries were dropped last.
    dropped: AtomicU64,
    lists: [IdleList; MOST_RANKS],
    /// The lists of a learned order, if the pool has one.
    ranked: RankedLists,
}

impl IdleLists {
    /// Creates lists for a pool of `total` blocks. Allocates no slots where no contents are kept.
    pub(crate) fn new(total: usize, shards: usize, keep: Retention) -> Result<Self> {
        let num_ranks = match keep.policy() {
            None => 0,
            Some(ReclaimPolicy::Lru) => HOT,
            Some(ReclaimPolicy::TwoQueue) => MOST_RANKS,
            Some(ReclaimPolicy::HitDensity) => RANKS,
        };
        let is_learned = num_ranks == RANKS;
        let density = is_learned.then(|| HitDensity::new(total, shards).map(Box::new));
        let has_levels = matches!(keep, Retention::Levels(_));
        // One more id than blocks: block 0 may be the null block.
        let levels = has_levels.then(|| Levels::new(total + 1).map(Box::new));
        Ok(Self {
            slab: IdleSlab::new(total, shards, num_ranks)?,
            ghosts: match num_ranks {
                MOST_RANKS => Ghosts::new(total)?,
                RANKS => Ghosts::of_all(),
                _ => Ghosts::new(0)?,
            },
            num_ranks,
            density: density.transpose()?,
            levels: levels.transpose()?,
            has_notes: is_learned || has_levels,
            clock: CachePadded::new(AtomicU64::new(Oldest::FIRST)),
            turns: AtomicU64::new(0),
            between_drops: (total / DROPS_A_POOL) as u64,
        })
    }

    /// Returns true if the content with this `key` was recently reclaimed. The memory is limited and may err.
    pub(crate) fn recall(&self, key: ContentKey) -> bool {
        self.ghosts.recall(key)
    }

    /// Drops the contents of reclaimed blocks, now that they suffice for the request.
    pub(crate) fn finish_reclaim(&self, ids: &[BlockId], words: &BlockWords) {
        let view = words.view();
        for &id in ids {
            let was_spare = view.finish_reclaim(id);
            // Another block mostly still holds the content of a spare block.
            if !self.ghosts.is_empty() && !was_spare {
                self.ghosts.remember(words.keyed().key(id));
            }
        }
        if self.has_notes {
            self.forget_notes(ids, words);
        }
    }

    #[cold]
    fn forget_notes(&self, ids: &[BlockId], words: &BlockWords) {
        if let Some(density) = &self.density {
            density.forget(ids, words.keyed());
        }
        if let Some(levels) = &self.levels {
            levels.forget(ids);
        }
    }

    /// Gives an idle block the time of its release anew, in a pool with a learned order.
    #[inline]
    pub(in crate::pool) fn renew_note(&self, id: BlockId, words: &BlockWords) {
        if let Some(density) = &self.density {
            density.renew(id, words.keyed());
        }
    }

    /// Returns the learned order, if the pool has one.
    #[inline]
    pub(crate) fn density(&self) -> Option<&HitDensity> {
        self.density.as_deref()
    }

    /// Returns true if stale entries take so many slots that shards must drop theirs in turn.
    pub(crate) fn is_crowded(&self) -> bool {
        self.slab.is_crowded()
    }

    /// Returns true if so few slots are left that all shards must drop their stale entries.
    pub(crate) fn is_full(&self) -> bool {
        self.slab.is_full()
    }

    /// Returns the number of the next turn.
    pub(crate) fn next_turn(&self) -> usize {
        // Relaxed: turns may be taken in any order.
        self.turns.fetch_add(1, Ordering::Relaxed) as usize
    }

    #[inline]
    fn rank_of(&self, left: ReleasedIdle) -> usize {
        match left {
            ReleasedIdle { spare: true, .. } => SPARE,
            _ => match self.num_ranks {
                RANKS => BY_CLASS,
                MOST_RANKS if left.hot => HOT,
                _ => COLD,
            },
        }
    }

    /// Returns the number of entries that shards have added to the clock.
    pub(crate) fn now(&self) -> u64 {
        // Relaxed: only the reclaim order depends on the time.
        self.clock.load(Ordering::Relaxed)
    }
}

// All accesses are Relaxed: they are made under the claim only, whose hand-over orders them. Other threads use
// `oldest`, `is_due` and `dropped`, for which a guess suffices.
impl IdleShard {
    pub(crate) fn new(keep: Retention) -> Self {
        Self {
            oldest: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(Oldest::NEVER))),
            time: AtomicU64::new(Oldest::FIRST),
            uncounted: AtomicU64::new(0),
            kept: KeptSlot::new(),
            is_due: AtomicBool::new(false),
            dropped: AtomicU64::new(Oldest::NEVER),
            lists: std::array::from_fn(|_| IdleList::new()),
            ranked: RankedLists::new(keep),
        }
    }

    fn all_lists(&self) -> impl Iterator<Item = &IdleList> {
        self.lists.iter().chain(self.ranked.all())
    }

    /// Returns the times of the first entries, for any thread.
    pub(crate) fn oldest(&self) -> Oldest {
        Oldest { times: self.oldest.each_ref().map(|time| time.load(Ordering::Relaxed)) }
    }

    /// Returns true if there was a spare block when it was read without a claim.
    pub(in crate::pool) fn shows_spare(&self) -> bool {
        self.oldest().times[0] == Oldest::FIRST
    }

    /// Returns true if there was no entry when it was read without a claim.
    pub(crate) fn seems_empty(&self) -> bool {
        self.oldest().times == [Oldest::NEVER; 2]
    }

    /// Returns the shard's time.
    pub(crate) fn now(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }

    /// Returns true if the next holder of the claim should drop stale entries.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.is_due.load(Ordering::Relaxed)
    }

    /// Notes whether the next holder of the claim should drop stale entries, for any thread.
    pub(crate) fn set_due(&self, is_due: bool) {
        self.is_due.store(is_due, Ordering::Relaxed);
    }

    /// Returns true if a drop may give back slots, and the last one was long ago. Without a claim it is a guess.
    pub(crate) fn may_drop(&self, lists: &IdleLists) -> bool {
        let since = lists.now().saturating_sub(self.dropped.load(Ordering::Relaxed));
        since >= lists.between_drops && self.all_lists().any(IdleList::has_slots_to_spare)
    }

    /// Sets the time by the clock, before a batch of entries.
    #[inline]
    pub(in crate::pool) fn read_clock(&self, lists: &IdleLists) {
        // Relaxed: only the reclaim order depends on the time.
        let clock = lists.clock.load(Ordering::Relaxed);
        self.time.store(clock + self.uncounted.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Counts the entries of a batch.
    #[inline]
    pub(in crate::pool) fn count(&self, entries: usize, lists: &IdleLists) {
        let mut uncounted = self.uncounted.load(Ordering::Relaxed) + entries as u64;
        if uncounted >= STRIDE {
            lists.clock.fetch_add(uncounted, Ordering::Relaxed);
            uncounted = 0;
        }
        self.uncounted.store(uncounted, Ordering::Relaxed);
    }

    /// Adds an entry for a block that became idle, whose content has the default level.
    #[inline]
    pub(in crate::pool) fn push(&self, left: ReleasedIdle, lists: &IdleLists, words: &BlockWords) {
        let rank = lists.rank_of(left);
        if rank == BY_CLASS {
            return self.push_ranked(left.block, lists, words);
        }
        let (list, time) = (&self.lists[rank], self.now() + 1);
        let entry = words.keyed().mark_epoch(left.block);
        self.time.store(time, Ordering::Relaxed);
        if list.is_at_border() {
            return self.push_at_border(entry, time, list, lists);
        }
        list.append(entry, time, &lists.slab);
    }

    /// Adds the first entry of a list or of a slot.
    #[cold]
    #[inline(never)]
    fn push_at_border(&self, entry: IdleBlock, time: u64, list: &IdleList, lists: &IdleLists) {
        if list.needs_slot() && self.kept.is_empty() && lists.is_crowded() {
            self.set_due(true);
        }
        let is_first = list.is_empty();
        list.push(entry, time, &lists.slab, &self.kept);
        if is_first {
            self.show_oldest(lists);
        }
    }

    /// Drops the stale entries of this shard.
    pub(crate) fn drop_stale(&self, lists: &IdleLists, words: &BlockWords) {
        self.dropped.store(lists.now(), Ordering::Relaxed);
        self.all_lists().for_each(|list| list.compact(&lists.slab, words));
        self.show_oldest(lists);
    }

    /// Moves idle blocks to the end of `out` and reclaims each, until `out` has `end` ids or the first block
    /// is not as old as `bound` demands. The caller finishes or undoes the reclaim.
    pub(in crate::pool) fn reclaim(
        &self,
        end: usize,
        bound: AgeBound,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let (view, keyed) = (words.view(), words.keyed());
        let mut looked_at = 0;
        while out.len() < end {
            let Some(list) = self.first_list(bound, lists) else { break };
            if looked_at == 0 {
                // Prefetch the next words: an exchange delays later loads.
                looked_at = end - out.len();
                view.prefetch(list.first(looked_at, &lists.slab));
            }
            looked_at -= 1;
            let idle = list.pop(&lists.slab, &self.kept).expect("it has an entry");
            if view.reclaim(keyed.mark_epoch(idle)) {
                out.push(idle.id);
            }
        }
        if out.len() < end {
            if let Some(density) = lists.density() {
                return self.reclaim_ranked(end, bound.rival, density, lists, words, out);
            }
            // Stale entries made the shard look older than it is.
            self.lists.iter().for_each(|list| list.trim(&lists.slab, &self.kept, words));
        }
        self.show_oldest(lists);
    }

    /// Does as [`reclaim`](Self::reclaim) with spare blocks only.
    #[cold]
    pub(in crate::pool) fn reclaim_spare(
        &self,
        end: usize,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let (view, keyed, spare) = (words.view(), words.keyed(), &self.lists[SPARE]);
        if spare.is_empty() {
            return;
        }
        while out.len() < end
            && let Some(idle) = spare.pop(&lists.slab, &self.kept)
        {
            if view.reclaim(keyed.mark_epoch(idle)) {
                out.push(idle.id);
            }
        }
        self.show_oldest(lists);
    }

    /// Returns the list of the block that is reclaimed first, if the block is old enough.
    #[inline]
    fn first_list(&self, bound: AgeBound, lists: &IdleLists) -> Option<&IdleList> {
        let [spare, cold, hot] = &self.lists;
        if !spare.is_empty() {
            return Some(spare);
        }
        if hot.is_empty() && bound.age == 0 {
            return (!cold.is_empty()).then_some(cold);
        }
        let times = [cold, hot].map(|list| list.oldest(&lists.slab).unwrap_or(Oldest::NEVER));
        let oldest = Oldest { times };
        let list = if oldest.is_hot_first(bound.now) { hot } else { cold };
        oldest.age(bound.now).filter(|&age| age >= bound.age).map(|_| list)
    }

    /// Shows other threads the times of the first entries.
    fn show_oldest(&self, lists: &IdleLists) {
        let [spare, cold, hot] = &self.lists;
        let time = |list: &IdleList| list.oldest(&lists.slab).unwrap_or(Oldest::NEVER);
        let cold = match spare.is_empty() {
            true if self.ranked.is_present() => self.ranked.oldest(&lists.slab),
            true => time(cold),
            false => Oldest::FIRST,
        };
        for (shown, time) in self.oldest.iter().zip([cold, time(hot)]) {
            if shown.load(Ordering::Relaxed) != time {
                shown.store(time, Ordering::Relaxed);
            }
        }
    }
}
