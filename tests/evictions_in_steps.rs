//! Tests of evictions during steps: the blocks that open steps hold count as released. Single cases, and
//! random histories against a naive reference that knows only which sequence has which blocks.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::random::Random;
use common::{lease_row, s};
use paged_kv::{
    BlockId, CachedSequence, Evicted, EvictionStrategy, Lease, PagedKvCache, PagedKvError, SeqId,
    Step, Worker,
};

use EvictionStrategy::{LRU, StreamingLLM};
use PagedKvError::NothingToEvict;

const BLOCK_SIZE: usize = 4;
const STREAMING: EvictionStrategy = StreamingLLM { sink_tokens: 4, window_tokens: 4 };

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, BLOCK_SIZE, 1, 1)
}

/// Creates sequences of these numbers of blocks, all of them in a step.
fn all_in_a_step(cache: &PagedKvCache, num_blocks: &[usize]) -> Step {
    let mut step = cache.step(Default::default());
    for (id, num_blocks) in num_blocks.iter().enumerate() {
        cache.allocate(s(id as u64), num_blocks * BLOCK_SIZE).unwrap();
        step.join(&mut lease_row(cache, s(id as u64))).unwrap();
    }
    step
}

fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<SeqId> {
    ids.into_iter().map(s).collect()
}

#[test]
fn an_eviction_to_a_threshold_stops_when_enough_is_coming() {
    for stop in 0..=10_usize {
        let cache = cache(10);
        let step = all_in_a_step(&cache, &[1; 10]);
        let evicted = cache.evict_to_threshold(stop as f64 / 10.0).unwrap();
        assert_eq!(evicted, ids(0..10 - stop as u64), "to {stop} of 10");
        assert_eq!(cache.utilization(), 1.0, "the device may be at all of them");
        assert_eq!(cache.evict_to_threshold(stop as f64 / 10.0), Ok(vec![]), "enough is coming");
        step.complete();
        assert_eq!(cache.used_block_count(), stop);
        cache.validate().unwrap();
    }
}

#[test]
fn streaming_trims_in_a_step_before_it_evicts() {
    let cache = cache(12).with_eviction_strategy(STREAMING);
    let step = all_in_a_step(&cache, &[6, 6]);
    let kept = |id| cache.get_sequence(s(id)).map(|info| info.num_blocks());
    assert_eq!(cache.evict_to_threshold(8.0 / 12.0), Ok(vec![]));
    assert_eq!((kept(0), kept(1)), (Some(2), Some(6)), "one trim is enough");
    assert_eq!(cache.evict_to_threshold(4.0 / 12.0), Ok(vec![]));
    assert_eq!((kept(0), kept(1)), (Some(2), Some(2)));
    assert_eq!(cache.evict_to_threshold(0.3), Ok(vec![s(0)]));
    step.complete();
    assert_eq!(cache.used_block_count(), 2);
}

#[test]
fn an_eviction_for_a_worker_counts_blocks_held_by_steps() {
    let cache = cache(16);
    let step = all_in_a_step(&cache, &[2, 2, 2]);
    (0..3).for_each(|id| cache.set_worker(s(id), Worker(1)).unwrap());
    cache.fork(s(1), s(3)).unwrap();
    let mut out = Vec::new();
    assert_eq!(cache.evict_for(Worker(1), 3, &mut out), Ok(4), "the second leaves its to its fork");
    let evicted = |id, blocks| Evicted { seq_id: s(id), blocks };
    assert_eq!(out, [evicted(0, 2), evicted(1, 0), evicted(2, 2)]);
    out.clear();
    assert_eq!(
        cache.evict_for(Worker(1), 1, &mut out),
        Ok(2),
        "the fork has what only the step has"
    );
    assert_eq!(out, [evicted(3, 2)]);
    assert_eq!(cache.used_block_count(), 6);
    step.complete();
    assert_eq!(cache.used_block_count(), 0);
}

#[test]
fn a_loop_of_evictions_while_they_are_needed_ends_when_enough_is_coming() {
    let cache = cache(10).with_eviction_threshold(0.8);
    let step = all_in_a_step(&cache, &[1; 10]);
    let mut evicted = Vec::new();
    while cache.needs_eviction() {
        evicted.push(cache.evict().unwrap());
    }
    assert_eq!(evicted, ids(0..3), "until utilization will be below the threshold");
    assert_eq!((cache.utilization(), cache.free_block_count()), (1.0, 0));
    step.complete();
    assert_eq!(cache.utilization(), 0.7);
    assert!(!cache.needs_eviction());
}

