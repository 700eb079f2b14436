//! Commits in a cache with groups of layers: each group publishes its own blocks under its own keys.
//!
//! Invariant: a block is published only if it is resident, full and computed, and if no trim of a full group came
//! before it. A state is published only if a commit ended exactly at it: then it is the state after these tokens.

use std::ops::Range;

use super::HashedTokens;
use crate::groups::{GroupLayout, LayerGroup};
use crate::id::{BlockId, GroupId};
use crate::prefix::{BlockHash, EventContext, Generation, PublishRequest};
use crate::sequence::Sequence;

/// How far the blocks of each group were offered.
#[derive(Clone)]
pub(super) struct GroupOffers {
    offers: Box<[GroupOffer]>,
    /// Steps that had failed when blocks were first offered to one.
    failures_seen: u64,
    /// No group has a further full block before so many tokens.
    next_full: usize,
}

#[derive(Clone)]
struct GroupOffer {
    kind: LayerGroup,
    /// The generation of the group's keys.
    generation: Generation,
    /// Units of a hash in a block.
    units: usize,
    /// Blocks that were offered.
    offered: usize,
    /// Blocks from here on were offered to steps, which may have failed.
    unsure_from: usize,
}

/// Neighbouring blocks of one group that are offered together.
pub(in crate::cache) struct OfferedRun {
    group: GroupId,
    generation: Generation,
    units: usize,
    block_size: usize,
    /// The logical blocks.
    blocks: Range<usize>,
    /// The same blocks among the resident ones.
    resident: Range<usize>,
}

/// Adds a block, to the last run if it follows it.
fn add_run(runs: &mut Vec<OfferedRun>, block: OfferedRun) {
    match runs.last_mut() {
        Some(last)
            if last.group == block.group
                && last.blocks.end == block.blocks.start
                && last.resident.end == block.resident.start =>
        {
            last.blocks.end = block.blocks.end;
            last.resident.end = block.resident.end;
        }
        _ => runs.push(block),
    }
}

impl GroupOffer {
    /// Returns a block of the group as a run: its number, and its place among the resident ones.
    fn run_of(&self, group: GroupId, block: usize, resident: usize) -> OfferedRun {
        OfferedRun {
            group,
            generation: self.generation,
            units: self.units,
            block_size: self.kind.block_size(),
            blocks: block..block + 1,
            resident: resident..resident + 1,
        }
    }

    fn truncate(&mut self, num_tokens: usize) {
        self.offered = self.offered.min(num_tokens / self.kind.block_size());
        self.unsure_from = self.unsure_from.min(self.offered);
    }
}

impl GroupOffers {
    pub(super) fn new(
        layout: &GroupLayout,
        matched_tokens: usize,
        generation_of: impl Fn(GroupId) -> Generation,
    ) -> Self {
        let offers = layout.ids().zip(layout.groups()).map(|(id, &kind)| {
            let offered = matched_tokens / kind.block_size();
            let (generation, units) = (generation_of(id), layout.units_a_block(id));
            GroupOffer { kind, generation, units, offered, unsure_from: offered }
        });
        let mut all = Self { offers: offers.collect(), failures_seen: 0, next_full: 0 };
        all.note_next_full();
        all
    }

    fn note_next_full(&mut self) {
        let next = |offer: &GroupOffer| (offer.offered + 1).saturating_mul(offer.kind.block_size());
        self.next_full = self.offers.iter().map(next).min().unwrap_or(0);
    }

    pub(super) fn truncate(&mut self, num_tokens: usize) {
        self.offers.iter_mut().for_each(|offer| offer.truncate(num_tokens));
        self.note_next_full();
    }
}

impl OfferedRun {
    /// Returns the blocks.
    pub(in crate::cache) fn ids<'a>(&self, sequence: &'a Sequence) -> &'a [BlockId] {
        let table = sequence.of_group(self.group).expect("a run is of a group of the sequence");
        &table.block_ids()[self.resident.clone()]
    }

    /// Returns the generation of the keys.
    pub(in crate::cache) fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the number of the first block.
    pub(in crate::cache) fn start(&self) -> usize {
        self.blocks.start
    }

    fn private_from(&self, sequence: &Sequence) -> usize {
        let table = sequence.of_group(self.group).expect("a run is of a group of the sequence");
        table.table().shared_len().saturating_sub(self.resident.start)
    }
}

impl HashedTokens {
    /// Returns true if the sequence has several groups, or one that is not of full attention.
    #[inline]
    pub(in crate::cache) fn has_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// Publishes the blocks of all groups that are full and computed.
    #[cold]
    pub(super) fn commit_groups(&mut self, sequence: &Sequence, num_tokens: usize) -> usize {
        self.offer_unsure_again(|_| true);
        if self.has_no_full_block_at(num_tokens) {
            return 0;
        }
        let runs = self.take_runs(sequence, num_tokens, false);
        runs.iter().map(|run| self.publish_run(sequence, run)).sum()
    }

    /// Returns the blocks of all groups that a step is to publish, and counts them as offered to it.
    pub(in crate::cache) fn runs_for_step(
        &mut self,
        sequence: &Sequence,
        num_tokens: usize,
    ) -> Vec<OfferedRun> {
        let failures = self.published_blocks.failed_steps();
        let has_failed = self.groups.as_ref().is_some_and(|all| all.failures_seen != failures);
        if has_failed {
            self.offer_unsure_again(|_| true);
        }
        if self.has_no_full_block_at(num_tokens) {
            return Vec::new();
        }
        if let Some(groups) = &mut self.groups {
            groups.failures_seen = failures;
        }
        self.take_runs(sequence, num_tokens, true)
    }

