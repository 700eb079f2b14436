//! The room of the free list, known without a count: a floor that the room is not below.
//!
//! A count of the room reads the ledgers of all shards, lines that other threads write. Most requests need only
//! the answer that there is enough. Each shard has a limit for the blocks that are taken and not given through it.
//! The *floor* is the number of all blocks less the limits of all shards. So it is at most the room.
//!
//! A shard whose balance exceeds its limit raises the limit by that and a quota, and lowers the floor by as much:
//! under its claim, before its blocks are used. Until then others may still trust the old floor, as if they had come
//! before it. Limits stay when blocks come back, also through another shard. So the floor falls behind the room.
//! When it is less than half of the room, a thread sets all limits anew, under the claims of all shards.
//!
//! Pools of one shard or of few blocks have no quotas and no floor: they count each time.

use super::FreeList;
use super::home_shard::Claim;
use crate::pool::accounting::{Quota, room_at_most};
use crate::sync::{AtomicU64, CachePadded, Ordering};

/// A thread notes the peak once in so many blocks times the number of shards. So it reads about one ledger for each so
/// many blocks.
const PEAK_STRIDE: usize = 32;

/// The room that a pool is known to have.
pub(super) struct RoomFloor {
    quota: Quota,
    /// The blocks of the quotas of all shards; none in a pool without quotas.
    quotas: Option<usize>,
    /// All blocks less the limits of all shards, an `i64`. Read by every admission, and seldom written.
    floor: CachePadded<AtomicU64>,
}

impl RoomFloor {
    /// Creates the floor of a pool of `total` blocks, all free.
    pub(super) fn new(total: usize, shards: usize) -> Self {
        let quota = Quota::of_shards(total, shards);
        let quotas = quota.all(shards);
        let floor = quotas.map_or(0, |quotas| (total - quotas) as u64);
        Self { quota, quotas, floor: CachePadded::new(AtomicU64::new(floor)) }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// Returns false for a pool of one shard or of few blocks.
    pub(super) fn has_quotas(&self) -> bool {
        self.quotas.is_some()
    }

    /// Returns true if the floor is at least `n`.
    #[inline]
    pub(super) fn is_at_least(&self, n: usize) -> bool {
        self.get() >= n
    }

    #[inline]
    fn get(&self) -> usize {
        // Relaxed: the floor is a bound by itself, and exchanges alone lower it. An admission that trusts it has a
        // fence before, see `BlockWatermark::is_kept`.
        (self.floor.load(Ordering::Relaxed) as i64).max(0) as usize
    }
}

impl FreeList {
    /// Returns true if there are at least `n` blocks of room, free or idle, at some moment near the call. Mostly
    /// without a count.
    #[inline]
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.floor.is_at_least(n) || self.count_room() >= n
    }

    /// Counts the room, and raises the floor if it is far below.
    #[cold]
    fn count_room(&self) -> usize {
        let room = room_at_most(self.total, self.ledgers());
        if let Some(quotas) = self.floor.quotas
            && room / 2 > self.floor.get() + quotas
        {
            self.raise_floor();
        }
        room
    }

    /// Sets all limits anew. Waits for each thread that holds a claim, as an allocation does that collects from all
    /// shards.
    #[cold]
    fn raise_floor(&self) {
        let _sole_collector = self.shortage.lock();
        let claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        claims.iter().for_each(|claim| self.set_limit(claim));
    }

    /// Sets a shard's limit to a quota above its balance, and the floor with it.
    #[cold]
    #[inline(never)]
    fn set_limit(&self, shard: &Claim<'_>) {
        let change = shard.ledger().set_limit(self.floor.quota);
        if self.floor.quotas.is_some() {
            // Relaxed: as in `RoomFloor::get`.
            self.floor.floor.fetch_add((-change) as u64, Ordering::Relaxed);
        }
    }

    /// Counts blocks that left room through a shard, and raises its limit if the balance exceeds it.
    #[inline]
    pub(super) fn took(&self, home: &Claim<'_>, blocks: usize) {
        if home.ledger().took(blocks as u64) {
            self.set_limit(home);
        }
    }

    /// Notes the number of blocks in use, after `blocks` were taken through a shard: each time in a pool of one shard.
    /// With several, only matches and allocations that the magazine cannot serve come here. Each of them notes in a
    /// pool of few blocks, else one in [`PEAK_STRIDE`] blocks times the number of shards.
    pub(super) fn note_peak(&self, home: &Claim<'_>, blocks: usize) {
        if self.shards.len() == 1 {
            self.peak.note(home.ledger().read().used());
            return;
        }
        let unnoted = &home.shard.choice.unnoted;
        // Relaxed: written under the claim only.
        let sum = unnoted.load(Ordering::Relaxed) as usize + blocks;
        let is_due = self.floor.quotas.is_none() || sum >= PEAK_STRIDE * self.shards.len();
        unnoted.store(if is_due { 0 } else { sum as u32 }, Ordering::Relaxed);
        if is_due {
            self.peak.note(self.used_at_least());
        }
    }
}
