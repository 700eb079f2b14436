//! Model test: random operations on the cache and on a reference of sets and lists. Results are equal,
//! refusals included, and so is the state after each operation.
//!
//! The reference has no runs, words or shards. A sequence is a list with a block or a gap for each
//! logical block. A block is used exactly if some list or some pending copy has it.

#[path = "model/calls.rs"]
mod calls;
mod common;
#[path = "model/reference.rs"]
mod reference;

use common::s;
use paged_kv::{EvictionStrategy, SeqId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use calls::{Call, Compared, Made, Shape, expect, is_made};
use reference::{Outcome, Reference};

prop_state_machine! {
    #[test]
    fn the_cache_agrees_with_the_reference(sequential 1..60 => Cache);
}

/// The reference, and the result of its last call.
#[derive(Clone, Debug)]
struct Model {
    shape: Shape,
    reference: Reference,
    made: Made,
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Call;

    fn init_state() -> BoxedStrategy<Self> {
        let begin =
            |shape: Shape| Self { reference: shape.reference(), shape, made: Ok(Outcome::Done) };
        shape().prop_map(begin).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Call> {
        call(&model.shape, &model.reference).boxed()
    }

    fn apply(mut model: Self, call: &Call) -> Self {
        model.made = expect(&mut model.reference, call);
        model
    }

    fn preconditions(model: &Self, call: &Call) -> bool {
        is_made(&model.reference, call)
    }
}

/// The cache, compared with the reference.
struct Cache;

impl StateMachineTest for Cache {
    type SystemUnderTest = Compared;
    type Reference = Model;

    fn init_test(model: &Model) -> Compared {
        Compared::new(&model.shape)
    }

    fn apply(mut compared: Compared, model: &Model, call: Call) -> Compared {
        compared.make(&call, &model.made, &model.reference);
        compared
    }

    fn teardown(compared: Compared, model: Model) {
        common::assert_empties(&compared.end(&model.reference));
    }
}

/// Draws one of few ids, so that calls meet.
fn id() -> impl Strategy<Value = SeqId> + Clone {
    (0..6_u64).prop_map(s)
}

/// Draws the id of a sequence, if there is one; in every fourth call any id.
fn id_of(reference: &Reference) -> impl Strategy<Value = SeqId> + Clone + use<> {
    let there = reference.ids();
    if there.is_empty() { id().boxed() } else { prop_oneof![3 => select(there), 1 => id()].boxed() }
}

/// Draws lengths in tokens: short ones, whole blocks, and a few that are far too long.
fn length(block_size: usize, num_blocks: usize) -> impl Strategy<Value = usize> + Clone {
    prop_oneof![
        6 => 0..=3 * block_size,
        2 => (0..=4_usize).prop_map(move |blocks| blocks * block_size),
        2 => 0..=block_size * (num_blocks / 2 + 1),
        1 => prop_oneof![Just(usize::MAX), Just(usize::MAX / 2), Just(block_size * (num_blocks + 1))],
    ]
}

fn call(shape: &Shape, reference: &Reference) -> impl Strategy<Value = Call> + use<> {
    let Shape { block_size, num_blocks, .. } = *shape;
    let tokens = length(block_size, num_blocks);
    let few = 0..=4 * block_size;
    let there = id_of(reference);
    prop_oneof![
        4 => (id(), tokens.clone()).prop_map(|(id, n)| Call::Allocate(id, n)),
        5 => (there.clone(), tokens.clone()).prop_map(|(id, n)| Call::Append(id, n)),
        2 => (there.clone(), few.clone()).prop_map(|(id, n)| Call::AppendAndKeep(id, n)),
        1 => Just(Call::LetGo),
        3 => vec((there.clone(), tokens.clone()), 0..4).prop_map(Call::AppendBatch),
        2 => there.clone().prop_map(Call::Free),
        5 => (there.clone(), id()).prop_map(|(src, dst)| Call::Fork(src, dst)),
        4 => (there.clone(), few.clone()).prop_map(|(id, n)| Call::Truncate(id, n)),
        3 => (there.clone(), few.clone(), few)
            .prop_map(|(id, sink, window)| Call::Trim(id, sink, window)),
        2 => there.clone().prop_map(Call::Touch),
        1 => (there.clone(), prop_oneof![0..4_u32, Just(u32::MAX)])
            .prop_map(|(id, priority)| Call::SetPriority(id, priority)),
        2 => there.clone().prop_map(Call::Lease),
        2 => Just(Call::EndLease),
        1 => there.prop_map(Call::FreeWhenReleased),
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
