//! Stores: copies from the device are made before the call returns; copies to a store follow on a thread.
//!
//! Invariant: the thread that asks for a store waits for the device only.

use super::job::{StoreJob, StorePart};
use super::read_buffers::{BATCH, ReadBuffers};
use super::shared::{ContentBytes, Shared, TierMedium};
use super::suspects::Suspect;
use crate::sync::foreign;
use crate::tier::store::{Store, StoreTicket};
use crate::tier::{CopyOutcome, Place};
use crate::tier_store::device::{CopyOut, DeviceError};
use crate::tier_store::host_arena::HostArena;
use crate::tier_store::slot_store::{SlotError, SlotKey, SlotStore, SlotWrite};

pub(super) fn key_of(store: &Store) -> SlotKey {
    SlotKey { hash: store.hash, group: store.group }
}

impl Shared {
    pub(super) fn store(&self, ticket: StoreTicket) {
        let (settled, contents) = (ticket.quarantine(), ticket.stores().len());
        if !foreign::call(|| self.store_in_tier(ticket)) {
            self.counts.stores_failed.add(contents);
            self.keep_panicked(settled, Vec::new());
        }
        self.end_uncertain();
    }

    fn store_in_tier(&self, ticket: StoreTicket) {
        let Some(first) = ticket.stores().first() else { return };
        match self.medium(first.dst.tier) {
            None => self.skip_store(ticket),
            Some(TierMedium::Host(arena)) => self.store_in_host(ticket, arena),
            Some(TierMedium::Store { .. }) => self.stage(ticket),
        }
    }

    /// Settles a store of which no copy was made, for want of room.
    pub(super) fn skip_store(&self, ticket: StoreTicket) {
        let skipped = vec![CopyOutcome::Skipped; ticket.stores().len()];
        self.counts.stores_skipped.add(skipped.len());
        self.settle_store(ticket, &skipped);
    }

    /// Settles a store that waited, of which no copy was made in its tier.
    pub(super) fn skip_job(&self, job: StoreJob) {
        let skip = |part: &StorePart| match part {
            StorePart::Settled(outcome) => *outcome,
            StorePart::Staged(_) | StorePart::From(_) => self.skipped(),
        };
        let outcomes: Vec<_> = job.parts.iter().map(skip).collect();
        self.settle_store(job.ticket, &outcomes);
    }

    /// Serves a store. A panic, also of memory of the caller, ends it without its contents.
    pub(super) fn serve_store(&self, job: StoreJob, buffers: &mut ReadBuffers) {
        let (settled, contents) = (job.ticket.quarantine(), job.parts.len());
        if !foreign::call(|| self.serve_parts(job, buffers)) {
            self.counts.stores_failed.add(contents);
            self.keep_panicked(settled, Vec::new());
        }
    }

    /// Serves the parts of a store that are left.
    fn serve_parts(&self, job: StoreJob, buffers: &mut ReadBuffers) {
        let StoreJob { ticket, mut parts } = job;
        let tier = ticket.stores()[0].dst.tier;
        match self.medium(tier) {
            None => {}
            Some(TierMedium::Host(arena)) => self.fill_slots(&ticket, &mut parts, arena),
            Some(TierMedium::Store { store, first_epoch, .. }) => {
                let epoch = first_epoch.wrapping_add(ticket.resets());
                for (stores, parts) in ticket.stores().chunks(BATCH).zip(parts.chunks_mut(BATCH)) {
                    self.write_batch(stores, parts, (store.as_ref(), epoch), buffers);
                }
            }
        }
        self.settle_parts(ticket, &parts);
    }

    /// Counts a content that is not stored for want of room, and returns its outcome.
    fn skipped(&self) -> CopyOutcome {
        self.counts.stores_skipped.add(1);
        CopyOutcome::Skipped
    }

    /// Settles a store of which no part is left.
    fn settle_parts(&self, ticket: StoreTicket, parts: &[StorePart]) {
        let outcome = |part: &StorePart| match part {
            StorePart::Settled(outcome) => *outcome,
            StorePart::Staged(_) | StorePart::From(_) => self.skipped(),
        };
        let outcomes: Vec<_> = parts.iter().map(outcome).collect();
        let failed = outcomes
            .iter()
            .filter(|&&outcome| matches!(outcome, CopyOutcome::Failed | CopyOutcome::Lost));
        self.counts.stores_failed.add(failed.count());
        self.settle_store(ticket, &outcomes);
    }
}

