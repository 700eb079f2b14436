//! Which block is free? Home shards, each with a magazine of ids, in front of a depot.
//!
//! ```text
//!   thread ──claims──> home shard: a magazine of loose ids + ledger
//!                        │ full: spill a batch           ▲ empty: refill a batch
//!                        ▼                               │
//!                      depot: ArrayQueue<Batch>, one queue operation per BATCH blocks
//! ```
//!
//! A thread claims its home shard with one exchange, copies ids, writes their words and lets go
//! with one store. It mostly meets only itself. Where it does not, it goes on to a neighbour
//! instead of waiting.
//!
//! Invariants: ids move only under a claim, so a free id is in a shard, in the depot, or in the
//! hands of a claim's holder; a block becomes free, or stops being free, under a claim; nobody
//! waits for a claim while holding one, but for the one thread that holds `shortage`.
//!
//! **Progress.** A refusal by the ledgers waits for nobody; where contents are kept, one that asks for
//! a batch or less looks for idle blocks first, under a claim. An allocation that finds enough in its
//! home shard or in the depot waits only where every shard is claimed (which a pool of one shard
//! makes likely) or inside `ArrayQueue` for a thread descheduled between its two writes there. One
//! that must look further tries the other shards once, and then takes the `shortage` mutex and
//! claims them all: it waits for whoever is in one, and who needs one meanwhile waits for it.
//!
//! The free list does not know what blocks are for.

mod audit;
mod idle;
mod matching;
mod shard;
#[cfg(test)]
mod tests;

use self::idle::IdleLists;
pub(crate) use self::matching::Matching;
use self::shard::{BATCH, Batch, Claim, Shard};
use super::capacity::{IdleTotals, Ledger, Peak, Totals, idle_totals, room_at_most, totals};
use super::name::Name;
use super::reclaim::Keep;
use super::state::{BlockWords, Left};
use crate::array::queue_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{ArrayQueue, Backoff, CachePadded, Mutex, Ordering, thread_ordinal};

pub(super) use self::shard::MAGAZINE;

/// The free blocks of a pool.
pub(crate) struct FreeList {
    total: usize,
    shards: Box<[CachePadded<Shard>]>,
    depot: ArrayQueue<Batch>,
    idle: IdleLists,
    /// Serializes collectors. Never taken while a claim is held.
    shortage: Mutex<()>,
    peak: Peak,
}

impl FreeList {
    /// A list in which the blocks `first..first + total` are free, over `shards` (a power of two)
    /// home shards, of whose contents is kept what `keep` says.
    pub(crate) fn new(first: u32, total: usize, shards: usize, keep: Keep) -> Result<Self> {
        assert!(shards.is_power_of_two(), "the number of home shards is a power of two");
        // A lone shard holds everything, and a batch still being released, and needs no depot.
        let loose = if shards == 1 { total + BATCH } else { MAGAZINE };
        let shard = |_| Shard::new(loose, keep).map(CachePadded::new);
        let list = Self {
            total,
            // Only full batches go in: never more than total / BATCH.
            depot: queue_of(if shards == 1 { 1 } else { total / BATCH + shards })?,
            idle: IdleLists::new(total, shards, keep)?,
            shards: (0..shards).map(shard).collect::<Result<_>>()?,
            shortage: Mutex::new(()),
            peak: Peak::new(),
        };
        let mut home = list.shards[0].try_claim().expect("nobody else knows the list yet");
        // Downwards, so that a fresh pool hands out ascending ids.
        for id in (first..first + total as u32).rev() {
            home.push(BlockId(id), &list.depot);
        }
        drop(home);
        Ok(list)
    }

    /// Moves `n` free blocks to the end of `out`, each with one owner: all, or (refused with the
    /// room there was) none. Returns how many of them, the last ones, were idle and are reclaimed.
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

    /// As [`take`](Self::take), but only from the home shard and the depot, and without waiting
    /// for another thread's claim: `None` when that does not do.
    #[inline]
    pub(crate) fn try_take_near(
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
        self.gather(&mut home, n, words, out, Reach::Idle)
    }

