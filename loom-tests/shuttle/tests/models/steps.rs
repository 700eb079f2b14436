//! Models of steps: evictions count the blocks that steps give back, at whatever moment they read the
//! count.

use paged_kv::PagedKvError::{NothingToEvict, SequenceNotFound};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, assert_all_free_at_end, cache, join};

/// Two of four blocks are held by the step, on their way to the pool, or in the pool.
#[test]
fn no_sequence_is_evicted_for_blocks_a_step_returns() {
    for has_older in [false, true] {
        explore(move || {
            let cache = cache(4).with_eviction_threshold(0.6);
            let older = has_older.then(|| cache.step(Default::default()));
            let mut step = cache.step(Default::default());
            cache.allocate(A, 4).expect("there is room");
            cache.allocate(B, 4).expect("there is room");
            join(&cache, A, &mut step);
            cache.free(A).expect("it is there");
            scope(|scope| {
                scope.spawn(|| drop(step));
                assert_eq!(cache.evict_to_threshold(0.5), Ok(vec![]));
                assert!(!cache.needs_eviction());
            });
            drop(older);
            assert_eq!(cache.used_block_count(), 2);
            assert_all_free_at_end(&cache);
        });
    }
}

/// A step holds blocks of the sequence, and is not another user of them: before, during and after its
/// end.
#[test]
fn a_sequence_that_shares_all_with_a_step_is_evicted_while_the_step_ends() {
    explore(|| {
        let cache = cache(4);
        cache.allocate(A, 3).expect("there is room");
        cache.fork(A, B).expect("it is there");
        let mut step = cache.step(Default::default());
        join(&cache, A, &mut step);
        cache.free(A).expect("it is there");
        scope(|scope| {
            scope.spawn(|| drop(step));
            assert_eq!(cache.evict(), Ok(B));
            assert_eq!(cache.evict(), Err(NothingToEvict));
        });
        assert_all_free_at_end(&cache);
    });
}

/// One thread frees a sequence and another evicts to a threshold while a step ends: at most one sequence
/// is evicted.
#[test]
fn evictions_during_a_steps_end_take_one_sequence_at_most() {
    explore(|| {
        let cache = cache(6);
        let mut step = cache.step(Default::default());
        for id in [A, B, crate::C] {
            cache.allocate(id, 4).expect("there is room");
            join(&cache, id, &mut step);
        }
        scope(|scope| {
            scope.spawn(|| drop(step));
            scope.spawn(|| {
                let freed = cache.free(A);
                assert!(matches!(freed, Ok(()) | Err(SequenceNotFound(A))), "{freed:?}");
            });
            let evicted = cache.evict_to_threshold(0.7);
            assert!(evicted.as_ref().is_ok_and(|evicted| evicted.len() <= 1), "{evicted:?}");
        });
        assert!(cache.num_sequences() >= 1);
        assert_all_free_at_end(&cache);
    });
}

/// A row leaves before the step grows it, before the abort, or during either. The other row is as before.
#[test]
fn a_step_is_aborted_while_one_of_its_rows_goes() {
    for evicts in [false, true] {
        explore(move || {
            let cache = cache(6);
            cache.allocate(A, 3).expect("there is room");
            cache.allocate(B, 3).expect("there is room");
            let lease = cache.lease(&[A, B]).expect("they are there");
            let mut rows: Vec<_> = lease.rows().map(|row| (row, 2)).collect();
            drop(lease);
            scope(|scope| {
                scope.spawn(|| match evicts {
                    false => cache.free(A).expect("it is not leased"),
                    true => _ = cache.evict().expect("neither is leased"),
                });
                let mut step = cache.step(Default::default());
                match step.grow(&mut rows) {
                    Ok(grown) => assert_eq!(grown.grown_rows, 2),
                    Err(gone) => assert!(matches!(gone, SequenceNotFound(A | B)), "{gone}"),
                }
                let _ = step.abort(&mut rows).expect("a row that is gone is passed over");
            });
            for id in cache.sequence_ids() {
                assert_eq!(cache.get_sequence(id).expect("one is left").num_tokens, 3);
            }
            assert_eq!(cache.num_sequences(), 1);
            assert_all_free_at_end(&cache);
        });
    }
}
