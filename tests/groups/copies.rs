//! Copies on write in all groups: of forks, of published blocks after a truncation, by append and by step.

use std::collections::BTreeSet;

use paged_kv::{BlockId, GroupId, LayerGroup, PagedKvCache, PagedKvError, SeqId, Sequence};

use crate::{assert_at_rest, cache_of, computed, full, sliding, state, table, tokens};

const THREE: [LayerGroup; 3] = [full(4), sliding(8, 8), state(4)];

/// Returns the last block of each group.
fn tails(sequence: &Sequence, groups: usize) -> Vec<BlockId> {
    let last = |group| table(sequence, group).last().copied().flatten();
    (0..groups).map(|group| last(group).expect("the last block is resident")).collect()
}

#[test]
fn the_first_fork_that_writes_copies_the_partly_filled_blocks_of_all_groups() {
    let cache = cache_of(100, &THREE);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let mut fork = sequence.fork().unwrap();
    let used = cache.used_block_count();
    let shared = tails(&sequence, 3);
    assert_eq!(tails(&fork, 3), shared);
    let append = fork.append(1).unwrap();
    let own = tails(&fork, 3);
    let copy = append.copy.as_ref().expect("group 0 has a partly filled block");
    assert_eq!((copy.src, copy.dst), (shared[0], own[0]));
    let copies = fork.take_copies();
    let of_others: Vec<_> = copies.iter().map(|copy| (copy.group, copy.src, copy.dst)).collect();
    assert_eq!(of_others, [(GroupId(1), shared[1], own[1]), (GroupId(2), shared[2], own[2])]);
    assert_eq!(cache.used_block_count(), used + 3);
    drop((append, copies));
    // The other one is alone now, and writes in place.
    assert!(sequence.append(1).unwrap().copy.is_none());
    assert_eq!(tails(&sequence, 3), shared);
    assert!(sequence.take_copies().is_empty());
    drop((sequence, fork));
    assert_at_rest(&cache);
}

#[test]
fn no_block_that_two_sequences_own_is_ever_written() {
    let cache = cache_of(200, &THREE);
    let mut sequence = cache.allocate_sequence(7).unwrap();
    for round in 0..6 {
        let mut forks = sequence.fork_n(3).unwrap();
        for fork in &mut forks {
            drop(fork.append(1 + round).unwrap());
            drop(fork.take_copies());
        }
        drop(sequence.append(2).unwrap());
        drop(sequence.take_copies());
        let all: Vec<BlockId> = forks.iter().chain([&sequence]).flat_map(|s| tails(s, 3)).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "round {round}");
        cache.validate().unwrap();
        sequence = forks.swap_remove(0);
    }
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn a_fork_is_refused_while_copies_are_pending() {
    let cache = cache_of(100, &THREE);
    let mut sequence = cache.allocate_sequence(4).unwrap();
    drop(sequence.append(4).unwrap());
    let refused = sequence.fork().err();
    assert_eq!(refused, Some(PagedKvError::CopiesPending { copies: 1 }));
    assert!(sequence.fork_n(2).is_err());
    drop(sequence.take_copies());
    let mut fork = sequence.fork().unwrap();
    assert_eq!(fork.take_copies().len(), 0);

    cache.allocate(SeqId(1), 4).unwrap();
    drop(cache.append(SeqId(1), 4).unwrap());
    let pending = Err(PagedKvError::CopiesPending { copies: 1 });
    assert_eq!(cache.fork(SeqId(1), SeqId(2)), pending);
    assert_eq!(cache.fork_n(SeqId(1), &[SeqId(2), SeqId(3)]), pending);
    assert_eq!(cache.num_sequences(), 1);
    let lease = cache.lease(&[SeqId(1)]).unwrap();
    let mut step = cache.step(Default::default());
    step.join(&mut lease.rows().next().unwrap()).unwrap();
    drop(step);
    drop(lease);
    assert_eq!(cache.fork(SeqId(1), SeqId(2)), Ok(()));
}

#[test]
fn the_copy_of_a_fork_is_refused_as_a_whole_if_one_group_lacks_a_block() {
    let cache = cache_of(8, &THREE);
    let mut sequence = cache.allocate_sequence(6).unwrap(); // 2 + 1 + 1
    let mut fork = sequence.fork().unwrap();
    let room = cache.allocate_sequence(4).unwrap(); // 1 + 1 + 1
    let before: Vec<_> = (0..3).map(|group| table(&fork, group)).collect();
    let refused = fork.append(1).unwrap_err();
    assert_eq!(refused, PagedKvError::OutOfMemory { requested: 3, available: 1 });
    let after: Vec<_> = (0..3).map(|group| table(&fork, group)).collect();
    assert_eq!(after, before);
    assert!(fork.take_copies().is_empty());
    drop(room);
    drop(fork.append(1).unwrap());
    assert_eq!(fork.take_copies().len(), 2);
    drop((sequence, fork));
    assert_at_rest(&cache);
}

