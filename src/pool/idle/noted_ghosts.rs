//! `NotedGhosts`: the keys of recently reclaimed contents with their last notes, for one content in four.
//!
//! The table is direct-mapped: one slot of 8 bytes a block (32 bits of the key, and the note), and a new entry
//! overwrites the old one. A content is sampled by its key, so the table remembers about four times as many contents
//! as the pool has blocks. A sampled content stands for [`SAMPLED`].

use crate::array::array_of;
use crate::error::Result;
use crate::pool::content_key::ContentKey;
use crate::pool::release_note::ReleaseNote;
use crate::sync::{AtomicU64, Ordering};

/// The contents for which a sampled one stands.
pub(super) const SAMPLED: u32 = 4;

pub(super) struct NotedGhosts {
    slots: Box<[AtomicU64]>,
}

// All accesses are Relaxed: a slot is a hint by itself and guards nothing.
impl NotedGhosts {
    pub(super) fn new(slots: usize) -> Result<Self> {
        Ok(Self { slots: array_of(slots, || AtomicU64::new(0))? })
    }

    /// Notes that the content with this `key` was reclaimed, and its last note.
    pub(super) fn remember(&self, key: ContentKey, note: ReleaseNote) {
        if let Some((slot, mark)) = self.place(key) {
            slot.store(u64::from(mark) << 32 | u64::from(note.bits()), Ordering::Relaxed);
        }
    }

    /// Removes the entry of `key` and returns its note.
    pub(super) fn take(&self, key: ContentKey) -> Option<ReleaseNote> {
        let (slot, mark) = self.place(key)?;
        let entry = slot.load(Ordering::Relaxed);
        if (entry >> 32) as u32 != mark {
            return None;
        }
        slot.store(0, Ordering::Relaxed);
        Some(ReleaseNote::from_bits(entry as u32))
    }

    /// Returns the slot and the mark of a key that is sampled.
    fn place(&self, key: ContentKey) -> Option<(&AtomicU64, u32)> {
        let (spread, mark) = key.spread();
        // The upper bits choose the slot, the lowest whether the key is sampled.
        if mark % SAMPLED != 0 {
            return None;
        }
        let at = (u128::from(spread) * self.slots.len() as u128) >> 64;
        Some((self.slots.get(at as usize)?, mark | 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::release_note::ReleaseMark;

    #[test]
    fn one_content_in_four_is_remembered_until_it_is_taken() {
        let ghosts = NotedGhosts::new(1_000).unwrap();
        let key = |n: u128| ContentKey::new(n << 64 | n);
        let note = |n: u128| ReleaseNote::new(ReleaseMark::new(n as u32, 0), 3, 1);
        (1..=400).for_each(|n| ghosts.remember(key(n), note(n)));
        let taken: Vec<u128> =
            (1..=400).filter(|&n| ghosts.take(key(n)) == Some(note(n))).collect();
        assert!((60..=140).contains(&taken.len()), "{} of 400", taken.len());
        assert!(taken.iter().all(|&n| ghosts.take(key(n)).is_none()), "it was taken");
        assert!(NotedGhosts::new(0).unwrap().take(key(1)).is_none());
    }
}
