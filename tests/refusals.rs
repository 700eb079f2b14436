//! Tests of refusals: a refused call changes nothing. Every operation is refused in several states of the
//! cache, and all visible state is compared before and after.

mod common;

use common::snapshot::Snapshot;
use common::{lease_row, s, shapes_with};
use paged_kv::export::{CsrBuffers, Gaps, TableShape};
use paged_kv::{
    AppendBatch, BlockId, EvictionStrategy, Lease, PagedKvCache, PagedKvCacheBuilder, PagedKvError,
    Sequence,
};

type Outcome = Result<(), PagedKvError>;

/// A cache in some state, with the values that keep it in that state.
struct World {
    cache: PagedKvCache,
    lease: Option<Lease>,
    handle: Sequence,
}

type Build = fn(&PagedKvCache) -> Option<Lease>;

const MISSING: u64 = 99;
const STRATEGIES: [EvictionStrategy; 2] =
    [EvictionStrategy::LRU, EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 4 }];

/// S1, S2 and S3 in a pool of ten blocks of four tokens; one block belongs to the handle.
const STATES: &[(&str, Build)] = &[
    ("private blocks, full", |cache| {
        cache.allocate(s(1), 11).unwrap();
        cache.allocate(s(2), 9).unwrap();
        cache.allocate(s(3), 12).unwrap();
        None
    }),
    ("a shared tail, full", |cache| {
        cache.allocate(s(1), 11).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        cache.allocate(s(3), 21).unwrap();
        None
    }),
    ("a shared tail, all leased", |cache| {
        cache.allocate(s(1), 11).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        cache.allocate(s(3), 17).unwrap();
        Some(cache.lease(&[s(1), s(2), s(3)]).unwrap())
    }),
    ("one trimmed, one leased, room for one", |cache| {
        cache.allocate(s(1), 15).unwrap();
        cache.apply_streaming_llm(s(1), 4, 3).unwrap();
        cache.allocate(s(2), 20).unwrap();
        cache.fork(s(1), s(3)).unwrap();
        cache.append(s(3), 5).map(drop).unwrap();
        Some(cache.lease(&[s(2)]).unwrap())
    }),
    ("everything leased twice, in runs", |cache| {
        cache.allocate(s(1), 16).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        cache.append(s(2), 9).map(drop).unwrap();
        cache.fork(s(2), s(3)).unwrap();
        std::mem::forget(cache.lease(&[s(1), s(3)]).unwrap());
        Some(cache.lease(&[s(3), s(2), s(1)]).unwrap())
    }),
];

type Call = fn(&mut World) -> Outcome;

/// Calls that some state refuses, each named by its request.
const CALLS: &[(&str, Call)] = &[
    ("allocate an id in use", |w| w.cache.allocate(s(1), 1)),
    ("allocate an id in use and too much", |w| w.cache.allocate(s(1), 1000)),
    ("allocate too much", |w| w.cache.allocate(s(MISSING), 9)),
    ("allocate far too much", |w| w.cache.allocate(s(MISSING), usize::MAX / 2)),
    ("allocate what overflows", |w| w.cache.allocate(s(MISSING), usize::MAX)),
    ("append too much", |w| w.cache.append(s(1), 14).map(drop)),
    ("append one, to a tail that may be shared", |w| w.cache.append(s(1), 1).map(drop)),
    ("append one to the fork", |w| w.cache.append(s(2), 1).map(drop)),
    ("append what overflows", |w| w.cache.append(s(2), usize::MAX).map(drop)),
    ("append to nothing", |w| w.cache.append(s(MISSING), 1).map(drop)),
    ("fork onto an id in use", |w| w.cache.fork(s(1), s(2))),
    ("fork onto itself", |w| w.cache.fork(s(1), s(1))),
    ("fork nothing", |w| w.cache.fork(s(MISSING), s(98))),
    ("fork nothing onto an id in use", |w| w.cache.fork(s(MISSING), s(1))),
    ("free nothing", |w| w.cache.free(s(MISSING))),
    ("free what may be leased", |w| w.cache.free(s(2))),
    ("free nothing when released", |w| w.cache.free_when_released(s(MISSING))),
    ("truncate past the end", |w| w.cache.truncate(s(1), 100)),
    ("truncate into what may be trimmed", |w| w.cache.truncate(s(1), 6)),
    ("truncate nothing", |w| w.cache.truncate(s(MISSING), 0)),
    ("trim what may be leased", |w| w.cache.apply_streaming_llm(s(2), 0, 0).map(drop)),
    ("trim nothing", |w| w.cache.apply_streaming_llm(s(MISSING), 0, 0).map(drop)),
    ("evict", |w| w.cache.evict().map(drop)),
    ("evict to a threshold", |w| w.cache.evict_to_threshold(0.0).map(drop)),
    ("evict to no number", |w| w.cache.evict_to_threshold(f64::NAN).map(drop)),
    ("touch nothing", |w| w.cache.touch(s(MISSING))),
    ("set the priority of nothing", |w| w.cache.set_priority(s(MISSING), 3)),
    ("lease one and nothing", |w| w.cache.lease(&[s(1), s(MISSING)]).map(drop)),
    ("lease one twice", |w| w.cache.lease(&[s(1), s(2), s(1)]).map(drop)),
    ("append too much to a batch", |w| batch(w, &[(1, 14), (2, 1), (3, 14)])),
    ("append one to each of a batch", |w| batch(w, &[(1, 1), (2, 1), (3, 1)])),
    ("append what overflows to a batch", |w| batch(w, &[(1, 1), (3, usize::MAX)])),
    ("append to nothing in a batch", |w| batch(w, &[(1, 1), (MISSING, 1)])),
    ("append twice in a batch", |w| batch(w, &[(1, 1), (1, 1)])),
    ("append too much under a lease", |w| {
        with_lease(w, |lease| {
            let num_new_tokens = vec![40; lease.len()];
            lease.append_batch(&num_new_tokens, &mut AppendBatch::default())
        })
    }),
    ("append to rows that the lease lacks", |w| {
        with_lease(w, |lease| {
            let num_new_tokens = vec![0; lease.len() + 1];
            lease.append_batch(&num_new_tokens, &mut AppendBatch::default())
        })
    }),
    ("grow what overflows in a step", |w| {
        let mut step = w.cache.step(Default::default());
        with_lease(w, |lease| {
            let mut rows: Vec<_> = lease.rows().map(|row| (row, usize::MAX)).collect();
            step.grow(&mut rows).map(|grown| assert_eq!(grown.grown_rows, 0))
        })
    }),
    ("grow a row twice in a step", |w| {
        let mut step = w.cache.step(Default::default());
        let row = lease_row(&w.cache, s(1));
        step.grow(&mut [(row.clone(), 0), (row, 0)]).map(|grown| assert_eq!(grown.grown_rows, 0))
    }),
    ("release what is not leased", |w| with_lease(w, |lease| lease.release(s(MISSING)))),
    ("allocate too many blocks", |w| w.cache.pool().allocate(3).map(drop)),
    ("allocate too long a handle", |w| w.cache.allocate_sequence(12).map(drop)),
    ("append too much to a handle", |w| w.handle.append(9).map(drop)),
    ("truncate a handle past its end", |w| w.handle.truncate(100)),
    ("retain a block of no pool", |w| w.cache.pool().retain(BlockId(1_000))),
    ("release a block of no pool", |w| w.cache.pool().release(BlockId(1_000))),
    ("retain a free block", |w| match free_block(&w.cache) {
        Some(id) => w.cache.pool().retain(id),
        None => Ok(()),
    }),
    ("release a free block", |w| match free_block(&w.cache) {
        Some(id) => w.cache.pool().release(id),
        None => Ok(()),
    }),
    ("export rows to a buffer too small", |w| {
        let shape = TableShape { stride: 1, pad: -1, gaps: Gaps::Close };
        w.cache.lease(&[s(2)])?.block_tables(&mut [0_i32; 1], shape)
    }),
    ("export a row of nothing", |w| {
        let (mut indptr, mut indices, mut last_page_len) = ([0_i64; 2], [0; 9], [0; 1]);
        let buffers = CsrBuffers {
            indptr: &mut indptr,
            indices: &mut indices,
            last_page_len: &mut last_page_len,
        };
        w.cache.lease(&[s(MISSING)])?.csr(buffers, 0, Gaps::Show).map(drop)
    }),
    ("export slots past the end", |w| {
        let lease = w.cache.lease(&[s(1), s(2)])?;
        lease.slot_mapping(&[0..1, 0..100], Gaps::Show, &mut [0_i64; 101]).map(drop)
    }),
];

