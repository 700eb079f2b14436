//! `World`: a cache with tiers beside its reference. Each operation is made on both, and their answers are compared.

use std::collections::BTreeSet;
use std::sync::Arc;

use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, CopyOutcome, LoadLimit, LoadTicket, Medium,
    PagedKvCache, PagedKvError, Prompt, Step, StoreTicket, TicketNumber, TierAdmission, TierId,
};

use crate::BLOCK_SIZE;
use crate::mirror::Mirror;
use crate::reference::{Allowed, BeginStore, Expected, Pins, Place, Reference};

pub struct Loading {
    ticket: LoadTicket,
    pins: Pins,
    generation: u64,
    prompt: Prompt,
    hits: usize,
}

pub struct Storing {
    ticket: StoreTicket,
    tier: usize,
    generation: u64,
    /// Its pins in other tiers.
    sources: Vec<Vec<u32>>,
}

/// How a ticket ends: with an outcome a copy, or dropped.
pub type Ending = Option<Vec<CopyOutcome>>;

pub struct World {
    pub cache: PagedKvCache,
    pub reference: Reference,
    /// The sink of the cache, if it has one.
    pub mirror: Option<Arc<Mirror>>,
    pub sequences: Vec<CachedSequence>,
    pub loads: Vec<Loading>,
    pub stores: Vec<Storing>,
    /// Admissions that loaded, and those that had to wait.
    pub num_loads: usize,
    pub num_pending: usize,
    /// Contents that were copied on their way out.
    pub num_overwritten: usize,
    /// Contents that were copied from another tier.
    pub num_from_tiers: usize,
}

fn most_hits(prompt: &Prompt) -> usize {
    (prompt.num_tokens() - 1) / BLOCK_SIZE
}

impl World {
    pub fn new(cache: PagedKvCache, reference: Reference) -> Self {
        Self {
            cache,
            reference,
            mirror: None,
            sequences: Vec::new(),
            loads: Vec::new(),
            stores: Vec::new(),
            num_loads: 0,
            num_pending: 0,
            num_overwritten: 0,
            num_from_tiers: 0,
        }
    }

    /// Compares look-ups of these prompts and all counts.
    pub fn check(&self, prompts: &[Prompt]) {
        for prompt in prompts {
            let on_device = self.cache.prefix().probe(prompt);
            let rest = &prompt.hashes()[on_device / BLOCK_SIZE..most_hits(prompt)];
            let in_tiers = self.reference.lookup(rest).into_iter().map(|ready| ready * BLOCK_SIZE);
            let expected: Vec<usize> = std::iter::once(on_device).chain(in_tiers).collect();
            assert_eq!(self.cache.tiers().lookup(prompt), expected);
        }
        let stats = self.cache.stats();
        assert_eq!(stats.contents_in_flight, self.reference.in_flight.len());
        assert_eq!(stats.blocks_quarantined, self.reference.blocks_quarantined());
        assert_eq!(stats.admissions_pending, self.num_pending as u64);
        for (at, (tier, stats)) in self.reference.tiers.iter().zip(&stats.tiers).enumerate() {
            tier.check(stats, self.reference.generation);
            assert_eq!(stats.slots_quarantined, self.reference.slots_quarantined(at));
        }
        for sequence in &self.sequences {
            self.assert_apart(sequence.block_ids());
        }
        if let Some(mirror) = &self.mirror {
            mirror.assert_device(&self.cache, prompts);
            for medium in [Medium::Host, Medium::Disk] {
                mirror.assert_tier(medium, &self.contents_of(medium));
            }
        }
    }

    fn contents_of(&self, medium: Medium) -> BTreeSet<BlockHash> {
        let stats = self.cache.stats().tiers;
        let tiers = self.reference.tiers.iter().zip(stats);
        let of_medium = tiers.filter(|(_, stats)| stats.medium == Some(medium));
        of_medium.flat_map(|(tier, _)| tier.contents(self.reference.generation)).collect()
    }

    /// Checks that no block is in quarantine or written by a load.
    fn assert_apart(&self, blocks: &[BlockId]) {
        let is_kept = |block: &BlockId| {
            self.reference.quarantine.values().any(|kept| kept.blocks.contains(block))
                || self.loads.iter().any(|load| load.ticket.loads().iter().any(|l| l.dst == *block))
        };
        assert!(!blocks.iter().any(is_kept), "a block that is written has another owner");
    }

