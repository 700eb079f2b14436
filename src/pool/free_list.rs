//! `FreeList`: the free blocks of a pool, in magazines of home shards and a depot (Bonwick and Adams 2001).
//!
//! ```text
//!   thread ──claims──> home shard: a magazine of loose ids + ledger
//!                        │ full: spill a batch           ▲ empty: refill a batch
//!                        ▼                               │
//!                      depot: ArrayQueue<Batch>, one queue operation per BATCH blocks
//! ```
//!
//! A thread claims its home shard with one exchange, copies ids, writes their words, and unlocks the shard
//! with one store. Mostly no other thread uses the shard. If another thread has claimed it, the thread takes
//! the next shard instead of waiting.
//!
//! Invariants: ids move only under a claim, so a free id is in a shard, in the depot, or with the holder of a
//! claim. A block becomes free, or stops being free, under a claim. No thread waits for a claim while it
//! holds one, except the one thread that holds `shortage`.
//!
//! **Progress.** A refusal by the ledgers waits for no thread. If the home shard or the depot
//! has enough blocks, an allocation waits in two cases only: every shard is claimed (likely with one shard),
//! or a thread was descheduled between its two writes in `ArrayQueue`. Otherwise it tries the other shards
//! once, then takes the `shortage` mutex and claims every shard. It waits for each thread that holds a claim,
//! and threads that need a claim wait for it. A rare call that raises the floor of the room ([`room`]) does so too.
//! A release or a match that finds the idle lists full of stale entries claims one shard after the other, and waits
//! for each holder ([`stale`]).
//!
//! The free list holds ids only, and imports no table.

mod audit;
#[cfg(test)]
mod between_shards;
mod by_level;
mod choice;
mod give;
mod home_shard;
mod match_cached;
mod oldest;
mod reclaim;
mod room;
mod stale;
mod steal;
#[cfg(test)]
mod tests;

pub(crate) use self::by_level::NewLevel;
use self::home_shard::{BATCH, Claim, FreeBatch, Shard, room_for_ids};
pub(crate) use self::match_cached::Matching;
use self::room::RoomFloor;
use super::accounting::{IdleTotals, Ledger, Peak, Totals, idle_totals, room_at_most, totals};
use super::content_key::ContentKey;
use super::idle::IdleLists;
use super::idle::hit_density::HitDensity;
use super::idle::policy::Retention;
use super::word::BlockWords;
use crate::array::queue_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{ArrayQueue, Backoff, CachePadded, Mutex, thread_ordinal};

pub(super) use self::home_shard::MAGAZINE;

/// The free blocks of a pool.
pub(crate) struct FreeList {
    total: usize,
    shards: Box<[CachePadded<Shard>]>,
    depot: ArrayQueue<FreeBatch>,
    idle: IdleLists,
    /// Serializes collectors. Never taken while a claim is held.
    shortage: Mutex<()>,
    floor: RoomFloor,
    peak: CachePadded<Peak>,
}

impl FreeList {
    /// Creates a free list over `shards` home shards (a power of two) with `total` free blocks from `first`
    /// on. `keep` selects whether released blocks keep their contents.
    pub(crate) fn new(first: u32, total: usize, shards: usize, keep: Retention) -> Result<Self> {
        assert!(shards.is_power_of_two(), "the number of home shards is a power of two");
        let loose = room_for_ids(total, shards, keep);
        let floor = RoomFloor::new(total, shards);
        let shard = |_| Shard::new(loose, floor.quota(), keep).map(CachePadded::new);
        let list = Self {
            total,
            // Only full batches go in: never more than total / BATCH.
            depot: queue_of(if shards == 1 { 1 } else { total / BATCH + shards })?,
            idle: IdleLists::new(total, shards, keep)?,
            shards: (0..shards).map(shard).collect::<Result<_>>()?,
            shortage: Mutex::new(()),
            peak: CachePadded::new(Peak::new()),
            floor,
        };
        let mut home = list.shards[0].try_claim().expect("nobody else knows the list yet");
        // Downwards, so that a fresh pool hands out ascending ids.
        for id in (first..first + total as u32).rev() {
            home.push(BlockId(id), &list.depot);
        }
        if shards > 1 {
            home.spill_all(&list.depot);
        }
        drop(home);
        Ok(list)
    }

