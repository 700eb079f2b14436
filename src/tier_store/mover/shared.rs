//! `Shared`: the device, the media and the bounds of a mover, which its callers and its threads share.

use super::job::LoadJob;
use super::queue::JobQueue;
use super::staging::Staging;
use super::stats::{Counts, MoverStats, RestoreProgress};
use super::suspects::{SettledTicket, Suspect, Suspects};
use crate::error::Result;
use crate::sync::foreign;
use crate::sync::outside::{Arc, Mutex};
use crate::tier::store::StoreTicket;
use crate::tier::{CopyOutcome, TierId, TierSlot};
use crate::tier_store::device::{Device, DeviceError};
use crate::tier_store::host_arena::{HostArena, SlotRead};
use crate::tier_store::resets::TierResets;
use crate::tier_store::slot_store::{SlotError, SlotKey, SlotStore};

/// The medium of a tier.
#[derive(Clone)]
pub(super) enum TierMedium {
    Host(Arc<HostArena>),
    Store {
        store: Arc<dyn SlotStore>,
        /// The epoch of the store for contents of the cache's first generation.
        first_epoch: u64,
        resets: TierResets,
    },
}

impl TierMedium {
    /// Returns the slots and the bytes of one.
    pub(super) fn geometry(&self) -> (usize, usize) {
        match self {
            Self::Host(arena) => (arena.slots(), arena.block_bytes()),
            Self::Store { store, .. } => (store.slots(), store.block_bytes()),
        }
    }
}

/// The bytes of a content that is to be copied.
pub(super) enum ContentBytes<'a> {
    Plain(&'a [u8]),
    OfHost(SlotRead<'a>),
}

impl ContentBytes<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::OfHost(slot) => slot.bytes(),
        }
    }
}

/// All that a mover's threads use.
pub(super) struct Shared {
    pub(super) device: Box<dyn Device>,
    /// By tier.
    pub(super) media: Vec<Option<TierMedium>>,
    pub(super) block_bytes: usize,
    pub(super) queue: JobQueue,
    pub(super) staging: Arc<Staging>,
    pub(super) suspects: Suspects,
    pub(super) counts: Counts,
    pub(super) restores: Mutex<Vec<RestoreProgress>>,
}

impl Shared {
    pub(super) fn medium(&self, tier: TierId) -> Option<&TierMedium> {
        self.media.get(usize::from(tier.0))?.as_ref()
    }

