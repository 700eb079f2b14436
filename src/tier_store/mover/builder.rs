//! [`TierMoverBuilder`]: the device, the media and the bounds of a mover to be.

use super::TierMover;
use super::queue::JobQueue;
use super::read_buffers::ReadBuffers;
use super::shared::{Shared, TierMedium};
use super::staging::Staging;
use super::stats::Counts;
use super::suspects::Suspects;
use crate::error::{PagedKvError, Result};
use crate::id::TierId;
use crate::sync::outside::{Arc, Mutex};
use crate::tier_store::device::Device;
use crate::tier_store::host_arena::HostArena;
use crate::tier_store::resets::TierResets;
use crate::tier_store::slot_store::SlotStore;

/// The most threads of a mover.
const MOST_THREADS: usize = 256;

/// Builds a [`TierMover`]. [`TierMover::builder`] creates it.
///
/// ```
/// use paged_kv::TierId;
/// use paged_kv::tier_store::{CpuDevice, HostArena, TierMover};
///
/// let mover = TierMover::builder(CpuDevice::new(8, 4_096)?)
///     .host(TierId(0), HostArena::new(64, 4_096)?)
///     .threads(2)
///     .queue(128)
///     .staging(32)
///     .build()?;
/// assert_eq!(mover.stats().staging_total, 32);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[must_use]
pub struct TierMoverBuilder {
    device: Box<dyn Device>,
    media: Vec<(TierId, TierMedium)>,
    threads: usize,
    queue: usize,
    staging: usize,
}

impl TierMoverBuilder {
    pub(super) fn new(device: impl Device + 'static) -> Self {
        Self { device: Box::new(device), media: Vec::new(), threads: 1, queue: 256, staging: 64 }
    }

    /// Puts the slots of a tier in host memory.
    ///
    /// ```
    /// use paged_kv::TierId;
    /// use paged_kv::tier_store::{CpuDevice, HostArena, TierMover};
    ///
    /// let builder = TierMover::builder(CpuDevice::new(8, 4_096)?);
    /// assert!(builder.host(TierId(0), HostArena::new(64, 4_096)?).build().is_ok());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn host(mut self, tier: TierId, arena: HostArena) -> Self {
        self.media.push((tier, TierMedium::Host(Arc::new(arena))));
        self
    }

    /// Puts the slots of a tier in a store, for example a [`DiskStore`](crate::tier_store::DiskStore). `resets` is that of
    /// the cache. If the cache was reset already, the store is reset now.
    ///
    /// ```no_run
    /// use paged_kv::TierId;
    /// use paged_kv::tier_store::{CpuDevice, DiskStore, TierMover, TierResets};
    ///
    /// # fn f(store: DiskStore, resets: TierResets) -> paged_kv::Result<()> {
    /// let builder = TierMover::builder(CpuDevice::new(8, 4_096)?);
    /// let mover = builder.store(TierId(0), store, &resets).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn store(
        mut self,
        tier: TierId,
        store: impl SlotStore + 'static,
        resets: &TierResets,
    ) -> Self {
        let store: Arc<dyn SlotStore> = Arc::new(store);
        let first_epoch = resets.watch(&store);
        let resets = resets.clone();
        self.media.push((tier, TierMedium::Store { store, first_epoch, resets }));
        self
    }

    /// Sets the number of background threads, 1 by default. Each has 8 buffers of a block. A thread that waits for a
    /// medium serves no other job.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// assert!(TierMover::builder(CpuDevice::new(1, 8)?).threads(0).build().is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Sets the most loads, and the most stores, that wait for a thread, 256 by default. Beyond it loads and stores are
    /// skipped.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// assert!(TierMover::builder(CpuDevice::new(1, 8)?).queue(4).build().is_ok());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn queue(self, jobs: usize) -> Self {
        Self { queue: jobs, ..self }
    }

    /// Sets the blocks of staging memory, 64 by default: contents that were copied from the device and are not written
    /// yet. Contents that find no room in it are not stored.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// let mover = TierMover::builder(CpuDevice::new(1, 8)?).staging(2).build()?;
    /// assert_eq!(mover.stats().staging_total, 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn staging(self, blocks: usize) -> Self {
        Self { staging: blocks, ..self }
    }

    /// Allocates the memory and starts the threads.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for media whose blocks have different bytes, a tier that was given
    /// twice, no thread, or a thread that the operating system refuses;
    /// [`OutOfHostMemory`](PagedKvError::OutOfHostMemory).
    ///
    /// ```
    /// use paged_kv::TierId;
    /// use paged_kv::tier_store::{CpuDevice, HostArena, TierMover};
    ///
    /// let builder = TierMover::builder(CpuDevice::new(8, 4_096)?);
    /// let builder = builder.host(TierId(0), HostArena::new(64, 4_096)?);
    /// assert!(builder.host(TierId(1), HostArena::new(64, 8)?).build().is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn build(self) -> Result<TierMover> {
        if self.threads == 0 || self.threads > MOST_THREADS {
            return Err(invalid("threads", format!("{}, 1 to {MOST_THREADS}", self.threads)));
        }
        let block_bytes = self.media.first().map_or(0, |(_, medium)| medium.geometry().1);
        let mut media: Vec<Option<TierMedium>> = Vec::new();
        for (tier, medium) in self.media {
            let of_tier = medium.geometry().1;
            if of_tier != block_bytes {
                let reason = format!("blocks of {of_tier} and of {block_bytes} bytes");
                return Err(invalid("tier", reason));
            }
            let at = usize::from(tier.0);
            media.resize(media.len().max(at + 1), None);
            if media[at].replace(medium).is_some() {
                return Err(invalid("tier", format!("tier {at} was given twice")));
            }
        }
        let shared = Shared {
            device: self.device,
            media,
            block_bytes,
            queue: JobQueue::new(self.queue),
            staging: Arc::new(Staging::new(self.staging, block_bytes)?),
            suspects: Suspects::default(),
            counts: Counts::default(),
            restores: Mutex::default(),
        };
        let buffers = (0..self.threads).map(|_| ReadBuffers::new(block_bytes));
        TierMover::start(Arc::new(shared), buffers.collect::<Result<Vec<_>>>()?)
    }
}

pub(super) fn invalid(parameter: &'static str, reason: String) -> PagedKvError {
    PagedKvError::InvalidConfig { parameter, reason }
}