/// Blocks that only a step holds have no owner that could keep them: the last of the sharers is worth
/// evicting.
#[test]
fn a_sequence_that_shares_all_with_a_step_is_evicted() {
    for num_tokens in [8, 10] {
        let cache = cache(8);
        let mut step = cache.step(Default::default());
        cache.allocate(s(1), num_tokens).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        (1..=2).for_each(|id| step.join(&mut lease_row(&cache, s(id))).unwrap());
        assert_eq!((cache.evict(), cache.evict()), (Ok(s(1)), Ok(s(2))));
        assert_eq!(cache.evict(), Err(NothingToEvict));
        // The same holds for a sequence outside the step that shares blocks with one inside.
        cache.allocate(s(3), num_tokens).unwrap();
        cache.fork(s(3), s(4)).unwrap();
        step.join(&mut lease_row(&cache, s(3))).unwrap();
        cache.free(s(3)).unwrap();
        assert_eq!(cache.select_eviction_target(), Some(s(4)));
        assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![s(4)]));
        assert_eq!(cache.evict_to_threshold(0.0), Ok(vec![]), "all of it is coming");
        assert_eq!(cache.used_block_count(), 2 * num_tokens.div_ceil(BLOCK_SIZE));
        step.complete();
        assert_eq!(cache.used_block_count(), 0);
    }
}

#[test]
fn blocks_shared_by_a_leased_sequence_and_a_step_stay_used() {
    let cache = cache(8);
    let mut step = cache.step(Default::default());
    cache.allocate(s(1), 10).unwrap();
    cache.fork(s(1), s(2)).unwrap();
    cache.fork(s(1), s(3)).unwrap();
    (1..=3).for_each(|id| step.join(&mut lease_row(&cache, s(id))).unwrap());
    let lease = cache.lease(&[s(2)]).unwrap();
    cache.free(s(1)).unwrap();
    assert_eq!(cache.select_eviction_target(), None, "the leased one uses all its blocks");
    assert_eq!(cache.evict_to_threshold(0.0), Err(NothingToEvict));
    drop(lease);
    assert_eq!(cache.evict_to_threshold(0.0).unwrap().len(), 2);
    drop(step);
    assert_eq!(cache.used_block_count(), 0);
}

/// Admits prompts of two blocks whose step has committed their last token: the step owns the blocks that
/// it will publish.
fn all_committed_in_a_step(cache: &PagedKvCache, sequences: u64) -> Step {
    let mut step = cache.step(Default::default());
    for id in 0..sequences {
        cache.admit(s(id), &[id as u32; 8]).unwrap();
        cache.set_worker(s(id), Worker(1)).unwrap();
        let mut row = lease_row(cache, s(id));
        step.join(&mut row).unwrap();
        assert_eq!(step.commit(&mut row, 8), Ok(2));
    }
    step
}

#[test]
fn blocks_to_be_published_count_as_freed_with_their_sequence() {
    let ends: [fn(Step); 2] = [|step| _ = step.complete(), drop];
    for end in ends {
        let cache = cache(20).with_eviction_threshold(0.8);
        let step = all_committed_in_a_step(&cache, 10);
        assert_eq!(cache.select_eviction_target(), Some(s(0)));
        assert_eq!(cache.evict_to_threshold(0.8), Ok(ids(0..2)));
        assert_eq!(cache.evict(), Ok(s(2)));
        assert!(!cache.needs_eviction());
        let mut out = Vec::new();
        assert_eq!(cache.evict_for(Worker(1), 3, &mut out), Ok(4));
        assert_eq!(out, [3, 4].map(|id| Evicted { seq_id: s(id), blocks: 2 }));
        assert_eq!(cache.utilization(), 1.0);
        assert_eq!(cache.evict_to_threshold(0.5), Ok(vec![]));
        end(step);
        assert_eq!(cache.used_block_count(), 10);
        cache.validate().unwrap();
    }
}

#[test]
fn the_publication_of_a_step_waits_for_no_older_step() {
    let cache = cache(4);
    let older = cache.step(Default::default());
    let step = all_committed_in_a_step(&cache, 2);
    assert_eq!(step.complete().published, 4);
    cache.free(s(0)).unwrap();
    assert_eq!(cache.used_block_count(), 4, "the older step may be at the sequence");
    older.complete();
    assert_eq!(cache.used_block_count(), 2);
    cache.free(s(1)).unwrap();
    assert_eq!((cache.used_block_count(), cache.stats().blocks_idle), (0, 4));
}

