//! Tests of steps: a step holds the blocks that its sequences release, publishes only when it completes,
//! and undoes the growth of an aborted launch.

mod common;

use common::lease_row;
use paged_kv::{
    AdmitOptions, BlockId, CachedSequence, PagedKvCache, PagedKvError, Result, SeqId, Step,
};

const BLOCK_SIZE: usize = 4;

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, BLOCK_SIZE, 1, 1)
}

fn admitted(cache: &PagedKvCache, tokens: &[u32]) -> CachedSequence {
    cache.admit_sequence(&cache.prompt(tokens), &AdmitOptions::default()).unwrap().0
}

fn assert_all_room(cache: &PagedKvCache) {
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
}

/// Releases blocks in a step, and counts the free blocks before and after the step's end.
fn free_around(
    end: impl FnOnce(Step),
    let_go: impl FnOnce(&PagedKvCache, &mut Step),
) -> [usize; 2] {
    let cache = cache(16);
    let mut step = cache.step(Default::default());
    let_go(&cache, &mut step);
    let before = cache.free_block_count();
    end(step);
    [before, cache.free_block_count()]
}

#[test]
fn everything_that_lets_go_of_blocks_waits_for_the_end() {
    let handle = |cache: &PagedKvCache, step: &mut Step| {
        let mut sequence = cache.allocate_sequence(5 * BLOCK_SIZE).unwrap();
        step.join(&mut sequence).unwrap();
        sequence
    };
    let by_id = |cache: &PagedKvCache, step: &mut Step| {
        cache.allocate(SeqId(1), 5 * BLOCK_SIZE).unwrap();
        step.join(&mut lease_row(cache, SeqId(1))).unwrap();
    };
    let ends: [fn(Step); 2] = [|step| _ = step.complete(), drop];
    for end in ends {
        assert_eq!(free_around(end, |cache, step| drop(handle(cache, step))), [11, 16]);
        let truncated = free_around(end, |cache, step| {
            let mut sequence = handle(cache, step);
            sequence.truncate(BLOCK_SIZE).unwrap();
            std::mem::forget(sequence);
        });
        assert_eq!(truncated, [11, 15]);
        let trimmed = free_around(end, |cache, step| {
            let mut sequence = handle(cache, step);
            assert_eq!(
                sequence.apply_streaming_llm(BLOCK_SIZE, BLOCK_SIZE).unwrap(),
                3 * BLOCK_SIZE
            );
            std::mem::forget(sequence);
        });
        assert_eq!(trimmed, [11, 14]);
        let freed = free_around(end, |cache, step| {
            by_id(cache, step);
            cache.free(SeqId(1)).unwrap();
        });
        assert_eq!(freed, [11, 16]);
        let evicted = free_around(end, |cache, step| {
            by_id(cache, step);
            cache.evict().unwrap();
        });
        assert_eq!(evicted, [11, 16]);
        let forks = free_around(end, |cache, step| {
            let mut sequence = handle(cache, step);
            let fork = sequence.fork().unwrap();
            drop((sequence, fork));
        });
        assert_eq!(forks, [11, 16]);
    }
}

#[test]
fn blocks_outside_a_step_do_not_wait_for_it() {
    let cache = cache(4);
    let step = cache.step(Default::default());
    drop(cache.allocate_sequence(4 * BLOCK_SIZE).unwrap());
    assert_eq!(cache.free_block_count(), 4);
    drop(step);
}

#[test]
fn the_source_of_a_copy_stays_until_the_end() -> Result<()> {
    let cache = cache(4);
    let source = cache.allocate_sequence(2)?;
    let src = source.block_ids()[0];
    let mut rows = [(source, 1)];
    let fork = rows[0].0.fork()?;
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    let mut copies: Vec<[u32; 2]> = vec![];
    assert_eq!(step.copies(&mut copies)?, 1);
    assert_eq!(copies[0], [src.0, rows[0].0.block_ids()[0].0]);
    drop(fork);
    assert_eq!(cache.free_block_count(), 2, "the device reads the source");
    step.complete();
    assert_eq!(cache.free_block_count(), 3);
    Ok(())
}

