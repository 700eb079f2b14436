//! Checks that every sequence of admissions, commits and frees hits, reclaims and refuses as the simple
//! cache of `tests/reuse/reference.rs` does.
#![no_main]

#[path = "../../tests/reuse/reference.rs"]
mod reference;
#[path = "../../tests/reuse/steps.rs"]
mod steps;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

use steps::{BLOCK_SIZE, Both, Step};

/// The most steps of an input. With more, inputs would grow long before they reach new code.
const STEPS_MOST: usize = 300;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let Ok(num_blocks) = bytes.int_in_range(1..=64) else { return };
    let mut both = Both::new(num_blocks);
    for _ in 0..STEPS_MOST {
        if bytes.is_empty() {
            break;
        }
        let Ok(step) = step(&mut bytes) else { break };
        both.make(&step);
    }
    let cache = both.end();
    cache.sequence_ids().into_iter().for_each(|id| cache.free(id).expect("nobody leases it"));
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    cache.validate().expect("an empty cache is consistent");
});

fn step(bytes: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match bytes.int_in_range(0..=4)? {
        0 | 1 => Step::Admit {
            family: bytes.int_in_range(0..=3)?,
            branch: bytes.int_in_range(0..=7)?,
            full: bytes.int_in_range(0..=20)?,
            tail: bytes.int_in_range(0..=BLOCK_SIZE - 1)?,
        },
        2 => Step::Commit(bytes.int_in_range(0..=15)?),
        _ => Step::Free(bytes.int_in_range(0..=15)?),
    })
}
