//! Tests of failed steps: after a failed, dropped or aborted step every call can be repeated, with the
//! outcome it would have had. Tokens become known in the order of their positions.

#[path = "../common/mod.rs"]
mod common;
mod history;

use common::{lease_row, s};
use paged_kv::{
    AdmitOptions, BlockId, CachedSequence, LeaseRow, PagedKvCache, PagedKvError, Result, Step,
    StepBuffers,
};

fn cache() -> PagedKvCache {
    PagedKvCache::new(16, 4, 1, 1)
}

fn admitted(cache: &PagedKvCache, tokens: &[u32], first_chunk: usize) -> CachedSequence {
    let options = AdmitOptions::default().first_chunk(first_chunk);
    cache.admit_sequence(&cache.prompt(tokens), &options).unwrap().0
}

#[test]
fn a_commit_in_a_failed_step_can_be_repeated() -> Result<()> {
    for aborts in [false, true] {
        let cache = cache();
        cache.admit(s(1), &[7; 9])?;
        let mut failed = cache.step(Default::default());
        assert_eq!(failed.commit(&mut lease_row(&cache, s(1)), 9)?, 2);
        // A fork made during the step had offered the same blocks.
        cache.fork(s(1), s(2))?;
        if aborts {
            failed.abort::<LeaseRow>(&mut [])?;
        } else {
            drop(failed);
        }
        cache.free(s(1))?;
        assert_eq!(cache.commit(s(2), 9)?, 2, "aborted: {aborts}");
        assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 8);
    }
    Ok(())
}

#[test]
fn of_two_steps_in_flight_the_failed_one_is_repeated_and_the_other_is_not() -> Result<()> {
    let cache = cache();
    let mut sequence = admitted(&cache, &[7; 17], 17);
    let (mut first, mut second) = (cache.step(Default::default()), cache.step(Default::default()));
    assert_eq!(first.commit(&mut sequence, 8)?, 2);
    assert_eq!(second.commit(&mut sequence, 16)?, 2, "two are on their way in the first");
    drop(first);
    assert_eq!(second.complete().published, 2);
    assert_eq!(
        cache.prefix().probe(&cache.prompt(&[7; 17])),
        0,
        "the blocks before them are missing"
    );
    let mut third = cache.step(Default::default());
    assert!(third.commit(&mut sequence, 16)? >= 2);
    assert_eq!(third.complete().published, 2);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 17])), 16);
    Ok(())
}

#[test]
fn a_block_offered_to_a_step_is_not_offered_twice() -> Result<()> {
    let cache = cache();
    let mut sequence = admitted(&cache, &[7; 9], 9);
    let mut step = cache.step(Default::default());
    assert_eq!(step.commit(&mut sequence, 9)?, 2);
    assert_eq!(step.commit(&mut sequence, 9)?, 0);
    assert_eq!(step.complete().published, 2);
    assert_eq!(sequence.commit(9)?, 0);
    // The failure of another sequence's step changes nothing that was published.
    let mut other = admitted(&cache, &[8; 9], 9);
    let mut failed = cache.step(Default::default());
    assert_eq!(failed.commit(&mut other, 9)?, 2);
    drop(failed);
    assert_eq!(sequence.commit(9)?, 0);
    assert_eq!(other.commit(9)?, 2);
    Ok(())
}

#[test]
fn a_step_publishes_under_the_generation_of_the_sequence() -> Result<()> {
    let cache = cache();
    let mut sequence = admitted(&cache, &[7; 9], 9);
    cache.prefix().reset();
    let mut step = cache.step(Default::default());
    assert_eq!(step.commit(&mut sequence, 9)?, 2);
    assert_eq!(step.complete().published, 0, "it was computed with the old weights");
    assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 0);
    Ok(())
}