#[test]
fn a_step_waits_for_no_newer_one() -> Result<()> {
    let cache = cache(4);
    let mut sequence = cache.allocate_sequence(BLOCK_SIZE)?;
    let mut older = cache.step(Default::default());
    older.join(&mut sequence)?;
    let newer = cache.step(Default::default());
    drop(sequence);
    older.complete();
    assert_eq!(cache.free_block_count(), 4);
    newer.complete();
    Ok(())
}

#[test]
fn a_newer_step_hands_its_blocks_to_an_older_one() -> Result<()> {
    let cache = cache(4);
    let mut sequence = cache.allocate_sequence(BLOCK_SIZE)?;
    let (mut older, mut newer) = (cache.step(Default::default()), cache.step(Default::default()));
    older.join(&mut sequence)?;
    newer.join(&mut sequence)?;
    sequence.truncate(0)?;
    newer.complete();
    assert_eq!(cache.free_block_count(), 3);
    older.complete();
    assert_eq!(cache.free_block_count(), 4);
    Ok(())
}

#[test]
fn a_thousand_steps_open_at_once_end_in_any_order() {
    const STEPS: usize = 1_000;
    let cache = cache(STEPS);
    let orders = [|at: usize| at, |at| STEPS - 1 - at, |at| at * 377 % STEPS];
    for order in orders {
        let mut steps: Vec<Option<Step>> =
            (0..STEPS).map(|_| Some(cache.step(Default::default()))).collect();
        for step in steps.iter_mut().flatten() {
            let mut sequence = cache.allocate_sequence(BLOCK_SIZE).unwrap();
            step.join(&mut sequence).unwrap();
        }
        assert_eq!(cache.free_block_count(), 0);
        for done in 0..STEPS {
            drop(steps[order(done)].take());
            // A block is given back when no open step is as old as its own step, or older.
            let oldest = steps.iter().position(Option::is_some).unwrap_or(STEPS);
            assert_eq!(cache.free_block_count(), oldest);
        }
        assert_all_room(&cache);
    }
}

#[test]
fn a_block_is_held_until_the_last_of_a_thousand_steps_ends_that_may_read_it() {
    const STEPS: usize = 1_000;
    let cache = cache(2);
    for last in [0, 63, 64, 500, 999] {
        let mut shared = cache.allocate_sequence(BLOCK_SIZE).unwrap();
        let mut steps: Vec<Step> = (0..STEPS).map(|_| cache.step(Default::default())).collect();
        steps.iter_mut().for_each(|step| step.join(&mut shared).unwrap());
        let newer = cache.step(Default::default());
        drop(shared);
        let last = steps.remove(last);
        drop(steps);
        assert_eq!(cache.free_block_count(), 1, "a step that may read it is open");
        drop(last);
        assert_eq!(cache.free_block_count(), 2, "only a newer step is open");
        newer.complete();
    }
    assert_all_room(&cache);
}

#[test]
fn a_hundred_threads_have_steps_open_at_once() {
    const THREADS: usize = 100;
    let cache = cache(2 * THREADS);
    let all_open = std::sync::Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let (cache, all_open) = (&cache, &all_open);
            scope.spawn(move || {
                let mut free = Vec::new();
                for _ in 0..5 {
                    let mut older = cache.step(Default::default());
                    cache.allocate(SeqId(thread), BLOCK_SIZE).unwrap();
                    let mut row = lease_row(cache, SeqId(thread));
                    older.join(&mut row).unwrap();
                    let mut sequence = cache.allocate_sequence(BLOCK_SIZE).unwrap();
                    older.join(&mut sequence).unwrap();
                    let mut newer = cache.step(Default::default());
                    newer.join(&mut row).unwrap();
                    drop(sequence);
                    cache.free(SeqId(thread)).unwrap();
                    all_open.wait();
                    free.push(cache.free_block_count());
                    all_open.wait();
                    if thread % 2 == 0 {
                        drop((newer, older));
                    } else {
                        drop((older, newer));
                    }
                    all_open.wait();
                }
                // Here no other thread waits for this one.
                assert_eq!(free, [0; 5], "200 steps are open");
            });
        }
    });
    assert_all_room(&cache);
}

