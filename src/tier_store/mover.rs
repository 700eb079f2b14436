//! [`TierMover`]: makes the copies of tickets, and settles them.

mod builder;
mod job;
mod loading;
mod queue;
mod read_buffers;
mod restoring;
mod shared;
mod staging;
mod stats;
mod storing;
mod suspects;

use std::fmt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use self::builder::invalid;
use self::job::OnLoaded;
use self::queue::{Job, NextAct};
use self::read_buffers::ReadBuffers;
use self::restoring::Restoring;
use self::shared::{Shared, TierMedium};
use super::device::Device;
use crate::cache::{LoadTicket, Loaded, TierRestore};
use crate::error::{PagedKvError, Result};
use crate::sync::foreign;
use crate::sync::outside::{Arc, Mutex, mpsc};
use crate::tier::store::StoreTicket;

pub use self::builder::TierMoverBuilder;
pub use self::stats::{MoverStats, RestoreProgress};

/// How often a thread without a job asks the device to end uncertain copies.
const QUIESCE_PERIOD: Duration = Duration::from_millis(100);

/// Makes the copies of tickets, between a device, host memory and stores, and settles the tickets.
///
/// - A **store** copies from the device before the call returns, so that kernels may overwrite the blocks afterwards. In
///   host memory it is complete then. In a store, a thread writes it later; meanwhile it is in a staging buffer.
///   The call never waits for a store: without a free buffer or place in the queue the contents are skipped, and counted.
///   It waits for the device: for the copies, and in [`Device::quiesce`] while copies are uncertain, also those of earlier
///   tickets.
/// - A **load** from host memory alone is complete when the call returns. Otherwise a thread reads and checks the
///   contents, copies them to the device, and calls the caller's function.
///
/// A failure of a medium, of the device, or a panic of either ends a store without its contents, and a load before the
/// first content that failed: the sequence is shorter then; with groups of layers there is none. Never is a block filled
/// with other bytes.
///
/// ```
/// use std::sync::Arc;
///
/// use paged_kv::tier_store::{CpuDevice, HostArena, TierMover};
/// use paged_kv::{AdmitOptions, LoadLimit, PagedKvCache, Tier, TierAdmission, TierId};
///
/// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(Tier::host(8)).build()?;
/// let device = Arc::new(CpuDevice::new(4, 64)?);
/// let arena = HostArena::new(8, 64)?;
/// let mover = TierMover::builder(Arc::clone(&device)).host(TierId(0), arena).build()?;
///
/// let (prompt, options) = (cache.prompt(&[7; 5]), AdmitOptions::default());
/// let (mut sequence, _) = cache.admit_sequence(&prompt, &options)?;
/// device.write(sequence.block_ids()[0], &[1; 64]); // a kernel
/// sequence.commit(5)?;
/// mover.store(cache.tiers().store(TierId(0), prompt.hashes())?.expect("one content"));
/// drop(sequence);
/// cache.prefix().forget(4);
///
/// let admitted = cache.tiers().admit(&prompt, &options, LoadLimit::default())?;
/// let TierAdmission::Loading(ticket) = admitted else { panic!("it is in the tier") };
/// let loaded = mover.load_blocking(ticket)?;
/// assert_eq!(device.read(loaded.sequence.block_ids()[0]), [1; 64]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
///
/// # Drop
///
/// Tickets that wait are settled as skipped, and the functions of loads are called; those that a thread serves are served,
/// and the threads are joined: this waits for the media, and a [restore](Self::restore) ends early.
/// [`shutdown`](Self::shutdown) serves those that wait before. Dropped by one of its own threads, in the function of a
/// load, that thread is not joined.
pub struct TierMover {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl TierMover {
    /// Returns a builder of a mover for a device.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// let mover = TierMover::builder(CpuDevice::new(4, 64)?).build()?;
    /// # drop(mover);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn builder(device: impl Device + 'static) -> TierMoverBuilder {
        TierMoverBuilder::new(device)
    }

    fn start(shared: Arc<Shared>, buffers: Vec<ReadBuffers>) -> Result<Self> {
        let mover = Self { shared, threads: Mutex::default() };
        for buffers in buffers {
            let shared = Arc::clone(&mover.shared);
            mover.spawn(move || serve(&shared, buffers))?;
        }
        Ok(mover)
    }

    fn spawn(&self, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name("paged-kv-mover".to_owned()).spawn(body);
        let thread = thread.map_err(|fault| invalid("threads", fault.to_string()))?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Stores the contents of a ticket. The blocks may be overwritten when it returns.
    ///
    /// Costs the copies from the device and never waits for a store; calls [`Device::quiesce`] while copies are uncertain,
    /// also those of earlier tickets. Contents without a staging buffer, and all of them
    /// without a place in the queue, are skipped.
    ///
    /// ```
    /// use paged_kv::tier_store::TierMover;
    /// use paged_kv::{BlockHash, PagedKvCache, TierId};
    ///
    /// fn store(cache: &PagedKvCache, mover: &TierMover, hashes: &[BlockHash]) -> paged_kv::Result<()> {
    ///     if let Some(ticket) = cache.tiers().store(TierId(0), hashes)? {
    ///         mover.store(ticket);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn store(&self, ticket: StoreTicket) {
        self.shared.store(ticket);
    }

