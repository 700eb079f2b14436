//! The tiers of a cache to be, and the observer of resets that a tier of another lifetime needs.

use std::fmt;

use super::PagedKvCacheBuilder;
use super::checks::invalid;
use crate::error::Result;
use crate::id::Medium;
use crate::prefix::event_order::EventOrder;
use crate::sync::PlainArc;
use crate::tier::{ResetObserver, Tier, TierState};

/// The tiers, in their order, and the observer of resets.
#[derive(Clone, Debug, Default)]
pub(super) struct TierSettings {
    tiers: Vec<Tier>,
    reset_observer: Option<ResetListener>,
}

/// An observer of resets, which has no `Debug`.
#[derive(Clone)]
struct ResetListener(ResetObserver);

impl fmt::Debug for ResetListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetObserver { .. }")
    }
}

impl PagedKvCacheBuilder {
    /// Adds a tier below the device, below those added before: slots in host memory or on disk for contents that leave
    /// the device. [`PagedKvCache::tiers`](crate::PagedKvCache::tiers) hands out tickets for the copies; no byte moves by
    /// itself. Only with prefix reuse. Each slot takes about 80 bytes, and holds a block of any of the [`groups`](Self::groups);
    /// about 70 bytes more with an [event sink](Self::event_sink), which gets the events of the tier, too.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// let cache = builder.clone().tier(Tier::host(64)).tier(Tier::disk(1_024)).build()?;
    /// assert_eq!(cache.stats().tiers.len(), 2);
    /// assert!(builder.tier(Tier::host(0)).build().is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn tier(mut self, tier: Tier) -> Self {
        self.tiers.tiers.push(tier);
        self
    }

    /// Calls `observer` in each [reset](crate::Prefix::reset), before the reset returns, with the number of resets so far.
    /// A tier that outlives the process has to note by then that contents of fewer [resets](crate::StoreTicket::resets)
    /// must not be found again. Contents of the new generation may have been stored before the call. Resets of two threads
    /// may call it at the same time, in any order. Only with a [`tier`](Self::tier).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// use paged_kv::{PagedKvCache, Tier};
    ///
    /// let (resets, builder) = (Arc::new(AtomicU64::new(0)), PagedKvCache::builder().num_blocks(8));
    /// let seen = Arc::clone(&resets);
    /// let observer = move |number| _ = seen.fetch_max(number, Ordering::Relaxed);
    /// let cache = builder.tier(Tier::disk(64)).reset_observer(observer).build()?;
    /// cache.prefix().reset();
    /// assert_eq!(resets.load(Ordering::Relaxed), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn reset_observer(mut self, observer: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.tiers.reset_observer = Some(ResetListener(PlainArc::new(observer)));
        self
    }

    /// Returns the medium and the number of slots of each tier.
    pub(super) fn media_and_slots(&self) -> Vec<(Medium, usize)> {
        self.tiers.tiers.iter().map(Tier::medium_and_slots).collect()
    }

    pub(super) fn built_tiers(
        &self,
        event_order: Option<&PlainArc<EventOrder>>,
    ) -> Result<Option<PlainArc<TierState>>> {
        let TierSettings { tiers, reset_observer } = &self.tiers;
        if tiers.is_empty() {
            return match reset_observer {
                Some(_) => invalid("reset_observer", "the cache has no tier".to_owned()),
                None => Ok(None),
            };
        }
        if !self.prefix_reuse {
            return invalid("tier", "a cache without prefix reuse has no tiers".to_owned());
        }
        let observer =
            reset_observer.as_ref().map(|ResetListener(observer)| PlainArc::clone(observer));
        Ok(Some(PlainArc::new(TierState::new(tiers, observer, event_order)?)))
    }
}