#[test]
fn commits_are_published_at_completion_only() -> Result<()> {
    let cache = cache(8);
    for (round, publishes) in [(1, false), (2, true)] {
        let tokens = [round; 9];
        let mut sequence = admitted(&cache, &tokens);
        let mut step = cache.step(Default::default());
        step.join(&mut sequence).unwrap();
        assert_eq!(step.commit(&mut sequence, 9)?, 2);
        assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 0);
        drop(sequence);
        if publishes {
            assert_eq!(step.complete().published, 2);
        } else {
            drop(step);
        }
        assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), if publishes { 8 } else { 0 });
        assert_all_room(&cache);
    }
    Ok(())
}

#[test]
fn a_block_awaiting_publication_is_not_written_in_place() -> Result<()> {
    let cache = cache(8);
    let mut sequence = admitted(&cache, &[7; 8]);
    let mut step = cache.step(Default::default());
    step.join(&mut sequence).unwrap();
    assert_eq!(step.commit(&mut sequence, 8)?, 2);
    sequence.truncate(6)?;
    let append = sequence.append(2)?;
    assert!(append.copy.is_some(), "the second block is to be published as it is");
    drop(append);
    assert_eq!(step.complete().published, 2);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 8);
    drop(sequence);
    assert_all_room(&cache);
    Ok(())
}

#[test]
fn drafts_that_were_wrong_are_dropped_and_never_named() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(admitted(&cache, &[1, 2]), 5), (admitted(&cache, &[1, 3]), 5)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_eq!(step.accept(0, &mut rows[0].0, &[3, 4, 5])?, 1);
    assert_eq!(step.accept(1, &mut rows[1].0, &[])?, 0);
    assert!(step.accept(1, &mut rows[1].0, &[9; 6]).is_err());
    assert!(step.accept(2, &mut rows[1].0, &[]).is_err());
    assert_eq!(step.complete().published, 1);
    assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (5, 2));
    assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    Ok(())
}

#[test]
fn an_older_step_accepts_while_a_newer_one_has_grown_the_row() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(admitted(&cache, &[1, 2, 3]), 1)];
    let (mut first, mut second) = (cache.step(Default::default()), cache.step(Default::default()));
    assert_eq!(first.grow(&mut rows)?.grown_rows, 1);
    assert_eq!(second.grow(&mut rows)?.grown_rows, 1);
    assert!(first.accept(0, &mut rows[0].0, &[]).is_err(), "a slot in the middle");
    assert!(second.accept(0, &mut rows[0].0, &[5]).is_err(), "a token before it has no name yet");
    assert_eq!(first.accept(0, &mut rows[0].0, &[4])?, 1);
    assert_eq!(first.complete().published, 1);
    assert_eq!(second.accept(0, &mut rows[0].0, &[5])?, 0);
    assert_eq!(second.complete().published, 0);
    assert_eq!(rows[0].0.num_tokens(), 5);
    Ok(())
}

#[test]
fn an_aborted_step_leaves_lengths_and_tables_as_they_were() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(admitted(&cache, &[1, 2, 3]), 9), (admitted(&cache, &[4; 8]), 1)];
    let fork = rows[0].0.fork()?;
    let before: Vec<Vec<BlockId>> = rows.iter().map(|row| row.0.block_ids().to_vec()).collect();
    let used = cache.used_block_count();
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_ne!(rows[0].0.block_ids()[0], before[0][0], "the tail was copied");
    assert_eq!(step.accept(1, &mut rows[1].0, &[9])?, 2);
    step.abort(&mut rows)?;
    let after: Vec<Vec<BlockId>> = rows.iter().map(|row| row.0.block_ids().to_vec()).collect();
    assert_eq!(after, before);
    assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (3, 8));
    assert_eq!(cache.used_block_count(), used);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[4; 9])), 0);
    // As without the aborted step, the next step grows, accepts and publishes.
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_eq!(step.accept(1, &mut rows[1].0, &[9])?, 2);
    assert_eq!(step.complete().published, 2);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[4; 9])), 8);
    drop((rows, fork));
    assert_all_room(&cache);
    Ok(())
}

