//! An id that names another sequence by now: what was begun with the first one leaves the other alone.

mod common;

use common::s;
use paged_kv::export::Gaps;
use paged_kv::{Owner, PagedKvCache, PagedKvError, Result, SequenceInfo, Step};

const OLD: [u32; 8] = [7; 8];
const NEW: [u32; 13] = [8; 13];

/// How the first sequence leaves, so that another can come under its id.
type Leave = fn(&PagedKvCache);
const LEAVES: [Leave; 4] = [
    |cache| _ = cache.evict().unwrap(),
    |cache| cache.free(s(1)).unwrap(),
    |cache| cache.free_when_released(s(1)).unwrap(),
    |cache| _ = cache.evict_to_threshold(0.0).unwrap(),
];

/// What a thread does next that grew the first one in a step.
type Next = fn(&PagedKvCache, Step) -> (Result<()>, Option<Step>);
const NEXT: [(&str, Next); 6] = [
    ("slots", |cache, step| {
        let mut out = [0_i64; 16];
        (cache.slots(&[s(1)], &step, Gaps::Show, &mut out).map(drop), Some(step))
    }),
    ("commit_in", |cache, mut step| (cache.commit_in(s(1), 8, &mut step).map(drop), Some(step))),
    ("settle all", |cache, mut step| {
        (cache.settle(s(1), 0, &[9], &mut step).map(drop), Some(step))
    }),
    ("settle none", |cache, mut step| {
        (cache.settle(s(1), 0, &[], &mut step).map(drop), Some(step))
    }),
    ("abort", |cache, step| (cache.abort(step, &[s(1)]), None)),
    ("a lease's abort", |cache, step| (cache.lease(&[s(1)]).unwrap().abort(step), None)),
];

fn info(cache: &PagedKvCache) -> SequenceInfo {
    cache.get_sequence(s(1)).unwrap()
}

#[test]
fn a_step_leaves_another_sequence_under_the_id_alone() {
    for leave in LEAVES {
        for (name, next) in NEXT {
            let cache = PagedKvCache::new(16, 4, 1, 1);
            cache.admit(s(1), &OLD).unwrap();
            let mut step = cache.step();
            assert_eq!(cache.grow_batch(&[(s(1), 1)], &mut step).unwrap().done, 1);
            leave(&cache);
            cache.admit(s(1), &NEW).unwrap();
            let before = info(&cache);
            let (refused, step) = next(&cache, step);
            assert!(refused.is_err(), "{name}");
            assert_eq!(info(&cache), before, "{name}");
            step.into_iter().for_each(|step| _ = step.complete());
            assert_eq!(cache.probe(&NEW), 0, "{name}: it was never computed");
            assert_eq!(info(&cache), before, "{name}");
            cache.validate().unwrap();
        }
    }
}

#[test]
fn a_sequence_that_joined_without_growing_is_told_from_the_next_too() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    let mut step = cache.step();
    cache.take_part(s(1), &step)?;
    cache.free(s(1))?;
    cache.admit(s(1), &NEW)?;
    let refused = cache.commit_in(s(1), 8, &mut step);
    assert_eq!(refused, Err(PagedKvError::SequenceNotFound(s(1))));
    cache.take_part(s(1), &step)?; // from now on it is this one
    assert_eq!(cache.commit_in(s(1), 8, &mut step)?, 2);
    assert_eq!(step.complete(), 2);
    assert_eq!(cache.probe(&NEW), 8);
    Ok(())
}

#[test]
fn a_commit_joins_the_step_and_the_next_sequence_of_the_id_does_not() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    let mut step = cache.step();
    assert_eq!(cache.commit_in(s(1), 4, &mut step)?, 1);
    cache.free(s(1))?;
    assert_eq!(cache.free_block_count(), 14, "the step holds what its kernels compute");
    cache.admit(s(1), &NEW)?;
    assert!(cache.commit_in(s(1), 8, &mut step).is_err());
    assert_eq!(step.complete(), 1);
    assert_eq!(cache.probe(&NEW), 0);
    Ok(())
}

