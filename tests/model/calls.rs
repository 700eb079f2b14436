//! `Call`: the calls of the model test, how the cache and the reference make them, and the comparison
//! after each. The choice of the calls is not made here.

use std::collections::{BTreeMap, BTreeSet};

use paged_kv::{AppendBatch, BlockId, EvictionStrategy, PagedKvCache, PagedKvError, SeqId};

use crate::reference::{Outcome, Reference};

/// The result of a call.
pub type Made = Result<Outcome, PagedKvError>;

/// One call. There are few ids, so that calls meet.
#[derive(Clone, Debug)]
pub enum Call {
    Allocate(SeqId, usize),
    Append(SeqId, usize),
    /// Keeps the result of the append, and with it the source of a copy.
    AppendAndKeep(SeqId, usize),
    LetGo,
    AppendBatch(Vec<(SeqId, usize)>),
    Free(SeqId),
    Fork(SeqId, SeqId),
    Truncate(SeqId, usize),
    Trim(SeqId, usize, usize),
    Touch(SeqId),
    SetPriority(SeqId, u32),
    Lease(SeqId),
    EndLease,
    FreeWhenReleased(SeqId),
    Evict,
    EvictToThreshold(u32),
}

#[derive(Clone, Debug)]
pub struct Shape {
    pub num_blocks: usize,
    pub block_size: usize,
    pub home_shards: usize,
    pub null_block: bool,
    pub strategy: EvictionStrategy,
}

impl Shape {
    /// Creates the reference of a new cache of this shape.
    pub fn reference(&self) -> Reference {
        let total = self.num_blocks - usize::from(self.null_block);
        Reference::new(total, self.block_size, self.strategy)
    }
}

/// A cache with its caller's values, compared with the reference after each call.
pub struct Compared {
    caller: Caller,
    names: Names,
    exact_peak: bool,
}

impl Compared {
    pub fn new(shape: &Shape) -> Self {
        let caller = Caller { cache: build(shape), kept: Vec::new(), leases: Vec::new() };
        // With more shards the peak is the sum of the shards' peaks.
        Self { caller, names: Names::default(), exact_peak: shape.home_shards == 1 }
    }

    /// Makes a call that the reference has made, and asserts equal results, refusals included, and equal
    /// state.
    pub fn make(&mut self, call: &Call, expected: &Made, reference: &Reference) {
        assert_eq!(self.caller.make(call), *expected, "{call:?}");
        assert_equal_state(&self.caller.cache, reference, &mut self.names);
    }

    /// Drops the caller's values. The cache is left to the caller, which empties it.
    pub fn end(self, reference: &Reference) -> PagedKvCache {
        let Caller { cache, kept, leases } = self.caller;
        drop((kept, leases));
        if self.exact_peak {
            assert_eq!(cache.stats().peak_blocks_used, reference.peak());
        }
        cache
    }
}

fn build(shape: &Shape) -> PagedKvCache {
    let builder = PagedKvCache::builder()
        .num_blocks(shape.num_blocks)
        .block_size(shape.block_size)
        .home_shards(shape.home_shards)
        .with_eviction_strategy(shape.strategy);
    let builder = builder.null_block(shape.null_block);
    builder.build().unwrap()
}

/// The cache, and the values that a caller holds.
struct Caller {
    cache: PagedKvCache,
    kept: Vec<paged_kv::Append>,
    leases: Vec<paged_kv::Lease>,
}

impl Caller {
    fn make(&mut self, call: &Call) -> Made {
        let cache = &self.cache;
        let ok = |_: ()| Outcome::Done;
        match call {
            Call::Allocate(id, n) => cache.allocate(*id, *n).map(ok),
            Call::Append(id, n) => cache.append(*id, *n).map(|append| Outcome::appended(&append)),
            Call::AppendAndKeep(id, n) => {
                let append = cache.append(*id, *n)?;
                let outcome = Outcome::appended(&append);
                self.kept.push(append);
                Ok(outcome)
            }
            Call::LetGo => {
                self.kept.clear();
                Ok(Outcome::Done)
            }
            Call::AppendBatch(rows) => {
                let mut batch = AppendBatch::default();
                cache.append_batch(rows, &mut batch)?;
                Ok(Outcome::Batch(batch.as_slice().iter().map(Outcome::appended).collect()))
            }
            Call::Free(id) => cache.free(*id).map(ok),
            Call::Fork(src, dst) => cache.fork(*src, *dst).map(ok),
            Call::Truncate(id, n) => cache.truncate(*id, *n).map(ok),
            Call::Trim(id, sink, window) => {
                cache.apply_streaming_llm(*id, *sink, *window).map(Outcome::Tokens)
            }
            Call::Touch(id) => cache.touch(*id).map(ok),
            Call::SetPriority(id, priority) => cache.set_priority(*id, *priority).map(ok),
            Call::Lease(id) => {
                self.leases.push(cache.lease(&[*id])?);
                Ok(Outcome::Done)
            }
            Call::EndLease => {
                self.leases.pop();
                Ok(Outcome::Done)
            }
            Call::FreeWhenReleased(id) => cache.free_when_released(*id).map(ok),
            Call::Evict => cache.evict().map(|id| Outcome::Evicted(vec![id])),
            Call::EvictToThreshold(tenths) => {
                cache.evict_to_threshold(f64::from(*tenths) / 10.0).map(Outcome::Evicted)
            }
        }
    }
}

