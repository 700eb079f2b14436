//! Worked examples that vLLM 0.33.0's own code gave, with the result here beside each.
//!
//! Each test is a row of a table that was made by running vLLM's coordinator on a CPU. Left out, because there is no
//! counterpart here: the rows of EAGLE (a draft layer that drops the last matched block; here a caller sets
//! `max_cached_tokens`), the order in which 20 blocks are freed (here an order of reclaim, with tests of its own),
//! and "a state that was produced in this very step" (here a step publishes when it completes).
//!
//! Where vLLM writes a block as 0, the null block, a table here has `None`. The prompt of each row is looked up again
//! with at most all tokens but one, as in vLLM.

use paged_kv::{AdmitOptions, CachedSequence, GroupId, GroupRetention, LayerGroup, PagedKvCache};

use crate::{
    admitted, assert_at_rest, block, cache_of, chunked, computed, full, hits, missing, probe,
    sink_window, sliding, state, table, tokens,
};

const FULL_AND_WINDOW: [LayerGroup; 2] = [full(4), sliding(4, 8)];

/// Creates a cache and a sequence of `length` computed tokens in it.
fn cached(groups: &[LayerGroup], length: usize) -> (PagedKvCache, CachedSequence) {
    let cache = cache_of(200, groups);
    let sequence = computed(&cache, &tokens(1, length));
    (cache, sequence)
}

fn retaining(groups: &[LayerGroup], retention: GroupRetention) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(200).groups(groups);
    builder.group_retention(retention).build().expect("the groups make sense")
}

/// Uncaches logical blocks, each of a group. All must be cached.
#[track_caller]
fn evict(cache: &PagedKvCache, sequence: &CachedSequence, evicted: &[(usize, usize)]) {
    let ids: Vec<_> = evicted.iter().map(|&(group, at)| block(sequence, group, at)).collect();
    assert_eq!(cache.prefix().uncache(&ids), ids.len());
}

/// Returns the logical blocks of a group that are cached. Uncaches them.
fn take_cached(cache: &PagedKvCache, sequence: &CachedSequence, group: usize) -> Vec<usize> {
    let blocks = 0..table(sequence, group).len();
    blocks.filter(|&at| cache.prefix().uncache(&[block(sequence, group, at)]) == 1).collect()
}