#[test]
fn an_evicted_owner_is_told_so_by_its_step() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &OLD)?;
    cache.set_owner(s(1), Owner(3))?;
    let mut step = cache.step();
    assert_eq!(cache.grow_batch(&[(s(1), 1)], &mut step)?.done, 1);
    cache.evict()?;
    let evicted = PagedKvError::SequenceEvicted(s(1));
    assert_eq!(cache.commit_in(s(1), 4, &mut step), Err(evicted.clone()));
    assert_eq!(cache.settle(s(1), 0, &[9], &mut step), Err(evicted.clone()));
    assert_eq!(cache.abort(step, &[s(1)]), Err(evicted));
    Ok(())
}

#[test]
fn rows_are_asked_for_by_their_own_ids() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &[1, 2, 3])?;
    cache.admit(s(2), &[4, 5, 6])?;
    let mut step = cache.step();
    assert_eq!(cache.grow_batch(&[(s(1), 1), (s(2), 1)], &mut step)?.done, 2);
    let mut out = [0_i64; 4];
    let is_refused =
        |refused: Result<usize>| matches!(refused, Err(PagedKvError::InvalidConfig { .. }));
    assert!(is_refused(cache.slots(&[s(2), s(1)], &step, Gaps::Show, &mut out)));
    assert!(is_refused(cache.settle(s(2), 0, &[9], &mut step)));
    assert!(is_refused(cache.settle(s(2), 2, &[9], &mut step)));
    assert!(is_refused(cache.revert(&mut step, &[s(2), s(1)]).map(|()| 0)));
    assert!(is_refused(cache.revert(&mut step, &[s(1)]).map(|()| 0)));
    // By handle, too.
    let mut rows = [(cache.allocate_sequence(3)?, 1), (cache.allocate_sequence(3)?, 1)];
    assert!(is_refused(step.slots(&rows, Gaps::Show, &mut out)));
    assert!(is_refused(step.revert(&mut rows).map(|()| 0)));
    cache.revert(&mut step, &[s(1), s(2)])?;
    assert_eq!(cache.get_sequence(s(2)).unwrap().num_tokens, 3);
    Ok(())
}

#[test]
fn a_step_of_which_a_row_is_gone_reverts_the_others() -> Result<()> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    for id in 1..=3 {
        cache.admit(s(id), &[id as u32; 3])?;
    }
    let mut step = cache.step();
    let rows = [1, 2, 3].map(|id| (s(id), 6));
    assert_eq!(cache.grow_batch(&rows, &mut step)?.done, 3);
    cache.free(s(2))?;
    cache.admit(s(2), &NEW)?;
    let ids = [1, 2, 3].map(s);
    cache.revert(&mut step, &ids)?;
    let lengths = ids.map(|id| cache.get_sequence(id).unwrap().num_tokens);
    assert_eq!(lengths, [3, 13, 3]);
    drop(step);
    assert_eq!(cache.used_block_count(), 1 + 4 + 1);
    cache.validate()
}

/// Threads that evict each other's requests and take their ids, while others are in the middle of steps.
#[test]
fn no_step_publishes_what_another_request_has_not_computed() {
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
                    let mut step = cache.step();
                    if cache.grow_batch(&[(id, 1)], &mut step).is_ok_and(|grown| grown.done == 1) {
                        std::thread::yield_now();
                        let mut out = [0_i64; 16];
                        _ = cache.slots(&[id], &step, Gaps::Show, &mut out);
                        _ = cache.commit_in(id, 4, &mut step);
                    }
                    match round % 4 {
                        0 => drop(step),
                        1 => _ = cache.abort(step, &[id]),
                        _ => _ = step.complete(),
                    }
                    assert!(cache.probe(&tokens) <= 4, "more than was computed");
                    if round % 2 == 0 {
                        _ = cache.evict();
                    }
                }
            });
        }
    });
    cache.validate().unwrap();
}
