//! `First`: the idle block of a list or of a shard that is reclaimed first in a learned order, and its comparison with
//! those of other shards.

use std::cmp::Reverse;

use super::hit_density::{CLASSES, HitDensity};
use crate::pool::release_note::ReleaseNote;
use crate::sync::{AtomicU64, Ordering};

/// A block of another shard comes first if it is older by more than the age divided by this.
const TOLERANCE: u32 = 16;

/// The first block of a list or of a shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct First {
    pub(super) note: ReleaseNote,
    pub(super) class: usize,
    /// The time since its release, in steps.
    age: u32,
    /// About the time of its entry, which orders the releases of one step.
    time: u64,
    pub(super) price: f32,
}

/// A first block that other threads, or later calls, compare with others.
pub(crate) struct ShownFirst {
    /// The bits of its note, or [`NO_NOTE`].
    note: AtomicU64,
    time: AtomicU64,
}

/// The bits of the note of no block.
const NO_NOTE: u64 = u64::MAX;

impl First {
    /// Returns a block with this note, whose entry was added at about `time`, as it is worth now.
    pub(super) fn new(note: ReleaseNote, time: u64, density: &HitDensity, now: u32) -> Self {
        let class = Self::class_of(note);
        let price = density.price(class, note, now);
        Self { note, class, age: note.age(now), time, price }
    }

    /// Returns true if the block of one shard goes before that of another.
    pub(crate) fn goes_before(self, other: Self) -> bool {
        if HitDensity::is_clearly_less(self.price, other.price) {
            return true;
        }
        !HitDensity::is_clearly_less(other.price, self.price) && self.is_older(other)
    }

    /// Returns true if the block goes before one of the home by so much that it is worth taking: older by more than its
    /// age divided by [`TOLERANCE`], or clearly less worth.
    pub(crate) fn goes_far_before(self, home: Self) -> bool {
        let is_less = HitDensity::is_clearly_less(self.price, home.price);
        is_less || self.goes_before(home) && self.age > home.age + self.age / TOLERANCE
    }

    /// Returns the class of the list in which a block with this note is.
    pub(super) fn class_of(note: ReleaseNote) -> usize {
        note.class().min(CLASSES - 1)
    }

    /// Returns true if the block was released before the other one. Of the blocks of one sequence, those at the end
    /// are released first, and their classes come first.
    pub(super) fn is_older(self, other: Self) -> bool {
        if self.note.mark() == other.note.mark() {
            return self.class < other.class;
        }
        (self.age, Reverse(self.time)) > (other.age, Reverse(other.time))
    }
}

// All accesses are Relaxed: a guess suffices, and both halves need not be of one block.
impl ShownFirst {
    pub(crate) fn new() -> Self {
        Self { note: AtomicU64::new(NO_NOTE), time: AtomicU64::new(0) }
    }

    pub(crate) fn show(&self, first: Option<First>) {
        let note = first.map_or(NO_NOTE, |first| u64::from(first.note.bits()));
        let time = first.map_or(0, |first| first.time);
        for (shown, bits) in [(&self.note, note), (&self.time, time)] {
            if shown.load(Ordering::Relaxed) != bits {
                shown.store(bits, Ordering::Relaxed);
            }
        }
    }

    /// Shows `first`, unless the block that is shown goes before it.
    pub(super) fn show_if_before(&self, first: First, density: &HitDensity, now: u32) {
        if self.read(density, now).is_none_or(|shown| first.goes_before(shown)) {
            self.show(Some(first));
        }
    }

    /// Returns the block as it is worth now.
    pub(crate) fn read(&self, density: &HitDensity, now: u32) -> Option<First> {
        let bits = u32::try_from(self.note.load(Ordering::Relaxed)).ok()?;
        let time = self.time.load(Ordering::Relaxed);
        Some(First::new(ReleaseNote::from_bits(bits), time, density, now))
    }
}
