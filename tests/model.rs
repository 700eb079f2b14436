//! Does the cache do what a page of sets and lists says? Random operations on both, equal results,
//! refusals included, and equal state after each.
//!
//! The reference knows no runs, words or shards: a sequence is a list with a block or a gap for
//! each logical block, and a block is used exactly if some list or some pending copy has it.

mod common;
#[path = "model/reference.rs"]
mod reference;

use common::s;
use paged_kv::{AppendBatch, BlockId, EvictionStrategy, PagedKvCache, PagedKvError, SeqId};
use proptest::collection::vec;
use proptest::prelude::*;

use reference::{Outcome, Reference};

/// One call. Ids are few, so that they meet.
#[derive(Clone, Debug)]
enum Call {
    Allocate(SeqId, usize),
    Append(SeqId, usize),
    /// Keeps what the append returns, and with it the source of a copy.
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
struct Shape {
    num_blocks: usize,
    block_size: usize,
    home_shards: usize,
    null_block: bool,
    strategy: EvictionStrategy,
}

fn id() -> impl Strategy<Value = SeqId> {
    (0..6_u64).prop_map(s)
}

/// Lengths in tokens: short ones, whole blocks, and now and then far too long.
fn length(block_size: usize, num_blocks: usize) -> impl Strategy<Value = usize> + Clone {
    prop_oneof![
        6 => 0..=3 * block_size,
        2 => (0..=4_usize).prop_map(move |blocks| blocks * block_size),
        2 => 0..=block_size * (num_blocks / 2 + 1),
        1 => prop_oneof![Just(usize::MAX), Just(usize::MAX / 2), Just(block_size * (num_blocks + 1))],
    ]
}

fn call(block_size: usize, num_blocks: usize) -> impl Strategy<Value = Call> {
    let tokens = length(block_size, num_blocks);
    let few = 0..=4 * block_size;
    prop_oneof![
        4 => (id(), tokens.clone()).prop_map(|(id, n)| Call::Allocate(id, n)),
        5 => (id(), tokens.clone()).prop_map(|(id, n)| Call::Append(id, n)),
        2 => (id(), few.clone()).prop_map(|(id, n)| Call::AppendAndKeep(id, n)),
        1 => Just(Call::LetGo),
        3 => vec((id(), tokens.clone()), 0..4).prop_map(Call::AppendBatch),
        2 => id().prop_map(Call::Free),
        5 => (id(), id()).prop_map(|(src, dst)| Call::Fork(src, dst)),
        4 => (id(), few.clone()).prop_map(|(id, n)| Call::Truncate(id, n)),
        3 => (id(), few.clone(), few).prop_map(|(id, sink, window)| Call::Trim(id, sink, window)),
        2 => id().prop_map(Call::Touch),
        1 => (id(), prop_oneof![0..4_u32, Just(u32::MAX)]).prop_map(|(id, p)| Call::SetPriority(id, p)),
        2 => id().prop_map(Call::Lease),
        2 => Just(Call::EndLease),
        1 => id().prop_map(Call::FreeWhenReleased),
        2 => Just(Call::Evict),
        2 => (0..=10_u32).prop_map(Call::EvictToThreshold),
    ]
}

fn strategy() -> impl Strategy<Value = EvictionStrategy> {
    let streaming = (0..40_usize, 0..40_usize).prop_map(|(sink_tokens, window_tokens)| {
        EvictionStrategy::StreamingLLM { sink_tokens, window_tokens }
    });
    prop_oneof![
        Just(EvictionStrategy::LRU),
        Just(EvictionStrategy::LFU),
        Just(EvictionStrategy::LongestFirst),
        (1..4_usize).prop_map(|levels| EvictionStrategy::Priority { levels }),
        streaming,
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let num_blocks = prop_oneof![3 => 2..=16_usize, 2 => 17..=64_usize, 1 => Just(700_usize)];
    let block_size = prop_oneof![3 => 1..=5_usize, 1 => 6..=64_usize];
    let home_shards = prop_oneof![Just(1_usize), Just(4)];
    (num_blocks, block_size, home_shards, any::<bool>(), strategy()).prop_map(
        |(num_blocks, block_size, home_shards, null_block, strategy)| Shape {
            num_blocks,
            block_size,
            home_shards,
            null_block,
            strategy,
        },
    )
}

fn shape_and_calls() -> impl Strategy<Value = (Shape, Vec<Call>)> {
    shape().prop_flat_map(|shape| {
        let calls = vec(call(shape.block_size, shape.num_blocks), 1..60);
        (Just(shape), calls)
    })
}

fn build(shape: &Shape) -> PagedKvCache {
    let builder = PagedKvCache::builder()
        .num_blocks(shape.num_blocks)
        .block_size(shape.block_size)
        .home_shards(shape.home_shards)
        .with_eviction_strategy(shape.strategy);
    let builder = if shape.null_block { builder.with_null_block() } else { builder };
    builder.build().unwrap()
}

/// What the cache says, with what a caller holds meanwhile.
struct Caller {
    cache: PagedKvCache,
    kept: Vec<paged_kv::Append>,
    leases: Vec<paged_kv::Lease>,
}

impl Caller {
    fn make(&mut self, call: &Call) -> Result<Outcome, PagedKvError> {
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

fn expect(reference: &mut Reference, call: &Call) -> Result<Outcome, PagedKvError> {
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

/// The reference names blocks as it likes; each name stands for one block of the pool.
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

/// Which block of the pool a name of the reference stands for.
#[derive(Default)]
struct Names(std::collections::BTreeMap<u64, BlockId>);

impl Names {
    fn bind(&mut self, name: u64, block: BlockId) {
        let bound = *self.0.entry(name).or_insert(block);
        assert_eq!(bound, block, "one block became another");
    }

    /// Forgets what is free again, and checks that no block has two names.
    fn keep(&mut self, used: &std::collections::BTreeSet<u64>) {
        self.0.retain(|name, _| used.contains(name));
        let blocks: std::collections::BTreeSet<_> = self.0.values().collect();
        assert_eq!(blocks.len(), self.0.len(), "one block is in the hands of two owners");
    }
}

proptest! {
    #[test]
    fn the_cache_does_what_the_reference_says((shape, calls) in shape_and_calls()) {
        let cache = build(&shape);
        let mut reference = Reference::new(cache.total_blocks(), shape.block_size, shape.strategy);
        let mut caller = Caller { cache, kept: Vec::new(), leases: Vec::new() };
        let mut names = Names::default();
        for call in &calls {
            let outcome = caller.make(call);
            prop_assert_eq!(&outcome, &expect(&mut reference, call), "{:?}", call);
            assert_equal_state(&caller.cache, &reference, &mut names);
        }
        let Caller { cache, kept, leases } = caller;
        drop((kept, leases));
        common::assert_empties(&cache);
        let peak = cache.stats().peak_blocks_used;
        if shape.home_shards == 1 {
            prop_assert_eq!(peak, reference.peak());
        }
    }
}
