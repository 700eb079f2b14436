//! `Reference`: a sequential model of tiers, made of sets and lists.
//!
//! A tier is a set of slots and the order in which its idle contents are given up: one home shard, so the least
//! recently used comes first, and of contents that were released together the last one. The reference reads from the
//! cache which contents the device has and which free slots a ticket got. It checks everything else.

use std::collections::{BTreeMap, BTreeSet};

use paged_kv::{BlockHash, BlockId, CopyOutcome};

use crate::lru::TierModel;

/// A content, and the number of resets before it was computed.
pub type Content = (BlockHash, u64);

/// Tickets are known by their numbers.
pub type Number = u64;

/// A load limit: the least blocks and the most.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    pub least: usize,
    pub most: usize,
}

impl Allowed {
    fn of(self, ready: usize) -> usize {
        if ready < self.least { 0 } else { ready.min(self.most) }
    }
}

/// A slot of a tier, by their numbers.
pub type Place = (usize, u32);

/// The pins of a look-up: a list for each time that a tier was asked and had some.
#[derive(Clone, Debug, Default)]
pub struct Pins(Vec<(usize, Vec<u32>)>);

impl Pins {
    pub fn places(&self) -> Vec<Place> {
        let of_tier = |(tier, slots): &(usize, Vec<u32>)| {
            let tier = *tier;
            slots.iter().map(move |&slot| (tier, slot)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_tier).collect()
    }
}

/// The expected outcome of an admission, apart from a lack of room.
#[derive(Debug)]
pub enum Expected {
    Ready,
    Pending,
    Loading(Pins),
}

/// A store to be: its contents, and its pins in the target and in other tiers.
#[derive(Debug, Default)]
pub struct BeginStore {
    pub wanted: Vec<BlockHash>,
    pub kept: Vec<u32>,
    pub sources: Vec<Vec<u32>>,
}

#[derive(Debug, Default)]
pub struct Quarantined {
    pub blocks: BTreeSet<BlockId>,
    pub slots: Vec<Place>,
}

pub struct Reference {
    pub tiers: Vec<TierModel>,
    pub generation: u64,
    /// Contents that tickets load, and those that they store.
    pub loading: BTreeMap<Content, Number>,
    pub storing: BTreeMap<Content, Number>,
    pub quarantine: BTreeMap<Number, Quarantined>,
}

impl Reference {
    pub fn new(tiers: Vec<TierModel>) -> Self {
        let (loading, storing, quarantine) = Default::default();
        Self { tiers, generation: 0, loading, storing, quarantine }
    }

    fn content(&self, hash: BlockHash) -> Content {
        (hash, self.generation)
    }

    /// Returns how many blocks of a chain each tier has, each from where the one before ends.
    pub fn lookup(&self, hashes: &[BlockHash]) -> Vec<usize> {
        let mut rest = hashes;
        let ready = |tier: &TierModel| {
            let ready = self.ready_in(tier, rest);
            rest = &rest[ready..];
            ready
        };
        self.tiers.iter().map(ready).collect()
    }

    fn ready_in(&self, tier: &TierModel, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|&&hash| tier.find(self.content(hash)).is_some()).count()
    }

    /// Looks up the blocks of a prompt that follow those on the device, and pins and claims them for a ticket.
    pub fn admit(&mut self, rest: &[BlockHash], allowed: Allowed) -> Expected {
        let is_ready = |hash| self.tiers.iter().any(|tier| tier.find(self.content(hash)).is_some());
        let ready = rest.iter().take_while(|&&hash| is_ready(hash)).count();
        let wanted = allowed.of(ready);
        if wanted == 0 {
            let is_in_flight = |&hash| {
                let content = self.content(hash);
                self.loading.contains_key(&content) || self.storing.contains_key(&content)
            };
            let is_pending = allowed.most > 0 && rest.first().is_some_and(is_in_flight);
            return if is_pending { Expected::Pending } else { Expected::Ready };
        }
        let wanted = &rest[..wanted];
        let pins = self.pin(wanted);
        if wanted.iter().any(|&hash| self.loading.contains_key(&self.content(hash))) {
            self.unpin(pins);
            return Expected::Pending;
        }
        Expected::Loading(pins)
    }