#[test]
fn rows_behind_one_that_found_no_room_have_not_grown() -> Result<()> {
    let cache = cache(5);
    let of = |num_tokens, n| Ok::<_, PagedKvError>((cache.allocate_sequence(num_tokens)?, n));
    // All rows grow in their last blocks, except the second and the fourth, which need two blocks and
    // one.
    let mut rows = [of(1, 2)?, of(4, 6)?, of(2, 1)?, of(4, 1)?];
    let lengths = |rows: &[(paged_kv::Sequence, usize)]| -> Vec<usize> {
        rows.iter().map(|(sequence, _)| sequence.num_tokens()).collect()
    };
    let mut step = cache.step(Default::default());
    let grown = step.grow(&mut rows)?;
    assert_eq!((grown.grown_rows, grown.missing_blocks), (1, 1));
    assert_eq!(lengths(&rows), [3, 4, 2, 4]);
    (rows[0].1, rows[1].1) = (1, 4);
    let grown = step.grow(&mut rows)?;
    assert_eq!((grown.grown_rows, grown.missing_blocks), (3, 1));
    assert_eq!(lengths(&rows), [4, 8, 3, 4]);
    (rows[0].1, rows[1].1, rows[2].1) = (0, 0, 1);
    rows[3].1 = usize::MAX;
    assert!(matches!(step.grow(&mut rows), Err(PagedKvError::TooManyTokens { .. })));
    assert_eq!(lengths(&rows), [4, 8, 3, 4], "none has grown");
    let other = PagedKvCache::new(4, BLOCK_SIZE, 1, 1).allocate_sequence(1)?;
    rows[3] = (other, 1);
    assert!(matches!(step.grow(&mut rows), Err(PagedKvError::WrongCache { .. })));
    assert_eq!(lengths(&rows), [4, 8, 3, 1], "none has grown");
    // The rows of this call are numbered after those that had grown before.
    assert!(step.accept(3, &mut rows[2].0, &[]).is_ok());
    assert!(step.accept(4, &mut rows[2].0, &[]).is_err());
    Ok(())
}

#[test]
fn rows_that_are_not_the_steps_are_refused() -> Result<()> {
    let (cache, other) = (cache(16), PagedKvCache::new(4, BLOCK_SIZE, 1, 1));
    let mut rows = [(cache.allocate_sequence(3)?, 9)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    let none: &mut [(paged_kv::Sequence, usize)] = &mut [];
    let refused = step.abort(none).unwrap_err();
    assert!(matches!(refused.error, PagedKvError::InvalidConfig { parameter: "rows", .. }));
    assert_eq!(rows[0].0.num_tokens(), 12, "nothing has changed");
    let mut step = refused.step;
    other.allocate(SeqId(1), 3)?;
    let refused = step.grow(&mut [(other.allocate_sequence(3)?, 1)]);
    assert!(matches!(refused, Err(PagedKvError::WrongCache { value: "row" })));
    let refused = step.join(&mut lease_row(&other, SeqId(1)));
    assert!(matches!(refused, Err(PagedKvError::WrongCache { value: "row" })));
    step.abort(&mut rows)?;
    assert_eq!(rows[0].0.num_tokens(), 3, "a refusal leaves the step what it was");
    Ok(())
}

#[test]
fn a_row_cut_below_its_start_cannot_be_undone() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(cache.allocate_sequence(6)?, 1)];
    let fork = rows[0].0.fork()?;
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    rows[0].0.truncate(4)?;
    drop(rows[0].0.append(5)?);
    let other_tail = rows[0].0.block_ids()[1];
    let refused = step.abort(&mut rows).unwrap_err();
    assert!(matches!(refused.error, PagedKvError::InvalidConfig { .. }));
    drop(refused);
    assert_eq!((rows[0].0.num_tokens(), rows[0].0.block_ids()[1]), (9, other_tail));
    drop((rows, fork));
    assert_all_room(&cache);
    Ok(())
}