    /// Takes an owner off each of `ids`, last one first; those that become free come back to room.
    #[inline]
    pub(crate) fn give(&self, ids: &[BlockId], words: &BlockWords) {
        if ids.is_empty() {
            return;
        }
        if ids.len() <= BATCH
            && let Some(mut home) = self.home().try_claim()
        {
            self.give_batch(&mut home, ids, words);
        } else {
            self.give_batches(ids, words);
        }
    }

    /// Blocks that left and returned to room so far.
    pub(crate) fn totals(&self) -> Totals {
        totals(self.ledgers())
    }

    /// Blocks in use, never more than there are.
    pub(crate) fn used(&self) -> usize {
        self.totals().used().min(self.total)
    }

    /// The most blocks that were in use at once: exact with one shard. Else only refills are
    /// watched, which makes it low by what the shards' magazines gave out since, and by what came
    /// back in the middle of a look.
    pub(crate) fn peak(&self) -> usize {
        self.peak.note(self.used_at_least());
        self.peak.get()
    }

    /// Blocks that can be taken now, free or idle, at some moment near the call.
    pub(crate) fn room(&self) -> usize {
        room_at_most(self.total, self.ledgers())
    }

    pub(crate) fn was_reclaimed_of_late(&self, name: Name) -> bool {
        self.idle.recall(name)
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
        self.shards.iter().map(|shard| &shard.ledger)
    }

    fn refuse_if_short(&self, n: usize) -> Result<(), usize> {
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

    /// A claim on the home shard, or on the next one that is not claimed.
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
        if self.shards.len() == 1 {
            self.peak.note(home.shard.ledger.read().used());
        }
        true
    }

