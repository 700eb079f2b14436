//! Windows, chunks and sinks: a release is exact, and publication goes on after it; resets, and refused growth.

use paged_kv::{AdmitOptions, GroupId, LayerGroup, PagedKvCache, PagedKvError};

use crate::{
    admitted, assert_at_rest, block, cache_of, chunked, computed, full, hits, missing, probe,
    sink_window, sliding, state, table, tokens,
};

#[test]
fn publication_goes_on_after_a_window_has_left_blocks() {
    for sparse in [sliding(4, 8), chunked(4, 12), sink_window(4, 4, 8)] {
        let cache = cache_of(100, &[full(4), sparse]);
        let mut sequence = admitted(&cache, &tokens(1, 16));
        sequence.commit(16).unwrap();
        for length in (17..=60).step_by(3) {
            drop(sequence.append(3).unwrap());
            let named = tokens(1, length + 2);
            sequence.commit(&named[length - 1..]).unwrap();
        }
        assert!(!missing(&sequence, 1).is_empty(), "{sparse:?} has left blocks");
        let length = sequence.num_tokens();
        for longest in 1..=length {
            let aligned = (longest - 1) / 4 * 4;
            assert_eq!(probe(&cache, &tokens(1, longest)), aligned, "{sparse:?}, {longest}");
        }
        drop(sequence);
        assert_at_rest(&cache);
    }
}

#[test]
fn a_release_keeps_exactly_the_blocks_that_later_tokens_attend_to() {
    let cache = cache_of(100, &[full(4), sliding(4, 10), chunked(4, 12), sink_window(4, 6, 10)]);
    let mut sequence = cache.allocate_sequence(0).unwrap();
    for length in 0..80_usize {
        drop(sequence.append(1).unwrap());
        let begin = length.saturating_sub(9) / 4;
        assert_eq!(missing(&sequence, 1), (0..begin).collect::<Vec<_>>(), "{length}");
        let begin_of_chunk = length / 12 * 12 / 4;
        assert_eq!(missing(&sequence, 2), (0..begin_of_chunk).collect::<Vec<_>>(), "{length}");
        assert_eq!(missing(&sequence, 3), (2..begin).collect::<Vec<_>>(), "{length}");
        assert_eq!(sequence.window_start(GroupId(0)), 0);
        assert_eq!(sequence.window_start(GroupId(1)), begin * 4);
        let behind_sink = if begin > 2 { begin * 4 } else { 0 };
        assert_eq!(sequence.window_start(GroupId(3)), behind_sink);
    }
    cache.validate().unwrap();
}

#[test]
fn max_rewind_keeps_the_blocks_that_a_truncation_needs() {
    for rewind in [0, 1, 5] {
        let builder = PagedKvCache::builder().num_blocks(100).max_rewind(rewind);
        let cache = builder.groups(&[full(4), sliding(4, 8), chunked(4, 8)]).build().unwrap();
        for length in 1..50 {
            for drafts in 1..6 {
                let mut sequence = cache.allocate_sequence(length).unwrap();
                drop(sequence.append(drafts).unwrap());
                // All drafts, and as many tokens before them.
                sequence.truncate(length.saturating_sub(rewind)).unwrap();
                drop(sequence.append(1).unwrap());
            }
        }
        assert_at_rest(&cache);
    }
}