/// # Stores in an arena
impl Shared {
    /// Copies blocks and slots of arenas to slots of an arena. Contents of other tiers follow on a thread.
    fn store_in_host(&self, ticket: StoreTicket, arena: &HostArena) {
        let mut parts: Vec<StorePart> = ticket.stores().iter().map(StorePart::of_host).collect();
        self.copy_blocks_to_slots(ticket.stores(), &mut parts, arena);
        for (store, part) in ticket.stores().iter().zip(&mut parts) {
            if let Place::Tier(slot) = store.src
                && let Some(from) = self.slot_of_host(slot)
            {
                let copied = arena.write(store.dst.slot).map(|mut to| {
                    to.bytes_mut().copy_from_slice(from.bytes());
                    CopyOutcome::Done
                });
                *part = StorePart::Settled(copied.unwrap_or_else(|| self.skipped()));
            }
        }
        if parts.iter().all(|part| matches!(part, StorePart::Settled(_))) {
            return self.settle_parts(ticket, &parts);
        }
        if let Err(job) = self.queue.push_store(Box::new(StoreJob { ticket, parts })) {
            self.skip_job(*job);
        }
    }

    /// A content is skipped whose slot cannot be written, and has failed if the device refuses its copy.
    fn copy_blocks_to_slots(&self, stores: &[Store], parts: &mut [StorePart], arena: &HostArena) {
        let slots = stores
            .iter()
            .enumerate()
            .filter_map(|(at, store)| Some((at, store.src.block()?, arena.write(store.dst.slot)?)));
        let mut slots: Vec<_> = slots.collect();
        let blocks = stores.iter().filter(|store| store.src.block().is_some()).count();
        self.counts.stores_skipped.add(blocks - slots.len());
        let copies =
            slots.iter_mut().map(|(_, block, slot)| CopyOut::new(*block, slot.bytes_mut()));
        let mut copies: Vec<_> = copies.collect();
        if copies.is_empty() {
            return;
        }
        foreign::call(|| self.device.copy_out_all(&mut copies));
        let outcomes: Vec<_> = copies.iter().map(|copy| self.outcome_of(&copy.outcome)).collect();
        for ((at, ..), outcome) in slots.iter().zip(outcomes) {
            self.counts.blocks_from_device.add(usize::from(outcome == CopyOutcome::Done));
            // The device refused it. One that is uncertain is counted when the ticket is settled.
            self.counts.stores_failed.add(usize::from(outcome == CopyOutcome::Skipped));
            parts[*at] = StorePart::Settled(outcome);
        }
    }

    /// Reads contents of stores into slots of an arena.
    fn fill_slots(&self, ticket: &StoreTicket, parts: &mut [StorePart], arena: &HostArena) {
        for (store, part) in ticket.stores().iter().zip(parts) {
            if let StorePart::From(slot) = part
                && let Some(mut to) = arena.write(store.dst.slot)
            {
                let read = self.read(*slot, key_of(store), to.bytes_mut());
                *part = StorePart::Settled(match read {
                    Ok(()) => CopyOutcome::Done,
                    Err(CopyOutcome::Skipped) => self.skipped(),
                    Err(outcome) => outcome,
                });
            }
        }
    }
}

/// # Stores in a store
impl Shared {
    /// Copies blocks to staging buffers, lets the blocks go, and leaves the rest to a thread.
    fn stage(&self, mut ticket: StoreTicket) {
        if !self.queue.has_room_for_store() {
            return self.skip_store(ticket);
        }
        let is_block = |store: &&Store| store.src.block().is_some();
        let blocks = ticket.stores().iter().filter(is_block).count();
        let mut buffers = self.staging.take(blocks).into_iter();
        self.counts.stores_skipped.add(blocks - buffers.len());
        let part = |store: &Store| match store.src {
            Place::Tier(slot) => StorePart::From(slot),
            Place::Device(_) => {
                buffers.next().map_or(StorePart::Settled(CopyOutcome::Skipped), StorePart::Staged)
            }
        };
        let mut parts: Vec<StorePart> = ticket.stores().iter().map(part).collect();
        let uncertain = self.copy_blocks_to_staging(ticket.stores(), &mut parts);
        self.keep(uncertain);
        if parts.iter().all(|part| matches!(part, StorePart::Settled(_))) {
            return self.settle_parts(ticket, &parts);
        }
        if parts.iter().all(|part| !matches!(part, StorePart::From(_))) {
            // The contents are staged: the blocks need not wait for the medium.
            ticket.release_sources();
        }
        if let Err(job) = self.queue.push_store(Box::new(StoreJob { ticket, parts })) {
            self.skip_job(*job);
        }
    }