/// True if the call is made. Calls that fail are made too, but only values that are held are dropped.
pub fn is_made(reference: &Reference, call: &Call) -> bool {
    match call {
        Call::LetGo => reference.keeps_a_source(),
        Call::EndLease => reference.has_leases(),
        _ => true,
    }
}

/// Makes the call on the reference.
pub fn expect(reference: &mut Reference, call: &Call) -> Made {
    match call {
        Call::Allocate(id, n) => reference.allocate(*id, *n),
        Call::Append(id, n) => reference.append(*id, *n, false),
        Call::AppendAndKeep(id, n) => reference.append(*id, *n, true),
        Call::LetGo => reference.let_go(),
        Call::AppendBatch(rows) => reference.append_batch(rows),
        Call::Free(id) => reference.free(*id),
        Call::Fork(src, dst) => reference.fork(*src, *dst),
        Call::Truncate(id, n) => reference.truncate(*id, *n),
        Call::Trim(id, sink, window) => reference.trim(*id, *sink, *window),
        Call::Touch(id) => reference.touch(*id),
        Call::SetPriority(id, priority) => reference.set_priority(*id, *priority),
        Call::Lease(id) => reference.lease(*id),
        Call::EndLease => reference.end_lease(),
        Call::FreeWhenReleased(id) => reference.free_when_released(*id),
        Call::Evict => reference.evict(),
        Call::EvictToThreshold(tenths) => reference.evict_to_threshold(f64::from(*tenths) / 10.0),
    }
}

/// Asserts that both states are equal. The reference names blocks freely; each name stands for one block
/// of the pool.
fn assert_equal_state(cache: &PagedKvCache, reference: &Reference, names: &mut Names) {
    let mut ids = cache.sequence_ids();
    ids.sort();
    assert_eq!(ids, reference.ids());
    for id in ids {
        let info = cache.get_sequence(id).unwrap();
        let expected = reference.get(id);
        assert_eq!(info.num_tokens, expected.num_tokens, "{id}");
        assert_eq!(info.access_count, expected.access_count, "{id}");
        assert_eq!(info.priority, expected.priority, "{id}");
        assert_eq!(info.leases, expected.leases, "{id}");
        let blocks =
            |logical| cache.with_sequence(id, |sequence| sequence.block_at(logical)).unwrap();
        for (logical, &name) in expected.blocks.iter().enumerate() {
            match (blocks(logical), name) {
                (Some(block), Some(name)) => names.bind(name, block),
                (None, None) => {}
                (block, name) => panic!("{id}, logical block {logical}: {block:?} for {name:?}"),
            }
        }
        assert_eq!(blocks(expected.blocks.len()), None);
        let resident = expected.blocks.iter().flatten().count();
        assert_eq!(info.block_ids.len(), resident);
    }
    let used = reference.used();
    names.keep(&used);
    assert_eq!(cache.used_block_count(), used.len());
    assert_eq!(cache.free_block_count(), cache.total_blocks() - used.len());
    let stats = cache.stats();
    assert_eq!(
        (stats.total_allocations, stats.total_frees, stats.total_evictions, stats.total_forks),
        reference.counts()
    );
    assert!(stats.peak_blocks_used <= reference.peak());
    assert_eq!(cache.select_eviction_target(), reference.eviction_target());
    cache.validate().unwrap();
}

/// The block of the pool for each name of the reference.
#[derive(Default)]
struct Names(BTreeMap<u64, BlockId>);

impl Names {
    fn bind(&mut self, name: u64, block: BlockId) {
        let bound = *self.0.entry(name).or_insert(block);
        assert_eq!(bound, block, "one block became another");
    }

    /// Forgets blocks that are free again, and checks that no block has two names.
    fn keep(&mut self, used: &BTreeSet<u64>) {
        self.0.retain(|name, _| used.contains(name));
        let blocks: BTreeSet<_> = self.0.values().collect();
        assert_eq!(blocks.len(), self.0.len(), "one block is in the hands of two owners");
    }
}
