//! States: published only where a commit ended, matched only after their step completed, and copied into the block
//! in which they go on.

use paged_kv::{AdmitOptions, GroupId, LayerGroup, PagedKvCache, PagedKvError, SeqId};

use crate::{
    assert_at_rest, block, cache_of, computed, full, hits, missing, probe, sliding, state, table,
    tokens,
};

const FULL_AND_STATE: [LayerGroup; 2] = [full(4), state(4)];

#[test]
fn a_state_is_published_only_where_a_commit_ended() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let sequence = computed(&cache, &tokens(1, 16));
    // The state after 16 tokens is there, those after 4, 8 and 12 never were.
    assert_eq!(hits(&cache, &tokens(1, 17)), (16, 16));
    assert_eq!(hits(&cache, &tokens(1, 16)), (0, 12));
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_commit_short_of_the_length_publishes_no_state() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let prompt = cache.prompt(&tokens(1, 16));
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(12).unwrap(); // the block holds the state after 16 tokens, or will
    assert_eq!(hits(&cache, &tokens(1, 17)), (0, 12));
    sequence.commit(16).unwrap();
    assert_eq!(hits(&cache, &tokens(1, 17)), (16, 16));
}

#[test]
fn a_state_inside_a_block_is_not_published() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let _sequence = computed(&cache, &tokens(1, 18));
    assert_eq!(hits(&cache, &tokens(1, 19)), (0, 16));
}

