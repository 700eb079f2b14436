//! [`TierRestore`]: contents that a tier has from an earlier process become ready.

use super::Tiers;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::prefix::{BlockHash, Generation};
use crate::sync::PlainArc;
use crate::tier::{TierId, TierState};

/// The slots of a tier while its contents from an earlier process are looked for. It owns all slots that were not
/// [found](Self::found) yet, so that nothing is stored over them. Dropped, it lets the others be written.
///
/// ```
/// use paged_kv::{BlockHash, GroupId, PagedKvCache, Tier, TierId};
///
/// let cache = PagedKvCache::builder().num_blocks(8).block_size(4).tier(Tier::disk(64)).build()?;
/// let prompt = cache.prompt(&[7; 9]);
/// let mut restore = cache.tiers().restore(TierId(0))?;
/// assert_eq!(restore.found(&[(3, prompt.hashes()[0], GroupId(0))]), 1);
/// drop(restore);
/// assert_eq!(cache.tiers().lookup(&prompt), vec![0, 4]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[must_use = "dropped, it lets all slots be written"]
pub struct TierRestore {
    state: PlainArc<TierState>,
    tier: TierId,
    generation: Generation,
    /// By slot: true while it is owned here.
    held: Vec<bool>,
}

impl Tiers<'_> {
    /// Takes all slots of a tier that has no content yet, to make those ready that a file has from an earlier process.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a tier that the cache does not have, or that is in use.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(64)).build()?;
    /// let restore = cache.tiers().restore(TierId(0))?;
    /// assert!(cache.tiers().restore(TierId(0)).is_err());
    /// drop(restore);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn restore(self, tier: TierId) -> Result<TierRestore> {
        let state = self.state()?;
        let contents = state.tier(tier)?;
        let in_use = |reason: &str| PagedKvError::InvalidConfig {
            parameter: "tier",
            reason: format!("{} {reason}", tier.0),
        };
        let of_device = self.cache.published().generation();
        let generation = contents.generation_like(of_device);
        let generation = generation.ok_or_else(|| in_use("is being reset"))?;
        if contents.pool().idle_totals().idle > 0 {
            return Err(in_use("has contents already"));
        }
        let num_slots = contents.pool().total_blocks();
        let slots = contents.take(num_slots).ok_or_else(|| in_use("is in use"))?;
        let mut held = vec![false; num_slots];
        slots.into_owned_ids().iter().for_each(|id| held[id.index()] = true);
        Ok(TierRestore { state: PlainArc::clone(state), tier, generation, held })
    }
}

impl TierRestore {
    /// Makes contents ready that were found in slots, of the hash and the group of layers that were stored with them. The
    /// last one counts as the most recently used. The other slots that are named may be written from now on: those of
    /// contents that the tier has already, and all of them after a reset. Returns how many contents are ready.
    pub fn found(&mut self, contents: &[(u32, BlockHash, GroupId)]) -> usize {
        let tier = self.state.tier(self.tier).expect("the tier was there when it began");
        let mut ready = 0;
        for &(slot, hash, group) in contents {
            if !self.held.get_mut(slot as usize).is_some_and(std::mem::take) {
                continue;
            }
            let of_slot = tier.table_of(vec![BlockId(slot)]);
            let is_new = group.index() < crate::groups::MOST_GROUPS
                && !tier.has(hash, tier.of_group(self.generation, group));
            if is_new {
                ready += tier.publish(group, of_slot.as_slice(), &[hash], self.generation);
            }
        }
        ready
    }

    #[cfg(feature = "tier-store")]
    pub(crate) fn tier(&self) -> TierId {
        self.tier
    }

    /// Returns the number of resets before it. Contents of a file that are from before another number of resets are not to
    /// be found by it.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(64)).build()?;
    /// cache.prefix().reset();
    /// assert_eq!(cache.tiers().restore(TierId(0))?.resets(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn resets(&self) -> u64 {
        self.generation.number()
    }

    /// Returns the number of slots that are still held.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(64)).build()?;
    /// assert_eq!(cache.tiers().restore(TierId(0))?.num_held(), 64);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_held(&self) -> usize {
        self.held.iter().filter(|&&is_held| is_held).count()
    }
}

impl Drop for TierRestore {
    fn drop(&mut self) {
        let held = self.held.iter().zip(0..).filter(|(is_held, _)| **is_held);
        let ids: Vec<BlockId> = held.map(|(_, id)| BlockId(id)).collect();
        let tier = self.state.tier(self.tier).expect("the tier was there when it began");
        drop(tier.table_of(ids));
    }
}

impl std::fmt::Debug for TierRestore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TierRestore").field("tier", &self.tier).finish_non_exhaustive()
    }
}
