//! Do evictions count what steps give back, at whatever moment they look?

use paged_kv::PagedKvError::{NothingToEvict, SequenceNotFound};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, assert_all_free_at_end, cache};

/// Two of four blocks are held by the step, on their way to the pool, or there.
#[test]
fn nobody_is_evicted_for_blocks_that_a_step_gives_back() {
    for has_older in [false, true] {
        explore(move || {
            let cache = cache(4).with_eviction_threshold(0.6);
            let older = has_older.then(|| cache.step());
            let step = cache.step();
            cache.allocate(A, 4).expect("there is room");
            cache.allocate(B, 4).expect("there is room");
            cache.take_part(A, &step).expect("it is there");
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

/// What a step holds of it is no other user's, before the step ends, meanwhile and after.
#[test]
fn a_sequence_that_shares_all_with_a_step_is_evicted_while_the_step_ends() {
    explore(|| {
        let cache = cache(4);
        cache.allocate(A, 3).expect("there is room");
        cache.fork(A, B).expect("it is there");
        let step = cache.step();
        cache.take_part(A, &step).expect("it is there");
        cache.free(A).expect("it is there");
        scope(|scope| {
            scope.spawn(|| drop(step));
            assert_eq!(cache.evict(), Ok(B));
            assert_eq!(cache.evict(), Err(NothingToEvict));
        });
        assert_all_free_at_end(&cache);
    });
}

/// Two who evict to the same threshold, and a step that ends: what is left is what was to be left.
#[test]
fn evictions_beside_the_end_of_a_step_leave_what_is_to_be_left() {
    explore(|| {
        let cache = cache(6);
        let step = cache.step();
        for id in [A, B, crate::C] {
            cache.allocate(id, 4).expect("there is room");
            cache.take_part(id, &step).expect("it is there");
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