#[test]
fn a_state_of_an_open_step_is_not_matched_before_it_completes() {
    for completes in [true, false] {
        let cache = cache_of(100, &[full(4), state(4), sliding(4, 8)]);
        let prompt = cache.prompt(&tokens(1, 8));
        let options = AdmitOptions::default().first_chunk(0);
        let (sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
        let mut rows = [(sequence, 8)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        step.commit(&mut rows[0].0, 8).unwrap();
        assert_eq!(hits(&cache, &tokens(1, 9)), (0, 0), "its kernels may be running");
        match completes {
            true => assert_eq!(step.complete().published, 2 + 1 + 2),
            false => drop(step),
        }
        let hit = if completes { 8 } else { 0 };
        assert_eq!(hits(&cache, &tokens(1, 9)), (hit, hit));
        // After a failed step the sequence offers its blocks again.
        rows[0].0.commit(8).unwrap();
        assert_eq!(hits(&cache, &tokens(1, 9)), (8, 8));
        drop(rows);
        assert_at_rest(&cache);
    }
}

#[test]
fn the_source_of_a_hit_stays_until_a_step_lists_its_copy() {
    let cache = cache_of(100, &FULL_AND_STATE);
    drop(computed(&cache, &tokens(1, 8)));
    let prompt = cache.prompt(&tokens(1, 11));
    let (sequence, admission) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(admission.cached_tokens, 8);
    assert_eq!(missing(&sequence, 1), [0]);
    let [src, dst] = [1, 2].map(|at| block(&sequence, 1, at));
    let mut rows = [(sequence, 1)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let mut copies: Vec<[u32; 2]> = Vec::new();
    assert_eq!(step.copies(&mut copies).unwrap(), 1);
    assert_eq!(copies, [[src.0, dst.0]]);
    assert!(rows[0].0.take_copies().is_empty(), "the step has taken them");
    step.complete();
    // Still the state before the newest, to which a truncation may go back.
    assert_eq!(block(&rows[0].0, 1, 1), src);
    drop(rows);
    assert_at_rest(&cache);
}

#[test]
fn a_step_that_a_sequence_joins_lists_its_copies_too() {
    let cache = cache_of(100, &FULL_AND_STATE);
    cache.admit(SeqId(1), &tokens(1, 8)).unwrap();
    drop(cache.append(SeqId(1), 4).unwrap());
    let lease = cache.lease(&[SeqId(1)]).unwrap();
    let mut row = lease.rows().next().unwrap();
    let mut step = cache.step(Default::default());
    step.join(&mut row).unwrap();
    let mut copies: Vec<[u32; 2]> = Vec::new();
    assert_eq!(step.copies(&mut copies).unwrap(), 1);
    step.join(&mut row).unwrap();
    copies.clear();
    assert_eq!(step.copies(&mut copies).unwrap(), 1, "listed once");
    step.complete();
    let mut next = cache.step(Default::default());
    next.join(&mut row).unwrap();
    copies.clear();
    assert_eq!(next.copies(&mut copies).unwrap(), 0);
}

#[test]
fn copies_of_states_that_nobody_took_keep_their_sources() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let mut sequence = cache.allocate_sequence(4).unwrap();
    let first = block(&sequence, 1, 0);
    drop(sequence.append(4).unwrap());
    let second = block(&sequence, 1, 1);
    drop(sequence.append(4).unwrap());
    // The state after 4 tokens is not in the table any more, but its copy was not made.
    assert_eq!(missing(&sequence, 1), [0]);
    assert_eq!(cache.used_block_count(), 3 + 3);
    let copies = sequence.take_copies();
    let sources: Vec<_> = copies.iter().map(|copy| (copy.group, copy.src)).collect();
    assert_eq!(sources, [(GroupId(1), first), (GroupId(1), second)], "in the order of the growths");
    assert_eq!(copies[0].dst, second);
    assert_eq!(cache.used_block_count(), 3 + 3);
    drop(copies);
    assert_eq!(cache.used_block_count(), 3 + 2);
}

#[test]
fn an_aborted_step_leaves_the_copy_of_a_hit_to_make() {
    let cache = cache_of(100, &FULL_AND_STATE);
    drop(computed(&cache, &tokens(1, 8)));
    let prompt = cache.prompt(&tokens(1, 10));
    let (sequence, admission) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(admission.cached_tokens, 8);
    let [src, dst] = [1, 2].map(|at| block(&sequence, 1, at));
    let mut rows = [(sequence, 3)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    step.abort(&mut rows).unwrap();
    let sequence = &mut rows[0].0;
    assert_eq!(sequence.num_tokens(), 10);
    let copies = sequence.take_copies();
    assert_eq!(copies.len(), 1, "the launch was abandoned, and the copy not made");
    assert_eq!((copies[0].src, copies[0].dst), (src, dst));
}

#[test]
fn a_truncation_leaves_the_copies_that_the_state_before_needs() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let mut sequence = cache.allocate_sequence(4).unwrap();
    let first = block(&sequence, 1, 0);
    for _ in 0..3 {
        drop(sequence.append(4).unwrap());
    }
    sequence.truncate(12).unwrap();
    // The state after 8 tokens is not in the table, but that after 12 is copied from it.
    let copies = sequence.take_copies();
    assert_eq!(copies.len(), 2);
    assert_eq!(copies[0].src, first);
    assert_eq!(copies[0].dst, copies[1].src);
    assert_eq!(copies[1].dst, block(&sequence, 1, 2));
    drop(copies);
    for _ in 0..3 {
        drop(sequence.append(4).unwrap());
    }
    sequence.truncate(0).unwrap();
    assert!(sequence.take_copies().is_empty());
    assert_at_rest(&cache);
}

#[test]
fn an_aborted_step_leaves_several_copies_in_their_order() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let mut sequence = cache.allocate_sequence(4).unwrap();
    drop(sequence.append(4).unwrap());
    drop(sequence.append(4).unwrap());
    let mut rows = [(sequence, 1)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    step.abort(&mut rows).unwrap();
    let copies = rows[0].0.take_copies();
    assert_eq!(copies.len(), 2);
    // The state after 4 tokens is copied on from the block that it is first copied to.
    assert_eq!(copies[0].dst, copies[1].src);
}

#[test]
fn an_aborted_step_keeps_the_source_of_a_copy_that_the_sequence_has_released() {
    let (cache, id) = (cache_of(100, &[state(4)]), SeqId(1));
    cache.allocate(id, 4).unwrap();
    drop(cache.append(id, 2).unwrap());
    let states = || cache.with_sequence(id, |sequence| table(sequence, 0)).unwrap();
    let [Some(src), Some(dst)] = states()[..] else { panic!("{:?}", states()) };
    let lease = cache.lease(&[id]).unwrap();
    let row = || lease.rows().next().unwrap();
    let mut rows = [(row(), 1), (row(), 5)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows[..1]).unwrap().grown_rows, 1); // lists the copy
    assert_eq!(step.grow(&mut rows[1..]).unwrap().grown_rows, 1); // releases the older state
    step.abort(&mut rows).unwrap();
    assert_eq!(states()[1..], [Some(dst)]);
    assert_eq!(cache.pool().owners(src), Ok(1), "the copy is still to be made");
    let mut next = cache.step(Default::default());
    next.join(&mut row()).unwrap();
    let mut copies: Vec<[u32; 2]> = Vec::new();
    assert_eq!(next.copies(&mut copies).unwrap(), 1);
    assert_eq!(copies, [[src.0, dst.0]]);
    next.complete();
    assert_eq!(cache.used_block_count(), 1);
}

#[test]
fn a_step_that_grows_a_state_can_be_aborted() {
    let cache = cache_of(100, &FULL_AND_STATE);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let before = [0, 1].map(|group| table(&sequence, group));
    let used = cache.used_block_count();
    for tokens in [1, 2, 3, 9] {
        let mut rows = [(&mut sequence, tokens)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        step.abort(&mut rows).unwrap();
        assert_eq!(sequence.num_tokens(), 6);
        assert_eq!([0, 1].map(|group| table(&sequence, group)), before, "{tokens}");
        assert_eq!(cache.used_block_count(), used);
        assert!(sequence.take_copies().is_empty());
    }
    drop(sequence.append(9).unwrap());
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_group_of_states_alone_hits_where_commits_ended() {
    let cache = cache_of(100, &[state(4)]);
    let options = AdmitOptions::default().first_chunk(8);
    let (mut sequence, _) = cache.admit_sequence(&cache.prompt(&tokens(1, 30)), &options).unwrap();
    sequence.commit(8).unwrap();
    drop(sequence.append(12).unwrap());
    sequence.commit(20).unwrap();
    assert_eq!(cache.used_block_count(), 2);
    let hit = |length| probe(&cache, &tokens(1, length));
    assert_eq!([8, 9, 20, 21, 30].map(hit), [0, 8, 8, 20, 20]);
}

#[test]
fn many_states_of_one_conversation_cost_one_block_each() {
    let cache = PagedKvCache::builder().num_blocks(64).groups(&[full(4), state(4)]);
    let cache = cache.build().unwrap();
    let mut sequence = computed(&cache, &tokens(1, 4));
    for length in (8..=40).step_by(4) {
        drop(sequence.append(4).unwrap());
        sequence.commit(&tokens(1, length)[length - 4..]).unwrap();
        drop(sequence.take_copies());
        // The newest state and the one before it; the others are idle and cached.
        assert_eq!(cache.used_block_count(), length / 4 + 2);
        assert_eq!(cache.stats().blocks_idle, length / 4 - 2);
    }
    let hit = |length| probe(&cache, &tokens(1, length));
    assert_eq!([5, 17, 40, 41].map(hit), [4, 16, 36, 40]);
}

#[test]
fn a_refused_admission_counts_the_source_and_the_new_block_of_a_state() {
    let cache = cache_of(2, &[state(4)]);
    drop(computed(&cache, &tokens(1, 4)));
    let other = cache.allocate_sequence(4).unwrap();
    assert_eq!(cache.free_block_count(), 1, "the cached state is idle");
    let prompt = cache.prompt(&tokens(1, 5));
    let options = AdmitOptions::default();
    assert_eq!(cache.required_blocks(&prompt, &options), Ok(2));
    let refused = cache.admit_sequence(&prompt, &options).unwrap_err();
    assert_eq!(refused, PagedKvError::OutOfMemory { requested: 2, available: 1 });
    drop(other);
    assert!(cache.admit_sequence(&prompt, &options).is_ok());
    assert_at_rest(&cache);
}