    /// Returns a slot of an arena for reading.
    pub(super) fn slot_of_host(&self, slot: TierSlot) -> Option<SlotRead<'_>> {
        match self.medium(slot.tier)? {
            TierMedium::Host(arena) => arena.read(slot.slot),
            TierMedium::Store { .. } => None,
        }
    }

    pub(super) fn is_of_host(&self, slot: TierSlot) -> bool {
        matches!(self.medium(slot.tier), Some(TierMedium::Host(_)))
    }

    /// Reads a content from a store. A failure of any kind loses the content: the tier forgets it and is not asked for it
    /// again.
    pub(super) fn read(
        &self,
        slot: TierSlot,
        key: SlotKey,
        into: &mut [u8],
    ) -> Result<(), CopyOutcome> {
        let Some(TierMedium::Store { store, .. }) = self.medium(slot.tier) else {
            return Err(CopyOutcome::Skipped);
        };
        let mut outcome = None;
        foreign::call(|| outcome = Some(store.read(slot.slot, key, into)));
        self.counts.bytes_read.add(self.block_bytes);
        match outcome {
            Some(Ok(())) => return Ok(()),
            Some(Err(fault)) => self.count_fault(&fault),
            None => self.counts.store_errors.add(1),
        }
        Err(CopyOutcome::Lost)
    }

    pub(super) fn count_fault(&self, fault: &SlotError) {
        match fault {
            SlotError::Corrupt => self.counts.checksum_errors.add(1),
            SlotError::Missing | SlotError::OtherEpoch { .. } => {}
            SlotError::NoSuchSlot { .. } | SlotError::Io(_) => self.counts.store_errors.add(1),
        }
    }

    /// Returns the outcome of a copy whose destination the device may have written.
    pub(super) fn outcome_of(&self, copied: &Result<(), DeviceError>) -> CopyOutcome {
        match copied {
            Ok(()) => return CopyOutcome::Done,
            Err(_) => self.counts.device_errors.add(1),
        }
        match copied {
            Err(DeviceError::Uncertain(_)) => CopyOutcome::Failed,
            _ => CopyOutcome::Skipped,
        }
    }

    /// Settles a store.
    pub(super) fn settle_store(&self, ticket: StoreTicket, outcomes: &[CopyOutcome]) {
        let is_uncertain = outcomes.contains(&CopyOutcome::Failed);
        let suspect = is_uncertain.then(|| {
            let tier = ticket.stores().first().map(|store| store.dst.tier);
            let arenas = tier.and_then(|tier| self.arena_of(tier)).into_iter().collect();
            Suspect { ticket: Some(ticket.quarantine()), arenas, ..Suspect::default() }
        });
        // An error would mean another number of outcomes; the ticket counts as failed then.
        let _ = ticket.complete(outcomes);
        self.keep(suspect);
    }

    /// Settles a load and reports its outcome. `used` are buffers that the device may still read.
    pub(super) fn settle_load(
        &self,
        LoadJob { ticket, on_loaded }: LoadJob,
        outcomes: &[CopyOutcome],
        used: Vec<Box<[u8]>>,
    ) {
        let is_uncertain = outcomes.contains(&CopyOutcome::Failed);
        let suspect = is_uncertain.then(|| {
            let tiers = ticket.loads().iter().map(|load| load.src.tier);
            let arenas = tiers.filter_map(|tier| self.arena_of(tier)).collect();
            let ticket = Some(ticket.quarantine());
            Suspect { ticket, buffers: used, arenas, ..Suspect::default() }
        });
        let loaded = ticket.complete(outcomes);
        self.keep(suspect);
        if !on_loaded.call(loaded) {
            self.counts.callback_panics.add(1);
        }
    }

    fn arena_of(&self, tier: TierId) -> Option<Arc<HostArena>> {
        match self.medium(tier)? {
            TierMedium::Host(arena) => Some(Arc::clone(arena)),
            TierMedium::Store { .. } => None,
        }
    }

    /// Keeps memory and tickets with uncertain copies until the device is quiet, which it may be now.
    pub(super) fn keep(&self, uncertain: Option<Suspect>) {
        if let Some(suspect) = uncertain {
            self.suspects.keep(suspect);
            self.end_uncertain();
        }
    }

    /// Keeps a ticket whose job panicked, which dropped it: its copies count as failed. They may use the memory of any
    /// arena, and the buffers `used`.
    pub(super) fn keep_panicked(&self, ticket: SettledTicket, used: Vec<Box<[u8]>>) {
        let arenas = self.media.iter().flatten().filter_map(|medium| match medium {
            TierMedium::Host(arena) => Some(Arc::clone(arena)),
            TierMedium::Store { .. } => None,
        });
        let arenas = arenas.collect();
        let suspect = Suspect { ticket: Some(ticket), buffers: used, arenas, ..Suspect::default() };
        self.keep(Some(suspect));
    }

    /// Resets the stores again whose last reset is not on their media.
    pub(super) fn retry_resets(&self) {
        for medium in self.media.iter().flatten() {
            if let TierMedium::Store { resets, .. } = medium {
                resets.retry();
            }
        }
    }

    /// Asks the device to end the copies that are uncertain, if there are some. If it does not, a thread asks again.
    pub(super) fn end_uncertain(&self) {
        self.suspects.quiesce(self.device.as_ref());
        if !self.suspects.is_empty() {
            self.queue.wake();
        }
    }

    pub(super) fn stats(&self) -> MoverStats {
        let [loads_queued, stores_queued, jobs_running] = self.queue.lens();
        let (staging_used, staging_total) = self.staging.used();
        MoverStats {
            loads_queued,
            stores_queued,
            jobs_running,
            staging_used,
            staging_total,
            tickets_uncertain: self.suspects.len(),
            restores: self.restores.lock().clone(),
            ..self.counts.read(self.block_bytes)
        }
    }
}
