//! `IdleSlab`: the memory of all lists of idle blocks: slots of a batch of entries each, linked by number.
//!
//! A list takes a slot when it grows, and gives it back when its entries are gone. A match leaves the block's
//! entry in place, so lists also hold stale entries. Lists drop these in turn once the slab
//! [is crowded](IdleSlab::is_crowded), and all of them once it [is full](IdleSlab::is_full).
//!
//! Invariant: a slot belongs to the list of one shard, whose claim guards it, or to the queue of unused slots.

use crate::array::{array_of, queue_of};
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::word::IdleBlock;
use crate::sync::{ArrayQueue, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Blocks in a batch, of idle blocks as of free ids.
pub(in crate::pool) const BATCH: usize =
    if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 2 } else { 128 };

/// Entries of a slot that share a stored time.
pub(super) const STAMPED: usize = if BATCH < 8 { BATCH } else { 8 };

/// The number of no slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Entries of idle blocks, the oldest first. Ids and epochs are kept apart: 5 bytes an entry.
#[repr(align(64))]
pub(super) struct Slot {
    /// The next slot of the list. It means nothing in the last one.
    next: AtomicU32,
    /// The time at which each [`STAMPED`]th entry was added.
    times: [AtomicU64; BATCH / STAMPED],
    ids: [AtomicU32; BATCH],
    epochs: [AtomicU8; BATCH],
}

pub(super) struct IdleSlab {
    slots: Box<[Slot]>,
    unused: ArrayQueue<u32>,
    /// Above this number of used slots, shards drop their stale entries in turn.
    crowded: usize,
    /// Above this number of used slots, all shards drop their stale entries.
    full: usize,
}

// All accesses are Relaxed: they are made under the claim of the list's shard, whose hand-over orders them, and
// the queue of unused slots hands over the others.
impl Slot {
    fn new() -> Self {
        Self {
            next: AtomicU32::new(NO_SLOT),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
            ids: std::array::from_fn(|_| AtomicU32::new(0)),
            epochs: std::array::from_fn(|_| AtomicU8::new(0)),
        }
    }

    /// Notes the time of the entry at place `at`, where a time is stored.
    #[inline]
    pub(super) fn stamp(&self, at: usize, time: u64) {
        if at.is_multiple_of(STAMPED) {
            self.times[at / STAMPED].store(time, Ordering::Relaxed);
        }
    }

    /// Notes the time of an entry at place `at` that precedes all others of the slot. Up to seven of these look older than
    /// they are then, and none looks older than an entry before it.
    pub(super) fn stamp_first(&self, at: usize, time: u64) {
        // It may be below zero: no entry is there then.
        let of_first_place = time.wrapping_sub((at % STAMPED) as u64);
        self.times[at / STAMPED].store(of_first_place, Ordering::Relaxed);
    }

    /// Returns about the time at which the entry at place `at` was added.
    pub(super) fn time(&self, at: usize) -> u64 {
        self.times[at / STAMPED].load(Ordering::Relaxed).wrapping_add((at % STAMPED) as u64)
    }

    pub(super) fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn set_next(&self, slot: u32) {
        self.next.store(slot, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> IdleBlock {
        let id = BlockId(self.ids[at].load(Ordering::Relaxed));
        IdleBlock { id, epoch: self.epochs[at].load(Ordering::Relaxed) }
    }

    #[inline]
    pub(super) fn set(&self, at: usize, idle: IdleBlock) {
        self.ids[at].store(idle.id.0, Ordering::Relaxed);
        self.epochs[at].store(idle.epoch, Ordering::Relaxed);
    }

    /// Returns the ids from place `start` on, up to `end`.
    pub(super) fn ids(&self, start: usize, end: usize) -> impl Iterator<Item = BlockId> {
        self.ids[start..end].iter().map(|id| BlockId(id.load(Ordering::Relaxed)))
    }
}

impl IdleSlab {
    /// Creates slots for `ranks` lists in each of `shards` shards of a pool of `total` blocks.
    ///
    /// A list has at most two slots that are not full, and a shard keeps an unused one. Beyond these and the
    /// pool's blocks, stale entries of three eighths of the pool's blocks crowd the slab, and of half of them fill it.
    /// Two more slots for each other shard are for the turns that pass over a claimed shard.
    ///
    /// Once the slab is full, each shard may have taken one more slot, and each holder of a claim may still add a
    /// batch, for which every list may need a slot. The blocks that allocations have reclaimed and put back, at most
    /// those of the pool, may need slots once more.
    pub(super) fn new(total: usize, shards: usize, ranks: usize) -> Result<Self> {
        if ranks == 0 {
            let (slots, unused) = (array_of(0, Slot::new)?, queue_of(1)?);
            return Ok(Self { slots, unused, crowded: 0, full: 0 });
        }
        let of_blocks = total.div_ceil(BATCH);
        let without_stale = of_blocks + shards * (2 * ranks + 1);
        let crowded = without_stale + (3 * of_blocks).div_ceil(8);
        let full = without_stale + of_blocks.div_ceil(2) + 2 * (shards - 1);
        let num_slots = full + (ranks + 2) * shards + of_blocks;
        let (slots, unused) = (array_of(num_slots, Slot::new)?, queue_of(num_slots)?);
        let slab = Self { slots, unused, crowded, full };
        (0..num_slots as u32).for_each(|slot| slab.give(slot));
        Ok(slab)
    }

    #[inline]
    pub(super) fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    /// Takes an unused slot.
    pub(super) fn take(&self) -> u32 {
        self.unused.pop().expect("a slab that is full still has slots for the holders of claims")
    }

    /// Gives back a slot.
    pub(super) fn give(&self, slot: u32) {
        assert!(self.unused.push(slot).is_ok(), "the queue has room for every slot");
    }

    fn used(&self) -> usize {
        self.slots.len() - self.unused.len()
    }

    /// Returns true if stale entries take so many slots that shards must drop theirs in turn.
    pub(super) fn is_crowded(&self) -> bool {
        self.used() > self.crowded
    }

    /// Returns true if so few slots are left that all shards must drop their stale entries.
    pub(super) fn is_full(&self) -> bool {
        self.used() > self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_is_written() {
        let slot = Slot::new();
        for (at, (id, epoch)) in [(0, 0), (7, 1), (u32::MAX, 255)].into_iter().enumerate() {
            let idle = IdleBlock { id: BlockId(id), epoch };
            slot.set(at, idle);
            assert_eq!(slot.get(at), idle);
        }
        assert_eq!(slot.ids(1, 3).collect::<Vec<_>>(), [BlockId(7), BlockId(u32::MAX)]);
    }
}