#[test]
fn a_prompt_of_22_tokens_takes_6_blocks_of_each_group_and_caches_5() {
    let cache = cache_of(200, &FULL_AND_WINDOW);
    let prompt = cache.prompt(&tokens(1, 22));
    assert_eq!(cache.required_blocks(&prompt, &AdmitOptions::default()), Ok(12)); // vLLM: 12
    let sequence = computed(&cache, &tokens(1, 22));
    assert_eq!([0, 1].map(|group| table(&sequence, group).len()), [6, 6]);
    assert_eq!(cache.used_block_count(), 12);
    assert_eq!(cache.prefix().cached_blocks(), 10); // vLLM: 5 + 5
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_window_of_8_has_left_0_to_3_blocks_after_8_to_22_tokens() {
    let of_vllm = [(8, 0), (9, 0), (11, 1), (12, 1), (15, 2), (16, 2), (19, 3), (22, 3)];
    for (length, released) in of_vllm {
        let cache = cache_of(200, &FULL_AND_WINDOW);
        let mut sequence = cache.allocate_sequence(length).unwrap();
        drop(sequence.append(1).unwrap()); // a growth releases first
        assert_eq!(missing(&sequence, 1), (0..released).collect::<Vec<_>>(), "{length}");
        assert_eq!(missing(&sequence, 0), [0; 0], "{length}");
    }
}

#[test]
fn the_same_prompt_of_22_tokens_hits_20_and_needs_2_blocks() {
    let (cache, first) = cached(&FULL_AND_WINDOW, 22);
    let prompt = cache.prompt(&tokens(1, 22));
    assert_eq!(cache.required_blocks(&prompt, &AdmitOptions::default()), Ok(2)); // vLLM: 2
    let (second, admission) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(admission.cached_tokens, 20); // vLLM: 20
    assert_eq!((admission.longest_group_hit, admission.limiting_group), (20, None));
    assert_eq!(table(&second, 0)[..5], table(&first, 0)[..5]); // vLLM: 1 2 3 4 5
    assert_eq!(missing(&second, 1), [0, 1, 2]); // vLLM: 0 0 0 10 11
    assert_eq!(table(&second, 1)[3..5], table(&first, 1)[3..5]);
}

#[test]
fn a_shorter_sibling_hits_12_on_blocks_that_a_window_has_left() {
    let (cache, mut first) = cached(&FULL_AND_WINDOW, 22);
    let [eighth, ninth] = [1, 2].map(|at| block(&first, 1, at));
    let (second, _) =
        cache.admit_sequence(&cache.prompt(&tokens(1, 22)), &AdmitOptions::default()).unwrap();
    drop(first.append(1).unwrap()); // the window leaves blocks 0, 1 and 2: idle, but cached
    assert_eq!(missing(&first, 1), [0, 1, 2]);
    let sibling: Vec<u32> = tokens(1, 13).into_iter().chain(tokens(2, 4)).collect();
    let prompt = cache.prompt(&sibling);
    // vLLM: 6, of which 2 are new in each group and 2 are idle.
    assert_eq!(cache.required_blocks(&prompt, &AdmitOptions::default()), Ok(6));
    let free = cache.free_block_count();
    let (third, admission) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(free - cache.free_block_count(), 6);
    assert_eq!(admission.cached_tokens, 12); // vLLM: 12
    assert_eq!(table(&third, 0)[..3], table(&first, 0)[..3]); // vLLM: 1 2 3
    assert_eq!(table(&third, 1)[..3], [None, Some(eighth), Some(ninth)]); // vLLM: 0 8 9
    drop((first, second, third));
    assert_at_rest(&cache);
}

/// A full group, a window of 8 and one of 12; 33 tokens.
const TWO_WINDOWS: [LayerGroup; 3] = [full(4), sliding(4, 8), sliding(4, 12)];

/// Returns the hit and the difference to the longest hit of one group after these evictions.
#[track_caller]
fn after_eviction(groups: &[LayerGroup], length: usize, evicted: &[(usize, usize)]) -> [usize; 2] {
    let (cache, sequence) = cached(groups, length);
    evict(&cache, &sequence, evicted);
    let (hit, longest) = hits(&cache, &tokens(1, length));
    drop(sequence);
    assert_at_rest(&cache);
    [hit, longest - hit]
}

#[test]
fn with_everything_cached_two_windows_hit_32_with_their_last_blocks() {
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[]), [32, 0]); // vLLM: 32, 0
    let (cache, first) = cached(&TWO_WINDOWS, 33);
    let (second, _) =
        cache.admit_sequence(&cache.prompt(&tokens(1, 33)), &AdmitOptions::default()).unwrap();
    assert_eq!(missing(&second, 1), (0..6).collect::<Vec<_>>()); // vLLM: ends with 16 17
    assert_eq!(missing(&second, 2), (0..5).collect::<Vec<_>>()); // vLLM: ends with 24 25 26
    assert_eq!(table(&second, 1)[6..8], table(&first, 1)[6..8]);
    assert_eq!(table(&second, 2)[5..8], table(&first, 2)[5..8]);
}

#[test]
fn without_a_full_block_the_hit_ends_before_it() {
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(0, 7)]), [28, 0]); // vLLM: 28
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(0, 3)]), [12, 0]); // vLLM: 12
}

#[test]
fn without_a_last_block_of_a_window_the_hit_ends_before_it() {
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(1, 7)]), [28, 4]); // vLLM: 28, 4
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(1, 6)]), [24, 8]); // vLLM: 24, 8
}

#[test]
fn blocks_outside_of_the_windows_do_not_shorten_a_hit() {
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(1, 0)]), [32, 0]); // vLLM: 32
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(2, 4)]), [32, 0]); // vLLM: 32
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(1, 5), (2, 3)]), [32, 0]); // vLLM: 32
}

#[test]
fn a_window_of_three_blocks_goes_back_to_its_last_three_in_a_row() {
    // Blocks 6 and 7 are two; the next three are 2, 3 and 4.
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(2, 5)]), [20, 12]); // vLLM: 20, 12
}

#[test]
fn two_windows_shorten_the_hit_one_after_the_other() {
    assert_eq!(after_eviction(&TWO_WINDOWS, 33, &[(1, 7), (2, 6)]), [24, 8]); // vLLM: 24, 8
}

#[test]
fn the_group_that_shortened_the_hit_is_named() {
    let (cache, sequence) = cached(&TWO_WINDOWS, 33);
    evict(&cache, &sequence, &[(2, 5)]);
    let options = AdmitOptions::default();
    let (_, admission) = cache.admit_sequence(&cache.prompt(&tokens(1, 33)), &options).unwrap();
    assert_eq!(admission.limiting_group, Some(GroupId(2)));
}

