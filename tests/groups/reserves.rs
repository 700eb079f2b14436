//! Blocks that admissions hold for the whole of their requests: while every sequence holds its own, no growth is
//! refused. Where sequences share blocks of a window, one of them can always go on.

use paged_kv::{AdmitOptions, CachedSequence, GroupRetention, LayerGroup, PagedKvCache};

use crate::common::random::Random;
use crate::{
    assert_at_rest, cache_of, chunked, computed, full, sink_window, sliding, state, tokens,
};

const SETS: [&[LayerGroup]; 6] = [
    &[full(4), sliding(4, 8)],
    &[full(4), sliding(4, 8), sliding(4, 20)],
    &[sliding(4, 10), chunked(4, 12)],
    &[full(4), state(4)],
    &[full(8), sink_window(4, 5, 9), state(4)],
    &[full(4), chunked(6, 9)],
];

const CHUNK: usize = 7;

/// Admits prompts that hold the whole of their requests until one is refused, and lets all of them grow to their ends
/// in random order.
/// If they share a prompt, a growth may be refused as long as another one is not.
fn grow_to_the_end(
    groups: &[LayerGroup],
    random: &mut Random,
    name_of: impl Fn(usize) -> u32,
    shares: bool,
) {
    let builder = PagedKvCache::builder().num_blocks(120).groups(groups);
    let cache = builder.group_retention(GroupRetention::Dense).build().unwrap();
    let mut sequences: Vec<(CachedSequence, usize)> = Vec::new();
    loop {
        let length = 20 + random.below(40);
        let prompt = cache.prompt(&tokens(name_of(sequences.len()), 10 + random.below(20)));
        let options = AdmitOptions::default().first_chunk(CHUNK).reserve_whole(length);
        let Ok((mut sequence, _)) = cache.admit_sequence(&prompt, &options) else { break };
        drop(sequence.take_copies());
        sequence.commit(sequence.num_tokens()).unwrap();
        sequences.push((sequence, length));
    }
    assert!(sequences.len() > 1, "{groups:?}");
    let mut refused = 0;
    while !sequences.is_empty() {
        assert!(refused < 1_000, "{groups:?}: all of {} sequences wait", sequences.len());
        let at = random.below(sequences.len());
        let (sequence, length) = &mut sequences[at];
        let left = *length - sequence.num_tokens().min(*length);
        if left == 0 {
            sequences.swap_remove(at);
            continue;
        }
        let tokens = 1 + random.below(left.min(CHUNK));
        let grown = sequence.append(tokens);
        if shares && grown.is_err() {
            refused += 1;
            continue;
        }
        assert!(grown.is_ok(), "{groups:?}: {grown:?}, {} sequences", sequences.len());
        (refused, _) = (0, grown);
        let (sequence, _) = &mut sequences[at];
        drop(sequence.take_copies());
        sequence.commit(sequence.num_tokens()).unwrap();
        cache.validate().unwrap();
    }
    assert_at_rest(&cache);
}

#[test]
#[cfg_attr(miri, ignore = "one thread, thousands of growths: minutes under an interpreter")]
fn no_sequence_that_holds_its_own_is_refused() {
    for seed in 0..10 {
        for groups in SETS {
            grow_to_the_end(groups, &mut Random::new(seed), |number| number as u32, false);
        }
    }
}

#[test]
fn of_sequences_that_share_a_prompt_and_hold_their_own_one_can_always_grow() {
    for seed in 0..10 {
        for groups in SETS {
            grow_to_the_end(groups, &mut Random::new(seed), |number| number as u32 % 2, true);
        }
    }
}

#[test]
fn a_shared_block_of_a_window_is_not_held_for_growth() {
    let cache = cache_of(5, &[sliding(4, 8)]);
    let prompt = cache.prompt(&tokens(1, 9));
    let options = AdmitOptions::default().reserve_whole(40);
    drop(computed(&cache, &tokens(1, 9)));
    let mut sequences = Vec::new();
    while let Ok((sequence, _)) = cache.admit_sequence(&prompt, &options) {
        sequences.push(sequence);
    }
    // A window of 8 tokens is in up to 3 blocks. The blocks that it shares at first are not its own later.
    for sequence in sequences.iter_mut().rev() {
        while sequence.num_tokens() < 40 {
            drop(sequence.append(1).unwrap());
        }
    }
    drop(sequences);
    assert_at_rest(&cache);
}
