//! Contents of an earlier process become ready: their headers are read in the background, and the content that was written
//! last counts as the most recently used.

use std::collections::HashSet;

use super::shared::{Shared, TierMedium};
use crate::cache::TierRestore;
use crate::id::TierId;
use crate::sync::foreign;
use crate::tier_store::mover::stats::RestoreProgress;
use crate::tier_store::slot_store::{FoundSlot, SlotStore};

/// The slots whose headers are read at a time.
const SLOTS: u32 = 4_096;
/// The contents that are made ready at a time.
const CONTENTS: usize = 1_024;

impl Shared {
    /// Notes that the contents of a tier are looked for. Returns the place of its progress.
    pub(super) fn begin_restore(&self, tier: TierId) -> usize {
        let slots_total = self.medium(tier).map_or(0, |medium| medium.geometry().0);
        let mut restores = self.restores.lock();
        restores.push(RestoreProgress {
            tier,
            slots_read: 0,
            slots_total,
            contents: 0,
            is_done: false,
        });
        restores.len() - 1
    }

    /// Makes the contents of a tier ready. Ends early if the mover does.
    pub(super) fn restore(&self, mut restore: TierRestore, place: usize) {
        let found = match self.medium(restore.tier()) {
            Some(TierMedium::Store { store, .. }) => self.found_in(store.as_ref(), place),
            _ => Vec::new(),
        };
        let found = oldest_first(found);
        for batch in found.chunks(CONTENTS) {
            if !self.queue.is_open() {
                break;
            }
            let named = batch.iter().map(|found| (found.slot, found.key.hash, found.key.group));
            let ready = restore.found(&named.collect::<Vec<_>>());
            self.restores.lock()[place].contents += ready;
        }
        drop(restore);
        self.restores.lock()[place].is_done = true;
    }

    fn found_in(&self, store: &dyn SlotStore, place: usize) -> Vec<FoundSlot> {
        let (end, mut found) = (u32::try_from(store.slots()).unwrap_or(u32::MAX), Vec::new());
        for first in (0..end).step_by(SLOTS as usize) {
            if !self.queue.is_open() {
                return Vec::new();
            }
            let slots = first..end.min(first.saturating_add(SLOTS));
            let (read, mut is_good) = (slots.len(), false);
            foreign::call(|| is_good = store.find(slots, &mut found).is_ok());
            if !is_good {
                self.counts.store_errors.add(1);
            }
            self.restores.lock()[place].slots_read += read;
        }
        found
    }
}

/// Returns the contents by their stamps, each once: as it was written last.
fn oldest_first(mut found: Vec<FoundSlot>) -> Vec<FoundSlot> {
    found.sort_unstable_by_key(|found| std::cmp::Reverse(found.stamp));
    let mut seen = HashSet::new();
    found.retain(|found| seen.insert(found.key));
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::BlockHash;

    #[test]
    fn a_content_counts_once_as_it_was_written_last() {
        let slot =
            |slot, hash, stamp| FoundSlot { slot, key: BlockHash::from_u128(hash).into(), stamp };
        let found = vec![slot(0, 7, 5), slot(1, 8, 3), slot(2, 7, 2), slot(3, 9, 9)];
        assert_eq!(oldest_first(found), [slot(1, 8, 3), slot(0, 7, 5), slot(3, 9, 9)]);
    }
}
