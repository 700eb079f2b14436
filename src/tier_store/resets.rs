//! [`TierResets`]: resets of a cache, carried over to stores whose contents outlive the process.

use std::fmt;

use super::slot_store::SlotStore;
use crate::sync::outside::{Arc, Mutex, Weak};
use crate::sync::{AtomicU64, Ordering, foreign};

/// Carries resets of a cache over to its stores, so that contents from before a reset are not found by a later process.
///
/// Create it first, give its [`observer`](Self::observer) to the builder of the cache, and then give it to the builder of
/// the mover together with each store. A reset of the cache then returns after it is on the medium, unless that failed: then
/// [`failed`](Self::failed) has counted it, and nothing is written to the store until a later try is good.
///
/// ```
/// use paged_kv::tier_store::TierResets;
/// use paged_kv::{PagedKvCache, Tier};
///
/// let resets = TierResets::new();
/// let builder = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(16));
/// let cache = builder.reset_observer(resets.observer()).build()?;
/// cache.prefix().reset();
/// assert_eq!(resets.count(), 1);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Default)]
pub struct TierResets(Arc<ResetState>);

#[derive(Default)]
struct ResetState {
    stores: Mutex<WatchedStores>,
    failed: AtomicU64,
}

#[derive(Default)]
struct WatchedStores {
    resets: u64,
    stores: Vec<Arc<WatchedStore>>,
}

struct WatchedStore {
    store: Weak<dyn SlotStore>,
    /// The epoch of the store for contents of the cache's first generation.
    first_epoch: u64,
    /// The last reset that the store has on its medium.
    carried: AtomicU64,
}

impl TierResets {
    /// Creates one that watches no store yet.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::TierResets::new().count(), 0);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the function for [`PagedKvCacheBuilder::reset_observer`](crate::PagedKvCacheBuilder::reset_observer) of one
    /// cache.
    ///
    /// ```
    /// let resets = paged_kv::tier_store::TierResets::new();
    /// resets.observer()(1);
    /// assert_eq!(resets.count(), 1);
    /// ```
    pub fn observer(&self) -> impl Fn(u64) + Send + Sync + use<> {
        let resets = self.clone();
        move |number| resets.reset(number)
    }

    /// Returns the number of resets.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::TierResets::new().count(), 0);
    /// ```
    pub fn count(&self) -> u64 {
        self.0.stores.lock().resets
    }

    /// Returns how often a store could not write a reset to its medium, each try counted. The mover tries again in
    /// [`quiesce`](super::TierMover::quiesce) and at its end, and a [`DiskStore`](super::DiskStore) also at its next write
    /// and its end; it writes nothing until it can. If the process ends before, delete the file: a later process may find
    /// contents from before the reset.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::TierResets::new().failed(), 0);
    /// ```
    pub fn failed(&self) -> u64 {
        // Relaxed: only the number counts.
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Resets all stores. Two resets may come here in any order, and at once: a store stays in the later epoch, and the
    /// earlier call returns after that is on the medium, too.
    fn reset(&self, number: u64) {
        let stores = {
            let mut watched = self.0.stores.lock();
            watched.resets = watched.resets.max(number);
            watched.stores.retain(|of| of.store.strong_count() > 0);
            watched.stores.clone()
        };
        stores.iter().for_each(|of| self.carry(of, number));
    }

    /// Resets the stores again whose last reset is not on their media.
    pub(super) fn retry(&self) {
        let (number, stores) = {
            let watched = self.0.stores.lock();
            (watched.resets, watched.stores.clone())
        };
        // Relaxed: a thread that reads the earlier number resets the store once more.
        let is_behind = |of: &&Arc<WatchedStore>| of.carried.load(Ordering::Relaxed) < number;
        stores.iter().filter(is_behind).for_each(|of| self.carry(of, number));
    }

    /// Resets a store. The caller holds no lock.
    fn carry(&self, of: &WatchedStore, number: u64) {
        let Some(store) = of.store.upgrade() else { return };
        if is_reset(store.as_ref(), of.first_epoch.wrapping_add(number)) {
            // Relaxed: as in `retry`.
            of.carried.fetch_max(number, Ordering::Relaxed);
        } else {
            // Relaxed: as in `failed`.
            self.0.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Carries later resets over to a store. Returns the epoch that the store has for contents of the cache's first
    /// generation. If there were resets already, contents of an earlier process are older than these: the store is reset.
    pub(super) fn watch(&self, store: &Arc<dyn SlotStore>) -> u64 {
        let mut of_store = 0;
        foreign::call(|| of_store = store.epoch());
        let (first_epoch, number) = {
            let mut watched = self.0.stores.lock();
            let number = watched.resets;
            let first_epoch = of_store.wrapping_add(u64::from(number > 0)).wrapping_sub(number);
            let (store, carried) = (Arc::downgrade(store), AtomicU64::new(0));
            watched.stores.push(Arc::new(WatchedStore { store, first_epoch, carried }));
            (first_epoch, number)
        };
        if number > 0 {
            self.retry();
        }
        first_epoch
    }
}

fn is_reset(store: &dyn SlotStore, epoch: u64) -> bool {
    let mut is_reset = false;
    foreign::call(|| is_reset = store.reset(epoch).is_ok());
    is_reset
}

impl fmt::Debug for TierResets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierResets").field("count", &self.count()).finish_non_exhaustive()
    }
}
