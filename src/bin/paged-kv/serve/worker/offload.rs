//! Admissions through the tiers below the device, and the copies to them.
//!
//! No byte moves in a replay: each copy is reported as done at once. So a ticket of another worker, which makes an
//! admission pending, is settled without waiting for anything.

use std::thread;

use paged_kv::{
    Admission, AdmitOptions, BlockHash, CopyOutcome, LoadLimit, LoadTicket, Loaded, Overwriting,
    PagedKvError, Prompt, SeqId, StoreFrom, StoreTicket, TierAdmission, TierId, Tiers,
};

use super::{Admitted, Worker, unless_evicted};
use crate::serve::prompts::Part;
use crate::tiers::{StorePolicy, TierSetup};

/// The first tier, which gets its contents from the device.
const FIRST: TierId = TierId(0);

/// The tier below the first.
const SECOND: TierId = TierId(1);

/// The most tiers.
pub const TIERS: usize = 2;

/// The use that workers make of the tiers.
#[derive(Clone, Copy, Debug)]
pub struct Offload {
    store: StorePolicy,
    tiers: usize,
    /// Tiers, from the first on, that contents are loaded from.
    loaded_tiers: usize,
}

impl Offload {
    pub fn new(setup: &TierSetup, block_size: usize) -> Self {
        Self {
            store: setup.store,
            tiers: setup.sizes().count(),
            loaded_tiers: setup.loaded_tiers(block_size),
        }
    }

    fn is_eager(self) -> bool {
        matches!(self.store, StorePolicy::Eager { .. })
    }

    fn has_second(self) -> bool {
        self.tiers > 1
    }

    /// Returns the most that an admission may load.
    fn limit(self, tiers: Tiers<'_>, prompt: &Prompt, block_size: usize) -> LoadLimit {
        if self.loaded_tiers == self.tiers {
            return LoadLimit::default();
        }
        let ready = tiers.lookup(prompt);
        let tokens: usize = ready.iter().skip(1).take(self.loaded_tiers).sum();
        LoadLimit::blocks(1..tokens / block_size)
    }
}