#[test]
fn a_truncation_that_drops_no_token_changes_nothing() -> Result<()> {
    let (cache, tokens) = (cache(), [7; 21]);
    cache.admit_with(s(1), &cache.prompt(&tokens), &AdmitOptions::default().first_chunk(8))?;
    let before = cache.get_sequence(s(1));
    cache.truncate(s(1), 8)?;
    assert_eq!(cache.get_sequence(s(1)), before);
    drop(cache.append(s(1), 13)?);
    assert_eq!(cache.commit(s(1), 21)?, 5);
    assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 20);
    let mut sequence = admitted(&cache, &[8; 21], 8);
    sequence.truncate(8)?;
    assert_eq!(sequence.num_named_tokens(), 21);
    drop(sequence.append(13)?);
    assert_eq!(sequence.commit(21)?, 5);
    sequence.truncate(7)?;
    assert_eq!(sequence.num_named_tokens(), 7, "one that drops some forgets those behind");
    Ok(())
}

#[test]
fn tokens_are_named_only_behind_named_ones() -> Result<()> {
    let cache = cache();
    cache.admit(s(1), &[1, 2, 3])?;
    drop(cache.append(s(1), 1)?); // position 3: its token is not known
    let refused = PagedKvError::UnnamedTokens { named: 3, num_tokens: 4 };
    assert_eq!(cache.append_tokens(s(1), &[4]).map(drop), Err(refused));
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 4);
    assert_eq!(cache.commit(s(1), &[4])?, 1);
    drop(cache.append_tokens(s(1), &[5])?);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    // Before the prompt's own tokens have slots, no token can follow them.
    cache.admit_with(s(2), &cache.prompt(&[7; 9]), &AdmitOptions::default().first_chunk(4))?;
    assert!(cache.append_tokens(s(2), &[8]).is_err());
    assert_eq!(cache.get_sequence(s(2)).unwrap().num_tokens, 4);
    // Where only hashes are known, tokens are counted until they would fill a block without a hash.
    cache.admit_with(s(3), &paged_kv::Prompt::from_hashes(&[], 2), &AdmitOptions::default())?;
    drop(cache.append_tokens(s(3), &[9])?);
    let refused = PagedKvError::HashesUnknown { known: 0, requested: 4 };
    assert_eq!(cache.append_tokens(s(3), &[9]).map(drop), Err(refused));
    assert_eq!(cache.get_sequence(s(3)).unwrap().num_tokens, 3);
    Ok(())
}

#[test]
fn a_row_with_a_named_token_and_drafts_behind_it_is_accepted() -> Result<()> {
    // The prompt's last token is computed together with the drafts.
    for (accepted, published) in [(&[3, 4, 5][..], 1), (&[3, 4], 1), (&[3], 0), (&[], 0)] {
        let cache = cache();
        let mut rows = [(admitted(&cache, &[1, 2, 3], 2), 4)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
        assert_eq!(rows[0].0.num_named_tokens(), 3);
        assert!(step.accept(0, &mut rows[0].0, &[9, 4]).is_err(), "it is named 3");
        assert_eq!(rows[0].0.num_tokens(), 6);
        assert_eq!(step.accept(0, &mut rows[0].0, accepted)?, published);
        assert_eq!(step.complete().published, published);
        assert_eq!(rows[0].0.num_tokens(), 2 + accepted.len());
        assert_eq!(rows[0].0.num_named_tokens(), (2 + accepted.len()).max(3));
        assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4 * published);
    }
    Ok(())
}

#[test]
fn a_chunk_of_a_prompt_that_goes_on_is_accepted() -> Result<()> {
    let prompt: Vec<u32> = (0..17).collect();
    for accepted in 0..=6 {
        let cache = cache();
        let mut rows = [(admitted(&cache, &prompt, 2), 6)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
        let tokens = &prompt[2..2 + accepted];
        let full = (2 + accepted) / 4;
        assert_eq!(step.accept(0, &mut rows[0].0, tokens)?, full, "{accepted} accepted");
        assert_eq!((step.complete().published, rows[0].0.num_tokens()), (full, 2 + accepted));
        // The rest of the prompt is known as before.
        assert_eq!(rows[0].0.num_named_tokens(), 17);
        drop(rows[0].0.append(15 - accepted)?);
        rows[0].0.commit(17)?;
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt)), 16);
    }
    Ok(())
}