    /// The way of an allocation that a claim of the home shard does not serve.
    #[cold]
    fn take_beyond_home(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Result<usize, usize> {
        // In a warm cache of contents nearly every allocation comes here, and little ones end here.
        if words.have_names() && n <= BATCH {
            out.reserve(n);
            if let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Reach::Idle) {
                return Ok(reclaimed);
            }
        }
        // Before `out` grows: a refusal must not cost memory, nor contents.
        self.refuse_if_short(n)?;
        out.reserve(n);
        if let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Reach::Idle) {
            return Ok(reclaimed);
        }
        self.refuse_if_short(n)?;
        if let Some(reclaimed) = self.gather(&mut self.claim(), n, words, out, Reach::EveryShard) {
            return Ok(reclaimed);
        }
        let _sole_collector = self.shortage.lock();
        self.take_from_all(n, words, out)
    }

    /// Takes or refuses with every shard claimed, for the holder of `shortage`: exact, and after
    /// a bounded time even if others never rest.
    fn take_from_all(
        &self,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> Result<usize, usize> {
        let mut claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        // Nobody else is at the depot.
        let start = out.len();
        let end = start + n;
        for claim in &mut claims {
            claim.pop(end - out.len(), out);
        }
        self.pop_depot(&mut claims[0], end, out);
        let free_end = out.len();
        for claim in &mut claims {
            claim.reclaim(end, &self.idle, words, out);
        }
        let home = &mut claims[0];
        if out.len() < end {
            let room = out.len() - start;
            self.put_back(home, start, free_end, words, out);
            return Err(room);
        }
        self.own_taken(home, start, free_end, words, out);
        Ok(out.len() - free_end)
    }

    /// Releases at most `BATCH` blocks.
    #[inline]
    fn give_batch(&self, home: &mut Claim<'_>, ids: &[BlockId], words: &BlockWords) {
        // Room for all of them at once, and counts in registers: a check or a store to memory a
        // block would cost more than the block's word does.
        let len = home.make_room(ids.len(), &self.depot);
        let slots = &home.shard.ids[len..len + ids.len()];
        let mut given = 0;
        if !words.is_counted_by_id() {
            let words = words.view();
            for (slot, &id) in slots.iter().zip(ids.iter().rev()) {
                if !words.release_sole(id) {
                    break;
                }
                slot.store(id.0, Ordering::Relaxed);
                given += 1;
            }
        }
        let mut idle = 0;
        let may_idle = given < ids.len() && words.have_names();
        if given < ids.len() {
            let rest = &ids[..ids.len() - given];
            if may_idle {
                home.shard.ledger.giving(rest.len() as u64);
            }
            (given, idle) = self.give_shared(home, rest, words, given);
        }
        home.set_len(len + given);
        if idle > 0 {
            home.shard.ledger.idled(idle as u64);
        }
        home.shard.ledger.gave((given + idle) as u64);
        if may_idle {
            home.shard.ledger.giving(0);
        }
    }

    /// Takes an owner off each of `ids`, of which others may own some too, or match them. Those that
    /// become free go to the magazine behind the first `given` that are new there, those that become
    /// idle to the newest. Returns how many there are of either. Out of line: a call in the usual
    /// loop would keep its counts in memory.
    #[inline(never)]
    fn give_shared(
        &self,
        home: &mut Claim<'_>,
        ids: &[BlockId],
        words: &BlockWords,
        mut given: usize,
    ) -> (usize, usize) {
        let (view, len) = (words.view(), home.len());
        view.bring_near(ids.iter().copied());
        let mut idle = 0;
        for &id in ids.iter().rev() {
            match view.release_shared(id) {
                Left::Owned => {}
                Left::Free => {
                    home.shard.ids[len + given].store(id.0, Ordering::Relaxed);
                    given += 1;
                }
                Left::Idle(block) => {
                    home.push_idle(block, &self.idle, words);
                    idle += 1;
                }
            }
        }
        (given, idle)
    }

    #[inline(never)]
    fn give_batches(&self, ids: &[BlockId], words: &BlockWords) {
        for batch in ids.rchunks(BATCH) {
            self.give_batch(&mut self.claim(), batch, words);
        }
    }

    /// Moves `n` ids to the end of `out` from as far as `reach`, all or none, and says how many of them
    /// are reclaimed. What it saw but did not need stays in the home shard, visible to all.
    fn gather(
        &self,
        home: &mut Claim<'_>,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
        reach: Reach,
    ) -> Option<usize> {
        let start = out.len();
        let end = start + n;
        home.pop(n, out);
        self.pop_depot(home, end, out);
        // Free blocks before contents are given up, wherever they are.
        if reach == Reach::EveryShard || words.have_names() {
            self.steal(home, end, out);
        }
        let free_end = out.len();
        if words.have_names() {
            home.reclaim(end, &self.idle, words, out);
            if reach == Reach::EveryShard {
                self.reclaim_elsewhere(end, words, out);
            }
        }
        if out.len() < end {
            self.put_back(home, start, free_end, words, out);
            return None;
        }
        self.own_taken(home, start, free_end, words, out);
        Some(out.len() - free_end)
    }

    /// Fills `out` up to `end` from the depot; what is left of a batch goes to `home`.
    fn pop_depot(&self, home: &mut Claim<'_>, end: usize, out: &mut Vec<BlockId>) {
        while out.len() < end
            && let Some(Batch(ids)) = self.depot.pop()
        {
            let (needed, rest) = ids.split_at(BATCH.min(end - out.len()));
            out.extend_from_slice(needed);
            rest.iter().for_each(|&id| home.push(id, &self.depot));
        }
    }

    /// Gives each free block of `out[start..free_end]` its owner, which the reclaimed ones behind them
    /// have, and counts all as taken through `home`.
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
        let ledger = &home.shard.ledger;
        if free_end < out.len() {
            self.idle.finish_reclaim(&out[free_end..], words);
            ledger.reclaimed((out.len() - free_end) as u64);
        }
        ledger.took((out.len() - start) as u64);
        self.peak.note(self.used_at_least());
    }

    /// Fills `out` up to `end` from other shards, and takes half of each on the way: a thread
    /// that had to look elsewhere once is likely to need more.
    fn steal(&self, home: &mut Claim<'_>, end: usize, out: &mut Vec<BlockId>) {
        let ordinal = thread_ordinal();
        for step in 1..=self.shards.len() {
            if out.len() == end {
                return;
            }
            let shard = self.shard_of(ordinal.wrapping_add(step));
            // Looked at before it is claimed: in a warm cache of contents it is mostly empty.
            let Some(mut other) = shard.try_claim_unless_empty() else {
                continue;
            };
            let surplus = other.len() / 2;
            other.pop(end - out.len(), out);
            while other.len() > surplus && home.len() < BATCH {
                home.push(other.pop_one(), &self.depot);
            }
        }
    }
}

/// How far a gathering thread looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The home shard, the depot, and idle blocks that are as near.
    Idle,
    /// Every other shard besides.
    EveryShard,
}
