//! Tests of identity: when another sequence has taken an id, the calls begun with the first sequence
//! leave it alone.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use common::{lease_row, lease_rows, s};
use paged_kv::export::Gaps;
use paged_kv::{
    AbortRefused, LeaseRow, PagedKvCache, PagedKvError, Result, SequenceInfo, Step, Worker,
};

const OLD: [u32; 8] = [7; 8];
const NEW: [u32; 13] = [8; 13];

/// The way in which the first sequence leaves, so that another can take its id.
type Leave = fn(&PagedKvCache);
const LEAVES: [Leave; 4] = [
    |cache| _ = cache.evict().unwrap(),
    |cache| cache.free(s(1)).unwrap(),
    |cache| cache.free_when_released(s(1)).unwrap(),
    |cache| _ = cache.evict_to_threshold(0.0).unwrap(),
];

type Rows = [(LeaseRow, usize)];

/// The next call of a thread that grew the first sequence in a step, with its row of that sequence.
type Next = fn(&mut Rows, Step) -> (Result<()>, Option<Step>);
const NEXT: [(&str, Next); 5] = [
    ("slots", |rows, step| (step.slots(rows, Gaps::Show, &mut [0_i64; 16]).map(drop), Some(step))),
    ("commit", |rows, mut step| (step.commit(&mut rows[0].0, 8).map(drop), Some(step))),
    ("accept all", |rows, mut step| (step.accept(0, &mut rows[0].0, &[9]).map(drop), Some(step))),
    ("accept none", |rows, mut step| (step.accept(0, &mut rows[0].0, &[]).map(drop), Some(step))),
    ("join", |rows, mut step| (step.join(&mut rows[0].0), Some(step))),
];

/// Calls that are refused with a row of the other sequence, which did not grow in the step.
const NEXT_BY_THE_OTHER: [(&str, Next); 3] = [
    ("slots", |rows, step| (step.slots(rows, Gaps::Show, &mut [0_i64; 16]).map(drop), Some(step))),
    ("accept", |rows, mut step| (step.accept(0, &mut rows[0].0, &[9]).map(drop), Some(step))),
    ("abort", |rows, step| (step.abort(rows).map(drop).map_err(PagedKvError::from), None)),
];

fn info(cache: &PagedKvCache) -> SequenceInfo {
    cache.get_sequence(s(1)).unwrap()
}

#[test]
fn a_step_leaves_another_sequence_under_the_id_alone() {
    for leave in LEAVES {
        let nexts = NEXT.map(|next| (false, next)).into_iter();
        for (by_the_other, (name, next)) in nexts.chain(NEXT_BY_THE_OTHER.map(|next| (true, next)))
        {
            let cache = PagedKvCache::new(16, 4, 1, 1);
            cache.admit(s(1), &OLD).unwrap();
            let (mut rows, mut step) =
                (lease_rows(&cache, &[(s(1), 1)]), cache.step(Default::default()));
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            leave(&cache);
            cache.admit(s(1), &NEW).unwrap();
            if by_the_other {
                rows = lease_rows(&cache, &[(s(1), 1)]);
            }
            let before = info(&cache);
            let (refused, step) = next(&mut rows, step);
            match by_the_other {
                true => assert!(
                    matches!(refused, Err(PagedKvError::InvalidConfig { .. })),
                    "{name}: {refused:?}"
                ),
                false => assert_eq!(refused, Err(PagedKvError::SequenceNotFound(s(1))), "{name}"),
            }
            assert_eq!(info(&cache), before, "{name}");
            step.into_iter().for_each(|step| _ = step.complete());
            assert_eq!(
                cache.prefix().probe(&cache.prompt(&NEW)),
                0,
                "{name}: it was never computed"
            );
            assert_eq!(info(&cache), before, "{name}");
            cache.validate().unwrap();
        }
    }
}