#[test]
fn a_refused_growth_changes_nothing_but_the_windows() {
    let cache = cache_of(14, &[full(4), sliding(4, 8)]);
    let mut sequence = cache.allocate_sequence(20).unwrap();
    let before = [0, 1].map(|group| table(&sequence, group));
    assert_eq!(cache.free_block_count(), 4);
    // The window releases blocks 0, 1 and 2 first: 7 are free then, and 8 are needed.
    let refused = sequence.append(16).unwrap_err();
    assert_eq!(refused, PagedKvError::OutOfMemory { requested: 8, available: 7 });
    assert_eq!(sequence.num_tokens(), 20);
    assert_eq!(table(&sequence, 0), before[0]);
    assert_eq!(missing(&sequence, 1), [0, 1, 2]);
    assert_eq!(table(&sequence, 1)[3..], before[1][3..]);
    drop(sequence.append(12).unwrap());
    assert_eq!(cache.free_block_count(), 1);
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_refused_admission_changes_nothing() {
    let groups = [full(4), sliding(4, 8), state(4)];
    let cache = cache_of(20, &groups);
    drop(computed(&cache, &tokens(1, 16)));
    let other = cache.allocate_sequence(28).unwrap();
    assert_eq!(cache.free_block_count(), 5);
    let prompt = cache.prompt(&tokens(1, 32));
    let options = AdmitOptions::default();
    let required = cache.required_blocks(&prompt, &options).unwrap();
    let before = cache.prefix().probe(&prompt);
    let refused = cache.admit_sequence(&prompt, &options).unwrap_err();
    assert_eq!(refused, PagedKvError::OutOfMemory { requested: required, available: 5 });
    assert_eq!(cache.prefix().probe(&prompt), before);
    assert_eq!(cache.free_block_count(), 5);
    drop(other);
    assert_at_rest(&cache);
}

#[test]
fn blocks_that_a_window_leaves_in_a_step_return_when_it_ends() {
    let cache = cache_of(40, &[full(4), sliding(4, 4)]);
    let mut rows = [(cache.allocate_sequence(16).unwrap(), 4)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(missing(&rows[0].0, 1), [0, 1, 2]);
    assert_eq!(cache.used_block_count(), 7, "no kernel of this step reads them");
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(missing(&rows[0].0, 1), [0, 1, 2, 3]);
    assert_eq!(cache.used_block_count(), 9, "an earlier kernel may read block 3");
    let mut next = cache.step(Default::default());
    assert_eq!(next.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(cache.used_block_count(), 11, "nor does a newer step return them");
    step.complete();
    assert_eq!(cache.used_block_count(), 9);
    next.complete();
    assert_eq!(cache.used_block_count(), 9);
}

#[test]
fn a_reset_makes_all_groups_unmatchable_and_running_sequences_publish_nothing() {
    let cache = cache_of(100, &[full(4), sliding(4, 8), state(4)]);
    let mut sequence = computed(&cache, &tokens(1, 16));
    assert_eq!(probe(&cache, &tokens(1, 17)), 16);
    cache.prefix().reset();
    assert_eq!(hits(&cache, &tokens(1, 17)), (0, 0));
    drop(sequence.append(4).unwrap());
    let named = tokens(1, 20);
    assert_eq!(sequence.commit(&named[16..]), Ok(0), "of old weights");
    assert_eq!(hits(&cache, &tokens(1, 21)), (0, 0));
    let second = computed(&cache, &named);
    assert_eq!(hits(&cache, &tokens(1, 21)), (20, 20), "of new weights");
    drop((sequence, second));
    assert_at_rest(&cache);
}

#[test]
fn contents_of_one_group_are_not_matched_in_another() {
    // Both groups have the same blocks of the same tokens. Without group 1's, group 0's do not serve it.
    let cache = cache_of(100, &[full(4), full(4)]);
    let sequence = computed(&cache, &tokens(1, 16));
    let ids: Vec<_> = (0..4).map(|at| block(&sequence, 1, at)).collect();
    assert_eq!(cache.prefix().uncache(&ids), 4);
    assert_eq!(hits(&cache, &tokens(1, 17)), (0, 16));
    let again = computed(&cache, &tokens(1, 16));
    let shares = table(&again, 0).iter().any(|id| table(&sequence, 0).contains(id));
    assert!(!shares, "a joint hit of 0 tokens shares no block");
    assert_eq!(hits(&cache, &tokens(1, 17)), (16, 16));
}

#[test]
fn tokens_lost_count_for_the_group_that_limited_the_hit() {
    let cache = cache_of(100, &[full(4), sliding(4, 8), sliding(4, 12)]);
    let sequence = computed(&cache, &tokens(1, 33));
    assert_eq!(cache.prefix().uncache(&[block(&sequence, 2, 5)]), 1);
    drop(admitted(&cache, &tokens(1, 33)));
    let lost: Vec<u64> =
        cache.stats().groups.iter().map(|group| group.prompt_tokens_lost).collect();
    assert_eq!(lost, [0, 0, 12]);
}

#[test]
fn a_cache_of_one_full_group_is_as_one_without_groups() {
    let (with, without) = (cache_of(50, &[full(4)]), PagedKvCache::new(50, 4, 1, 1));
    let mut free = Vec::new();
    for cache in [&with, &without] {
        let mut sequence = computed(cache, &tokens(1, 18));
        let mut fork = sequence.fork().unwrap();
        assert!(fork.append(1).unwrap().copy.is_some());
        assert!(fork.take_copies().is_empty());
        sequence.truncate(9).unwrap();
        assert_eq!(sequence.apply_streaming_llm(4, 4), Ok(0));
        drop(sequence.append(20).unwrap());
        assert_eq!(sequence.apply_streaming_llm(4, 4), Ok(20));
        let all: Vec<_> = sequence.blocks_in(GroupId(0)).flatten().collect();
        assert_eq!(all, sequence.block_ids());
        free.push((cache.free_block_count(), hits(cache, &tokens(1, 18))));
    }
    assert_eq!(free[0], free[1]);
}

#[test]
fn senseless_groups_are_refused() {
    let senseless: [&[LayerGroup]; 4] =
        [&[full(0)], &[full(4), sliding(4, 0)], &[full(4), chunked(4, 0)], &[full(4); 33]];
    for groups in senseless {
        let built = PagedKvCache::builder().num_blocks(8).groups(groups).build();
        let refusal = built.expect_err("senseless groups");
        assert!(matches!(refusal, PagedKvError::InvalidConfig { .. }), "{refusal}");
    }
}