    pub fn admit(&mut self, prompt: &Prompt, allowed: Allowed) {
        let hits = self.cache.prefix().probe(prompt) / BLOCK_SIZE;
        let limit = match (allowed.least, allowed.most) {
            (1, 0) => LoadLimit::none(),
            (1, usize::MAX) => LoadLimit::default(),
            (least, most) => LoadLimit::blocks(least..most),
        };
        let options = AdmitOptions::default();
        let required = self.cache.required_blocks(prompt, &options).unwrap();
        let has_room = required <= self.cache.free_block_count();
        let expected = self.reference.admit(&prompt.hashes()[hits..most_hits(prompt)], allowed);
        let admitted = self.cache.tiers().admit(prompt, &options, limit);
        match (admitted, expected) {
            (Ok(TierAdmission::Pending), Expected::Pending) => self.num_pending += 1,
            (Ok(TierAdmission::Ready(mut sequence, admission)), Expected::Ready) => {
                assert!(has_room);
                assert_eq!(admission.cached_tokens, hits * BLOCK_SIZE);
                self.assert_apart(sequence.block_ids());
                sequence.commit(prompt.num_tokens()).unwrap();
                self.sequences.push(sequence);
            }
            (Ok(TierAdmission::Loading(ticket)), Expected::Loading(pins)) => {
                assert!(has_room);
                self.begin_load(ticket, pins, prompt, hits);
            }
            (Err(PagedKvError::OutOfMemory { .. }), expected) => {
                assert!(!has_room, "{required} blocks are free");
                if let Expected::Loading(pins) = expected {
                    self.reference.unpin(pins);
                }
            }
            (admitted, expected) => panic!("{admitted:?}, not {expected:?}"),
        }
    }

    fn begin_load(&mut self, ticket: LoadTicket, pins: Pins, prompt: &Prompt, hits: usize) {
        let of = |load: &paged_kv::Load| (usize::from(load.src.tier.0), load.src.slot);
        let places: Vec<Place> = ticket.loads().iter().map(of).collect();
        assert_eq!(places, pins.places());
        let hashes = &prompt.hashes()[hits..][..places.len()];
        assert!(ticket.loads().iter().map(|load| load.hash).eq(hashes.iter().copied()));
        let in_runs: usize = ticket.runs().iter().map(|(_, len)| len).sum();
        assert_eq!(in_runs, places.len());
        let blocks: Vec<BlockId> = ticket.loads().iter().map(|load| load.dst).collect();
        self.assert_apart(&blocks);
        let is_owned = |block| self.sequences.iter().any(|s| s.block_ids().contains(block));
        assert!(!blocks.iter().any(is_owned), "a target belongs to one sequence");
        self.reference.claim(hashes.iter().copied(), ticket.number().0);
        self.num_loads += 1;
        let (generation, prompt) = (self.reference.generation, prompt.clone());
        self.loads.push(Loading { ticket, pins, generation, prompt, hits });
    }

    pub fn end_load(&mut self, at: usize, ending: impl FnOnce(usize) -> Ending) {
        let Loading { ticket, pins, generation, prompt, hits } = self.loads.swap_remove(at);
        let ending = ending(ticket.loads().len());
        let outcomes = ending.as_deref().unwrap_or(&[]);
        let is_done = |at: usize| outcomes.get(at) == Some(&CopyOutcome::Done);
        let loads = ticket.loads().to_vec();
        let good = (0..loads.len()).take_while(|&at| is_done(at)).count();
        let failed = pins.places().into_iter().zip(loads.iter().map(|load| load.dst)).enumerate();
        let failed: Vec<(Place, BlockId)> =
            failed.filter(|(at, _)| !is_done(*at)).map(|(_, of)| of).collect();
        let number = ticket.number().0;
        self.reference.settle_load(number, pins, good, &failed);
        if ending.is_none() {
            return drop(ticket);
        }
        let mut loaded = ticket.complete(outcomes).unwrap();
        let computed = (hits + good) * BLOCK_SIZE;
        assert_eq!(loaded.admission.cached_tokens, computed);
        assert_eq!((loaded.loaded_tokens, loaded.failed_blocks), (good * BLOCK_SIZE, failed.len()));
        let length = if good < loads.len() { computed } else { prompt.num_tokens() };
        assert_eq!(loaded.sequence.num_tokens(), length);
        if generation == self.reference.generation {
            let loaded = &prompt.hashes()[hits..hits + good];
            assert!(loaded.iter().all(|&hash| self.is_on_device(hash)), "published");
        }
        if loaded.sequence.append(prompt.num_tokens() - length).is_ok() {
            loaded.sequence.commit(prompt.num_tokens()).unwrap();
        }
        self.sequences.push(loaded.sequence);
    }

