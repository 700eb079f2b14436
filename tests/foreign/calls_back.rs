//! Foreign code that calls the cache back from every call of every operation, with every operation, also
//! on the same sequence. No operation hangs, and the cache stays consistent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use paged_kv::export::{Gaps, TableShape};
use paged_kv::{AppendBatch, PagedKvCache, SeqId};

use crate::common::row_if_there;
use crate::operations::{GIVING, Operation, TELLING, WAITING};
use crate::trip::{Call, Trip};
use crate::watched;
use crate::world::{First, NUM_BLOCKS, World, assert_heard, cache_of, tokens};

type CallBack = fn(&PagedKvCache, SeqId);

/// Operations on a sequence.
const CALLS_BACK: &[CallBack] = &[
    |cache, id| _ = cache.get_sequence(id),
    |cache, id| _ = cache.with_sequence(id, |sequence| sequence.num_tokens()),
    |cache, id| _ = cache.touch(id),
    |cache, id| _ = cache.append(id, 1),
    |cache, id| _ = cache.append_tokens(id, &[7]),
    |cache, id| _ = cache.commit(id, 4),
    |cache, id| _ = cache.commit(id, &[]),
    |cache, id| _ = cache.fork(id, SeqId(id.0 + 30)),
    |cache, id| _ = cache.fork_n(id, &[SeqId(id.0 + 40), SeqId(id.0 + 50)]),
    |cache, id| {
        _ = cache.lease(&[id]).map(|lease| lease.append_batch(&[1], &mut AppendBatch::default()))
    },
    |cache, id| {
        let Ok(row) = row_if_there(cache, id) else { return };
        let (mut step, mut rows) = (cache.step(Default::default()), [(row, 1)]);
        _ = step.grow(&mut rows);
        _ = step.commit(&mut rows[0].0, 4);
        _ = step.accept(0, &mut rows[0].0, &[3]);
        step.complete();
    },
    |cache, id| {
        let Ok(row) = row_if_there(cache, id) else { return };
        let (mut step, mut rows) = (cache.step(Default::default()), [(row, 5)]);
        _ = step.grow(&mut rows);
        _ = step.abort(&mut rows);
    },
    |cache, id| {
        let shape = TableShape { stride: NUM_BLOCKS, pad: -1, gaps: Gaps::Show };
        _ = cache.lease(&[id]).map(|lease| lease.block_tables(&mut [0_i32; NUM_BLOCKS], shape));
    },
    |cache, id| _ = cache.set_priority(id, 3),
    |cache, id| _ = cache.truncate(id, 3),
    |cache, id| _ = cache.apply_streaming_llm(id, 1, 1),
    |cache, id| _ = cache.free_when_released(SeqId(id.0 + 30)),
    |cache, id| _ = cache.free(id),
    |cache, id| _ = cache.allocate(id, 5),
    |cache, id| _ = cache.free(id),
    |cache, id| _ = cache.admit(id, &tokens(id.0 as u32, 9)),
    |cache, id| _ = cache.commit(id, 9),
];

/// Operations on the cache.
const OF_CACHE: &[fn(&PagedKvCache)] = &[
    |cache| cache.validate().expect("foreign code is called when everything is consistent"),
    |cache| _ = cache.stats(),
    |cache| _ = cache.sequence_ids(),
    |cache| _ = cache.select_eviction_target(),
    |cache| _ = cache.evict(),
    |cache| _ = cache.reserve(1).map(|mut reservation| reservation.shrink_to(0)),
    |cache| _ = cache.pool().allocate(1).map(|mut table| table.truncate(0).unwrap()),
    |cache| _ = cache.evict_to_threshold(0.8),
    |cache| _ = cache.prefix().probe(&cache.prompt(&tokens(1, 9))),
    |cache| cache.prefix().announce_all(),
    |cache| cache.prefix().reset(),
];

/// The sequences of the world, an id without a sequence, and the sequence that operations make.
const IDS: std::ops::Range<u64> = 1..9;

/// Makes every operation, in forward or in reverse order.
fn call_back(cache: &PagedKvCache, backwards: bool) {
    let of_ids = || IDS.flat_map(|id| CALLS_BACK.iter().map(move |call| (call, SeqId(id))));
    if backwards {
        let of_ids: Vec<_> = of_ids().collect();
        of_ids.iter().rev().for_each(|(call, id)| call(cache, *id));
        OF_CACHE.iter().rev().for_each(|call| call(cache));
    } else {
        OF_CACHE.iter().for_each(|call| call(cache));
        of_ids().for_each(|(call, id)| call(cache, id));
    }
}

/// Runs `operation`, whose `n`-th `call` calls back. Returns false if there was no such call.
fn run(
    operation: Operation,
    first: Option<First>,
    call: Call,
    n: usize,
    action: impl Fn(&PagedKvCache) + Send + Sync + 'static,
) -> bool {
    let trip = Arc::new(Trip::default());
    let (cache, listener) = cache_of(NUM_BLOCKS, &trip);
    let cache = Arc::new(cache);
    let mut world = World::new(&cache, &trip);
    if let Some(first) = first {
        world = world.with_waiters(first);
    }
    let called = Arc::clone(&cache);
    trip.arm(call, n, Arc::new(move || action(&called)));
    operation(&mut world);
    let fired = !trip.disarm();
    cache.validate().unwrap();
    assert_heard(&cache, &listener);
    world.end();
    assert_heard(&cache, &listener);
    assert_eq!(cache.stats().events_dropped, 0);
    fired
}

/// Calls back from every call of the given kinds in every operation. Returns how many calls there were.
fn from_every_call(
    operations: &[(&str, Operation)],
    first: Option<First>,
    calls: &[Call],
    action: impl Fn(&PagedKvCache) + Clone + Send + Sync + 'static,
) -> usize {
    let mut called = 0;
    for (name, operation) in operations {
        for &call in calls {
            for n in 1.. {
                let case = AssertUnwindSafe(|| run(*operation, first, call, n, action.clone()));
                let fired = catch_unwind(case).unwrap_or_else(|panic| {
                    eprintln!("{name}, {first:?}: call {n} of {call:?} calls back");
                    std::panic::resume_unwind(panic);
                });
                if !fired {
                    break;
                }
                called += 1;
            }
        }
    }
    called
}

#[test]
fn a_waker_may_call_every_operation() {
    watched(|| {
        for (first, backwards) in [(First::Reserves, false), (First::Grows, true)] {
            let action = move |cache: &PagedKvCache| call_back(cache, backwards);
            let first = Some(first);
            assert!(from_every_call(GIVING, first, &[Call::Wake, Call::WakerDrop], action) >= 20);
            from_every_call(WAITING, first, &[Call::Wake, Call::WakerDrop], action);
        }
    });
}

#[test]
fn a_sink_may_call_every_operation() {
    watched(|| {
        for backwards in [false, true] {
            let action = move |cache: &PagedKvCache| call_back(cache, backwards);
            let calls = [Call::EventBefore, Call::EventAfter];
            assert!(from_every_call(TELLING, None, &calls, action) >= 40);
            from_every_call(GIVING, None, &calls, action);
        }
    });
}

#[test]
fn a_waker_of_an_eviction_may_evict() {
    watched(|| {
        let action = |cache: &PagedKvCache| {
            let all = cache.num_sequences();
            (0..=all).for_each(|_| _ = cache.evict());
        };
        assert!(from_every_call(GIVING, Some(First::Reserves), &[Call::Wake], action) >= 20);
    });
}
