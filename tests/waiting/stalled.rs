//! Tests of deadlocks: when all sequences with blocks wait for blocks of each other, one of them gets
//! `Stalled`.

use paged_kv::PagedKvError::{SequenceNotFound, Stalled};
use paged_kv::{AdmitOptions, EvictionStrategy, LeaseRow, PagedKvCache, SeqId, Step};

use super::common::{lease_row, lease_rows};
use super::{HANG, Task, assert_all_back, cache};

/// Creates two sequences that fill the cache.
fn full(strategy: EvictionStrategy) -> PagedKvCache {
    let cache = cache(4).with_eviction_strategy(strategy);
    cache.allocate(SeqId(1), 12).unwrap();
    cache.allocate(SeqId(2), 4).unwrap();
    cache
}

#[test]
fn the_one_that_the_strategy_would_evict_is_told_and_the_others_go_on() {
    for (strategy, victim, other) in
        [(EvictionStrategy::LRU, 1, 2), (EvictionStrategy::LongestFirst, 1, 2)]
    {
        let cache = full(strategy);
        let [victim, other] = [victim, other].map(SeqId);
        let mut first = Task::waiting(cache.waiting().append(other, 1).timeout(HANG));
        let mut second = Task::new(cache.waiting().append(victim, 1).timeout(HANG));
        assert!(second.poll().is_pending());
        assert_eq!(cache.select_eviction_target(), Some(victim));
        assert_eq!(second.served().unwrap_err(), Stalled(victim));
        assert_eq!(first.wakes(), 0, "one is enough");
        cache.free(victim).unwrap();
        assert_eq!(first.served().unwrap().new_blocks, 1..2);
        cache.free(other).unwrap();
        assert_all_back(&cache);
    }
}

#[test]
fn no_stall_is_reported_while_an_owner_can_release() {
    let cache = cache(5);
    cache.allocate(SeqId(1), 8).unwrap();
    cache.allocate(SeqId(2), 4).unwrap();
    let handle = cache.allocate_sequence(4).unwrap();
    let room = cache.reserve(1).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(1), 8).timeout(HANG));
    let second = Task::waiting(cache.waiting().append(SeqId(2), 8).timeout(HANG));
    drop(room);
    assert!(first.poll().is_pending(), "a handle is left");
    assert_eq!(second.wakes(), 0);
    drop(handle);
    drop(first.served().unwrap());
    drop(second);
    cache.free(SeqId(1)).unwrap();
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

/// The blocks that other owners held are released, and do not suffice: from now on all sequences wait for
/// each other.
#[test]
fn the_first_waiter_stalls_after_the_last_other_release() {
    type Hold = fn(&PagedKvCache) -> Box<dyn std::any::Any>;
    let holders: [Hold; 4] = [
        |cache| Box::new(cache.allocate_sequence(4).unwrap()),
        |cache| Box::new(cache.reserve(1).unwrap()),
        |cache| {
            let mut step = cache.step(Default::default());
            let mut sequence = cache.allocate_sequence(4).unwrap();
            step.join(&mut sequence).unwrap();
            drop(sequence); // held by the step
            Box::new(step)
        },
        |cache| {
            let mut sequence = cache.allocate_sequence(1).unwrap();
            Box::new((sequence.fork().unwrap(), sequence))
        },
    ];
    for hold in holders {
        let cache = cache(4);
        cache.allocate(SeqId(1), 8).unwrap();
        cache.allocate(SeqId(2), 4).unwrap();
        let held = hold(&cache);
        let mut first = Task::waiting(cache.waiting().append(SeqId(1), 8).timeout(HANG));
        let second = Task::waiting(cache.waiting().append(SeqId(2), 8).timeout(HANG));
        drop(held);
        assert_eq!(cache.free_block_count(), 1, "not enough for either");
        assert_eq!(first.wakes(), 1, "it is to look");
        assert!(first.poll().is_pending());
        assert_eq!(first.served().unwrap_err(), Stalled(SeqId(1)));
        assert_eq!(second.wakes(), 0);
        cache.free(SeqId(1)).unwrap();
        drop(second);
        cache.free(SeqId(2)).unwrap();
        assert_all_back(&cache);
    }
}

#[test]
fn a_sequence_that_leaves_without_giving_room_may_leave_the_others_stalled() {
    let cache = full(EvictionStrategy::LRU);
    cache.fork(SeqId(2), SeqId(3)).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(1), 4).timeout(HANG));
    let mut second = Task::waiting(cache.waiting().append(SeqId(2), 4).timeout(HANG));
    cache.free(SeqId(3)).unwrap();
    assert_eq!(first.served().unwrap_err(), Stalled(SeqId(1)));
    cache.free(SeqId(1)).unwrap();
    drop(second.served().unwrap());
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn leased_sequences_that_all_wait_are_told_too() {
    let cache = full(EvictionStrategy::LRU);
    let lease = cache.lease(&[SeqId(1), SeqId(2)]).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(1), 4).timeout(HANG));
    let mut second = Task::new(cache.waiting().append(SeqId(2), 4).timeout(HANG));
    assert!(second.poll().is_pending());
    assert_eq!(second.served().unwrap_err(), Stalled(SeqId(2)));
    drop(lease);
    cache.free(SeqId(2)).unwrap();
    drop(first.served().unwrap());
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

