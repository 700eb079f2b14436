//! Tests of steps by id: rows of leases give the same results as handles, and leave another sequence of
//! the same id alone.

mod common;

use common::{lease_row, lease_rows, s};
use paged_kv::export::{CsrBuffers, Gaps, TableShape};
use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError, Result};

const BLOCK_SIZE: usize = 4;

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, BLOCK_SIZE, 1, 1)
}

#[test]
fn a_step_by_id_grows_accepts_and_publishes_as_one_of_handles() -> Result<()> {
    let cache = cache(32);
    let tokens = |row: u32| [10 * row, 10 * row + 1, 10 * row + 2];
    let mut handles = Vec::new();
    for row in 0..3 {
        cache.admit(s(row.into()), &tokens(row))?;
        let prompt = cache.prompt(&tokens(row + 100));
        handles.push((cache.admit_sequence(&prompt, &AdmitOptions::default())?.0, 5));
    }
    let rows = [(s(0), 5), (s(1), 5), (s(2), 5)];
    let (mut by_id, mut by_handle) =
        (cache.step(Default::default()), cache.step(Default::default()));
    let ids = rows.map(|(id, _)| id);
    let mut rows = lease_rows(&cache, &rows);
    assert_eq!(by_id.grow(&mut rows)?, by_handle.grow(&mut handles)?);
    let (mut slots, mut slots_of_handles) = ([0_i64; 16], [0_i64; 16]);
    assert_eq!(by_id.slots(&rows, Gaps::Show, &mut slots)?, 15);
    assert_eq!(by_handle.slots(&handles, Gaps::Show, &mut slots_of_handles)?, 15);
    let offset = |slot: &i64| slot % BLOCK_SIZE as i64;
    assert!(slots.iter().map(offset).eq(slots_of_handles.iter().map(offset)));
    for (row, &id) in ids.iter().enumerate() {
        let accepted = [7, 8, 9];
        assert_eq!(by_id.accept(row, &mut rows[row].0, &accepted[..row])?, row.min(1));
        let waiting = by_handle.accept(row, &mut handles[row].0, &accepted[..row])?;
        assert_eq!(waiting, row.min(1));
        assert_eq!(cache.get_sequence(id).unwrap().num_tokens, 3 + row);
        assert_eq!(handles[row].0.num_tokens(), 3 + row);
    }
    assert_eq!((by_id.complete().published, by_handle.complete().published), (2, 2));
    assert_eq!(cache.prefix().probe(&cache.prompt(&[20, 21, 22, 7, 8])), 4);
    ids.iter().for_each(|&id| cache.free(id).unwrap());
    drop(handles);
    assert_eq!(cache.used_block_count(), 0);
    cache.validate()
}

#[test]
fn as_many_of_the_first_rows_grow_as_fit_and_the_rest_take_no_part() -> Result<()> {
    let cache = cache(3);
    cache.allocate(s(1), 4)?;
    cache.allocate(s(2), 4)?;
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[(s(1), 1), (s(2), 5)]);
    let grown = step.grow(&mut rows)?;
    assert_eq!((grown.grown_rows, grown.missing_blocks), (1, 2));
    cache.free(s(2))?;
    assert_eq!(cache.free_block_count(), 1, "the step does not hold what did not grow in it");
    step.abort(&mut rows[..1])?;
    assert_eq!(cache.free_block_count(), 2);
    cache.validate()
}

#[test]
fn a_lease_steps_its_rows() -> Result<()> {
    let cache = cache(16);
    for id in 1..3 {
        cache.admit(s(id), &[id as u32; 6])?;
    }
    let lease = cache.lease(&[s(1), s(2)])?;
    let mut rows: Vec<_> = lease.rows().map(|row| (row, 3)).collect();
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    assert_eq!(cache.used_block_count(), 6);
    step.abort(&mut rows)?;
    assert_eq!(cache.used_block_count(), 4);
    drop(lease);
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 6);
    cache.validate()
}

#[test]
fn another_sequence_under_the_id_is_left_alone() -> Result<()> {
    let cache = cache(16);
    cache.admit(s(1), &[1, 2, 3])?;
    let (mut step, mut aborted) = (cache.step(Default::default()), cache.step(Default::default()));
    let mut rows = lease_rows(&cache, &[(s(1), 3)]);
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    assert_eq!(aborted.grow(&mut rows)?.grown_rows, 1);
    cache.free(s(1))?;
    cache.admit(s(1), &[1, 2, 3])?;
    drop(cache.append(s(1), 6)?);
    let accepted = step.accept(0, &mut rows[0].0, &[4]);
    assert_eq!(accepted, Err(PagedKvError::SequenceNotFound(s(1))));
    aborted.abort(&mut rows)?;
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 9);
    step.complete();
    cache.free(s(1))?;
    assert_eq!(cache.used_block_count(), 0);
    cache.validate()
}