    /// Loads the contents of a ticket, and calls a function with its sequence: on this thread if all are in host memory
    /// or no place in the queue is free, else on a thread of the mover. A panic of the function is caught and counted.
    ///
    /// The sequence ends before the first content that was not loaded; see [`Loaded`]. With groups of layers there is no
    /// sequence then, and the outcome is [`LoadFailed`](PagedKvError::LoadFailed): admit the prompt again, after repeated
    /// failures with [`LoadLimit::none`](crate::LoadLimit::none).
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// use paged_kv::tier_store::TierMover;
    /// use paged_kv::{LoadTicket, Loaded, Result};
    ///
    /// fn load(mover: &TierMover, ticket: LoadTicket, scheduler: mpsc::Sender<Result<Loaded>>) {
    ///     mover.load(ticket, move |loaded| _ = scheduler.send(loaded));
    /// }
    /// ```
    pub fn load(
        &self,
        ticket: LoadTicket,
        on_loaded: impl FnOnce(Result<Loaded>) + Send + 'static,
    ) {
        self.shared.load(ticket, OnLoaded::new(on_loaded));
    }

    /// Loads the contents of a ticket and returns its sequence. Waits for the media. Must not be called in the function of
    /// a load.
    ///
    /// # Errors
    /// As [`LoadTicket::complete`].
    ///
    /// ```
    /// fn load(mover: &paged_kv::tier_store::TierMover, ticket: paged_kv::LoadTicket) -> usize {
    ///     mover.load_blocking(ticket).map_or(0, |loaded| loaded.loaded_tokens)
    /// }
    /// ```
    pub fn load_blocking(&self, ticket: LoadTicket) -> Result<Loaded> {
        let (sender, receiver) = mpsc::channel();
        self.load(ticket, move |loaded| _ = sender.send(loaded));
        let gone = |_| PagedKvError::Inconsistent("a mover lost a load".to_owned());
        receiver.recv().map_err(gone)?
    }

    /// Makes the contents ready that a store has from an earlier process, on a thread of its own. Until that is done, the
    /// tier has no room, so stores are skipped and counted. [`stats`](Self::stats) has the progress; `is_done` becomes true
    /// in each case, also if the mover ends before or the thread is refused, and `ended_early` says that.
    ///
    /// Costs a read of the headers, 128 bytes a slot on disk, and no content.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a tier without a store, or with another number of slots than its
    /// store; or if the operating system refuses a thread.
    ///
    /// ```
    /// use paged_kv::tier_store::TierMover;
    /// use paged_kv::{PagedKvCache, TierId};
    ///
    /// fn start(cache: &PagedKvCache, mover: &TierMover) -> paged_kv::Result<()> {
    ///     mover.restore(cache.tiers().restore(TierId(1))?)
    /// }
    /// ```
    pub fn restore(&self, restore: TierRestore) -> Result<()> {
        let tier = restore.tier();
        let mut slots = 0;
        match self.shared.medium(tier) {
            Some(TierMedium::Store { store, .. }) => foreign::call(|| slots = store.slots()),
            _ => return Err(invalid("tier", format!("tier {} has no store", tier.0))),
        };
        if slots != restore.num_held() {
            let reason = format!("tier of {} slots, store of {slots}", restore.num_held());
            return Err(invalid("tier", reason));
        }
        let restoring = Restoring::begin(&self.shared, restore);
        self.spawn(move || restoring.run())
    }

    /// Waits until no ticket waits or is served, and writes resets again that a store has not on its medium. Returns false if the time passes before, and when it is called in the
    /// function of a load.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// let mover = TierMover::builder(CpuDevice::new(4, 64)?).build()?;
    /// assert!(mover.quiesce(Duration::from_secs(1)));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn quiesce(&self, timeout: Duration) -> bool {
        let of_mover = self.threads.lock().iter().any(is_current);
        let is_idle = !of_mover && self.shared.queue.wait_until_idle(timeout);
        self.shared.retry_resets();
        self.shared.suspects.quiesce(self.shared.device.as_ref());
        is_idle
    }

    /// Serves all tickets that wait, and ends the threads. Waits for the media. A [restore](Self::restore) that is under way
    /// ends early: contents that are not ready yet are not found by this process, and may be by a later one unless their
    /// slots are written before.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// let mover = TierMover::builder(CpuDevice::new(4, 64)?).build()?;
    /// mover.shutdown();
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn shutdown(self) {
        self.shared.queue.drain();
        self.join();
    }

    /// Returns the figures of this moment. Costs a few locks and no pause of the threads.
    ///
    /// ```
    /// use paged_kv::tier_store::{CpuDevice, TierMover};
    ///
    /// let mover = TierMover::builder(CpuDevice::new(4, 64)?).build()?;
    /// assert_eq!(mover.stats().blocks_from_device, 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn stats(&self) -> MoverStats {
        self.shared.stats()
    }

    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads.into_iter().filter(|thread| !is_current(thread)) {
            // A thread that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

fn is_current(thread: &JoinHandle<()>) -> bool {
    thread.thread().id() == thread::current().id()
}

/// Serves jobs until the end, and ends quarantines in between.
fn serve(shared: &Shared, mut buffers: ReadBuffers) {
    loop {
        let running = match shared.queue.next(QUIESCE_PERIOD, || !shared.suspects.is_empty()) {
            NextAct::End => return,
            NextAct::Retry => None,
            NextAct::Serve(job, running) => {
                match job {
                    Job::Load(job) => shared.serve_load(*job, &mut buffers),
                    Job::Store(job) => shared.serve_store(*job, &mut buffers),
                }
                Some(running)
            }
        };
        shared.suspects.quiesce(shared.device.as_ref());
        drop(running);
    }
}

impl Drop for TierMover {
    fn drop(&mut self) {
        for job in self.shared.queue.close() {
            match job {
                Job::Load(job) => self.shared.skip_load(*job),
                Job::Store(job) => self.shared.skip_job(*job),
            }
        }
        self.join();
        self.shared.retry_resets();
        self.shared.suspects.quiesce(self.shared.device.as_ref());
    }
}

impl fmt::Debug for TierMover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierMover").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
