//! Checks that no sequence of calls gets a result from the cache that the sequential reference of
//! `tests/model.rs` does not give. The bytes choose the shape of the cache and the calls; the fuzzer
//! chooses the bytes by the code that they reach.
#![no_main]

#[path = "../../tests/model/calls.rs"]
mod calls;
#[path = "../../tests/model/reference.rs"]
mod reference;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use paged_kv::{EvictionStrategy, SeqId};

use calls::{Call, Compared, Shape, expect, is_made};

/// The most calls of an input. With more, inputs would grow long before they reach new code.
const CALLS_MOST: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let Ok(shape) = shape(&mut bytes) else { return };
    let (mut compared, mut reference) = (Compared::new(&shape), shape.reference());
    for _ in 0..CALLS_MOST {
        if bytes.is_empty() {
            break;
        }
        let Ok(call) = call(&mut bytes, &shape) else { break };
        if !is_made(&reference, &call) {
            continue;
        }
        let expected = expect(&mut reference, &call);
        compared.make(&call, &expected, &reference);
    }
    let cache = compared.end(&reference);
    cache.sequence_ids().into_iter().for_each(|id| cache.free(id).expect("nobody leases it"));
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    cache.validate().expect("an empty cache is consistent");
});

fn shape(bytes: &mut Unstructured<'_>) -> Result<Shape> {
    let strategy = match bytes.int_in_range(0..=4)? {
        0 => EvictionStrategy::LRU,
        1 => EvictionStrategy::LFU,
        2 => EvictionStrategy::LongestFirst,
        3 => EvictionStrategy::Priority { levels: bytes.int_in_range(1..=3)? },
        _ => EvictionStrategy::StreamingLLM {
            sink_tokens: bytes.int_in_range(0..=40)?,
            window_tokens: bytes.int_in_range(0..=40)?,
        },
    };
    Ok(Shape {
        num_blocks: bytes.int_in_range(2..=200)?,
        block_size: bytes.int_in_range(1..=64)?,
        home_shards: *bytes.choose(&[1, 4])?,
        null_block: bytes.arbitrary()?,
        strategy,
    })
}

fn call(bytes: &mut Unstructured<'_>, shape: &Shape) -> Result<Call> {
    Ok(match bytes.int_in_range(0..=15)? {
        0 => Call::Allocate(id(bytes)?, tokens(bytes, shape)?),
        1 => Call::Append(id(bytes)?, tokens(bytes, shape)?),
        2 => Call::AppendAndKeep(id(bytes)?, tokens(bytes, shape)?),
        3 => Call::LetGo,
        4 => {
            let rows = bytes.int_in_range(0..=3)?;
            let mut row = || Ok((id(bytes)?, tokens(bytes, shape)?));
            Call::AppendBatch((0..rows).map(|_| row()).collect::<Result<_>>()?)
        }
        5 => Call::Free(id(bytes)?),
        6 => Call::Fork(id(bytes)?, id(bytes)?),
        7 => Call::Truncate(id(bytes)?, tokens(bytes, shape)?),
        8 => Call::Trim(id(bytes)?, few(bytes)?, few(bytes)?),
        9 => Call::Touch(id(bytes)?),
        10 => Call::SetPriority(id(bytes)?, bytes.arbitrary()?),
        11 => Call::Lease(id(bytes)?),
        12 => Call::EndLease,
        13 => Call::FreeWhenReleased(id(bytes)?),
        14 => Call::Evict,
        _ => Call::EvictToThreshold(bytes.int_in_range(0..=10)?),
    })
}

/// Chooses one of few ids, so that calls meet the same sequences.
fn id(bytes: &mut Unstructured<'_>) -> Result<SeqId> {
    bytes.int_in_range(0..=5).map(SeqId)
}

fn few(bytes: &mut Unstructured<'_>) -> Result<usize> {
    bytes.int_in_range(0..=255)
}

/// Chooses a few tokens, whole blocks, or far too many tokens.
fn tokens(bytes: &mut Unstructured<'_>, shape: &Shape) -> Result<usize> {
    Ok(match bytes.int_in_range(0..=7)? {
        0..=4 => few(bytes)?,
        5 | 6 => few(bytes)? * shape.block_size,
        _ => usize::MAX - few(bytes)?,
    })
}
