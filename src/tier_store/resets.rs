//! [`TierResets`]: resets of a cache, carried over to stores whose contents outlive the process.

use std::fmt;

use super::slot_store::SlotStore;
use crate::sync::foreign;
use crate::sync::outside::{Arc, Mutex, Weak};

/// Carries resets of a cache over to its stores, so that contents from before a reset are not found by a later process.
///
/// Create it first, give its [`observer`](Self::observer) to the builder of the cache, and then give it to the builder of
/// the mover together with each store. A reset of the cache then returns after it is on the medium.
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
pub struct TierResets(Arc<Mutex<WatchedStores>>);

#[derive(Default)]
struct WatchedStores {
    resets: u64,
    failed: u64,
    stores: Vec<WatchedStore>,
}

struct WatchedStore {
    store: Weak<dyn SlotStore>,
    /// The epoch of the store for contents of the cache's first generation.
    first_epoch: u64,
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
        self.0.lock().resets
    }

    /// Returns how often a store could not write a reset to its medium. Such a store writes nothing until it can; if the
    /// process ends before, delete its file: a later process may find contents from before the reset.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::TierResets::new().failed(), 0);
    /// ```
    pub fn failed(&self) -> u64 {
        self.0.lock().failed
    }

    /// Resets all stores, unless a later reset has done that. Two resets may come here in any order; the lock makes the
    /// earlier one wait until the later one is on the media.
    fn reset(&self, number: u64) {
        let mut watched = self.0.lock();
        if number <= watched.resets {
            return;
        }
        watched.resets = number;
        watched.stores.retain(|of| of.store.strong_count() > 0);
        let is_good = |of: &&WatchedStore| match of.store.upgrade() {
            Some(store) => is_reset(store.as_ref(), of.first_epoch.wrapping_add(number)),
            None => true,
        };
        let good = watched.stores.iter().filter(is_good).count();
        watched.failed += (watched.stores.len() - good) as u64;
    }

    /// Carries later resets over to a store. Returns the epoch that the store has for contents of the cache's first
    /// generation. If there were resets already, contents of an earlier process are older than these: the store is reset.
    pub(super) fn watch(&self, store: &Arc<dyn SlotStore>) -> u64 {
        let mut watched = self.0.lock();
        if watched.resets > 0 && !is_reset(store.as_ref(), store.epoch() + 1) {
            watched.failed += 1;
        }
        let first_epoch = store.epoch().wrapping_sub(watched.resets);
        watched.stores.push(WatchedStore { store: Arc::downgrade(store), first_epoch });
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