#[test]
fn a_row_is_accepted_only_with_the_tokens_that_it_has_named_since() -> Result<()> {
    let cache = cache();
    let mut rows = [(admitted(&cache, &[1, 2], 2), 5)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    let row = &mut rows[0].0;
    row.commit(&[3])?;
    assert!(step.accept(0, row, &[9, 4]).is_err(), "it is named 3");
    assert_eq!((row.num_tokens(), row.num_named_tokens()), (7, 3));
    assert_eq!(step.accept(0, row, &[3, 4])?, 1);
    assert_eq!(step.complete().published, 1);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    Ok(())
}

#[test]
fn rows_that_were_refused_are_not_held_by_the_step() -> Result<()> {
    let cache = PagedKvCache::new(4, 4, 1, 1);
    let of = |num_tokens, n| Ok::<_, PagedKvError>((cache.allocate_sequence(num_tokens)?, n));
    let mut rows = vec![of(4, 1)?, of(4, 5)?, of(3, 1)?];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    drop(rows.split_off(1));
    assert_eq!(cache.free_block_count(), 2, "they had not joined");
    let mut other = [(cache.allocate_sequence(3)?, 1), (cache.allocate_sequence(1)?, usize::MAX)];
    assert!(step.grow(&mut other).is_err());
    drop(other);
    assert_eq!(cache.free_block_count(), 2, "none of a refused batch has joined");
    // A row that had joined before stays held.
    let mut joined = [(cache.allocate_sequence(4)?, 9)];
    step.join(&mut joined[0].0).unwrap();
    assert_eq!(step.grow(&mut joined)?.grown_rows, 0);
    drop(joined);
    assert_eq!(cache.free_block_count(), 1);
    drop((rows, step));
    assert_eq!(cache.free_block_count(), 4);
    Ok(())
}

#[test]
fn a_refused_abort_keeps_the_step_and_an_abort_its_memory() -> Result<()> {
    let cache = cache();
    let mut rows = [(admitted(&cache, &[1, 2, 3], 3), 6), (admitted(&cache, &[4; 6], 6), 2)];
    let mut step = cache.step(StepBuffers::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_eq!(step.accept(1, &mut rows[1].0, &[4, 4])?, 2);
    let refused = step.abort(&mut rows[..1]).unwrap_err();
    assert!(matches!(refused.error, PagedKvError::InvalidConfig { parameter: "rows", .. }));
    assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (9, 8));
    let aborted = refused.step.abort(&mut rows)?;
    assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (3, 6));
    assert_eq!(rows[1].0.num_named_tokens(), 6);
    let mut step = cache.step(aborted.buffers);
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2, "its memory has nothing of the first");
    assert_eq!(step.accept(1, &mut rows[1].0, &[4, 4])?, 2);
    assert_eq!(step.complete().published, 2);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[4; 9])), 8);
    Ok(())
}

#[test]
fn a_sequence_that_grew_twice_in_a_step_is_restored_to_its_beginning() -> Result<()> {
    let cache = cache();
    cache.admit(s(1), &[1, 2, 3])?;
    let mut step = cache.step(Default::default());
    let row = (lease_row(&cache, s(1)), 2);
    let mut rows = [row.clone(), row];
    assert_eq!(step.grow(&mut rows[..1])?.grown_rows, 1);
    cache.fork(s(1), s(2))?;
    assert_eq!(step.grow(&mut rows[1..])?.grown_rows, 1, "with a copy");
    cache.free(s(2))?;
    step.abort(&mut rows)?;
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 3);
    assert_eq!(cache.used_block_count(), 1);
    cache.validate()
}