impl Worker<'_> {
    /// Admits the hits of a prompt, on the device and in tiers, and computes the rest in a step. Other workers may take the
    /// blocks before the step does. Then the prompt is freed and refused.
    pub(super) fn bring_in_through(
        &mut self,
        offload: Offload,
        id: SeqId,
        part: Part<'_>,
        reserve: usize,
    ) -> Result<Admitted, PagedKvError> {
        let (cache, prompts) = (self.service.cache, self.service.plan.prompts);
        let (prompt, options) = (prompts.prompt(cache, part), AdmitOptions::default());
        let requested = reserve + cache.required_blocks(&prompt, &options)?;
        let available = cache.free_block_count();
        if requested > available {
            return Err(PagedKvError::OutOfMemory { requested, available });
        }
        let admission = self.admit_hits(offload, id, &prompt, &options.first_chunk(0))?;
        let (cached_tokens, num_tokens) = (admission.cached_tokens, prompt.num_tokens());
        self.has_changed = true;
        let written = match self.append_in_step(id, num_tokens - cached_tokens) {
            Ok(()) => num_tokens,
            Err(PagedKvError::SequenceNotFound(_)) => cached_tokens,
            Err(error) => {
                unless_evicted(self.meter.time(|| cache.free(id)))?;
                return Err(error);
            }
        };
        self.count_hits(part, &admission);
        self.commit_named(id, part, written)?;
        self.store_computed(prompt.hashes())?;
        Ok(Admitted { cached_tokens, written })
    }

    /// Admits the hits of a prompt, loads those of tiers, and inserts the sequence under its id.
    fn admit_hits(
        &mut self,
        offload: Offload,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<Admission, PagedKvError> {
        let tiers = self.service.cache.tiers();
        let block_size = self.service.cache.block_size();
        loop {
            let limit = offload.limit(tiers, prompt, block_size);
            let (sequence, admission) = match self
                .meter
                .time(|| tiers.admit(prompt, options, limit))?
            {
                TierAdmission::Ready(sequence, admission) => (sequence, admission),
                TierAdmission::Loading(ticket) => {
                    self.store_overwritten(&ticket, ticket.loads().len())?;
                    let Loaded { sequence, admission, .. } = self.load(ticket)?;
                    (sequence, admission)
                }
                TierAdmission::Pending => {
                    thread::yield_now();
                    continue;
                }
                other => unreachable!("an admission that this program does not know: {other:?}"),
            };
            self.meter.time(|| tiers.insert(id, sequence, &admission, options))?;
            return Ok(admission);
        }
    }

    /// Makes the copies of a load, and counts them.
    fn load(&mut self, ticket: LoadTicket) -> Result<Loaded, PagedKvError> {
        let block_size = self.service.cache.block_size() as u64;
        for load in ticket.loads() {
            self.meter.tier_tokens[usize::from(load.src.tier.0)] += block_size;
        }
        let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
        self.meter.time(|| ticket.complete(&outcomes))
    }

    /// Makes the copies of a store.
    fn store(&mut self, ticket: Option<StoreTicket>) -> Result<(), PagedKvError> {
        let Some(ticket) = ticket else { return Ok(()) };
        let outcomes = vec![CopyOutcome::Done; ticket.stores().len()];
        self.meter.time(|| ticket.complete(&outcomes)).map(drop)
    }

    /// Stores the contents that an operation is about to overwrite in at most `taken` blocks, unless the policy is eager.
    /// Those that the first tier may give up for them go to the second before.
    fn store_overwritten(
        &mut self,
        by: &impl Overwriting,
        taken: usize,
    ) -> Result<(), PagedKvError> {
        let Some(offload) = self.service.plan.offload else { return Ok(()) };
        if offload.is_eager() || taken == 0 {
            return Ok(());
        }
        let tiers = self.service.cache.tiers();
        if offload.has_second() {
            self.store_ahead(StoreFrom::Tier(FIRST), SECOND, taken)?;
        }
        let ticket = self.meter.time(|| tiers.store_overwritten(FIRST, by))?;
        self.meter.late_stores += ticket.as_ref().map_or(0, |ticket| ticket.stores().len() as u64);
        self.store(ticket)
    }

    /// Stores contents that were computed, if the policy is eager.
    pub(super) fn store_computed(&mut self, hashes: &[BlockHash]) -> Result<(), PagedKvError> {
        let Some(offload) = self.service.plan.offload else { return Ok(()) };
        if !offload.is_eager() {
            return Ok(());
        }
        let tiers = self.service.cache.tiers();
        for tier in [FIRST, SECOND].into_iter().take(offload.tiers) {
            let ticket = self.meter.time(|| tiers.store(tier, hashes))?;
            self.store(ticket)?;
        }
        Ok(())
    }

    /// Stores the oldest contents if the policy is a cleaner, and blocks were taken or released since it last did.
    pub(super) fn clean(&mut self) -> Result<(), PagedKvError> {
        let has_changed = std::mem::take(&mut self.has_changed);
        let Some(offload) = self.service.plan.offload.filter(|_| has_changed) else {
            return Ok(());
        };
        let StorePolicy::Cleaner { ahead } = offload.store else { return Ok(()) };
        if offload.has_second() {
            self.store_ahead(StoreFrom::Tier(FIRST), SECOND, ahead.get())?;
        }
        self.store_ahead(StoreFrom::Device, FIRST, ahead.get())
    }

    /// Stores the contents that the next `ahead` blocks would overwrite.
    fn store_ahead(
        &mut self,
        from: StoreFrom,
        to: TierId,
        ahead: usize,
    ) -> Result<(), PagedKvError> {
        let tiers = self.service.cache.tiers();
        let ticket = self.meter.time(|| tiers.store_ahead(from, to, ahead))?;
        self.store(ticket)
    }

    /// Appends tokens in a step, which tells the contents that it overwrites.
    pub(super) fn append_in_step(&mut self, id: SeqId, tokens: usize) -> Result<(), PagedKvError> {
        let cache = self.service.cache;
        let lease = self.meter.time(|| cache.lease(&[id]))?;
        let mut rows: Vec<_> = lease.rows().map(|row| (row, tokens)).collect();
        let mut step = cache.step(Default::default());
        let grown = self.meter.time(|| step.grow(&mut rows))?;
        if grown.grown_rows == 0 {
            let available = cache.free_block_count();
            return Err(PagedKvError::OutOfMemory { requested: grown.missing_blocks, available });
        }
        self.store_overwritten(&step, step.overwritten().len())?;
        step.complete();
        self.has_changed = true;
        Ok(())
    }
}