#[test]
fn a_hit_at_the_beginning_of_a_chunk_needs_no_block_of_it() {
    let groups = [full(4), chunked(4, 8)];
    assert_eq!(after_eviction(&groups, 33, &[]), [32, 0]); // vLLM: 32
    let (cache, sequence) = cached(&groups, 33);
    let options = AdmitOptions::default().first_chunk(0);
    let (second, _) = cache.admit_sequence(&cache.prompt(&tokens(1, 33)), &options).unwrap();
    assert_eq!(missing(&second, 1), (0..8).collect::<Vec<_>>()); // vLLM: all null
    drop(sequence);
}

#[test]
fn a_hit_inside_a_chunk_needs_the_blocks_of_that_chunk() {
    let groups = [full(4), chunked(4, 8)];
    assert_eq!(after_eviction(&groups, 30, &[(1, 6)]), [24, 4]); // vLLM: 24, 4
    assert_eq!(after_eviction(&groups, 30, &[(1, 4)]), [28, 0]); // vLLM: 28
}

#[test]
fn a_state_goes_on_in_a_new_block_with_each_chunk() {
    let cache = cache_of(200, &[full(4), state(4)]);
    let prompt = cache.prompt(&tokens(1, 22));
    let options = AdmitOptions::default().first_chunk(8);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
    assert_eq!(cache.used_block_count(), 3); // vLLM: needs 3
    assert_eq!(missing(&sequence, 1), [0]); // vLLM: 0 3
    sequence.commit(8).unwrap();
    let third = block(&sequence, 1, 1);
    let free = cache.free_block_count();
    drop(sequence.append(8).unwrap());
    assert_eq!(free - cache.free_block_count(), 3); // vLLM: 3
    assert_eq!(missing(&sequence, 1), [0, 2]); // vLLM: 0 3 0 6
    assert_eq!(block(&sequence, 1, 1), third);
    sequence.commit(16).unwrap();
    let (sixth, free) = (block(&sequence, 1, 3), cache.free_block_count());
    drop(sequence.take_copies());
    drop(sequence.append(6).unwrap());
    // vLLM: 3. One block, the state after 8 tokens, is released: it is cached and idle.
    assert_eq!(free - cache.free_block_count(), 3 - 1);
    assert_eq!(missing(&sequence, 1), [0, 1, 2, 4]); // vLLM: 0 0 0 6 0 9
    assert_eq!(block(&sequence, 1, 3), sixth);
    sequence.commit(22).unwrap();
    let of_length = |length| hits(&cache, &tokens(1, length));
    assert_eq!(of_length(22), (16, 20)); // vLLM: 16, uncached 4
    assert_eq!(of_length(17), (16, 16)); // vLLM: 16
    assert_eq!(of_length(16), (8, 12)); // vLLM: 8, uncached 4
    assert_eq!(of_length(15), (8, 12)); // vLLM: 8
}

#[test]
fn hits_are_multiples_of_both_block_sizes() {
    let (cache, _sequence) = cached(&[full(8), sliding(4, 8)], 27);
    let hit = |length| probe(&cache, &tokens(1, length));
    assert_eq!([27, 25, 24, 17, 16].map(hit), [24, 24, 16, 16, 8]); // vLLM: the same
}

/// Returns the most blocks that a sequence of 512 tokens holds, grown by 128 tokens at a time from any length.
fn most_held(groups: &[LayerGroup]) -> usize {
    let grown = (0..128).map(|start| {
        let cache = cache_of(200, groups);
        let mut sequence = cache.allocate_sequence(start).unwrap();
        let mut most = 0;
        while sequence.num_tokens() < 512 {
            drop(sequence.append(128.min(512 - sequence.num_tokens())).unwrap());
            most = most.max(cache.used_block_count());
        }
        most
    });
    grown.max().unwrap()
}

#[test]
fn a_windowed_sequence_never_holds_more_than_the_cap_of_an_admission() {
    // vLLM: caps of 13 blocks for a window of 64 and 12 for chunks of 64, with 128 tokens in flight.
    assert_eq!(most_held(&[sliding(16, 64)]), 13);
    // Chunks that begin inside a growth: 64 + 128 tokens are in up to 13 blocks, of which the first is the beginning
    // of a chunk, so that 12 suffice.
    assert_eq!(most_held(&[chunked(16, 64)]), 12);
    // vLLM: 64 blocks without the cap, 45 with it.
    let most = most_held(&[full(16), sliding(16, 64)]);
    assert!((44..=45).contains(&most), "{most}");
    assert_eq!(most_held(&[full(16), full(16)]), 64);
}

