//! StreamingLLM in a cache with groups: it trims the full groups only, and nothing after its gap is published in any
//! group. A window's release does not do that.

use paged_kv::{AdmitOptions, GroupId, LayerGroup};

use crate::{
    admitted, assert_at_rest, cache_of, computed, full, hits, missing, probe, sliding, state,
    table, tokens,
};

const GROUPS: [LayerGroup; 4] = [full(4), sliding(4, 8), state(4), full(8)];

#[test]
fn a_trim_releases_blocks_of_full_groups_only() {
    let cache = cache_of(200, &GROUPS);
    let mut sequence = cache.allocate_sequence(40).unwrap();
    let before = [1, 2].map(|group| table(&sequence, group));
    assert_eq!(sequence.apply_streaming_llm(4, 8), Ok(28)); // blocks 1..8 of group 0
    assert_eq!(missing(&sequence, 0), (1..8).collect::<Vec<_>>());
    assert_eq!(missing(&sequence, 3), (1..4).collect::<Vec<_>>());
    assert_eq!([1, 2].map(|group| table(&sequence, group)), before);
    assert_eq!(sequence.gaps().len(), 1);
    assert_eq!(sequence.window_start(GroupId(0)), 32);
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn nothing_after_the_gap_of_a_trim_is_published_in_any_group() {
    let cache = cache_of(200, &GROUPS);
    let mut sequence = admitted(&cache, &tokens(1, 40));
    sequence.apply_streaming_llm(8, 8).unwrap();
    sequence.commit(40).unwrap();
    // Of the first 8 tokens: two blocks of group 0, two of the window, and one of group 3. No state.
    assert_eq!(cache.prefix().cached_blocks(), 2 + 2 + 1);
    let named = tokens(1, 64);
    for length in (48..=64).step_by(8) {
        drop(sequence.append(8).unwrap());
        assert_eq!(sequence.commit(&named[length - 8..length]), Ok(0));
        drop(sequence.take_copies());
    }
    assert_eq!(cache.prefix().cached_blocks(), 2 + 2 + 1);
    assert_eq!(hits(&cache, &tokens(1, 65)), (0, 8), "no state was published");
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn blocks_that_were_published_before_a_trim_stay_published() {
    let cache = cache_of(200, &GROUPS);
    let mut sequence = computed(&cache, &tokens(1, 40));
    sequence.apply_streaming_llm(8, 8).unwrap();
    assert_eq!(hits(&cache, &tokens(1, 41)), (40, 40));
    drop(sequence.append(8).unwrap());
    assert_eq!(sequence.commit(&tokens(1, 48)[40..]), Ok(0));
    assert_eq!(hits(&cache, &tokens(1, 49)), (40, 40));
}

#[test]
fn the_smallest_sink_of_two_full_groups_counts() {
    let cache = cache_of(200, &[full(4), full(8), sliding(4, 8)]);
    let mut sequence = admitted(&cache, &tokens(1, 40));
    sequence.apply_streaming_llm(4, 8).unwrap(); // group 0 keeps 4 tokens, group 1 keeps 8
    sequence.commit(40).unwrap();
    assert_eq!(missing(&sequence, 1), (1..4).collect::<Vec<_>>());
    // Tokens 4 to 8 depend on tokens that layers of group 0 have lost.
    assert_eq!(cache.prefix().cached_blocks(), 1 + 1, "the first 4 tokens, in blocks of 4");
    assert_eq!(probe(&cache, &tokens(1, 41)), 0);
}

#[test]
fn a_windows_release_alone_stops_no_publication() {
    let cache = cache_of(200, &GROUPS);
    let prompt = cache.prompt(&tokens(1, 40));
    let options = AdmitOptions::default().first_chunk(16);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
    sequence.commit(16).unwrap();
    for length in [24, 32, 40] {
        drop(sequence.append(8).unwrap());
        sequence.commit(length).unwrap();
        assert_eq!(hits(&cache, &tokens(1, length + 1)), (length, length));
    }
    assert!(!missing(&sequence, 1).is_empty());
}

#[test]
fn a_fork_of_a_trimmed_sequence_publishes_nothing_after_the_gap_either() {
    let cache = cache_of(200, &GROUPS);
    let mut sequence = admitted(&cache, &tokens(1, 40));
    sequence.apply_streaming_llm(8, 8).unwrap();
    let mut fork = sequence.fork().unwrap();
    drop(fork.append(8).unwrap());
    fork.commit(&tokens(2, 8)).unwrap();
    // The fork's window has left its first blocks; the sequence still has them.
    assert_eq!(cache.prefix().cached_blocks(), 2 + 1);
    sequence.commit(40).unwrap();
    drop(fork);
    assert!(cache.prefix().cached_blocks() <= 2 + 2 + 1);
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn no_copy_is_asked_for_to_a_block_that_a_trim_released() {
    let cache = cache_of(200, &[sliding(4, 8), full(4)]);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let mut fork = sequence.fork().unwrap();
    drop(fork.append(14).unwrap());
    let copied = table(&fork, 1)[1];
    assert_eq!(fork.apply_streaming_llm(4, 4), Ok(12));
    assert_eq!(table(&fork, 1)[1], None);
    assert!(!fork.take_copies().iter().any(|copy| Some(copy.dst) == copied));
    drop((sequence, fork));
    assert_at_rest(&cache);
}