/// A block that a step holds may be matched again, and then it is in use.
#[test]
fn a_block_that_was_matched_while_a_step_held_it_is_not_coming() {
    let cache = cache(4).with_eviction_threshold(0.5);
    let mut step = cache.step(Default::default());
    cache.admit(s(1), &[7; 9]).unwrap();
    cache.commit(s(1), 9).unwrap();
    step.join(&mut lease_row(&cache, s(1))).unwrap();
    cache.free(s(1)).unwrap();
    assert!(!cache.needs_eviction(), "three blocks are coming");
    assert_eq!(cache.admit(s(2), &[7; 8]).unwrap().cached_tokens, 4);
    assert!(cache.needs_eviction(), "the first and a new one are in use");
    assert_eq!(cache.evict_to_threshold(0.4), Ok(vec![s(2)]));
    step.complete();
    assert_eq!(cache.used_block_count(), 0);
}

#[test]
fn many_evictions_in_a_step_cost_one_pass() {
    const SEQUENCES: u64 = 20_000;
    let cache = cache(2 * SEQUENCES as usize);
    let mut step = cache.step(Default::default());
    for id in 0..SEQUENCES {
        cache.allocate(s(id), 1).unwrap();
        step.join(&mut lease_row(&cache, s(id))).unwrap();
    }
    // Some sequences share blocks, so that not all count alike.
    for id in 0..100 {
        cache.fork(s(id), s(SEQUENCES + id)).unwrap();
    }
    cache.evict().unwrap();
    let evicted = cache.evict_to_threshold(0.25).unwrap();
    assert_eq!(evicted.len() as u64, SEQUENCES / 2 + 99);
    step.complete();
    assert_eq!(cache.used_block_count() as u64, SEQUENCES / 2);
}

/// A cache, and the facts that the reference cannot read from it: which sequences and handles exist, and
/// when each was used.
struct History {
    cache: PagedKvCache,
    random: Random,
    next_id: u64,
    /// Each sequence and its worker, by the time of its last use.
    by_use: BTreeMap<u64, (SeqId, Option<Worker>)>,
    uses: u64,
    steps: Vec<Step>,
    leases: Vec<(Vec<SeqId>, Lease)>,
    handles: Vec<CachedSequence>,
}

/// The state that decides the next evictions, as read from outside.
struct Reference {
    /// The resident blocks of each unleased sequence, by logical index, in the order of eviction.
    order: Vec<(SeqId, Option<Worker>, BTreeMap<usize, BlockId>)>,
    /// Blocks of leased sequences and of handles.
    kept: BTreeSet<BlockId>,
}

impl Reference {
    /// Returns the number of blocks that any owner but a step uses.
    fn in_use(&self) -> usize {
        let unleased = self.order.iter().flat_map(|(_, _, blocks)| blocks.values());
        self.kept.iter().chain(unleased).collect::<BTreeSet<_>>().len()
    }

    /// Removes the first sequence that may go; returns its id and how many blocks that releases.
    fn evict(&mut self, may_go: impl Fn(Option<Worker>) -> bool) -> Option<(SeqId, usize)> {
        let others = self.order.iter().filter(|(_, worker, _)| !may_go(*worker));
        let others: BTreeSet<BlockId> =
            others.flat_map(|(_, _, blocks)| blocks.values().copied()).collect();
        let is_worth = |block: &BlockId| !self.kept.contains(block) && !others.contains(block);
        let first = self
            .order
            .iter()
            .position(|(_, worker, blocks)| may_go(*worker) && blocks.values().any(is_worth))?;
        let before = self.in_use();
        let (id, _, _) = self.order.remove(first);
        Some((id, before - self.in_use()))
    }

    fn trim(&mut self, tokens: &HashMap<SeqId, usize>, is_above: impl Fn(&Self) -> bool) -> bool {
        let mut trimmed = false;
        for at in 0..self.order.len() {
            if !is_above(self) {
                break;
            }
            let (id, _, blocks) = &mut self.order[at];
            let window = tokens[id].saturating_sub(4) / BLOCK_SIZE;
            let before = blocks.len();
            blocks.retain(|&logical, _| logical == 0 || logical >= window);
            trimmed |= blocks.len() < before;
        }
        trimmed
    }