#[test]
fn an_admission_that_reserves_the_whole_needs_as_many_blocks_as_vllm_caps_it_at() {
    let required = |groups: &[LayerGroup]| {
        let cache = cache_of(200, groups);
        let options = AdmitOptions::default().first_chunk(128).reserve_whole(512);
        cache.required_blocks(&cache.prompt(&tokens(1, 512)), &options).unwrap()
    };
    assert_eq!(required(&[sliding(16, 64)]), 13); // vLLM: 13
    assert_eq!(required(&[chunked(16, 64)]), 12); // vLLM: 12
    assert_eq!(required(&[full(16), sliding(16, 64)]), 45); // vLLM: 45
    assert_eq!(required(&[full(16), full(16)]), 64); // vLLM: 64 without a cap
}

#[test]
fn a_sequence_that_reserved_the_whole_grows_in_a_pool_of_just_that_size() {
    let cache = cache_of(45, &[full(16), sliding(16, 64)]);
    let prompt = cache.prompt(&tokens(1, 512));
    let options = AdmitOptions::default().first_chunk(128).reserve_whole(512);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
    assert!(cache.allocate_sequence(1).is_err(), "another sequence would take a block of it");
    while sequence.num_tokens() < 512 {
        let chunk = 128.min(512 - sequence.num_tokens());
        drop(sequence.append(chunk).unwrap());
        sequence.commit(sequence.num_tokens()).unwrap();
    }
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn dense_retention_keeps_the_blocks_that_some_aligned_hit_needs() {
    let cached_of = |size| {
        let cache = retaining(&[full(size), sliding(4, 8)], GroupRetention::Dense);
        take_cached(&cache, &computed(&cache, &tokens(1, 40)), 1)
    };
    assert_eq!(cached_of(8), (0..10).collect::<Vec<_>>()); // vLLM: all
    assert_eq!(cached_of(16), [2, 3, 6, 7]); // vLLM: 2 3 6 7
}

#[test]
fn sparse_retention_keeps_the_end_of_the_prompt_too() {
    let cached_of = |retention| {
        let cache = retaining(&[full(8), sliding(4, 8)], retention);
        take_cached(&cache, &computed(&cache, &tokens(1, 40)), 1)
    };
    // vLLM: 6 7, for the same prompt again. Here 8 9 too: a longer prompt that begins with this one hits all of
    // it, the next turn of a conversation.
    assert_eq!(cached_of(GroupRetention::PromptEnd), [6, 7, 8, 9]);
    // vLLM: 2 3 6 7.
    assert_eq!(cached_of(GroupRetention::Every(16)), [2, 3, 6, 7, 8, 9]);
}

#[test]
fn states_are_kept_where_commits_ended_whatever_the_retention() {
    // vLLM keeps 3 7 8 with an interval of 16 and 8 without, of a state in each block. Here a state exists only where
    // a chunk ended: the caller chooses the lengths, and each is worth its block.
    for retention in [GroupRetention::PromptEnd, GroupRetention::Every(16)] {
        let cache = retaining(&[full(4), state(4)], retention);
        let options = AdmitOptions::default().first_chunk(16);
        let (mut sequence, _) =
            cache.admit_sequence(&cache.prompt(&tokens(1, 40)), &options).unwrap();
        sequence.commit(16).unwrap();
        for (length, chunk) in [(32, 16), (36, 4), (40, 4)] {
            drop(sequence.append(chunk).unwrap());
            sequence.commit(length).unwrap();
        }
        let hit = |length| probe(&cache, &tokens(1, length));
        assert_eq!([41, 40, 36, 32, 16].map(hit), [40, 36, 32, 16, 0]);
    }
}

#[test]
fn with_retention_at_the_end_of_prompts_only_a_shorter_sibling_misses() {
    let cache = retaining(&FULL_AND_WINDOW, GroupRetention::PromptEnd);
    let sequence = computed(&cache, &tokens(1, 40));
    assert_eq!(hits(&cache, &tokens(1, 40)), (36, 36)); // vLLM: 36
    // vLLM: 36, uncached 4. Here the window's blocks at 40 are kept too.
    assert_eq!(hits(&cache, &tokens(1, 44)), (40, 40));
    assert_eq!(hits(&cache, &tokens(1, 30)), (0, 28)); // vLLM: 0, uncached 28
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_window_with_a_sink_keeps_the_sink_and_leaves_the_middle() {
    let of_vllm = [(24, 4..4), (28, 4..5), (32, 4..6), (36, 4..7), (40, 4..8)];
    for (length, released) in of_vllm {
        let cache = cache_of(200, &[full(4), sink_window(4, 16, 8)]);
        let mut sequence = admitted(&cache, &tokens(1, length));
        drop(sequence.append(1).unwrap());
        assert_eq!(missing(&sequence, 1), released.collect::<Vec<_>>(), "{length}");
    }
}