#[test]
fn an_aborted_step_leaves_another_sequence_under_the_id_alone() -> Result<()> {
    for leave in LEAVES {
        let cache = PagedKvCache::new(16, 4, 1, 1);
        cache.admit(s(1), &OLD)?;
        let (mut rows, mut step) =
            (lease_rows(&cache, &[(s(1), 1)]), cache.step(Default::default()));
        assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
        leave(&cache);
        cache.admit(s(1), &NEW)?;
        let before = info(&cache);
        step.abort(&mut rows)?; // passes over the row that is gone
        assert_eq!(info(&cache), before);
        assert_eq!(cache.used_block_count(), 4);
        cache.validate()?;
    }
    Ok(())
}

#[test]
fn a_sequence_that_joined_without_growing_is_told_from_the_next_too() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    let mut step = cache.step(Default::default());
    let mut row = lease_row(&cache, s(1));
    step.join(&mut row)?;
    cache.free(s(1))?;
    cache.admit(s(1), &NEW)?;
    let refused = step.commit(&mut row, 8);
    assert_eq!(refused, Err(PagedKvError::SequenceNotFound(s(1))));
    let mut row = lease_row(&cache, s(1)); // a row of the new sequence
    step.join(&mut row)?;
    assert_eq!(step.commit(&mut row, 8)?, 2);
    assert_eq!(step.complete().published, 2);
    assert_eq!(cache.prefix().probe(&cache.prompt(&NEW)), 8);
    Ok(())
}

#[test]
fn a_commit_joins_the_step_and_the_next_sequence_of_the_id_does_not() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    let mut step = cache.step(Default::default());
    let mut row = lease_row(&cache, s(1));
    assert_eq!(step.commit(&mut row, 4)?, 1);
    cache.free(s(1))?;
    assert_eq!(cache.free_block_count(), 14, "the step holds what its kernels compute");
    cache.admit(s(1), &NEW)?;
    assert_eq!(step.commit(&mut row, 8), Err(PagedKvError::SequenceNotFound(s(1))));
    assert_eq!(step.complete().published, 1);
    assert_eq!(cache.prefix().probe(&cache.prompt(&NEW)), 0);
    Ok(())
}

#[test]
fn an_evicted_owner_is_told_so_by_its_id_and_its_row_is_gone() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    cache.set_worker(s(1), Worker(3))?;
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[(s(1), 1)]);
    assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    cache.evict()?;
    let gone = PagedKvError::SequenceNotFound(s(1));
    assert_eq!(step.commit(&mut rows[0].0, 4), Err(gone.clone()));
    assert_eq!(step.accept(0, &mut rows[0].0, &[9]), Err(gone));
    let evicted = PagedKvError::SequenceEvicted(s(1));
    assert_eq!(cache.commit(s(1), 4), Err(evicted.clone()));
    assert_eq!(cache.lease(&[s(1)]).err(), Some(evicted));
    step.abort(&mut rows)?;
    assert_eq!(cache.used_block_count(), 0);
    Ok(())
}

#[test]
fn rows_are_asked_for_in_the_order_of_their_numbers() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &[1, 2, 3])?;
    cache.admit(s(2), &[4, 5, 6])?;
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[(s(1), 1), (s(2), 1)]);
    assert_eq!(step.grow(&mut rows)?.grown_rows, 2);
    let mut swapped = rows.clone();
    swapped.swap(0, 1);
    let mut out = [0_i64; 4];
    let is_refused =
        |refused: Result<usize>| matches!(refused, Err(PagedKvError::InvalidConfig { .. }));
    let abort_is_refused = |refused: AbortRefused| {
        assert!(is_refused(Err(refused.error)));
        refused.step
    };
    assert!(is_refused(step.slots(&swapped, Gaps::Show, &mut out)));
    assert!(is_refused(step.slots(&rows[..1], Gaps::Show, &mut out)));
    assert!(is_refused(step.accept(0, &mut rows[1].0, &[9])));
    assert!(is_refused(step.accept(2, &mut rows[1].0, &[9])));
    step = abort_is_refused(step.abort(&mut swapped).unwrap_err());
    step = abort_is_refused(step.abort(&mut rows[..1]).unwrap_err());
    // The same holds by handle.
    let mut handles = [(cache.allocate_sequence(3)?, 1), (cache.allocate_sequence(3)?, 1)];
    handles.iter_mut().try_for_each(|(handle, n)| handle.append(*n).map(drop))?;
    assert!(is_refused(step.slots(&handles, Gaps::Show, &mut out)));
    step = abort_is_refused(step.abort(&mut handles).unwrap_err());
    // A row that is gone does not replace another row either.
    cache.free(s(2))?;
    let mut gone = [rows[1].clone(), rows[1].clone()];
    step = abort_is_refused(step.abort(&mut gone).unwrap_err());
    step.abort(&mut rows)?;
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 3);
    Ok(())
}

