//! `Ghosts`: the keys of recently reclaimed contents, 32 bits of each (the ghost list of 2Q).
//!
//! The table is direct-mapped: one slot a block, and a new key overwrites the old one. So it forgets at
//! random. A caller therefore asks for the keys of a chain from its end: if one is remembered, the keys
//! before it count as returned too.
//!
//! An answer may be wrong either way. It affects only the reclaim order.

use crate::array::array_of;
use crate::error::Result;
use crate::pool::content_key::ContentKey;
use crate::sync::{AtomicU32, Ordering};

pub(super) struct Ghosts {
    slots: Box<[AtomicU32]>,
    /// The answer for all keys where there are no slots.
    without_slots: bool,
}

// All accesses are Relaxed: a slot is a hint by itself and guards nothing.
impl Ghosts {
    pub(super) fn new(slots: usize) -> Result<Self> {
        Ok(Self { slots: array_of(slots, || AtomicU32::new(0))?, without_slots: false })
    }

    /// Creates a table without slots that takes each key for a recent one. Then each cached block is hot.
    pub(super) fn of_all() -> Self {
        Self { slots: Box::default(), without_slots: true }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes that the content with this `key` was reclaimed.
    pub(super) fn remember(&self, key: ContentKey) {
        let (slot, mark) = self.place(key);
        slot.store(mark, Ordering::Relaxed);
    }

    /// Returns true if `key` was recently noted. Without slots, nothing is remembered.
    pub(super) fn recall(&self, key: ContentKey) -> bool {
        if self.is_empty() {
            return self.without_slots;
        }
        let (slot, mark) = self.place(key);
        slot.load(Ordering::Relaxed) == mark
    }

    fn place(&self, key: ContentKey) -> (&AtomicU32, u32) {
        let (spread, mark) = key.spread();
        let at = (u128::from(spread) * self.slots.len() as u128) >> 64;
        (&self.slots[at as usize], mark | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fewer keys where Miri interprets the test.
    const KEYS: u128 = if cfg!(miri) { 12_000 } else { 100_000 };

    #[test]
    fn the_newest_keys_are_remembered() {
        let ghosts = Ghosts::new(1_000).unwrap();
        let key = |n: u128| ContentKey::new(n << 64 | n);
        (1..=KEYS).for_each(|n| ghosts.remember(key(n)));
        let recalled = |from: u128, to| (from..=to).filter(|&n| ghosts.recall(key(n))).count();
        assert!((550..=700).contains(&recalled(KEYS - 999, KEYS)), "1 - 1/e of the newest 1,000");
        assert!(recalled(1, KEYS - 10_000) < 10);
        assert!(ghosts.recall(key(KEYS)));
    }

    #[test]
    fn without_slots_nothing_is() {
        assert!(!Ghosts::new(0).unwrap().recall(ContentKey::new(7)));
    }
}