    /// Returns the buffers that the device may still write.
    fn copy_blocks_to_staging(&self, stores: &[Store], parts: &mut [StorePart]) -> Option<Suspect> {
        let staged = parts.iter_mut().zip(stores).filter_map(|(part, store)| match part {
            StorePart::Staged(buffer) => Some(CopyOut::new(store.src.block()?, buffer.bytes_mut())),
            _ => None,
        });
        let mut copies: Vec<_> = staged.collect();
        if copies.is_empty() {
            return None;
        }
        foreign::call(|| self.device.copy_out_all(&mut copies));
        let outcomes: Vec<_> = copies.into_iter().map(|copy| copy.outcome).collect();
        let mut outcomes = outcomes.into_iter();
        let mut uncertain = Suspect::default();
        for part in parts.iter_mut().filter(|part| matches!(part, StorePart::Staged(_))) {
            let copied = outcomes.next().expect("an outcome a buffer");
            match self.outcome_of(&copied) {
                CopyOutcome::Done => self.counts.blocks_from_device.add(1),
                _ => {
                    // The slot was not written.
                    let staged = std::mem::replace(part, StorePart::Settled(CopyOutcome::Skipped));
                    self.counts.stores_failed.add(1);
                    if let (StorePart::Staged(buffer), Err(DeviceError::Uncertain(_))) =
                        (staged, copied)
                    {
                        uncertain.staged.push(buffer);
                    }
                }
            }
        }
        (!uncertain.staged.is_empty()).then_some(uncertain)
    }

    /// Writes a batch of contents to a store, and settles their parts.
    fn write_batch(
        &self,
        stores: &[Store],
        parts: &mut [StorePart],
        (store, epoch): (&dyn SlotStore, u64),
        buffers: &mut ReadBuffers,
    ) {
        for ((of, part), buffer) in stores.iter().zip(&mut *parts).zip(buffers.all_mut()) {
            if let StorePart::From(slot) = part
                && !self.is_of_host(*slot)
                && let Err(outcome) = self.read(*slot, key_of(of), buffer)
            {
                *part = StorePart::Settled(outcome);
            }
        }
        let contents = parts.iter().zip(buffers.all()).map(|(part, buffer)| match part {
            StorePart::Settled(_) => None,
            StorePart::Staged(staged) => Some(ContentBytes::Plain(staged.bytes())),
            StorePart::From(slot) if self.is_of_host(*slot) => {
                self.slot_of_host(*slot).map(ContentBytes::OfHost)
            }
            StorePart::From(_) => Some(ContentBytes::Plain(buffer)),
        });
        let contents: Vec<_> = contents.collect();
        let writes = stores.iter().zip(&contents).filter_map(|(of, content)| {
            let bytes = content.as_ref()?.bytes();
            Some(SlotWrite { slot: of.dst.slot, key: key_of(of), epoch, bytes })
        });
        let writes: Vec<_> = writes.collect();
        let mut outcomes = Vec::new();
        if !writes.is_empty() {
            foreign::call(|| outcomes = store.write_all(&writes));
        }
        let is_written: Vec<bool> = contents.iter().map(Option::is_some).collect();
        drop(writes);
        drop(contents);
        let mut outcomes = outcomes.into_iter();
        for (part, is_written) in parts.iter_mut().zip(is_written) {
            if is_written {
                *part = StorePart::Settled(self.outcome_of_write(outcomes.next()));
            }
        }
    }

    /// Returns the outcome of a write. `None` is one of which the store said nothing: it panicked.
    fn outcome_of_write(&self, written: Option<Result<(), SlotError>>) -> CopyOutcome {
        match written {
            Some(Ok(())) => {
                self.counts.bytes_written.add(self.block_bytes);
                return CopyOutcome::Done;
            }
            Some(Err(fault)) => self.count_fault(&fault),
            None => self.counts.store_errors.add(1),
        }
        self.counts.stores_failed.add(1);
        CopyOutcome::Skipped
    }
}

impl StorePart {
    /// Returns the part of a copy to an arena that was not made yet.
    fn of_host(store: &Store) -> Self {
        match store.src {
            Place::Tier(slot) => Self::From(slot),
            Place::Device(_) => Self::Settled(CopyOutcome::Skipped),
        }
    }
}