#[test]
fn a_step_of_another_cache_is_refused() -> Result<()> {
    let (cache, other) = (cache(8), cache(8));
    cache.admit(s(1), &[1, 2, 3])?;
    let mut step = other.step(Default::default());
    let is_refused =
        |refused: Result<usize>| matches!(refused, Err(PagedKvError::WrongCache { .. }));
    let mut rows = lease_rows(&cache, &[(s(1), 1)]);
    assert!(is_refused(step.grow(&mut rows).map(|grown| grown.grown_rows)));
    let row = &mut rows[0].0;
    assert!(is_refused(step.accept(0, row, &[])));
    assert!(is_refused(step.commit(row, 3)));
    assert!(is_refused(step.join(row).map(|()| 0)));
    Ok(())
}

#[test]
fn tables_of_a_step_are_those_of_its_rows() -> Result<()> {
    let cache = cache(8);
    let mut rows = [(cache.allocate_sequence(4)?, 1), (cache.allocate_sequence(2)?, 3)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    let block = |row: usize, at: usize| rows[row].0.block_ids()[at].0 as i32;
    let mut table = [0_i32; 6];
    let shape = TableShape { stride: 3, pad: -1, gaps: Gaps::Show };
    step.block_tables(&rows, &mut table, shape)?;
    assert_eq!(table, [block(0, 0), block(0, 1), -1, block(1, 0), block(1, 1), -1]);
    let (mut indptr, mut indices, mut last_page_len) = ([0_i32; 3], [0; 4], [0; 2]);
    let buffers = CsrBuffers {
        indptr: &mut indptr,
        indices: &mut indices,
        last_page_len: &mut last_page_len,
    };
    assert_eq!(step.csr(&rows, buffers, -1, Gaps::Show)?, 4);
    assert_eq!((indptr, last_page_len), ([0, 2, 4], [1, 1]));
    let mut slots = [0_i32; 5];
    assert_eq!(step.slots(&rows, Gaps::Show, &mut slots)?, 4);
    let expected = [block(0, 1) * 4, block(1, 0) * 4 + 2, block(1, 0) * 4 + 3, block(1, 1) * 4, -1];
    assert_eq!(slots, expected);
    assert!(step.slots(&rows[..1], Gaps::Show, &mut slots).is_err(), "a row is missing");
    Ok(())
}

#[test]
fn a_step_names_the_cached_contents_that_it_overwrites() -> Result<()> {
    let cache = cache(6);
    let prompt = cache.prompt(&[7; 9]);
    let (mut first, _) = cache.admit_sequence(&prompt, &AdmitOptions::default())?;
    first.commit(9)?;
    let kept = first.block_ids().to_vec();
    drop(first);
    let mut rows = [(cache.allocate_sequence(0)?, 16)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    assert_eq!(step.overwritten(), [], "four blocks were free");
    rows[0].1 = 4;
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    // The prompt's tail is reclaimed before its head.
    let lost = |at: usize| (step.overwritten()[at].block, step.overwritten()[at].hash);
    assert_eq!((step.overwritten().len(), lost(0)), (1, (kept[1], prompt.hashes()[1])));
    assert_eq!(rows[0].0.block_ids()[4], kept[1]);
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    let second = step.overwritten()[1];
    assert_eq!((second.block, second.hash), (kept[0], prompt.hashes()[0]));
    step.complete();
    drop(rows);
    let mut rows = [(cache.allocate_sequence(0)?, 24)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    assert_eq!(step.overwritten(), [], "blocks that were not cached, whatever they once held");
    Ok(())
}

#[test]
fn a_row_whose_copy_was_shared_and_copied_again_in_the_step_is_restored() -> Result<()> {
    let cache = cache(8);
    cache.allocate(s(1), 3)?;
    cache.fork(s(1), s(2))?;
    let mut step = cache.step(Default::default());
    let row = (lease_row(&cache, s(2)), 1);
    let mut rows = [row.clone(), row];
    assert_eq!(step.grow(&mut rows[..1])?.grown_rows, 1, "with a copy");
    cache.truncate(s(2), 3)?;
    cache.fork(s(2), s(3))?;
    assert_eq!(step.grow(&mut rows[1..])?.grown_rows, 1, "with a copy of the copy");
    let mut copies: Vec<[i32; 2]> = Vec::new();
    assert_eq!(step.copies(&mut copies)?, 2);
    assert_eq!(copies[1][0], copies[0][1]);
    step.abort(&mut rows)?;
    let blocks_of = |id| cache.get_sequence(s(id)).unwrap().block_ids;
    assert_eq!(blocks_of(2), blocks_of(1), "as before the step");
    (1..=3).for_each(|id| cache.free(s(id)).unwrap());
    assert_eq!(cache.used_block_count(), 0);
    cache.validate()
}

#[test]
fn a_row_that_found_no_room_in_a_step_was_not_used() -> Result<()> {
    for leases in [false, true] {
        let cache = cache(4);
        (1..=3).try_for_each(|id| cache.allocate(s(id), 4))?;
        let mut step = cache.step(Default::default());
        let lease = leases.then(|| cache.lease(&[s(1), s(2)])).transpose()?;
        let grown = step.grow(&mut lease_rows(&cache, &[(s(1), 1), (s(2), 5)]))?;
        drop(lease);
        assert_eq!((grown.grown_rows, grown.missing_blocks), (1, 2));
        assert_eq!(cache.select_eviction_target(), Some(s(2)), "1 has been used since");
    }
    Ok(())
}