    /// Takes the offers of [`runs_for_step`](Self::runs_for_step) back.
    pub(in crate::cache) fn take_runs_back(&mut self, runs: &[OfferedRun]) {
        for run in runs {
            self.offer_unsure_again(|group| group == run.group);
        }
    }

    fn has_no_full_block_at(&self, num_tokens: usize) -> bool {
        self.groups.as_ref().is_some_and(|groups| num_tokens < groups.next_full)
    }

    fn offer_unsure_again(&mut self, is_meant: impl Fn(GroupId) -> bool) {
        let offers = self.groups.iter_mut().flat_map(|groups| groups.offers.iter_mut());
        for (number, offer) in (0..).zip(offers) {
            if is_meant(GroupId(number)) {
                offer.offered = offer.unsure_from;
            }
        }
        if let Some(groups) = &mut self.groups {
            groups.note_next_full();
        }
    }

    fn take_runs(
        &mut self,
        sequence: &Sequence,
        num_tokens: usize,
        to_step: bool,
    ) -> Vec<OfferedRun> {
        let (Some(layout), named) = (sequence.layout(), self.num_named()) else {
            return Vec::new();
        };
        let hashed = self.num_hashes().saturating_mul(layout.unit());
        let known = num_tokens.min(named).min(hashed).min(sequence.whole_tokens());
        let prompt_tokens = self.prompt.num_tokens();
        let mut runs = Vec::new();
        let offers = self.groups.iter_mut().flat_map(|groups| groups.offers.iter_mut());
        for ((offer, table), group) in offers.zip(sequence.group_tables()).zip(layout.ids()) {
            let full = known / offer.kind.block_size();
            let blocks = match offer.kind.is_state() {
                true if known == num_tokens && sequence.has_state_at(group, known) => {
                    full.saturating_sub(1)..full
                }
                true => 0..0,
                false => offer.offered..full,
            };
            offer.offered = offer.offered.max(full);
            if !to_step {
                offer.unsure_from = offer.offered;
            }
            for block in blocks {
                let is_kept = layout.is_worth_keeping(group, block, prompt_tokens);
                if let Some(resident) = table.resident_index(block).filter(|_| is_kept) {
                    add_run(&mut runs, offer.run_of(group, block, resident));
                }
            }
        }
        if let Some(groups) = &mut self.groups {
            groups.note_next_full();
        }
        runs
    }

    /// Gives the event sink the missing tokens of the blocks that a hit of `num_tokens` tokens matched, in all groups.
    pub(in crate::cache) fn emit_matched(&self, sequence: &Sequence, num_tokens: usize) {
        if !self.published_blocks.lacks_tokens() {
            return;
        }
        for run in self.matched_runs(sequence, num_tokens) {
            let hash_of = |at: usize| self.hash_in_run(&run, at);
            let (ids, generation) = (run.ids(sequence), run.generation());
            self.published_blocks.emit_matched(ids, hash_of, generation, || self.context_of(&run));
        }
    }

    /// Publishes the blocks of a hit of `num_tokens` tokens that were loaded.
    pub(in crate::cache) fn publish_loaded(
        &self,
        sequence: &Sequence,
        num_tokens: usize,
        is_loaded: impl Fn(BlockId) -> bool,
    ) {
        for run in self.runs_of_hit(sequence, num_tokens, is_loaded) {
            self.publish_run(sequence, &run);
        }
    }

    fn matched_runs(&self, sequence: &Sequence, num_tokens: usize) -> Vec<OfferedRun> {
        self.runs_of_hit(sequence, num_tokens, |_| true)
    }

    /// Returns the blocks of a hit that are meant, of all groups.
    fn runs_of_hit(
        &self,
        sequence: &Sequence,
        num_tokens: usize,
        is_meant: impl Fn(BlockId) -> bool,
    ) -> Vec<OfferedRun> {
        let mut runs = Vec::new();
        let offers = self.groups.iter().flat_map(|groups| groups.offers.iter());
        for ((number, offer), table) in (0..).zip(offers).zip(sequence.group_tables()) {
            for block in offer.kind.needed_blocks(num_tokens).into_iter().flatten() {
                let resident = table.resident_index(block);
                if let Some(resident) = resident.filter(|&at| is_meant(table.block_ids()[at])) {
                    add_run(&mut runs, offer.run_of(GroupId(number), block, resident));
                }
            }
        }
        runs
    }

    fn publish_run(&self, sequence: &Sequence, run: &OfferedRun) -> usize {
        let offer = PublishRequest {
            ids: run.ids(sequence),
            before: None,
            private_from: run.private_from(sequence),
            generation: run.generation,
        };
        let hash_of = |at: usize| self.hash_in_run(run, at);
        let context = || self.context_of(run);
        self.published_blocks.publish(sequence.table().pool(), &offer, hash_of, context)
    }

    /// Returns the hash of block `at` of a run: that of its last unit.
    pub(in crate::cache) fn hash_in_run(&self, run: &OfferedRun, at: usize) -> BlockHash {
        self.hash((run.blocks.start + at + 1) * run.units - 1)
    }

    pub(in crate::cache) fn context_of(&self, run: &OfferedRun) -> EventContext<'_> {
        let before = (run.blocks.start * run.units).checked_sub(1);
        let parent = before.map(|before| self.hash(before));
        let group = run.group;
        EventContext { group, parent, ..self.context(run.blocks.start, run.block_size) }
    }
}
