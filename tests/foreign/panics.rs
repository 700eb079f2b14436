//! Foreign code that panics at every call of every operation: the operation ends as it would have without
//! the panic. So do all later operations.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use paged_kv::SeqId;

use crate::operations::{GIVING, Operation, TELLING, WAITING};
use crate::trip::{Call, Trip};
use crate::world::{First, Listener, NUM_BLOCKS, World, assert_heard, cache_of, tokens};
use crate::{panic_quietly, watched};

/// The most calls of one kind in one operation.
const MOST_CALLS: usize = 64;

/// The visible state after an operation.
#[derive(Debug, PartialEq)]
struct Seen {
    outcome: String,
    blocks_used: usize,
    blocks_idle: usize,
    /// Tokens, blocks and leases of each sequence.
    sequences: Vec<(u64, usize, usize, u32)>,
    hits: Vec<usize>,
}

impl Seen {
    fn of(world: &World<'_>, outcome: String) -> Self {
        let cache = world.cache;
        cache.validate().expect("everything is consistent");
        let mut ids = cache.sequence_ids();
        ids.sort_unstable();
        let sequence = |id: &SeqId| {
            let info = cache.get_sequence(*id).expect("it is there");
            (id.0, info.num_tokens, info.num_blocks(), info.leases)
        };
        Self {
            outcome,
            blocks_used: cache.used_block_count(),
            blocks_idle: cache.stats().blocks_idle,
            sequences: ids.iter().map(sequence).collect(),
            hits: (0..10)
                .map(|number| cache.prefix().probe(&cache.prompt(&tokens(number, 25))))
                .collect(),
        }
    }
}

/// Runs `operation` where the `n`-th `call` panics, and then the follow-up operations. Returns the
/// visible state after the operation, and true if there was such a call.
fn run(operation: Operation, first: Option<First>, call: Option<Call>, n: usize) -> (Seen, bool) {
    let trip = Arc::new(Trip::default());
    let (cache, listener) = cache_of(NUM_BLOCKS, &trip);
    let mut world = World::new(&cache, &trip);
    if let Some(first) = first {
        world = world.with_waiters(first);
    }
    call.into_iter().for_each(|call| trip.arm(call, n, Arc::new(|| panic_quietly())));
    let outcome = catch_unwind(AssertUnwindSafe(|| operation(&mut world)));
    let fired = call.is_some() && !trip.disarm();
    let outcome = outcome.expect("the panic costs the operation nothing");
    let seen = Seen::of(&world, outcome);
    assert_heard(&cache, &listener);
    serve_the_others(&mut world, call.filter(|_| fired));
    go_on(&mut world, &listener);
    world.end();
    assert_heard(&cache, &listener);
    (seen, fired)
}

/// Serves the waiter in front, and then the next one if there is room for it.
fn serve_the_others(world: &mut World<'_>, panicked: Option<Call>) {
    let Some(mut last) = world.waiting.pop() else { return };
    let room = world.cache.free_block_count();
    if let Some(first) = world.waiting.first_mut() {
        if room >= 3 && panicked == Some(Call::Wake) && world.cache.waiting().len() == 2 {
            assert!(last.rung() > 0, "the next one is woken if the first could not be");
            assert_eq!(last.poll(), Poll::Ready(true), "and passes it");
            assert_eq!(world.cache.waiting().len(), 1, "which waits all the same");
            drop(last);
            assert!(first.poll().is_ready(), "and hears when it asks");
            world.waiting.clear();
            return;
        }
        assert!(room < 3 || panicked == Some(Call::WakerDrop) || first.rung() > 0);
        world.waiting.clear();
    }
    assert_eq!(last.poll().is_ready(), world.cache.free_block_count() >= 3);
}

/// Asserts that the cache serves as before.
fn go_on(world: &mut World<'_>, listener: &Listener) {
    let cache = world.cache;
    world.waiting.clear();
    for id in 20..22 {
        for other in cache.sequence_ids().into_iter().filter(|id| id.0 != 6) {
            _ = cache.free(other);
        }
        cache.admit(SeqId(id), &tokens(9, 9 + 4 * (id as usize - 20))).unwrap();
        cache.commit(SeqId(id), 9).unwrap();
        assert_heard(cache, listener);
    }
}

/// Panics at every call of the given kinds in every operation, and compares with a run without panic.
/// Returns how many calls there were.
fn panic_at_every_call(
    operations: &[(&str, Operation)],
    first: Option<First>,
    calls: &[Call],
) -> usize {
    let mut panics = 0;
    for (name, operation) in operations {
        let (expected, _) = run(*operation, first, None, 0);
        for &call in calls {
            for n in 1.. {
                assert!(n <= MOST_CALLS, "{name} makes no end of calls");
                let case = AssertUnwindSafe(|| run(*operation, first, Some(call), n));
                let (seen, fired) = catch_unwind(case).unwrap_or_else(|panic| {
                    eprintln!("{name}, {first:?}: call {n} of {call:?} panics");
                    std::panic::resume_unwind(panic);
                });
                assert_eq!(seen, expected, "{name}, {first:?}: call {n} of {call:?} panics");
                if !fired {
                    break;
                }
                panics += 1;
            }
        }
    }
    panics
}

#[test]
fn a_waker_that_panics_costs_its_wake_up_and_nothing_else() {
    watched(|| {
        for first in [First::Reserves, First::Grows] {
            assert!(panic_at_every_call(GIVING, Some(first), &Call::ALL) >= 20);
            assert!(panic_at_every_call(WAITING, Some(first), &Call::ALL) >= 3);
        }
    });
}

#[test]
fn a_sink_that_panics_once_costs_no_operation_anything() {
    watched(|| {
        let calls = [Call::EventBefore, Call::EventAfter];
        assert!(panic_at_every_call(TELLING, None, &calls) >= 40);
        panic_at_every_call(GIVING, None, &calls);
    });
}