    fn is_on_device(&self, hash: BlockHash) -> bool {
        !self.cache.prefix().acquire(&[hash]).is_empty()
    }

    pub fn store(&mut self, tier: usize, hashes: &[BlockHash]) {
        let on_device: Vec<BlockHash> =
            hashes.iter().copied().filter(|&hash| self.is_on_device(hash)).collect();
        let begin = self.reference.begin_store(tier, hashes, |hash| on_device.contains(&hash));
        self.num_from_tiers += begin.sources.iter().flatten().count();
        let ticket = self.cache.tiers().store(TierId(tier as u8), hashes).unwrap();
        self.begin_store(tier, ticket, begin);
    }

    fn begin_store(
        &mut self,
        tier: usize,
        ticket: Option<StoreTicket>,
        BeginStore { wanted, kept, sources }: BeginStore,
    ) {
        let of_tier = &mut self.reference.tiers[tier];
        let fits = wanted.len() <= of_tier.room();
        assert_eq!(ticket.is_some(), fits && !wanted.is_empty());
        if !fits {
            of_tier.counts.dropped += wanted.len() as u64;
        }
        if let Some(ticket) = ticket {
            assert!(ticket.stores().iter().map(|store| store.hash).eq(wanted.iter().copied()));
            let slots: Vec<u32> = ticket.stores().iter().map(|store| store.dst.slot).collect();
            of_tier.take(&slots);
            self.reference.claim(wanted, ticket.number().0);
            let generation = self.reference.generation;
            self.stores.push(Storing { ticket, tier, generation, sources });
        } else {
            self.reference.release_sources(&sources);
        }
        self.reference.tiers[tier].release(&kept);
    }

    pub fn end_store(&mut self, at: usize, ending: impl FnOnce(usize) -> Ending) {
        let Storing { ticket, tier, generation, sources } = self.stores.swap_remove(at);
        let ending = ending(ticket.stores().len());
        let outcomes = ending.as_deref().unwrap_or(&[]);
        let is_done = |at: usize| outcomes.get(at) == Some(&CopyOutcome::Done);
        let stores = ticket.stores().iter().enumerate();
        let stores: Vec<_> =
            stores.map(|(at, store)| (store.hash, store.dst.slot, is_done(at))).collect();
        self.reference.settle_store(ticket.number().0, (tier, generation), &stores);
        self.reference.release_sources(&sources);
        if ending.is_none() {
            return drop(ticket);
        }
        let done = stores.iter().filter(|(_, _, is_done)| *is_done).count();
        assert_eq!(ticket.complete(outcomes).unwrap(), done);
    }

    /// Grows a sequence in a step, over cached contents where no block is free, and stores these contents. The step
    /// and the sequence end before the ticket.
    pub fn overwrite(&mut self, num_tokens: usize, tier: usize, resets_between: bool) {
        let mut rows = [(self.cache.allocate_sequence(0).unwrap(), num_tokens)];
        let mut step = self.cache.step(Default::default());
        if step.grow(&mut rows).unwrap().grown_rows == 0 {
            return;
        }
        self.assert_apart(rows[0].0.block_ids());
        if resets_between {
            self.reset();
            let ticket = self.cache.tiers().store_overwritten(TierId(tier as u8), &step).unwrap();
            return assert!(ticket.is_none(), "of the weights before");
        }
        self.store_overwritten(tier, &step);
        drop((rows, step));
    }

    fn store_overwritten(&mut self, tier: usize, step: &Step) {
        // The content that would have been given up first comes last, as the tail of a chain does.
        let hashes: Vec<BlockHash> =
            step.overwritten().iter().rev().map(|lost| lost.hash).collect();
        let begin = self.reference.begin_store(tier, &hashes, |_| true);
        self.num_overwritten += begin.wanted.len();
        let ticket = self.cache.tiers().store_overwritten(TierId(tier as u8), step).unwrap();
        if let Some(ticket) = &ticket {
            let lost: Vec<BlockId> = step.overwritten().iter().map(|lost| lost.block).collect();
            assert!(ticket.stores().iter().all(|store| lost.contains(&store.src.block().unwrap())));
        }
        self.begin_store(tier, ticket, begin);
    }

    pub fn quiesce(&mut self, number: u64) {
        let expected = self.reference.quiesce(number);
        assert_eq!(self.cache.tiers().quiesced(TicketNumber(number)), expected);
    }

    pub fn reset(&mut self) {
        self.cache.prefix().reset();
        self.reference.generation += 1;
    }
}
