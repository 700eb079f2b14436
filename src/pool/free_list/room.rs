//! The room of the free list, known without a count: a floor that the room is not below.
//!
//! A count of the room reads the ledgers of all shards, lines that other threads write. Most requests need only
//! the answer that there is enough. So a count leaves a *floor*: the room that was there, less the quotas by which
//! all shards may use more before the next count.
//!
//! Why the floor holds: let t be the last count that did not lower the floor below its room less all quotas. Since
//! then no shard has used up its quota, or it has counted itself, under its claim, before its blocks are used. So the use has risen by
//! at most all quotas. The floor rises under the claims of all shards only, because then no count is under way.
//!
//! An allocation that uses up its quota lowers the floor before it ends. Until then others may still trust the old
//! floor, as if they had come before it.
//!
//! Pools of one shard or of few blocks have no quota, and no floor: they count each time.

use super::FreeList;
use super::home_shard::Claim;
use crate::pool::accounting::{Quota, room_at_least, room_at_most};
use crate::sync::{AtomicU64, CachePadded, Ordering, fence};

/// The floor rises when the room is more than this many times as large as the floor and the quotas.
const RISE: usize = 4;

/// The room that a pool is known to have.
pub(super) struct RoomFloor {
    quota: Quota,
    /// The blocks of the quotas of all shards; none in a pool without quotas.
    quotas: Option<usize>,
    /// Read by every admission, and seldom written.
    floor: CachePadded<AtomicU64>,
}

impl RoomFloor {
    /// Creates the floor of a pool of `total` blocks, all free.
    pub(super) fn new(total: usize, shards: usize) -> Self {
        let quota = Quota::of_shards(total, shards);
        let quotas = quota.all(shards);
        let floor = quotas.map_or(0, |quotas| total / 2 - quotas);
        Self { quota, quotas, floor: CachePadded::new(AtomicU64::new(floor as u64)) }
    }

    #[inline]
    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    #[inline]
    fn get(&self) -> usize {
        // Acquire: pairs with `lower`. A thread that reads the lowered floor also counts the blocks for which it was
        // lowered.
        self.floor.load(Ordering::Acquire) as usize
    }

    /// Lowers the floor to `floor`, unless it is that low.
    fn lower(&self, floor: usize) {
        let floor = floor as u64;
        let lower = |now| (now > floor).then_some(floor);
        // AcqRel: pairs with `get`.
        let _ = self.floor.fetch_update(Ordering::AcqRel, Ordering::Acquire, lower);
    }
}

impl FreeList {
    /// Returns true if there are at least `n` blocks of room, free or idle, at some moment near the call. A count
    /// may be needed, or not.
    #[inline]
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.floor.get() >= n || self.count_room() >= n
    }

    /// Counts the room, and raises the floor if it is far below.
    #[cold]
    fn count_room(&self) -> usize {
        let room = room_at_most(self.total, self.ledgers());
        if let Some(quotas) = self.floor.quotas
            && room / RISE > self.floor.get() + quotas
        {
            self.raise_floor(quotas);
        }
        room
    }

    /// Raises the floor to half of the room. Waits for each thread that holds a claim, as an allocation does that
    /// collects from all shards. The next rise needs twice the room, or a fall before it.
    #[cold]
    fn raise_floor(&self, quotas: usize) {
        let _sole_collector = self.shortage.lock();
        let _claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        let room = room_at_least(self.total, self.ledgers());
        // Release: pairs with `RoomFloor::get`. No other thread lowers the floor now.
        self.floor.floor.store((room / 2).saturating_sub(quotas) as u64, Ordering::Release);
    }

    /// Counts blocks that left room through a shard, and counts the room if the shard's quota is used up.
    #[inline]
    pub(super) fn took(&self, home: &Claim<'_>, blocks: usize) {
        if home.ledger().took(blocks as u64) {
            self.recount(home);
        }
    }

    #[cold]
    #[inline(never)]
    fn recount(&self, home: &Claim<'_>) {
        home.ledger().allow_rise(self.floor.quota);
        // SeqCst: of two threads that use up their quotas at the same time, the second to pass this fence counts the
        // blocks of both. Loom: of_two_that_come_in_at_once_none_leaves_too_little_below_the_floor.
        fence(Ordering::SeqCst);
        let room = room_at_least(self.total, self.ledgers());
        self.peak.note(self.total - room_at_most(self.total, self.ledgers()));
        if let Some(quotas) = self.floor.quotas {
            self.floor.lower(room.saturating_sub(quotas));
        }
    }

    /// Notes the blocks in use, where no quota does.
    pub(super) fn note_peak(&self, home: &Claim<'_>) {
        if self.shards.len() == 1 {
            self.peak.note(home.ledger().read().used());
        } else if self.floor.quotas.is_none() {
            self.peak.note(self.used_at_least());
        }
    }
}