    /// Moves `n` blocks to the end of `out`, each with one owner: all or none. Returns how many of them were
    /// idle and are reclaimed; these are the last ones. A refusal returns the room that there was.
    #[inline]
    pub(crate) fn take(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Result<usize, usize> {
        if self.take_at_home(n, words, out) {
            return Ok(0);
        }
        self.take_beyond_home(n, words, out)
    }

    /// Takes as [`take`](Self::take) does, but waits for no claim and searches no further than [`Search::Near`].
    /// Returns `None` if that does not suffice. More than a batch comes only from the magazine.
    #[inline]
    pub(crate) fn try_take_fast(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Option<usize> {
        if self.take_at_home(n, words, out) {
            return Some(0);
        }
        if n > BATCH {
            return None;
        }
        let mut home = self.home().try_claim()?;
        self.gather(&mut home, n, words, out, Search::Near)
    }

    /// Returns the blocks that left room and that came back, so far.
    pub(crate) fn totals(&self) -> Totals {
        totals(self.ledgers())
    }

    /// Returns the number of blocks in use, at most the total.
    pub(crate) fn used(&self) -> usize {
        self.totals().used().min(self.total)
    }

    /// Returns the peak number of blocks in use, exact with one shard. With several it is sampled: see
    /// [`note_peak`](Self::note_peak).
    pub(crate) fn peak(&self) -> usize {
        self.peak.note(self.used_at_least());
        self.peak.get()
    }

    /// Returns the blocks that can be taken, free or idle, at some moment near the call.
    pub(crate) fn room(&self) -> usize {
        room_at_most(self.total, self.ledgers())
    }

    pub(crate) fn was_recently_reclaimed(&self, key: ContentKey) -> bool {
        self.idle.recall(key)
    }

    /// Gives blocks the time of their release anew, in a pool with a learned order.
    pub(crate) fn renew_notes(&self, ids: &[BlockId], words: &BlockWords) {
        ids.iter().for_each(|&id| self.idle.renew_note(id, words));
    }

    /// Returns the learned order of reclaim, if the pool has one.
    #[inline]
    pub(crate) fn density(&self) -> Option<&HitDensity> {
        self.idle.density()
    }

    pub(crate) fn idle_totals(&self) -> IdleTotals {
        idle_totals(self.total, self.ledgers())
    }

    fn used_at_least(&self) -> usize {
        self.total - room_at_most(self.total, self.ledgers())
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    fn ledgers(&self) -> impl Iterator<Item = &Ledger> + Clone {
        self.shards.iter().map(|shard| shard.ledger())
    }

    fn refuse_if_short(&self, n: usize) -> Result<(), usize> {
        if self.floor.is_at_least(n) {
            return Ok(());
        }
        let room = room_at_most(self.total, self.ledgers());
        if room < n { Err(room) } else { Ok(()) }
    }

    #[inline]
    fn shard_of(&self, ordinal: usize) -> &Shard {
        &self.shards[ordinal & (self.shards.len() - 1)]
    }

    #[inline]
    fn home(&self) -> &Shard {
        self.shard_of(thread_ordinal())
    }

    /// Claims the home shard, or the next one that is not claimed.
    fn claim(&self) -> Claim<'_> {
        let home = thread_ordinal();
        let mut backoff = Backoff::new();
        loop {
            for step in 0..self.shards.len() {
                if let Some(claim) = self.shard_of(home.wrapping_add(step)).try_claim() {
                    return claim;
                }
            }
            backoff.wait();
        }
    }

    #[inline]
    fn take_at_home(&self, n: usize, words: &BlockWords, out: &mut Vec<BlockId>) -> bool {
        let Some(mut home) = self.home().try_claim() else {
            return false;
        };
        if n > home.len() {
            return false;
        }
        home.pop_owned(n, words, out);
        self.took(&home, n);
        if self.shards.len() == 1 {
            self.note_peak(&home, n);
        }
        true
    }

    /// Allocates when a claim of the home shard does not suffice.
    #[cold]
    fn take_beyond_home(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Result<usize, usize> {
        // Before `out` grows: a refusal must cost neither memory nor contents, and leave their order.
        self.refuse_if_short(n)?;
        out.reserve(n);
        // In a warm prefix cache nearly every allocation comes here, and ends here.
        if let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Search::Near) {
            return Ok(reclaimed);
        }
        if self.expire_levels(words)
            && let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Search::Near)
        {
            return Ok(reclaimed);
        }
        self.refuse_if_short(n)?;
        if let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Search::AllShards) {
            return Ok(reclaimed);
        }
        let _sole_collector = self.shortage.lock();
        self.take_from_all(n, words, out)
    }