#[test]
fn a_copy_that_a_fork_made_since_does_not_stand_for_one_of_the_row() -> Result<()> {
    let cache = cache(16);
    let mut sequence = cache.allocate_sequence(6)?;
    let other = sequence.fork()?;
    let mut step = cache.step(Default::default());
    let mut rows = [(&mut sequence, 1)];
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    // The fork copies the block that the row has copied to, and then the row has another last block.
    let mut fork = sequence.fork()?;
    assert_eq!(step.grow(&mut [(&mut fork, 1)])?.grown_rows, 1);
    sequence.truncate(4)?;
    drop(sequence.append(3)?);
    let before = sequence.block_ids().to_vec();
    let mut rows = [(&mut sequence, 1), (&mut fork, 1)];
    let refused = step.abort(&mut rows).unwrap_err();
    assert!(matches!(refused.error, PagedKvError::InvalidConfig { .. }));
    assert_eq!((sequence.num_tokens(), sequence.block_ids()), (7, &*before));
    assert_eq!(fork.num_tokens(), 8);
    drop((refused, sequence, other, fork));
    assert_all_room(&cache);
    Ok(())
}

#[test]
fn a_row_cut_no_further_than_its_start_is_undone() -> Result<()> {
    for (cut, is_undone) in [(7, true), (6, true), (5, false)] {
        let cache = cache(16);
        let mut rows = [(cache.allocate_sequence(6)?, 3)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
        rows[0].0.truncate(cut)?;
        assert_eq!(step.abort(&mut rows).is_ok(), is_undone, "cut to {cut}");
        assert_eq!(rows[0].0.num_tokens(), cut.min(6));
        drop(rows);
        assert_all_room(&cache);
    }
    Ok(())
}

#[test]
fn copies_are_added_to_those_that_are_there() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(cache.allocate_sequence(6)?, 1), (cache.allocate_sequence(4)?, 1)];
    let fork = rows[0].0.fork()?;
    let mut step = cache.step(Default::default());
    assert_eq!(format!("{step:?}"), "Step { rows: 0, .. }");
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_eq!(format!("{step:?}"), "Step { rows: 2, .. }");
    let mut copies = vec![[7_i32; 2]; 3];
    assert_eq!(step.copies(&mut copies)?, 1);
    let copied = [fork.block_ids()[1], rows[0].0.block_ids()[1]].map(|id| id.0 as i32);
    assert_eq!(copies, [[7; 2], [7; 2], [7; 2], copied]);
    step.complete();
    drop((rows, fork));
    assert_all_room(&cache);
    Ok(())
}

#[test]
fn a_step_returns_its_buffers_and_says_how_much_it_published() -> Result<()> {
    let cache = cache(16);
    let mut rows = [(admitted(&cache, &[1, 2, 3]), 10)];
    let mut buffers = paged_kv::StepBuffers::default();
    for (accepted, published) in [(10, 3), (0, 0)] {
        let mut step = cache.step(std::mem::take(&mut buffers));
        assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
        assert_eq!(step.accept(0, &mut rows[0].0, &vec![9; accepted])?, published);
        let completed = step.complete();
        assert_eq!(completed.published, published);
        buffers = completed.buffers;
    }
    assert_eq!(format!("{buffers:?}"), "StepBuffers { .. }");
    drop(rows);
    assert_all_room(&cache);
    Ok(())
}
