//! Contents of an earlier process become ready: their headers are read in the background, and the content that was written
//! last counts as the most recently used.

use std::collections::HashSet;

use super::shared::{Shared, TierMedium};
use crate::cache::TierRestore;
use crate::id::TierId;
use crate::sync::foreign;
use crate::sync::outside::Arc;
use crate::tier_store::mover::stats::RestoreProgress;
use crate::tier_store::slot_store::{FoundSlot, SlotStore};

/// The slots whose headers are read at a time.
const SLOTS: u32 = 4_096;
/// The contents that are made ready at a time.
const CONTENTS: usize = 1_024;

impl Shared {
    /// Notes that the contents of a tier are looked for. Returns the place of its progress.
    fn begin_restore(&self, tier: TierId, slots_total: usize) -> usize {
        let mut restores = self.restores.lock();
        restores.push(RestoreProgress {
            tier,
            slots_read: 0,
            slots_total,
            contents: 0,
            is_done: false,
            ended_early: false,
        });
        restores.len() - 1
    }

    /// Reads the headers of a store. `None` if the mover ends before.
    fn found_in(&self, store: &dyn SlotStore, end: u32, place: usize) -> Option<Vec<FoundSlot>> {
        let mut found = Vec::new();
        for first in (0..end).step_by(SLOTS as usize) {
            if !self.queue.is_open() {
                return None;
            }
            let slots = first..end.min(first.saturating_add(SLOTS));
            let (read, mut is_good) = (slots.len(), false);
            foreign::call(|| is_good = store.find(slots, &mut found).is_ok());
            if !is_good {
                self.counts.store_errors.add(1);
            }
            self.restores.lock()[place].slots_read += read;
        }
        Some(found)
    }
}

/// A restore that is under way. It is over when this is dropped, in whichever way that happens.
pub(super) struct Restoring {
    shared: Arc<Shared>,
    /// The place of its progress.
    place: usize,
    restore: Option<TierRestore>,
    is_whole: bool,
}

impl Restoring {
    pub(super) fn begin(shared: &Arc<Shared>, restore: TierRestore) -> Self {
        let place = shared.begin_restore(restore.tier(), restore.num_held());
        Self { shared: Arc::clone(shared), place, restore: Some(restore), is_whole: false }
    }

    /// Makes the contents of the tier ready. Ends early if the mover does, and if a reset comes.
    pub(super) fn run(mut self) {
        foreign::call(|| self.is_whole = self.make_ready().is_some());
    }

    /// Returns `None` if the mover ends before, or a reset comes.
    fn make_ready(&mut self) -> Option<()> {
        let (restore, shared) = (self.restore.as_mut()?, &*self.shared);
        let Some(TierMedium::Store { store, first_epoch, .. }) = shared.medium(restore.tier())
        else {
            return Some(());
        };
        // A reset may have reached the cache, for which these contents are looked for, and not yet the store.
        let epoch = first_epoch.saturating_add(restore.resets());
        let is_current = || {
            let mut of_store = None;
            foreign::call(|| of_store = Some(store.epoch()));
            of_store == Some(epoch)
        };
        let end = u32::try_from(restore.num_held()).unwrap_or(u32::MAX);
        if !is_current() {
            return None;
        }
        let found = shared.found_in(store.as_ref(), end, self.place)?;
        for batch in oldest_first(found).chunks(CONTENTS) {
            if !shared.queue.is_open() || !is_current() {
                return None;
            }
            let named = batch.iter().map(|found| (found.slot, found.key.hash, found.key.group));
            let ready = restore.found(&named.collect::<Vec<_>>());
            shared.restores.lock()[self.place].contents += ready;
        }
        Some(())
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        // Before it is reported as over: the tier has room then.
        drop(self.restore.take());
        let mut restores = self.shared.restores.lock();
        let progress = &mut restores[self.place];
        (progress.is_done, progress.ended_early) = (true, !self.is_whole);
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
    use crate::cache::PagedKvCache;
    use crate::prefix::BlockHash;
    use crate::tier::Tier;
    use crate::tier_store::cpu_device::CpuDevice;
    use crate::tier_store::mover::TierMover;
    use crate::tier_store::resets::TierResets;
    use crate::tier_store::slot_store::{SlotError, SlotKey, SlotWrite};

    /// A store that keeps nothing.
    struct NoContents;

    impl SlotStore for NoContents {
        fn slots(&self) -> usize {
            4
        }

        fn block_bytes(&self) -> usize {
            8
        }

        fn write(&self, _write: &SlotWrite<'_>) -> Result<(), SlotError> {
            Ok(())
        }

        fn read(&self, _slot: u32, _key: SlotKey, _into: &mut [u8]) -> Result<(), SlotError> {
            Err(SlotError::Missing)
        }
    }

    /// Begins a restore, lets `act` end it, and returns its progress.
    fn progress_after(act: impl FnOnce(&TierMover, Restoring)) -> RestoreProgress {
        let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(4)).build().unwrap();
        let builder = TierMover::builder(CpuDevice::new(8, 8).unwrap());
        let mover = builder.store(TierId(0), NoContents, &TierResets::new()).build().unwrap();
        let restore = cache.tiers().restore(TierId(0)).unwrap();
        let restoring = Restoring::begin(&mover.shared, restore);
        assert!(!mover.stats().restores[0].is_done);
        act(&mover, restoring);
        assert_eq!(cache.stats().tiers[0].slots_used, 0, "the tier has room");
        mover.stats().restores[0]
    }

    #[test]
    fn a_restore_is_over_in_whichever_way_it_ends() {
        let whole = progress_after(|_, restoring| restoring.run());
        assert!(whole.is_done && !whole.ended_early, "{whole:?}");
        let refused = progress_after(|_, restoring| drop(restoring));
        assert!(refused.is_done && refused.ended_early, "{refused:?}");
        let closed = progress_after(|mover, restoring| {
            mover.shared.queue.close();
            restoring.run();
        });
        assert!(closed.is_done && closed.ended_early, "{closed:?}");
    }

    #[test]
    fn a_content_counts_once_as_it_was_written_last() {
        let slot =
            |slot, hash, stamp| FoundSlot { slot, key: BlockHash::from_u128(hash).into(), stamp };
        let found = vec![slot(0, 7, 5), slot(1, 8, 3), slot(2, 7, 2), slot(3, 9, 9)];
        assert_eq!(oldest_first(found), [slot(1, 8, 3), slot(0, 7, 5), slot(3, 9, 9)]);
    }
}
