//! `Shadow`: a cell of memory behind each block of the device and each slot of the tiers, and the counts of a soak.
//!
//! A cell holds a content, by a part of its hash, and the weights with which it was computed. The weights are known as a
//! range: from the resets that had ended when the sequence was admitted to those that had begun after that. Two ranges
//! that do not meet are of different weights.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use paged_kv::{BlockHash, BlockId, Place};

/// The first and the last number of resets that a content may have been computed after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    from: u16,
    to: u16,
}

/// A cell that a failed copy has written.
pub const GARBAGE: u64 = 0xdead_beef_ffff_0000;

/// Counts of a soak.
#[derive(Debug, Default)]
pub struct Counts {
    pub operations: AtomicU64,
    pub hits: AtomicU64,
    pub loads: AtomicU64,
    pub stores: AtomicU64,
    pub overwritten: AtomicU64,
    pub by_loads: AtomicU64,
    pub ahead: AtomicU64,
    pub pending: AtomicU64,
    pub failed: AtomicU64,
    pub corrupted: AtomicU64,
    pub skipped: AtomicU64,
    pub lost: AtomicU64,
    pub cancelled: AtomicU64,
    pub late_writes: AtomicU64,
    pub checked: AtomicU64,
    pub wrong: AtomicU64,
}

pub struct Shadow {
    device: Vec<AtomicU64>,
    tiers: Vec<Vec<AtomicU64>>,
    resets_begun: AtomicU64,
    resets_ended: AtomicU64,
    pub counts: Counts,
}

fn cells(number: usize) -> Vec<AtomicU64> {
    (0..number).map(|_| AtomicU64::new(GARBAGE)).collect()
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, SeqCst);
}

impl Shadow {
    pub fn new(num_blocks: usize, slots: &[usize]) -> Self {
        Self {
            device: cells(num_blocks),
            tiers: slots.iter().map(|&slots| cells(slots)).collect(),
            resets_begun: AtomicU64::new(0),
            resets_ended: AtomicU64::new(0),
            counts: Counts::default(),
        }
    }

    fn cell(&self, place: Place) -> &AtomicU64 {
        match place {
            Place::Device(block) => &self.device[block.0 as usize],
            Place::Tier(at) => &self.tiers[usize::from(at.tier.0)][at.slot as usize],
        }
    }

    pub fn read(&self, place: Place) -> u64 {
        self.cell(place).load(SeqCst)
    }

    pub fn write(&self, place: Place, value: u64) {
        self.cell(place).store(value, SeqCst);
    }

    /// Writes a content that was computed.
    pub fn compute(&self, block: BlockId, hash: BlockHash, weights: Weights) {
        self.write(Place::Device(block), pack(hash, weights));
    }

    pub fn check(&self, place: Place, hash: BlockHash, weights: Weights, when: &str) {
        self.check_value(self.read(place), hash, weights, &(place, when));
    }

    /// Checks that a value is of this content, and may be of these weights.
    pub fn check_value(
        &self,
        value: u64,
        hash: BlockHash,
        weights: Weights,
        at: &dyn std::fmt::Debug,
    ) {
        count(&self.counts.checked);
        let (content, of) = unpack(value);
        if content != part_of(hash) || of.from > weights.to || weights.from > of.to {
            count(&self.counts.wrong);
            eprintln!("{at:?}: {content:x} of {of:?}, not {:x} of {weights:?}", part_of(hash));
        }
    }

    /// Does `work`, which looks contents up, and returns the weights that they must have.
    pub fn under_weights<T>(&self, work: impl FnOnce() -> T) -> (T, Weights) {
        let from = self.resets_ended.load(SeqCst) as u16;
        let done = work();
        (done, Weights { from, to: self.resets_begun.load(SeqCst) as u16 })
    }

    /// Does `reset`, unless there were so many resets that a cell cannot hold their number.
    pub fn reset(&self, reset: impl FnOnce()) {
        if self.resets_begun.fetch_add(1, SeqCst) > 60_000 {
            self.resets_begun.fetch_sub(1, SeqCst);
            return;
        }
        reset();
        count(&self.resets_ended);
    }

    pub fn num_resets(&self) -> u64 {
        self.resets_ended.load(SeqCst)
    }
}

fn part_of(hash: BlockHash) -> u32 {
    hash.as_u128() as u32
}

fn pack(hash: BlockHash, weights: Weights) -> u64 {
    u64::from(part_of(hash)) << 32 | u64::from(weights.from) << 16 | u64::from(weights.to)
}

fn unpack(value: u64) -> (u32, Weights) {
    ((value >> 32) as u32, Weights { from: (value >> 16) as u16, to: value as u16 })
}
