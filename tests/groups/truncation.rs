//! Truncation of sequences with groups: to lengths whose blocks a window or a state still has, and to no others.

use paged_kv::{GroupId, LayerGroup, PagedKvCache, PagedKvError, Sequence};

use crate::{
    assert_at_rest, block, cache_of, chunked, full, missing, sink_window, sliding, state, table,
};

fn grown(cache: &PagedKvCache, lengths: &[usize]) -> Sequence {
    let mut sequence = cache.allocate_sequence(0).unwrap();
    for &length in lengths {
        drop(sequence.append(length - sequence.num_tokens()).unwrap());
        drop(sequence.take_copies());
    }
    sequence
}

#[test]
fn a_length_whose_blocks_the_window_released_is_refused_with_the_shortest() {
    let cache = cache_of(100, &[full(4), sliding(4, 8)]);
    let mut sequence = grown(&cache, &[22, 23]); // the window left blocks 0, 1 and 2
    let before = [0, 1].map(|group| table(&sequence, group));
    for requested in 1..19 {
        let refused = sequence.truncate(requested).unwrap_err();
        let expected = PagedKvError::WindowReleased { group: GroupId(1), requested, shortest: 19 };
        assert_eq!(refused, expected);
        assert_eq!([0, 1].map(|group| table(&sequence, group)), before, "nothing has changed");
    }
    assert_eq!(sequence.num_tokens(), 23);
    sequence.truncate(19).unwrap();
    assert_eq!(table(&sequence, 1).len(), 5);
    sequence.truncate(0).unwrap();
    drop(sequence);
    assert_at_rest(&cache);
}

/// For each length, the truncation is accepted exactly if every position that the next token attends to has a block.
fn check_lengths(groups: &[LayerGroup], lengths: &[usize]) {
    for requested in 1..=lengths[lengths.len() - 1] {
        let cache = cache_of(200, groups);
        let mut sequence = grown(&cache, lengths);
        let has = |group: usize, position: usize| {
            let blocks = table(&sequence, group);
            blocks[position / groups[group].block_size()].is_some()
        };
        let is_there = |group: usize| match groups[group] {
            LayerGroup::SlidingWindow { window, .. } => {
                (0..requested).rev().take(window - 1).all(|position| has(group, position))
            }
            LayerGroup::Chunked { chunk, .. } => {
                (requested / chunk * chunk..requested).all(|position| has(group, position))
            }
            LayerGroup::SinkWindow { sink, window, .. } => (0..requested)
                .filter(|position| *position < sink || requested - position < window)
                .all(|position| has(group, position)),
            _ => (0..requested).all(|position| has(group, position)),
        };
        // A partly filled last block is written next, even if no token attends to it.
        let has_tail = |group: usize| {
            requested.is_multiple_of(groups[group].block_size()) || has(group, requested - 1)
        };
        let expected = (0..groups.len()).all(|group| is_there(group) && has_tail(group));
        let truncated = sequence.truncate(requested);
        assert_eq!(truncated.is_ok(), expected, "{groups:?}, {requested}: {truncated:?}");
        if let Err(refusal) = truncated {
            let PagedKvError::WindowReleased { shortest, .. } = refusal else {
                panic!("{refusal}");
            };
            assert!(shortest > requested && shortest <= sequence.num_tokens(), "{shortest}");
            assert_eq!(sequence.num_tokens(), lengths[lengths.len() - 1]);
        } else {
            assert_eq!(sequence.num_tokens(), requested);
            drop(sequence.append(3).unwrap());
        }
        cache.validate().unwrap();
    }
}

#[test]
fn every_length_whose_positions_are_there_is_accepted_and_no_other() {
    let sparse = [sliding(4, 8), sliding(4, 1), sliding(3, 5), chunked(4, 8), chunked(4, 6)];
    for kind in sparse.into_iter().chain([sink_window(4, 6, 5), sink_window(4, 3, 1)]) {
        check_lengths(&[full(4), kind], &[30, 31]);
        check_lengths(&[kind, full(4)], &[12, 24, 36]);
        check_lengths(&[full(4), kind, sliding(6, 9)], &[17, 18, 33]);
    }
}

#[test]
fn max_rewind_allows_that_many_tokens_at_any_time() {
    let groups = [full(4), sliding(4, 8), chunked(4, 12), sink_window(4, 3, 6)];
    let builder = PagedKvCache::builder().num_blocks(200).groups(&groups);
    let cache = builder.max_rewind(5).build().unwrap();
    let mut sequence = cache.allocate_sequence(1).unwrap();
    for _ in 0..60 {
        drop(sequence.append(6).unwrap());
        sequence.truncate(sequence.num_tokens() - 5).unwrap();
    }
    assert_eq!(sequence.num_tokens(), 61);
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_state_can_go_back_to_the_one_before_it_and_no_further() {
    let cache = cache_of(100, &[full(4), state(4)]);
    let mut sequence = grown(&cache, &[5, 10, 11]);
    // States after 11 tokens (block 2), and after 5 tokens (block 1), the source of its copy.
    assert_eq!(missing(&sequence, 1), [0]);
    let before = block(&sequence, 1, 1);
    for requested in [1, 4, 6, 8, 9, 10] {
        let refused = sequence.truncate(requested).unwrap_err();
        let is_expected = matches!(refused, PagedKvError::WindowReleased { group: GroupId(1), .. });
        assert!(is_expected, "{requested}: {refused}");
    }
    sequence.truncate(5).unwrap();
    assert_eq!(table(&sequence, 1), [None, Some(before)]);
    drop(sequence.append(1).unwrap());
    assert_eq!(sequence.take_copies().len(), 0, "it goes on in its block");
    assert_eq!(block(&sequence, 1, 1), before);
    assert!(sequence.truncate(4).is_err(), "there was no state before");
    sequence.truncate(0).unwrap();
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_state_rewinds_within_its_block_by_max_rewind() {
    let builder = PagedKvCache::builder().num_blocks(100).groups(&[full(4), state(8)]);
    let cache = builder.max_rewind(3).build().unwrap();
    let mut sequence = grown(&cache, &[8, 15]);
    assert!(sequence.truncate(11).is_err(), "4 tokens");
    sequence.truncate(12).unwrap();
    sequence.truncate(9).unwrap();
    sequence.truncate(8).unwrap(); // the state before
    drop(sequence.append(2).unwrap());
    assert!(sequence.truncate(7).is_err(), "in another block");
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn truncation_beyond_the_end_is_refused_as_ever() {
    let cache = cache_of(100, &[full(4), sliding(4, 8), state(4)]);
    let mut sequence = grown(&cache, &[10]);
    let refused = PagedKvError::TruncateBeyondEnd { requested: 11, num_tokens: 10 };
    assert_eq!(sequence.truncate(11), Err(refused));
    sequence.truncate(10).unwrap();
}

#[test]
fn a_refusal_by_id_is_the_same() {
    let cache = cache_of(100, &[full(4), sliding(4, 8)]);
    let id = paged_kv::SeqId(1);
    cache.allocate(id, 22).unwrap();
    drop(cache.append(id, 1).unwrap());
    let refused = PagedKvError::WindowReleased { group: GroupId(1), requested: 18, shortest: 19 };
    assert_eq!(cache.truncate(id, 18), Err(refused));
    cache.truncate(id, 19).unwrap();
    cache.free(id).unwrap();
    assert_at_rest(&cache);
}