    fn pin(&mut self, hashes: &[BlockHash]) -> Pins {
        let (mut pins, mut left) = (Pins::default(), hashes);
        while !left.is_empty() {
            for tier in 0..self.tiers.len() {
                let ready = self.ready_in(&self.tiers[tier], left);
                let (now, later) = left.split_at(ready);
                let contents: Vec<Content> = now.iter().map(|&hash| self.content(hash)).collect();
                if !contents.is_empty() {
                    pins.0.push((tier, self.tiers[tier].pin(&contents)));
                }
                left = later;
            }
        }
        pins
    }

    pub fn unpin(&mut self, pins: Pins) {
        pins.0.iter().for_each(|(tier, slots)| self.tiers[*tier].release(slots));
    }

    pub fn claim_load(&mut self, hashes: impl IntoIterator<Item = BlockHash>, number: Number) {
        for hash in hashes {
            let before = self.loading.insert((hash, self.generation), number);
            assert!(before.is_none(), "one ticket loads a content");
        }
    }

    pub fn claim_store(&mut self, hashes: impl IntoIterator<Item = BlockHash>, number: Number) {
        for hash in hashes {
            let before = self.storing.insert((hash, self.generation), number);
            assert!(before.is_none(), "one ticket stores a content");
        }
    }

    fn leave(&mut self, number: Number) {
        self.loading.retain(|_, of| *of != number);
        self.storing.retain(|_, of| *of != number);
    }

    /// Settles a load, of which the first `good` copies are of use. `ended` are the blocks of all copies.
    pub fn settle_load(
        &mut self,
        number: Number,
        pins: Pins,
        good: usize,
        ended: &[(Place, BlockId, CopyOutcome)],
    ) {
        self.leave(number);
        self.forget_lost(ended.iter().map(|&(place, _, outcome)| (place, outcome)));
        for (tier, slot) in &pins.places()[..good] {
            self.tiers[*tier].counts.loaded += 1;
            if self.tiers[*tier].is_exclusive {
                self.tiers[*tier].forget(*slot);
            }
        }
        self.unpin(pins);
        for &((tier, _), block, outcome) in ended {
            let is_counted = matches!(outcome, CopyOutcome::Failed | CopyOutcome::Lost);
            self.tiers[tier].counts.failed += u64::from(is_counted);
            if outcome == CopyOutcome::Failed {
                self.quarantine.entry(number).or_default().blocks.insert(block);
            }
        }
    }

    fn forget_lost(&mut self, copies: impl Iterator<Item = (Place, CopyOutcome)>) {
        let lost = copies.filter(|(_, outcome)| *outcome == CopyOutcome::Lost);
        lost.for_each(|((tier, slot), _)| self.tiers[tier].forget(slot));
    }

    /// Returns which of `hashes` a tier should store, the pins of those that it has, and the pins of the contents that
    /// only other tiers have, by tier.
    pub fn begin_store(
        &mut self,
        tier: usize,
        hashes: &[BlockHash],
        is_on_device: impl Fn(BlockHash) -> bool,
    ) -> BeginStore {
        let mut begin =
            BeginStore { sources: vec![Vec::new(); self.tiers.len()], ..Default::default() };
        for &hash in hashes {
            let content = self.content(hash);
            if self.tiers[tier].find(content).is_some() {
                begin.kept.extend(self.tiers[tier].pin(&[content]));
            } else if !self.storing.contains_key(&content) && !begin.wanted.contains(&hash) {
                let mut others = (0..self.tiers.len()).filter(|&other| other != tier);
                let has = |&other: &usize| self.tiers[other].find(content).is_some();
                if is_on_device(hash) {
                    begin.wanted.push(hash);
                } else if let Some(other) = others.find(has) {
                    begin.sources[other].extend(self.tiers[other].pin(&[content]));
                    begin.wanted.push(hash);
                }
            }
        }
        begin
    }