#[test]
fn a_step_of_which_a_row_is_gone_is_aborted_for_the_others() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    for id in 1..=3 {
        cache.admit(s(id), &[id as u32; 3])?;
    }
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[1, 2, 3].map(|id| (s(id), 6)));
    assert_eq!(step.grow(&mut rows)?.grown_rows, 3);
    cache.free(s(2))?;
    cache.admit(s(2), &NEW)?;
    step.abort(&mut rows)?;
    let lengths = [1, 2, 3].map(|id| cache.get_sequence(s(id)).unwrap().num_tokens);
    assert_eq!(lengths, [3, 13, 3]);
    assert_eq!(cache.used_block_count(), 1 + 4 + 1);
    cache.validate()
}

/// Threads evict each other's requests and take their ids, while other threads are in the middle of
/// steps.
#[test]
fn no_step_publishes_tokens_another_request_has_not_computed() {
    const THREADS: u32 = 4;
    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 3_000 };
    let cache = PagedKvCache::new(24, 4, 1, 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // Each round has tokens of its own, and only the first four are ever computed.
                    let tokens = [[thread, round, 1, 1], [1; 4], [2; 4]].concat();
                    let id = s(u64::from(round % 3));
                    if cache.admit(id, &tokens).is_err() {
                        _ = cache.evict();
                        continue;
                    }
                    let mut step = cache.step(Default::default());
                    let leased = cache.lease(&[id]);
                    let mut rows: Vec<_> =
                        leased.iter().flat_map(|lease| lease.rows()).map(|row| (row, 1)).collect();
                    drop(leased);
                    if step.grow(&mut rows).is_ok_and(|grown| grown.grown_rows == 1) {
                        std::thread::yield_now();
                        let mut out = [0_i64; 16];
                        _ = step.slots(&rows, Gaps::Show, &mut out);
                        _ = step.commit(&mut rows[0].0, 4);
                    }
                    match round % 4 {
                        0 => drop(step),
                        1 => {
                            let refused = step.abort(&mut rows).err().map(|refused| refused.error);
                            let gone = PagedKvError::SequenceNotFound(id);
                            assert_ne!(refused, Some(gone), "one that is gone is passed over");
                        }
                        _ => _ = step.complete(),
                    }
                    assert!(
                        cache.prefix().probe(&cache.prompt(&tokens)) <= 4,
                        "more than was computed"
                    );
                    if round % 2 == 0 {
                        _ = cache.evict();
                    }
                }
            });
        }
    });
    cache.validate().unwrap();
}

/// This includes rows that leave between the abort's first read of them and its locks.
#[test]
fn an_abort_skips_the_rows_removed_during_it() {
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
    let cache = PagedKvCache::new(64, 4, 1, 1);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                (0..8).for_each(|id| _ = cache.free(s(id)));
            }
        });
        let mut refusals = 0;
        for _ in 0..ROUNDS {
            let ids = [0, 1, 2, 3, 4, 5, 6, 7].map(s);
            ids.iter().for_each(|&id| _ = cache.allocate(id, 3));
            let mut step = cache.step(Default::default());
            let Ok(lease) = cache.lease(&ids) else { continue };
            let mut rows: Vec<_> = lease.rows().map(|row| (row, 2)).collect();
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 8);
            drop(lease);
            refusals += usize::from(step.abort(&mut rows).is_err());
        }
        ended.store(true, Relaxed);
        assert_eq!(refusals, 0);
    });
    cache.validate().unwrap();
}