#[test]
fn of_n_owners_of_a_last_block_in_one_batch_all_but_one_copy() -> Result<()> {
    for owners in [2, 4, 8] {
        for free in [owners - 1, owners] {
            let cache = PagedKvCache::new(1 + free, 4, 1, 1);
            let mut first = cache.allocate_sequence(2)?;
            let forks = first.fork_n(owners - 1)?;
            let mut rows: Vec<_> = forks.into_iter().chain([first]).map(|row| (row, 1)).collect();
            let mut step = cache.step(Default::default());
            assert_eq!(step.grow(&mut rows)?.grown_rows, owners);
            let mut copies: Vec<[u32; 2]> = Vec::new();
            assert_eq!(step.copies(&mut copies)?, owners - 1);
            let tails: std::collections::BTreeSet<_> =
                rows.iter().map(|(row, _)| row.block_ids()[0]).collect();
            assert_eq!(tails.len(), owners, "each has a last block of its own");
            // The abort undoes all of it: the block is shared as before.
            step.abort(&mut rows)?;
            assert_eq!(cache.used_block_count(), 1);
            assert!(rows.iter().all(|(row, _)| row.block_ids() == rows[0].0.block_ids()));
            let append = rows[owners - 1].0.append(1)?;
            assert!(append.copy.is_some(), "nobody writes a block that others own");
        }
    }
    Ok(())
}

#[test]
fn owners_that_grow_in_two_batches_of_a_step_copy_no_more() -> Result<()> {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    let mut first = cache.allocate_sequence(2)?;
    let mut rows: Vec<_> = first.fork_n(3)?.into_iter().map(|row| (row, 1)).collect();
    rows.push((first, 1));
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows[..2])?.grown_rows, 2);
    assert_eq!(step.grow(&mut rows[2..])?.grown_rows, 2);
    assert_eq!(step.copies(&mut Vec::<[u32; 2]>::new())?, 3);
    // With an owner outside the batch all of its rows copy.
    step.complete();
    let outside = rows[0].0.fork()?;
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows[..1])?.grown_rows, 1);
    assert_eq!(step.copies(&mut Vec::<[u32; 2]>::new())?, 1);
    drop((step, outside, rows));
    assert_eq!(cache.used_block_count(), 0);
    cache.validate()
}

#[test]
fn an_acceptance_that_is_refused_changes_nothing() -> Result<()> {
    let cache = cache();
    let mut rows = [(admitted(&cache, &[1, 2, 3], 3), 4)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    let block = rows[0].0.block_ids()[0];
    let retained = (0..).take_while(|_| cache.pool().retain(block).is_ok()).count();
    let accepted = step.accept(0, &mut rows[0].0, &[4, 5]);
    assert_eq!(accepted, Err(PagedKvError::TooManyOwners(block)));
    assert_eq!((rows[0].0.num_tokens(), rows[0].0.num_named_tokens()), (7, 3));
    (0..retained).for_each(|_| cache.pool().release(block).unwrap());
    assert_eq!(step.accept(0, &mut rows[0].0, &[4, 5])?, 1);
    assert_eq!(step.complete().published, 1);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    Ok(())
}

/// Creates a row of 3 tokens that grew into a block and then shared it with a fork. The block can have no
/// more owners, so the row cannot be cut inside it. The row is accepted up to 5 tokens.
fn row_that_is_not_cut(
    step: &mut Step,
    cache: &PagedKvCache,
    named: &[u32],
) -> ([CachedSequence; 2], Vec<BlockId>) {
    let mut rows = [(admitted(cache, named, 3), 5)];
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let [(mut row, _)] = rows;
    let (fork, last) = (row.fork().unwrap(), row.block_ids()[1]);
    let retained = (0..).take_while(|_| cache.pool().retain(last).is_ok()).map(|_| last).collect();
    assert_eq!(step.accept(0, &mut row, &[4, 5]), Err(PagedKvError::TooManyOwners(last)));
    ([row, fork], retained)
}

#[test]
fn an_acceptance_whose_cut_is_refused_can_be_repeated() -> Result<()> {
    // The tokens belong to the row, or already to its prompt.
    for named in [3, 4, 5] {
        let cache = cache();
        let mut step = cache.step(Default::default());
        let row = row_that_is_not_cut(&mut step, &cache, &[1, 2, 3, 4, 5][..named]);
        let ([mut row, _fork], retained) = row;
        assert_eq!((row.num_tokens(), row.num_named_tokens()), (8, named));
        retained.into_iter().for_each(|id| cache.pool().release(id).unwrap());
        assert_eq!(step.accept(0, &mut row, &[4, 5])?, 1, "its first block is offered again");
        assert_eq!(step.complete().published, 1);
        assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    }
    Ok(())
}

#[test]
fn a_commit_behind_a_refused_acceptance_is_published_under_its_own_hashes() -> Result<()> {
    let cache = cache();
    let mut step = cache.step(Default::default());
    let (_row, _) = row_that_is_not_cut(&mut step, &cache, &[1, 2, 3]);
    let mut other = admitted(&cache, &[9; 5], 5);
    step.join(&mut other).unwrap();
    assert_eq!(step.commit(&mut other, 5)?, 1);
    assert_eq!(step.complete().published, 1);
    assert_eq!(
        (
            cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])),
            cache.prefix().probe(&cache.prompt(&[9; 5]))
        ),
        (0, 4)
    );
    Ok(())
}