    fn evict_to_threshold(
        &mut self,
        num_blocks: usize,
        threshold: f64,
        tokens: Option<&HashMap<SeqId, usize>>,
    ) -> Result<Vec<SeqId>, PagedKvError> {
        let is_above = |reference: &Self| reference.in_use() as f64 / num_blocks as f64 > threshold;
        if !is_above(self) {
            return Ok(vec![]);
        }
        let trimmed = tokens.is_some_and(|tokens| self.trim(tokens, is_above));
        let mut evicted = Vec::new();
        while is_above(self) {
            let Some((id, _)) = self.evict(|_| true) else {
                let nothing = evicted.is_empty() && !trimmed;
                return if nothing { Err(NothingToEvict) } else { Ok(evicted) };
            };
            evicted.push(id);
        }
        Ok(evicted)
    }
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let num_blocks = [8, 20, 60][random.below(3)];
        let strategy = [LRU, STREAMING][random.below(2)];
        let cache = cache(num_blocks).with_eviction_strategy(strategy);
        let (by_use, steps, leases, handles) = (BTreeMap::new(), vec![], vec![], vec![]);
        Self { cache, random, next_id: 0, by_use, uses: 0, steps, leases, handles }
    }

    fn note_use(&mut self, id: SeqId) {
        let worker = self.cache.get_sequence(id).unwrap().worker;
        self.by_use.retain(|_, (used, _)| *used != id);
        self.uses += 1;
        self.by_use.insert(self.uses, (id, worker));
    }

    fn any(&mut self) -> Option<SeqId> {
        let ids: Vec<SeqId> = self.by_use.values().map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len())])
    }

    fn new_id(&mut self) -> SeqId {
        self.next_id += 1;
        s(self.next_id)
    }

    fn join(&mut self, id: SeqId) {
        let mut row = lease_row(&self.cache, id);
        for step in &mut self.steps {
            if self.random.below(3) > 0 {
                step.join(&mut row).unwrap();
            }
        }
    }

    fn reference(&self) -> Reference {
        let mut reference = Reference { order: vec![], kept: BTreeSet::new() };
        for (id, worker) in self.by_use.values() {
            let blocks = self.cache.with_sequence(*id, |sequence| {
                let logical = 0..sequence.num_logical_blocks();
                logical.filter_map(|at| Some((at, sequence.block_at(at)?))).collect()
            });
            let blocks: BTreeMap<usize, BlockId> = blocks.unwrap();
            if self.leases.iter().any(|(leased, _)| leased.contains(id)) {
                reference.kept.extend(blocks.values());
            } else {
                reference.order.push((*id, *worker, blocks));
            }
        }
        reference.kept.extend(self.handles.iter().flat_map(|handle| handle.block_ids()));
        reference
    }

    /// Returns the tokens of all sequences, if the strategy trims.
    fn tokens(&self) -> Option<HashMap<SeqId, usize>> {
        (self.cache.eviction_strategy() == STREAMING).then(|| {
            let info = |id: SeqId| (id, self.cache.get_sequence(id).unwrap().num_tokens);
            self.cache.sequence_ids().into_iter().map(info).collect()
        })
    }

    fn operate(&mut self) {
        let kind = self.random.below(17);
        let some = self.any();
        match (kind, some) {
            (0..3, _) => {
                let (id, num_tokens) = (self.new_id(), self.random.below(30));
                let tokens: Vec<u32> =
                    (0..num_tokens).map(|at| (at / 6 * self.random.below(2)) as u32).collect();
                let added = match self.random.below(2) {
                    0 => self.cache.allocate(id, num_tokens),
                    _ => self.cache.admit(id, &tokens).map(drop),
                };
                if added.is_ok() {
                    let worker = self.random.below(3) as u32;
                    if worker > 0 {
                        self.cache.set_worker(id, Worker(worker)).unwrap();
                    }
                    self.note_use(id);
                    self.join(id);
                }
            }
            (3, Some(id)) => {
                let fork = self.new_id();
                self.cache.fork(id, fork).unwrap();
                self.note_use(fork);
            }
            (4 | 5, Some(id)) => {
                self.join(id);
                let num_tokens = self.random.below(6);
                if self.cache.append(id, num_tokens).is_ok() {
                    self.note_use(id);
                }
            }
            (6, Some(id)) => {
                let num_tokens = self.cache.get_sequence(id).unwrap().num_tokens;
                let _ = self.cache.truncate(id, self.random.below(num_tokens + 1));
            }
            (7, Some(id)) => {
                let freed = self.cache.free(id).is_ok();
                self.by_use.retain(|_, (used, _)| !freed || *used != id);
            }
            (8, _) if self.steps.len() < 70 => self.steps.push(self.cache.step(Default::default())),
            (9, _) if !self.steps.is_empty() => {
                let step = self.random.below(self.steps.len());
                self.steps.swap_remove(step).complete();
            }
            (10, Some(id)) => {
                let lease = self.cache.lease(&[id]).unwrap();
                self.leases.push((vec![id], lease));
                while self.leases.len() > 3 {
                    drop(self.leases.remove(0));
                }
            }
            (11, _) => self.handle(),
            (12, Some(id)) => _ = self.cache.apply_streaming_llm(id, 4, 8),
            (13, _) if self.random.below(2) == 0 => self.leases.clear(),
            (14.., Some(id)) if !self.steps.is_empty() => {
                let step = self.random.below(self.steps.len());
                let step = &mut self.steps[step];
                let mut row = lease_row(&self.cache, id);
                step.join(&mut row).unwrap();
                let num_tokens = self.cache.get_sequence(id).unwrap().num_tokens;
                step.commit(&mut row, num_tokens).unwrap();
            }
            _ => {}
        }
    }

    fn handle(&mut self) {
        let tokens = vec![self.random.below(2) as u32; self.random.below(20)];
        let prompt = self.cache.prompt(&tokens);
        if self.handles.len() > 2 {
            drop(self.handles.remove(0));
        } else if let Ok((mut handle, _)) = self.cache.admit_sequence(&prompt, &Default::default())
        {
            handle.commit(tokens.len()).unwrap();
            if let Some(step) = self.steps.last_mut() {
                step.join(&mut handle).unwrap();
            }
            self.handles.push(handle);
        }
    }

    fn forget(&mut self, evicted: &[SeqId]) {
        self.by_use.retain(|_, (id, _)| !evicted.contains(id));
    }

    /// Makes one eviction of some kind, in the cache and in the reference.
    fn evict(&mut self) {
        let (mut reference, tokens) = (self.reference(), self.tokens());
        let num_blocks = self.cache.total_blocks();
        match self.random.below(3) {
            0 => {
                let threshold = self.random.below(11) as f64 / 10.0;
                let expected = reference.evict_to_threshold(num_blocks, threshold, tokens.as_ref());
                let evicted = self.cache.evict_to_threshold(threshold);
                assert_eq!(evicted, expected, "to {threshold}");
                self.forget(&evicted.unwrap_or_default());
            }
            1 => {
                let (worker, need) = (Worker(self.random.below(3) as u32), self.random.below(12));
                let (mut expected, mut freed) = (Vec::new(), 0);
                while freed < need
                    && let Some((seq_id, blocks)) = reference.evict(|of| of == Some(worker))
                {
                    expected.push(Evicted { seq_id, blocks });
                    freed += blocks;
                }
                let mut out = Vec::new();
                let evicted = self.cache.evict_for(worker, need, &mut out);
                assert_eq!(out, expected, "{need} for {worker}");
                let nothing = expected.is_empty() && need > 0;
                assert_eq!(evicted, if nothing { Err(NothingToEvict) } else { Ok(freed) });
                self.forget(&out.iter().map(|evicted| evicted.seq_id).collect::<Vec<_>>());
            }
            _ => {
                let expected = reference.evict(|_| true).map(|(id, _)| id);
                assert_eq!(self.cache.select_eviction_target(), expected);
                assert_eq!(self.cache.evict().ok(), expected);
                self.forget(&Vec::from_iter(expected));
            }
        }
        let in_use = self.reference().in_use() as f64 / num_blocks as f64;
        for threshold in [0.0, 0.25, 0.5, 1.0] {
            let evicted = self.cache.evict_to_threshold(in_use.max(threshold));
            assert_eq!(evicted, Ok(vec![]), "it is there already");
        }
    }

    fn end(mut self) {
        self.leases.clear();
        let (in_use, used) = (self.reference().in_use(), self.cache.used_block_count());
        assert!(in_use <= used);
        self.steps.clear();
        assert_eq!(self.cache.used_block_count(), in_use, "what was in use without the steps");
        self.handles.clear();
        self.cache.sequence_ids().into_iter().for_each(|id| self.cache.free(id).unwrap());
        assert_eq!(self.cache.used_block_count(), 0);
        self.cache.validate().unwrap();
    }
}

#[test]
fn as_many_sequences_go_as_have_to_once_the_steps_have_ended() {
    for seed in 0..250 {
        let mut history = History::new(seed);
        for _ in 0..120 {
            history.operate();
            if history.random.below(6) == 0 {
                history.evict();
            }
        }
        history.end();
    }
}
