//! Tiers below the device: slots in host memory or on disk that hold contents which leave the device.
//!
//! A tier is the device's own design a second time: a pool of slots that keeps contents, and an index by their keys. A
//! slot is *writing* (owned, not cached), *ready* (idle), or *pinned* (owned and cached). No bytes move here: tickets name
//! the blocks and slots between which the caller copies.
//!
//! Invariants:
//!
//! - A content becomes ready only when a ticket reports that its copy was done.
//! - A ticket owns every block and slot that it names.
//! - A content that is being copied is in flight, from before its copy until after it is published. So of two
//!   requests for one content, one copies.
//! - A slot or block that a failed copy may still write is in [`quarantine`] until the mover is quiet.

pub(crate) mod contents;
pub(crate) mod in_flight;
pub(crate) mod quarantine;
pub(crate) mod sources;
pub(crate) mod store;
mod use_counts;

use std::panic::{RefUnwindSafe, UnwindSafe};

use self::contents::TierContents;
use self::in_flight::InFlight;
use self::quarantine::Quarantine;
use crate::counter::ShardedCounter;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
pub use crate::id::{Medium, TicketNumber, TierId, TierSlot};
use crate::pool::PoolHandle;
use crate::pool::content_key::ContentKey;
use crate::prefix::event_order::EventOrder;
use crate::prefix::event_order::in_tiers::TierEvents;
use crate::stats::CacheStats;
use crate::sync::{AtomicU64, Ordering, PlainArc};

/// The most tiers of a cache.
const MOST_TIERS: usize = 8;

/// A tier below the device, for [`PagedKvCacheBuilder::tier`](crate::PagedKvCacheBuilder::tier).
///
/// ```
/// use paged_kv::{PagedKvCache, Tier};
///
/// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(64)).build()?;
/// assert_eq!(cache.stats().tiers[0].slots_total, 64);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tier {
    medium: Medium,
    slots: usize,
    exclusive: bool,
    from_use: u8,
}

impl Tier {
    fn new(medium: Medium, slots: usize) -> Self {
        Self { medium, slots, exclusive: false, from_use: 1 }
    }

    /// Returns a tier of so many slots in host memory, a block each.
    ///
    /// ```
    /// assert_eq!(paged_kv::Tier::host(8), paged_kv::Tier::host(8).inclusive());
    /// ```
    pub fn host(slots: usize) -> Self {
        Self::new(Medium::Host, slots)
    }

    /// Returns a tier of so many slots in a file, a block each.
    ///
    /// ```
    /// assert_ne!(paged_kv::Tier::disk(8), paged_kv::Tier::host(8));
    /// ```
    pub fn disk(slots: usize) -> Self {
        Self::new(Medium::Disk, slots)
    }

    /// Lets a content leave the tier when it has been loaded, so that the device and the tier hold different contents.
    ///
    /// ```
    /// assert_ne!(paged_kv::Tier::host(8).exclusive(), paged_kv::Tier::host(8));
    /// ```
    pub fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }

    /// Lets a content stay in the tier when it has been loaded, the default: it need not be stored again.
    ///
    /// ```
    /// assert_eq!(paged_kv::Tier::host(8).exclusive().inclusive(), paged_kv::Tier::host(8));
    /// ```
    pub fn inclusive(self) -> Self {
        Self { exclusive: false, ..self }
    }

    /// Lets [`Tiers::store`](crate::Tiers::store) skip a content until it is asked to store it for the `uses`-th time:
    /// one that is used once only is then not copied. The counts are approximate: a tier has about two for each slot.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId, Tier, TierId};
    ///
    /// let tier = Tier::host(8).from_use(2);
    /// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(tier).build()?;
    /// let prompt = cache.prompt(&[7; 5]);
    /// cache.admit(SeqId(1), &[7; 5])?;
    /// cache.commit(SeqId(1), 5)?;
    /// assert!(cache.tiers().store(TierId(0), prompt.hashes())?.is_none());
    /// assert!(cache.tiers().store(TierId(0), prompt.hashes())?.is_some());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn from_use(self, uses: u8) -> Self {
        Self { from_use: uses, ..self }
    }

    pub(crate) fn medium_and_slots(&self) -> (Medium, usize) {
        (self.medium, self.slots)
    }
}

/// The outcome of one copy, as the mover reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyOutcome {
    /// All bytes are at the destination.
    Done,
    /// The copy was not made or ended early, and the destination is not written any more. Stores that end so count as
    /// dropped.
    Skipped,
    /// The destination may still be written. It is kept apart until [`Tiers::quiesced`](crate::Tiers::quiesced) says that
    /// it is not.
    Failed,
    /// The slot that was to be read does not hold the content: it is torn or corrupt. The tier forgets the content. The
    /// destination is not written any more.
    Lost,
}

/// A block of the device, or a slot of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A block of the device.
    Device(BlockId),
    /// A slot of a tier.
    Tier(TierSlot),
}