/// Returns the copies that a step lists.
fn listed(step: &paged_kv::Step) -> BTreeSet<[u32; 2]> {
    let mut copies: Vec<[u32; 2]> = Vec::new();
    step.copies(&mut copies).unwrap();
    copies.into_iter().collect()
}

#[test]
fn a_step_lists_the_copies_of_all_groups_and_keeps_their_sources() {
    let cache = cache_of(100, &THREE);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let shared = tails(&sequence, 3);
    let mut rows = [(sequence.fork().unwrap(), 1), (sequence.fork().unwrap(), 1)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 2);
    let expected: BTreeSet<[u32; 2]> = rows
        .iter()
        .flat_map(|(fork, _)| shared.iter().zip(tails(fork, 3)).map(|(src, dst)| [src.0, dst.0]))
        .collect();
    assert_eq!(expected.len(), 6);
    assert_eq!(listed(&step), expected);
    drop(sequence);
    let used = cache.used_block_count();
    assert!(used >= 6 + 3, "{used}: the device reads the sources");
    step.complete();
    assert_eq!(cache.used_block_count(), 1 + 6, "one full block is shared by the forks");
    drop(rows);
    assert_at_rest(&cache);
}

#[test]
fn an_aborted_step_gives_the_sources_back_to_the_forks() {
    let cache = cache_of(100, &THREE);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let shared = tails(&sequence, 3);
    let used = cache.used_block_count();
    let mut rows = [(sequence.fork().unwrap(), 1), (sequence.fork().unwrap(), 5)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 2);
    step.abort(&mut rows).unwrap();
    for (fork, _) in &mut rows {
        assert_eq!(fork.num_tokens(), 6);
        assert!(fork.take_copies().is_empty());
        assert_eq!(tails(fork, 3), shared);
    }
    assert_eq!(cache.used_block_count(), used);
    for (fork, _) in &mut rows {
        let append = fork.append(1).unwrap();
        assert!(append.copy.is_some(), "the blocks are shared again");
        assert_eq!(fork.take_copies().len(), 2);
        assert!(tails(fork, 3).iter().all(|id| !shared.contains(id)));
    }
    drop((rows, sequence));
    assert_at_rest(&cache);
}

#[test]
fn a_published_block_is_copied_before_it_is_written_again() {
    let builder = PagedKvCache::builder().num_blocks(100).max_rewind(8);
    let cache = builder.groups(&[full(4), sliding(4, 8)]).build().unwrap();
    let mut sequence = computed(&cache, &tokens(1, 8));
    let published = tails(&sequence, 2);
    sequence.truncate(6).unwrap();
    let append = sequence.append(1).unwrap();
    assert_eq!(append.copy.as_ref().map(|copy| copy.src), Some(published[0]));
    let copies = sequence.take_copies();
    assert_eq!(copies.iter().map(|copy| copy.src).collect::<Vec<_>>(), published[1..]);
    drop((append, copies));
    assert_eq!(cache.prefix().probe(&cache.prompt(&tokens(1, 9))), 8);
}

#[test]
fn no_copy_is_asked_for_to_a_block_that_a_window_has_left() {
    let cache = cache_of(100, &[full(4), sliding(4, 2)]);
    let sequence = &mut cache.allocate_sequence(6).unwrap();
    let mut fork = sequence.fork().unwrap();
    drop(fork.append(6).unwrap()); // copies block 1 of both groups
    let copied = table(&fork, 1)[1].unwrap();
    drop(fork.append(4).unwrap()); // the window leaves the copied block
    assert_eq!(table(&fork, 1)[1], None);
    let destinations: Vec<_> = fork.take_copies().iter().map(|copy| copy.dst).collect();
    assert!(!destinations.contains(&copied), "it may be any sequence's block now");
}

#[test]
fn a_fork_of_one_group_copies_again_after_an_aborted_step() {
    for groups in [&[full(4)][..], &[sliding(4, 8)], &[full(4), sliding(6, 8)]] {
        let cache = cache_of(100, groups);
        let mut sequence = cache.allocate_sequence(6).unwrap();
        let shared = sequence.block_ids()[1];
        let mut rows = [(sequence.fork().unwrap(), 1)];
        for _ in 0..2 {
            let mut step = cache.step(Default::default());
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            assert_ne!(rows[0].0.block_ids()[1], shared, "{groups:?}");
            assert_eq!(listed(&step).len(), 1);
            step.abort(&mut rows).unwrap();
            assert_eq!(rows[0].0.block_ids()[1], shared);
        }
        drop((rows, sequence));
        assert_at_rest(&cache);
    }
}
