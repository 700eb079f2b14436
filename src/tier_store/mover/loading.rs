//! Loads: contents of stores are read and checked on a thread; contents of arenas alone are copied at once.

use super::job::{LoadJob, OnLoaded};
use super::read_buffers::{BATCH, ReadBuffers};
use super::shared::{ContentBytes, Shared};
use crate::cache::{Load, LoadTicket};
use crate::sync::foreign;
use crate::tier::CopyOutcome;
use crate::tier_store::device::CopyIn;
use crate::tier_store::slot_store::SlotKey;

impl Shared {
    pub(super) fn load(&self, ticket: LoadTicket, on_loaded: OnLoaded) {
        let (settled, contents) = (ticket.quarantine(), ticket.loads().len());
        if !foreign::call(|| self.load_from_tiers(LoadJob { ticket, on_loaded })) {
            self.counts.loads_failed.add(contents);
            self.keep_panicked(settled, Vec::new());
        }
        self.end_uncertain();
    }

    fn load_from_tiers(&self, job: LoadJob) {
        if job.ticket.loads().iter().all(|load| self.is_of_host(load.src)) {
            return self.load_from_host(job);
        }
        if let Err(job) = self.queue.push_load(Box::new(job)) {
            self.skip_load(*job);
        }
    }

    /// Settles a load of which no copy was made.
    pub(super) fn skip_load(&self, job: LoadJob) {
        let skipped = vec![CopyOutcome::Skipped; job.ticket.loads().len()];
        self.counts.loads_skipped.add(skipped.len());
        self.settle_load(job, &skipped, Vec::new());
    }

    fn load_from_host(&self, job: LoadJob) {
        let mut outcomes = vec![CopyOutcome::Skipped; job.ticket.loads().len()];
        let slots = job.ticket.loads().iter().map_while(|load| self.slot_of_host(load.src));
        let contents: Vec<_> = slots.map(ContentBytes::OfHost).collect();
        self.copy_in(job.ticket.loads(), &contents, &mut outcomes);
        drop(contents);
        self.settle_copied(job, &outcomes, Vec::new());
    }

    /// Serves a load. A panic, also of memory of the caller, ends it without a sequence.
    pub(super) fn serve_load(&self, job: LoadJob, buffers: &mut ReadBuffers) {
        let (settled, contents) = (job.ticket.quarantine(), job.ticket.loads().len());
        if !foreign::call(|| self.load_in_batches(job, buffers)) {
            self.counts.loads_failed.add(contents);
            self.keep_panicked(settled, buffers.replace());
        }
    }

    /// Reads the contents of a load batch by batch, until one is bad: the sequence ends before it.
    fn load_in_batches(&self, job: LoadJob, buffers: &mut ReadBuffers) {
        let loads = job.ticket.loads();
        let mut outcomes = vec![CopyOutcome::Skipped; loads.len()];
        for (loads, outcomes) in loads.chunks(BATCH).zip(outcomes.chunks_mut(BATCH)) {
            self.load_batch(loads, outcomes, buffers);
            if outcomes.iter().any(|&outcome| outcome != CopyOutcome::Done) {
                break;
            }
        }
        let is_uncertain = outcomes.contains(&CopyOutcome::Failed);
        let used = if is_uncertain { buffers.replace() } else { Vec::new() };
        self.settle_copied(job, &outcomes, used);
    }

    fn load_batch(&self, loads: &[Load], outcomes: &mut [CopyOutcome], buffers: &mut ReadBuffers) {
        let mut read = 0;
        for (load, buffer) in loads.iter().zip(buffers.all_mut()) {
            if !self.is_of_host(load.src)
                && let Err(outcome) = self.read(load.src, key_of(load), buffer)
            {
                outcomes[read] = outcome;
                break;
            }
            read += 1;
        }
        let contents =
            loads[..read].iter().zip(buffers.all()).map_while(|(load, buffer)| {
                match self.is_of_host(load.src) {
                    true => self.slot_of_host(load.src).map(ContentBytes::OfHost),
                    false => Some(ContentBytes::Plain(buffer)),
                }
            });
        let contents: Vec<_> = contents.collect();
        self.copy_in(loads, &contents, outcomes);
    }

    /// Copies contents to the blocks of the first loads.
    fn copy_in(&self, loads: &[Load], contents: &[ContentBytes<'_>], outcomes: &mut [CopyOutcome]) {
        let pairs = loads.iter().zip(contents);
        let copies = pairs.map(|(load, content)| CopyIn::new(load.dst, content.bytes()));
        let mut copies: Vec<_> = copies.collect();
        if copies.is_empty() {
            return;
        }
        foreign::call(|| self.device.copy_in_all(&mut copies));
        for (outcome, copy) in outcomes.iter_mut().zip(&copies) {
            *outcome = self.outcome_of(&copy.outcome);
            self.counts.blocks_to_device.add(usize::from(*outcome == CopyOutcome::Done));
        }
    }

    /// Settles a load after its copies. `used` are buffers that the device may still read.
    fn settle_copied(&self, job: LoadJob, outcomes: &[CopyOutcome], used: Vec<Box<[u8]>>) {
        let bad = outcomes.iter().filter(|&&outcome| outcome != CopyOutcome::Done).count();
        self.counts.loads_failed.add(bad);
        self.settle_load(job, outcomes, used);
    }
}

fn key_of(load: &Load) -> SlotKey {
    SlotKey { hash: load.hash, group: load.group }
}