/// Two appends wait for one sequence. The one that was woken leaves without being polled.
#[test]
fn a_waiter_that_was_told_and_leaves_has_another_of_its_sequence_told() {
    let cache = full(EvictionStrategy::LRU);
    let told = Task::waiting(cache.waiting().append(SeqId(1), 4).timeout(HANG));
    let mut again = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    let mut other = Task::new(cache.waiting().append(SeqId(2), 4).timeout(HANG));
    assert!(other.poll().is_pending());
    assert_eq!((told.wakes(), again.wakes(), other.wakes()), (1, 0, 0));
    drop(told);
    assert_eq!(again.served().unwrap_err(), Stalled(SeqId(1)));
    cache.free(SeqId(1)).unwrap();
    drop(other.served().unwrap());
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

/// Creates five blocks, of which sequences 1 and 2 share four, and has sequences 1 and 3 wait for one
/// more each.
fn sharers_and_one_that_does_not_wait(cut: impl FnOnce(&PagedKvCache)) {
    let cache = cache(5);
    cache.allocate(SeqId(1), 16).unwrap();
    cache.allocate(SeqId(3), 4).unwrap();
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    let mut second = Task::waiting(cache.waiting().append(SeqId(3), 1).timeout(HANG));
    cut(&cache);
    assert_eq!(cache.free_block_count(), 0, "only shared blocks were released");
    let victim = cache.select_eviction_target().unwrap();
    let (told, other) = match victim {
        SeqId(1) => (&mut first, &mut second),
        _ => (&mut second, &mut first),
    };
    assert_eq!(told.served().unwrap_err(), Stalled(victim));
    assert_eq!(other.wakes(), 0);
    cache.free(victim).unwrap();
    drop(other.served().unwrap());
    cache.sequence_ids().into_iter().for_each(|id| cache.free(id).unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_sequence_that_releases_only_shared_blocks_and_stays_may_leave_the_others_stalled() {
    sharers_and_one_that_does_not_wait(|cache| cache.truncate(SeqId(2), 0).unwrap());
    sharers_and_one_that_does_not_wait(|cache| {
        assert_eq!(cache.apply_streaming_llm(SeqId(2), 0, 0), Ok(16));
    });
    sharers_and_one_that_does_not_wait(|cache| cache.free_when_released(SeqId(2)).unwrap());
}

#[test]
fn of_blocking_appends_one_is_told_when_the_last_sharer_is_emptied() {
    let cache = cache(5);
    cache.allocate(SeqId(1), 16).unwrap();
    cache.allocate(SeqId(3), 4).unwrap();
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    std::thread::scope(|scope| {
        let wait = |id| {
            let cache = &cache;
            scope.spawn(move || {
                let appended = cache.waiting().append(SeqId(id), 1).timeout(HANG).block().map(drop);
                cache.free(SeqId(id)).unwrap();
                appended
            })
        };
        let waiters = [wait(1), wait(3)];
        while cache.waiting().len() < 2 {
            std::thread::yield_now();
        }
        cache.truncate(SeqId(2), 0).unwrap();
        let told = waiters.map(|waiter| waiter.join().unwrap());
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 1, "{told:?}");
        assert!(told.iter().flat_map(|told| told.as_ref().err()).all(|e| matches!(e, Stalled(_))));
    });
    cache.free(SeqId(2)).unwrap();
    assert_all_back(&cache);
}

/// An owner outside the map shares the block that the only sequence would have to copy. When that owner
/// leaves, the sequence needs no block.
#[test]
fn no_sequence_is_told_while_an_owner_may_leave_that_it_would_copy_for() {
    type Hold = fn(&PagedKvCache) -> Box<dyn std::any::Any>;
    let holders: [Hold; 2] = [
        |cache| {
            let lease = cache.lease(&[SeqId(2)]).unwrap();
            cache.free_when_released(SeqId(2)).unwrap();
            Box::new(lease)
        },
        |cache| {
            let mut step = cache.step(Default::default());
            step.join(&mut lease_row(cache, SeqId(2))).unwrap();
            cache.free(SeqId(2)).unwrap();
            Box::new(step)
        },
    ];
    for hold in holders {
        let cache = cache(2);
        cache.allocate(SeqId(1), 6).unwrap();
        cache.fork(SeqId(1), SeqId(2)).unwrap();
        let held = hold(&cache);
        let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
        drop(held);
        assert!(waiter.served().unwrap().copy.is_none());
        cache.free(SeqId(1)).unwrap();
        assert_all_back(&cache);
    }
}

/// Of the leased sequences the one without blocks could release nothing.
#[test]
fn a_sequence_with_blocks_is_told_where_all_are_leased() {
    let cache = full(EvictionStrategy::LRU);
    cache.allocate(SeqId(9), 0).unwrap();
    let lease = cache.lease(&[SeqId(1), SeqId(2), SeqId(9)]).unwrap();
    let first = Task::waiting(cache.waiting().append(SeqId(1), 4).timeout(HANG));
    let empty = Task::waiting(cache.waiting().append(SeqId(9), 4).timeout(HANG));
    let mut second = Task::new(cache.waiting().append(SeqId(2), 4).timeout(HANG));
    assert!(second.poll().is_pending());
    assert_eq!((first.wakes(), empty.wakes()), (0, 0));
    assert_eq!(second.served().unwrap_err(), Stalled(SeqId(2)));
    drop((lease, first, empty));
    [1, 2, 9].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    assert_all_back(&cache);
}

/// The victim shares all of its blocks with another sequence. Its end releases no block, so the other one
/// is woken.
#[test]
fn a_victim_that_goes_without_giving_room_leaves_the_next_to_be_told() {
    for is_polled in [false, true] {
        let cache = cache(5);
        cache.allocate(SeqId(1), 16).unwrap();
        cache.fork(SeqId(1), SeqId(2)).unwrap();
        cache.allocate(SeqId(3), 4).unwrap();
        let wait = |id| Task::new(cache.waiting().append(SeqId(id), 1).timeout(HANG));
        let (mut first, mut second, mut third) = (wait(1), wait(2), wait(3));
        assert!(first.poll().is_pending() && second.poll().is_pending());
        assert!(third.poll().is_pending());
        cache.free(SeqId(1)).unwrap();
        assert_eq!((first.wakes(), second.wakes(), third.wakes()), (1, 0, 0));
        if is_polled {
            assert_eq!(first.served().unwrap_err(), SequenceNotFound(SeqId(1)));
        }
        drop(first);
        assert_eq!(second.served().unwrap_err(), Stalled(SeqId(2)));
        cache.free(SeqId(2)).unwrap();
        drop(third.served().unwrap());
        cache.free(SeqId(3)).unwrap();
        assert_all_back(&cache);
    }
}

/// A cached block is copied before it is written, however few owners it has. So a handle that shares the
/// block cannot release anything.
#[test]
fn a_sequence_is_told_though_a_handle_shares_the_cached_block_that_it_would_copy() {
    let cache = cache(3);
    cache.admit(SeqId(1), &[7; 4]).unwrap();
    cache.commit(SeqId(1), 4).unwrap();
    let options = AdmitOptions::default().first_chunk(0);
    let (handle, _) = cache.admit_sequence(&cache.prompt(&[7; 5]), &options).unwrap();
    assert_eq!(handle.num_blocks(), 1);
    cache.truncate(SeqId(1), 3).unwrap();
    cache.allocate(SeqId(2), 8).unwrap();
    let first = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    let mut second = Task::new(cache.waiting().append(SeqId(2), 1).timeout(HANG));
    assert!(second.poll().is_pending());
    assert_eq!(first.wakes() + second.wakes(), 1);
    drop((first, second, handle));
    [1, 2].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    assert_all_back(&cache);
}

/// A step is aborted, or none of its tokens is accepted. It then takes back the only block of a sequence,
/// which a waiting fork shares.
#[test]
fn a_sequence_that_a_step_empties_may_leave_the_others_stalled() {
    type End = fn(Step, &mut [(LeaseRow, usize)]);
    let ends: [End; 2] = [
        |step, rows| _ = step.abort(rows).unwrap(),
        |mut step, rows| {
            step.accept(0, &mut rows[0].0, &[]).unwrap();
            step.complete();
        },
    ];
    ends.into_iter().for_each(a_step_that_empties_a_sequence);
}

fn a_step_that_empties_a_sequence(end: impl Fn(Step, &mut [(LeaseRow, usize)])) {
    let cache = cache(3);
    cache.allocate(SeqId(1), 0).unwrap();
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[(SeqId(1), 4)]);
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    cache.allocate(SeqId(3), 8).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(2), 1).timeout(HANG));
    let mut second = Task::waiting(cache.waiting().append(SeqId(3), 1).timeout(HANG));
    end(step, &mut rows);
    assert_eq!((cache.free_block_count(), first.wakes()), (0, 1), "it is to look");
    assert!(first.poll().is_pending());
    assert_eq!(first.served().unwrap_err(), Stalled(SeqId(2)));
    cache.free(SeqId(2)).unwrap();
    drop(second.served().unwrap());
    [1, 3].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    assert_all_back(&cache);
}