    /// Takes or refuses with every shard claimed, for the holder of `shortage`: exact, and in bounded time
    /// even if other threads never pause.
    fn take_from_all(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Result<usize, usize> {
        let mut claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        // No other thread uses the depot now.
        let start = out.len();
        let end = start + n;
        for claim in &mut claims {
            claim.pop(end - out.len(), out);
        }
        self.pop_depot(&mut claims[0], end, out);
        let free_end = out.len();
        self.reclaim_from_all(&mut claims, end, words, out);
        let home = &mut claims[0];
        if out.len() < end {
            let room = out.len() - start;
            self.put_back(home, start, free_end, words, out);
            return Err(room);
        }
        self.own_taken(home, start, free_end, words, out);
        Ok(out.len() - free_end)
    }

    /// Moves `n` ids, all or none, to the end of `out` from within `search`. Returns how many of them are
    /// reclaimed. Ids that it found but did not need stay in the home shard, visible to all threads.
    fn gather(
        &self,
        home: &mut Claim<'_>,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
        search: Search,
    ) -> Option<usize> {
        let start = out.len();
        let end = start + n;
        home.pop(n, out);
        self.pop_depot(home, end, out);
        let mut reclaimed = 0;
        if words.have_keys() {
            reclaimed = self.gather_with_contents(home, end, words, out, search);
        } else if search == Search::AllShards {
            self.steal(home, end, out);
        }
        let free_end = out.len() - reclaimed;
        if out.len() < end {
            self.put_back(home, start, free_end, words, out);
            return None;
        }
        self.own_taken(home, start, free_end, words, out);
        Some(reclaimed)
    }

    /// Fills `out` up to `end` from the depot. The rest of a batch goes to `home`.
    fn pop_depot(&self, home: &mut Claim<'_>, end: usize, out: &mut Vec<BlockId>) {
        while out.len() < end
            && let Some(FreeBatch(ids)) = self.depot.pop()
        {
            let (needed, rest) = ids.split_at(BATCH.min(end - out.len()));
            out.extend_from_slice(needed);
            rest.iter().for_each(|&id| home.push(id, &self.depot));
        }
    }

    /// Gives each free block of `out[start..free_end]` its owner; the reclaimed blocks after these have one.
    /// Counts all blocks as taken through `home`.
    fn own_taken(
        &self,
        home: &mut Claim<'_>,
        start: usize,
        free_end: usize,
        words: &BlockWords,
        out: &[BlockId],
    ) {
        let view = words.view();
        out[start..free_end].iter().for_each(|&id| view.occupy(id));
        let ledger = home.ledger();
        if free_end < out.len() {
            self.idle.finish_reclaim(&out[free_end..], words);
            ledger.reclaimed((out.len() - free_end) as u64);
        }
        self.took(home, out.len() - start);
        self.note_peak(home, out.len() - start);
    }
}

/// How far a thread searches for blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    /// The home shard, the depot, and where contents are kept the shards with which the home is compared.
    Near,
    /// Every other shard, too.
    AllShards,
}
