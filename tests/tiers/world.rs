//! `World`: a cache with tiers beside its reference. Each operation is made on both, and their answers are compared.

use std::collections::BTreeSet;
use std::sync::Arc;

use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, CopyOutcome, GroupId, LoadLimit, LoadTicket,
    Medium, Overwritten, PagedKvCache, PagedKvError, Prompt, StoreFrom, StoreTicket, TicketNumber,
    TierAdmission, TierId, TierRestore,
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
    /// The slots of a tier that it holds ahead of need.
    held: Option<(usize, Vec<u32>)>,
    /// It has the oldest content first.
    is_ahead: bool,
}

pub struct Restoring {
    restore: TierRestore,
    tier: usize,
    generation: u64,
    held: Vec<u32>,
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
    pub restoring: Option<Restoring>,
    /// Admissions that loaded, and those that had to wait.
    pub num_loads: usize,
    pub num_pending: usize,
    /// Contents that were copied on their way out.
    pub num_overwritten: usize,
    /// Contents that were copied from another tier.
    pub num_from_tiers: usize,
    /// Contents that were copied ahead of need, and those that a load overwrote.
    pub num_ahead: usize,
    pub num_by_loads: usize,
    /// Contents of an earlier process.
    pub num_found: usize,
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
            restoring: None,
            num_loads: 0,
            num_pending: 0,
            num_overwritten: 0,
            num_from_tiers: 0,
            num_ahead: 0,
            num_by_loads: 0,
            num_found: 0,
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
        let in_flight = self.reference.loading.len() + self.reference.storing.len();
        assert_eq!(stats.contents_in_flight, in_flight);
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
        self.reference.claim_load(hashes.iter().copied(), ticket.number().0);
        self.num_loads += 1;
        let (generation, prompt) = (self.reference.generation, prompt.clone());
        self.loads.push(Loading { ticket, pins, generation, prompt, hits });
    }

    pub fn end_load(&mut self, at: usize, ending: impl FnOnce(usize) -> Ending) {
        let Loading { ticket, pins, generation, prompt, hits } = self.loads.swap_remove(at);
        let ending = ending(ticket.loads().len());
        let outcomes = ending.as_deref().unwrap_or(&[]);
        let outcome = |at: usize| outcomes.get(at).copied().unwrap_or(CopyOutcome::Failed);
        let loads = ticket.loads().to_vec();
        let good = (0..loads.len()).take_while(|&at| outcome(at) == CopyOutcome::Done).count();
        let ended = pins.places().into_iter().zip(&loads).enumerate();
        let ended: Vec<(Place, BlockId, CopyOutcome)> =
            ended.map(|(at, (place, load))| (place, load.dst, outcome(at))).collect();
        let failed = ended.iter().filter(|(.., outcome)| *outcome != CopyOutcome::Done).count();
        let number = ticket.number().0;
        self.reference.settle_load(number, pins, good, &ended);
        if ending.is_none() {
            return drop(ticket);
        }
        let mut loaded = ticket.complete(outcomes).unwrap();
        let computed = (hits + good) * BLOCK_SIZE;
        assert_eq!(loaded.admission.cached_tokens, computed);
        assert_eq!((loaded.loaded_tokens, loaded.failed_blocks), (good * BLOCK_SIZE, failed));
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
            self.reference.claim_store(wanted, ticket.number().0);
            let generation = self.reference.generation;
            self.stores.push(Storing {
                ticket,
                tier,
                generation,
                sources,
                held: None,
                is_ahead: false,
            });
        } else {
            self.reference.release_sources(&sources);
        }
        self.reference.tiers[tier].release(&kept);
    }

    pub fn end_store(&mut self, at: usize, ending: impl FnOnce(usize) -> Ending) {
        let Storing { ticket, tier, generation, sources, held, is_ahead } =
            self.stores.swap_remove(at);
        let ending = ending(ticket.stores().len());
        let outcomes = ending.as_deref().unwrap_or(&[]);
        let outcome = |at: usize| outcomes.get(at).copied().unwrap_or(CopyOutcome::Failed);
        let stores = ticket.stores().iter().enumerate();
        let place = |slot: paged_kv::TierSlot| (usize::from(slot.tier.0), slot.slot);
        let mut stores: Vec<_> = stores
            .map(|(at, store)| {
                (store.hash, store.dst.slot, store.src.slot().map(place), outcome(at))
            })
            .collect();
        if is_ahead {
            stores.reverse();
        }
        self.reference.settle_store(ticket.number().0, (tier, generation), &stores);
        self.reference.release_sources(&sources);
        if let Some((from, slots)) = held {
            self.reference.tiers[from].release_held(&slots);
        }
        if ending.is_none() {
            return drop(ticket);
        }
        let done = stores.iter().filter(|(.., outcome)| *outcome == CopyOutcome::Done).count();
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
        let ticket = self.cache.tiers().store_overwritten(TierId(tier as u8), &step).unwrap();
        self.num_overwritten += self.begin_overwritten(tier, ticket, step.overwritten());
        drop((rows, step));
    }

    /// Stores the contents that a load is about to overwrite.
    pub fn overwrite_by_load(&mut self, at: usize, tier: usize) {
        let Loading { ticket: load, generation, .. } = &self.loads[at];
        let ticket = self.cache.tiers().store_overwritten(TierId(tier as u8), load).unwrap();
        if *generation != self.reference.generation {
            return assert!(ticket.is_none(), "of the weights before");
        }
        let lost = load.overwritten().to_vec();
        self.num_by_loads += self.begin_overwritten(tier, ticket, &lost);
    }

    fn begin_overwritten(
        &mut self,
        tier: usize,
        ticket: Option<StoreTicket>,
        lost: &[Overwritten],
    ) -> usize {
        // The content that would have been given up first comes last, as the tail of a chain does.
        let hashes: Vec<BlockHash> = lost.iter().rev().map(|lost| lost.hash).collect();
        let begin = self.reference.begin_store(tier, &hashes, |_| true);
        let wanted = begin.wanted.len();
        if let Some(ticket) = &ticket {
            let is_lost = |block| lost.iter().any(|lost| lost.block == block);
            assert!(ticket.stores().iter().all(|store| is_lost(store.src.block().unwrap())));
        }
        self.begin_store(tier, ticket, begin);
        wanted
    }

    /// Stores in a tier the contents that another one gives up next.
    pub fn store_ahead_of_tier(&mut self, from: usize, to: usize, ahead: usize) {
        let (wanted, held) = self.reference.begin_store_ahead((from, to), ahead);
        let (from_tier, to_tier) = (TierId(from as u8), TierId(to as u8));
        let ticket = self.cache.tiers().store_ahead(StoreFrom::Tier(from_tier), to_tier, ahead);
        let ticket = ticket.expect("two tiers");
        self.num_ahead += wanted.len();
        if let Some(ticket) = &ticket {
            let slots = ticket.stores().iter().map(|store| store.src.slot().unwrap().slot);
            assert!(slots.eq(held.iter().copied()), "the oldest first");
        }
        let is_made = ticket.is_some();
        self.begin_store(to, ticket, BeginStore { wanted, ..self.reference.nothing() });
        match self.stores.last_mut().filter(|_| is_made) {
            Some(new) => (new.held, new.is_ahead) = (Some((from, held)), true),
            None => self.reference.tiers[from].release_held(&held),
        }
    }

    /// Stores in a tier the contents that the device gives up next, which the reference does not know.
    pub fn store_ahead_of_device(&mut self, to: usize, ahead: usize) {
        let dropped = self.cache.stats().tiers[to].stores_dropped;
        let free = self.cache.free_block_count() - self.cache.stats().blocks_idle;
        let most = ahead.saturating_sub(free);
        let ticket = self.cache.tiers().store_ahead(StoreFrom::Device, TierId(to as u8), ahead);
        let ticket = ticket.expect("the tier is there");
        let dropped = (self.cache.stats().tiers[to].stores_dropped - dropped) as usize;
        let Some(ticket) = ticket else {
            assert!(dropped == 0 || dropped > self.reference.tiers[to].room());
            self.reference.tiers[to].counts.dropped += dropped as u64;
            return;
        };
        let blocks: Vec<BlockId> =
            ticket.stores().iter().map(|store| store.src.block().unwrap()).collect();
        self.assert_apart(&blocks);
        let is_owned = |block| self.sequences.iter().any(|s| s.block_ids().contains(block));
        assert!(blocks.len() <= most && !blocks.iter().any(is_owned), "idle blocks");
        let wanted: Vec<BlockHash> = ticket.stores().iter().map(|store| store.hash).collect();
        self.reference.assert_new(to, &wanted);
        self.num_ahead += wanted.len();
        let begin = BeginStore { wanted, ..self.reference.nothing() };
        self.begin_store(to, Some(ticket), begin);
        self.stores.last_mut().expect("it is new").is_ahead = true;
    }

    /// Begins to look through a tier that is empty.
    pub fn restore(&mut self, tier: usize) {
        let of_tier = &mut self.reference.tiers[tier];
        let is_empty = of_tier.is_free();
        let restore = self.cache.tiers().restore(TierId(tier as u8));
        assert_eq!(restore.is_ok(), is_empty);
        if let Ok(restore) = restore {
            of_tier.take_all();
            let (generation, slots) = (self.reference.generation, of_tier.num_slots());
            assert_eq!(restore.num_held(), slots);
            let held = (0..slots as u32).collect();
            self.restoring = Some(Restoring { restore, tier, generation, held });
        }
    }

    /// Finds a content of an earlier process in a slot of the tier that is looked through.
    pub fn find(&mut self, slot: u32, hash: BlockHash) {
        let Some(Restoring { restore, tier, generation, held }) = &mut self.restoring else {
            return;
        };
        if self.reference.storing.contains_key(&(hash, *generation)) {
            return; // The tier would have it twice.
        }
        let at = held.iter().position(|&held| held == slot);
        let is_new = at.is_some_and(|at| {
            held.remove(at);
            self.reference.found((*tier, slot), hash, *generation)
        });
        assert_eq!(restore.found(&[(slot, hash, GroupId(0))]), usize::from(is_new));
        assert_eq!(restore.num_held(), held.len());
        self.num_found += usize::from(is_new);
    }

    pub fn end_restore(&mut self) {
        if let Some(Restoring { restore, tier, held, .. }) = self.restoring.take() {
            drop(restore);
            self.reference.tiers[tier].release(&held);
        }
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