fn batch(world: &World, rows: &[(u64, usize)]) -> Outcome {
    let rows: Vec<_> = rows.iter().map(|&(id, tokens)| (s(id), tokens)).collect();
    world.cache.append_batch(&rows, &mut AppendBatch::default())
}

fn with_lease(world: &mut World, call: impl FnOnce(&mut Lease) -> Outcome) -> Outcome {
    world.lease.as_mut().map_or(Ok(()), call)
}

fn free_block(cache: &PagedKvCache) -> Option<BlockId> {
    let ids = (0..=cache.total_blocks() as u32).map(BlockId);
    ids.into_iter().find(|&id| cache.pool().owners(id) == Ok(0))
}

fn worlds(build: Build, set: impl Fn(PagedKvCacheBuilder) -> PagedKvCacheBuilder) -> Vec<World> {
    let world = |cache: PagedKvCache| {
        let handle = cache.allocate_sequence(3).unwrap();
        let lease = build(&cache);
        World { cache, lease, handle }
    };
    shapes_with(10, 4, set).into_iter().map(world).collect()
}

#[test]
fn a_refused_call_changes_nothing_that_can_be_seen() {
    for &(name, call) in CALLS {
        let mut refusals = 0;
        for &(state, build) in STATES {
            for strategy in STRATEGIES {
                for mut world in worlds(build, |builder| builder.with_eviction_strategy(strategy)) {
                    let before = (Snapshot::of(&world.cache), parts(&world));
                    let Err(refusal) = call(&mut world) else {
                        world.cache.validate().unwrap();
                        continue;
                    };
                    refusals += 1;
                    let after = (Snapshot::of(&world.cache), parts(&world));
                    assert_eq!(before, after, "{name}; {state}; {strategy}: {refusal}");
                    world.cache.validate().unwrap();
                }
            }
        }
        assert!(refusals > 0, "{name}: refused in no state");
    }
}

#[test]
fn a_refused_call_is_not_a_use() {
    for &(name, call) in CALLS {
        for &(state, build) in STATES {
            let order = |call: Option<Call>| {
                let mut refused = false;
                let mut orders = Vec::new();
                for mut world in worlds(build, |builder| builder) {
                    refused |= call.is_some_and(|call| call(&mut world).is_err());
                    drop(world.lease);
                    orders.push(world.cache.evict_to_threshold(-1.0));
                }
                (refused, orders)
            };
            let (refused, orders) = order(Some(call));
            if refused {
                assert_eq!(orders, order(None).1, "{name}; {state}");
            }
        }
    }
}

/// Returns the state of the handle and the lease, which the cache's snapshot does not contain.
fn parts(world: &World) -> (Vec<BlockId>, usize, Option<usize>) {
    let handle = &world.handle;
    (handle.block_ids().to_vec(), handle.num_tokens(), world.lease.as_ref().map(Lease::len))
}