impl Place {
    /// Returns the block, if it is one of the device.
    ///
    /// ```
    /// assert_eq!(paged_kv::Place::Device(paged_kv::BlockId(7)).block(), Some(paged_kv::BlockId(7)));
    /// ```
    pub fn block(self) -> Option<BlockId> {
        match self {
            Self::Device(block) => Some(block),
            Self::Tier(_) => None,
        }
    }

    /// Returns the slot, if it is one of a tier.
    ///
    /// ```
    /// assert_eq!(paged_kv::Place::Device(paged_kv::BlockId(7)).slot(), None);
    /// ```
    pub fn slot(self) -> Option<TierSlot> {
        match self {
            Self::Device(_) => None,
            Self::Tier(slot) => Some(slot),
        }
    }

    /// Returns the place that follows this one after so many.
    pub(crate) fn plus(self, places: usize) -> Self {
        match self {
            Self::Device(BlockId(id)) => Self::Device(BlockId(id + places as u32)),
            Self::Tier(slot) => Self::Tier(slot.plus(places)),
        }
    }
}

impl TierSlot {
    /// Returns the slot of the tier that follows this one after so many.
    pub(crate) fn plus(self, slots: usize) -> Self {
        Self { slot: self.slot + slots as u32, ..self }
    }
}

/// The tiers of a cache, which tickets share.
pub(crate) struct TierState {
    pub(crate) tiers: Box<[TierContents]>,
    /// Contents that tickets load.
    pub(crate) loading: InFlight,
    /// Contents that tickets store, whose sources they own. A request for one that no other place has waits.
    pub(crate) storing: InFlight,
    /// Contents that tickets store, from copies that they have made of the sources. No request waits for these.
    pub(crate) staged: InFlight,
    pub(crate) quarantine: Quarantine,
    /// Admissions that had to wait for a ticket.
    pub(crate) pending: ShardedCounter,
    tickets: AtomicU64,
    reset_observer: Option<ResetObserver>,
}

/// The caller's observer of resets, which takes their number.
pub(crate) type ResetObserver = PlainArc<dyn Fn(u64) + Send + Sync>;

// Every panic leaves slots, index and claims consistent: see the guide's page on panics.
impl UnwindSafe for TierState {}
impl RefUnwindSafe for TierState {}

impl TierState {
    /// # Errors
    /// `InvalidConfig` for a tier without slots, or too many tiers; `OutOfHostMemory`.
    pub(crate) fn new(
        tiers: &[Tier],
        reset_observer: Option<ResetObserver>,
        event_order: Option<&PlainArc<EventOrder>>,
    ) -> Result<Self> {
        if tiers.len() > MOST_TIERS {
            let reason = format!("{}, at most {MOST_TIERS}", tiers.len());
            return Err(PagedKvError::InvalidConfig { parameter: "tier", reason });
        }
        let contents = tiers.iter().zip(0..).map(|(tier, at)| {
            let events = event_order.map(|order| TierEvents::new(PlainArc::clone(order), at));
            TierContents::new(tier, events)
        });
        let contents: Result<Box<[_]>> = contents.collect();
        let in_flight = || InFlight::new(tiers.iter().map(|tier| tier.slots).sum());
        Ok(Self {
            tiers: contents?,
            loading: in_flight()?,
            storing: in_flight()?,
            staged: in_flight()?,
            quarantine: Quarantine::new(),
            pending: ShardedCounter::new(),
            tickets: AtomicU64::new(0),
            reset_observer,
        })
    }

    /// Returns true if a content that no place has ready is being copied, so that a request for it should wait.
    pub(crate) fn copies(&self, key: ContentKey) -> bool {
        self.storing.has(key) || self.loading.has(key)
    }

    pub(crate) fn next_ticket(&self) -> TicketNumber {
        // Relaxed: only the number counts.
        TicketNumber(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn tier(&self, id: TierId) -> Result<&TierContents> {
        self.tiers.get(usize::from(id.0)).ok_or_else(|| {
            let reason = format!("{} of {}", id.0, self.tiers.len());
            PagedKvError::InvalidConfig { parameter: "tier", reason }
        })
    }

    /// Counts tokens of a prompt that were loaded from a tier.
    pub(crate) fn count_tokens(&self, from: TierId, tokens: usize) {
        self.tiers[usize::from(from.0)].counts.tokens_loaded.add(tokens as u64);
    }

    /// Makes all contents unmatchable, in the device's reset with this number. Copies that are under way publish nothing.
    pub(crate) fn reset(&self, number: u64) {
        self.tiers.iter().for_each(TierContents::reset);
        if let Some(observer) = &self.reset_observer {
            observer(number);
        }
    }

    /// Writes the counts of the tiers of a cache with blocks of so many bytes, and of its device, to `stats`.
    pub(crate) fn write_stats(
        &self,
        block_bytes: usize,
        device: &PoolHandle,
        stats: &mut CacheStats,
    ) {
        let of_tier = |tier: &TierContents| tier.stats(block_bytes, &self.quarantine);
        stats.tiers = self.tiers.iter().map(of_tier).collect();
        stats.contents_in_flight = self.loading.len() + self.storing.len() + self.staged.len();
        stats.blocks_quarantined = self.quarantine.len_in(device);
        stats.admissions_pending = self.pending.sum();
    }
}