#[test]
fn a_commit_publishes_despite_the_promise_of_an_open_step() -> Result<()> {
    for (in_step, completes) in [(4, false), (4, true), (9, false), (9, true)] {
        let cache = cache();
        let mut sequence = admitted(&cache, &[7; 9], 9);
        let mut step = cache.step(Default::default());
        assert_eq!(step.commit(&mut sequence, in_step)?, in_step / 4);
        assert_eq!(sequence.commit(3)?, 0);
        assert_eq!(sequence.commit(9)?, 2, "they are computed, whatever becomes of the step");
        assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 9])), 8);
        if completes {
            assert_eq!(step.complete().published, 0);
        } else {
            drop(step);
        }
        assert_eq!((cache.prefix().probe(&cache.prompt(&[7; 9])), sequence.commit(9)?), (8, 0));
        drop(sequence);
        assert_eq!(cache.used_block_count(), 0);
        cache.validate()?;
    }
    Ok(())
}

#[test]
fn a_step_commits_no_tokens_that_have_no_slots() -> Result<()> {
    let cache = cache();
    let mut sequence = admitted(&cache, &[7; 9], 6);
    let options = AdmitOptions::default().first_chunk(6);
    cache.admit_with(s(1), &cache.prompt(&[8; 9]), &options)?;
    let refused = Err(PagedKvError::CommitBeyondEnd { requested: 8, num_tokens: 6 });
    let mut step = cache.step(Default::default());
    assert_eq!(step.commit(&mut sequence, 8), refused);
    assert_eq!(step.commit(&mut lease_row(&cache, s(1)), 8), refused);
    assert_eq!(step.complete().published, 0);
    assert_eq!(
        (
            cache.prefix().probe(&cache.prompt(&[7; 9])),
            cache.prefix().probe(&cache.prompt(&[8; 9]))
        ),
        (0, 0)
    );
    Ok(())
}

#[test]
fn an_abort_with_one_row_cut_below_its_start_undoes_no_row() -> Result<()> {
    let cache = cache();
    let [long, cut] = [(); 2].map(|()| cache.allocate_sequence(8).unwrap());
    let mut rows = [(long, 5), (cut, 1)];
    for by in [0, 1] {
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
        rows[by].0.truncate(4)?;
        let lengths = [0, 1].map(|row: usize| rows[row].0.num_tokens());
        let refused = step.abort(&mut rows).unwrap_err().error;
        assert!(matches!(refused, PagedKvError::InvalidConfig { parameter: "rows", .. }));
        assert_eq!([0, 1].map(|row: usize| rows[row].0.num_tokens()), lengths);
    }
    Ok(())
}