    /// Returns which contents that a tier gives up next are to be stored in another one. Holds their slots.
    pub fn begin_store_ahead(
        &mut self,
        (from, to): (usize, usize),
        ahead: usize,
    ) -> (Vec<BlockHash>, Vec<u32>) {
        let (mut wanted, mut held) = (Vec::new(), Vec::new());
        for (slot, content) in self.tiers[from].oldest(ahead) {
            if wanted.len() == self.tiers[to].room() {
                break;
            }
            let is_known = self.tiers[to].find(content).is_some();
            let is_in_flight = self.storing.contains_key(&content);
            if content.1 == self.generation && !is_known && !is_in_flight {
                self.tiers[from].hold(slot);
                held.push(slot);
                wanted.push(content.0);
            }
        }
        (wanted, held)
    }

    /// Returns a store of which nothing is pinned.
    pub fn nothing(&self) -> BeginStore {
        BeginStore { sources: vec![Vec::new(); self.tiers.len()], ..Default::default() }
    }

    /// Checks that contents are in no ticket, and not in a tier.
    pub fn assert_new(&self, tier: usize, hashes: &[BlockHash]) {
        let is_new = |&hash: &BlockHash| {
            let content = self.content(hash);
            self.tiers[tier].find(content).is_none() && !self.storing.contains_key(&content)
        };
        assert!(hashes.iter().all(is_new), "copied twice");
    }

    /// Settles a store. The contents that are done are ready, unless a reset came since.
    pub fn settle_store(
        &mut self,
        number: Number,
        (tier, generation): (usize, u64),
        stores: &[(BlockHash, u32, Option<Place>, CopyOutcome)],
    ) {
        self.leave(number);
        let is_current = generation == self.generation;
        let sources = stores.iter().filter_map(|&(_, _, src, outcome)| Some((src?, outcome)));
        let mut kept = Vec::new();
        for &(hash, slot, _, outcome) in stores {
            let of_tier = &mut self.tiers[tier];
            match outcome {
                CopyOutcome::Done => {
                    of_tier.counts.stored += 1;
                    if is_current {
                        of_tier.fill(slot, (hash, generation));
                    }
                }
                CopyOutcome::Skipped => of_tier.counts.dropped += 1,
                CopyOutcome::Failed | CopyOutcome::Lost => of_tier.counts.failed += 1,
            }
            match outcome {
                CopyOutcome::Failed => {
                    self.quarantine.entry(number).or_default().slots.push((tier, slot));
                }
                _ => kept.push(slot),
            }
        }
        self.forget_lost(sources);
        self.tiers[tier].release(&kept);
    }

    /// Notes a content that a restore has found in a slot that it holds. Returns true if it is ready.
    pub fn found(&mut self, (tier, slot): Place, hash: BlockHash, generation: u64) -> bool {
        let content = (hash, generation);
        let is_new = generation == self.generation && self.tiers[tier].find(content).is_none();
        if is_new {
            self.tiers[tier].fill(slot, content);
        }
        self.tiers[tier].release(&[slot]);
        is_new
    }

    /// Gives the sources of a store back.
    pub fn release_sources(&mut self, sources: &[Vec<u32>]) {
        self.tiers.iter_mut().zip(sources).for_each(|(tier, slots)| tier.release(slots));
    }

    /// Ends the quarantine of a ticket. Returns how many blocks and slots it had.
    pub fn quiesce(&mut self, number: Number) -> usize {
        let Quarantined { blocks, slots } = self.quarantine.remove(&number).unwrap_or_default();
        slots.iter().for_each(|&(tier, slot)| self.tiers[tier].release(&[slot]));
        blocks.len() + slots.len()
    }

    pub fn blocks_quarantined(&self) -> usize {
        self.quarantine.values().map(|kept| kept.blocks.len()).sum()
    }

    pub fn slots_quarantined(&self, of: usize) -> usize {
        let slots = self.quarantine.values().flat_map(|kept| &kept.slots);
        slots.filter(|(tier, _)| *tier == of).count()
    }
}
