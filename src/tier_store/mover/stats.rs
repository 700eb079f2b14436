//! [`MoverStats`]: the figures of a mover.

use crate::id::TierId;
use crate::sync::{AtomicU64, Ordering};

/// Figures of a mover since it was built, of one moment each. [`CacheStats::tiers`](crate::CacheStats::tiers) has those
/// of the contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MoverStats {
    /// Blocks copied from the device.
    pub blocks_from_device: u64,
    /// Blocks copied to the device.
    pub blocks_to_device: u64,
    /// Bytes copied from the device.
    pub bytes_from_device: u64,
    /// Bytes copied to the device.
    pub bytes_to_device: u64,
    /// Bytes written to stores.
    pub bytes_written: u64,
    /// Bytes read from stores, also those that were not as written.
    pub bytes_read: u64,
    /// Contents that were not stored because no staging buffer or no place in the queue was free, the tier has no medium, or
    /// a slot in host memory cannot be written.
    pub stores_skipped: u64,
    /// Contents that were not stored because the store, the device or the source failed.
    pub stores_failed: u64,
    /// Contents that were not loaded because no place in the queue was free, or the mover was dropped.
    pub loads_skipped: u64,
    /// Contents that were not loaded because the store or the device failed.
    pub loads_failed: u64,
    /// Contents whose bytes were not those that had been written.
    pub checksum_errors: u64,
    /// Operations of stores that the medium refused.
    pub store_errors: u64,
    /// Copies that the device refused or left uncertain.
    pub device_errors: u64,
    /// Functions of the caller that panicked.
    pub callback_panics: u64,
    /// Loads that wait for a thread.
    pub loads_queued: usize,
    /// Stores that wait for a thread.
    pub stores_queued: usize,
    /// Tickets that threads serve now.
    pub jobs_running: usize,
    /// Staging buffers in use.
    pub staging_used: usize,
    /// Staging buffers.
    pub staging_total: usize,
    /// Tickets with uncertain copies that the device has not ended.
    pub tickets_uncertain: usize,
    /// The contents of earlier processes that were looked for, by tier.
    pub restores: Vec<RestoreProgress>,
}

/// The progress of [`TierMover::restore`](super::TierMover::restore).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreProgress {
    /// The tier.
    pub tier: TierId,
    /// Slots whose headers were read.
    pub slots_read: usize,
    /// All slots.
    pub slots_total: usize,
    /// Contents that are ready.
    pub contents: usize,
    /// Whether it is over: no content becomes ready any more, and the tier has room for others.
    pub is_done: bool,
    /// Whether it ended before all contents that the store has were ready: the mover ended, a reset came, the operating
    /// system refused the thread, or it panicked.
    pub ended_early: bool,
}

/// The counters of a mover.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) blocks_from_device: RisingCount,
    pub(super) blocks_to_device: RisingCount,
    pub(super) bytes_written: RisingCount,
    pub(super) bytes_read: RisingCount,
    pub(super) stores_skipped: RisingCount,
    pub(super) stores_failed: RisingCount,
    pub(super) loads_skipped: RisingCount,
    pub(super) loads_failed: RisingCount,
    pub(super) checksum_errors: RisingCount,
    pub(super) store_errors: RisingCount,
    pub(super) device_errors: RisingCount,
    pub(super) callback_panics: RisingCount,
}

/// A number that only rises.
#[derive(Default)]
pub(super) struct RisingCount(AtomicU64);

impl RisingCount {
    pub(super) fn add(&self, n: usize) {
        // Relaxed: only the number counts.
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        // Relaxed: as in `add`.
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(super) fn read(&self, block_bytes: usize) -> MoverStats {
        let block_bytes = block_bytes as u64;
        MoverStats {
            blocks_from_device: self.blocks_from_device.get(),
            blocks_to_device: self.blocks_to_device.get(),
            bytes_from_device: self.blocks_from_device.get() * block_bytes,
            bytes_to_device: self.blocks_to_device.get() * block_bytes,
            bytes_written: self.bytes_written.get(),
            bytes_read: self.bytes_read.get(),
            stores_skipped: self.stores_skipped.get(),
            stores_failed: self.stores_failed.get(),
            loads_skipped: self.loads_skipped.get(),
            loads_failed: self.loads_failed.get(),
            checksum_errors: self.checksum_errors.get(),
            store_errors: self.store_errors.get(),
            device_errors: self.device_errors.get(),
            callback_panics: self.callback_panics.get(),
            ..MoverStats::default()
        }
    }
}
