//! Tests of waiting appends: one ends with the sequence that it waits for, and never grows another
//! sequence.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use paged_kv::PagedKvError::{SequenceEvicted, SequenceNotFound};
use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError, Reservation, SeqId, Worker};

use super::{HANG, Task, assert_all_back, cache};

const S: SeqId = SeqId(1);

/// Creates a full cache: a sequence of `num_blocks` blocks, and the reservation of the rest.
fn full(num_blocks: usize) -> (PagedKvCache, Reservation) {
    let cache = cache(4);
    cache.allocate(S, 4 * num_blocks).unwrap();
    let room = cache.reserve(4 - num_blocks).unwrap();
    (cache, room)
}

/// A way to remove a sequence.
type Remove = fn(&PagedKvCache);

const WAYS: [Remove; 5] = [
    |cache| cache.free(S).unwrap(),
    |cache| cache.free_when_released(S).unwrap(),
    |cache| assert_eq!(cache.evict(), Ok(S)),
    |cache| assert_eq!(cache.evict_to_threshold(0.8), Ok(vec![S])),
    |cache| {
        // The lease ends later, and the id is free immediately.
        let lease = cache.lease(&[S]).unwrap();
        cache.free_when_released(S).unwrap();
        drop(lease);
    },
];

/// Ways to remove a sequence without blocks, which releases none.
const WAYS_OF_EMPTY: [Remove; 3] = [WAYS[0], WAYS[1], WAYS[4]];

#[test]
fn a_freed_or_evicted_id_wakes_its_waiting_append() {
    let ways = WAYS.map(|remove| (1, remove)).into_iter();
    for (num_blocks, remove) in ways.chain(WAYS_OF_EMPTY.map(|remove| (0, remove))) {
        let (cache, room) = full(num_blocks);
        let mut waiter = Task::waiting(cache.waiting().append(S, 8).timeout(HANG));
        remove(&cache);
        assert_eq!(waiter.served().unwrap_err(), SequenceNotFound(S));
        drop(room);
        assert_all_back(&cache);
    }
}

#[test]
fn the_owner_of_an_evicted_sequence_is_told_that_it_was_evicted() {
    let ways: [Remove; 3] = [
        |cache| assert_eq!(cache.evict(), Ok(S)),
        |cache| assert_eq!(cache.evict_to_threshold(0.8), Ok(vec![S])),
        |cache| assert_eq!(cache.evict_for(Worker(3), 1, &mut Vec::new()), Ok(1)),
    ];
    for evict in ways {
        for is_admitted_again in [false, true] {
            let (cache, room) = full(1);
            cache.set_worker(S, Worker(3)).unwrap();
            let mut waiter = Task::waiting(cache.waiting().append(S, 8).timeout(HANG));
            evict(&cache);
            if is_admitted_again {
                // It takes no block: other allocations come after the waiting one.
                cache.allocate(S, 0).unwrap();
            }
            assert_eq!(waiter.served().unwrap_err(), SequenceEvicted(S));
            assert_eq!(cache.free(S).is_ok(), is_admitted_again);
            drop(room);
            assert_all_back(&cache);
        }
    }
}

#[test]
fn a_waiting_append_never_grows_a_later_sequence_of_its_id() {
    for remove in WAYS {
        let (cache, mut room) = full(1);
        let mut waiter = Task::waiting(cache.waiting().append(S, 8).timeout(HANG));
        remove(&cache);
        room.allocate(&cache, S, 4).unwrap();
        drop(room); // enough for either
        assert_eq!(waiter.served().unwrap_err(), SequenceNotFound(S));
        assert_eq!(cache.get_sequence(S).unwrap().num_tokens, 4);
        cache.free(S).unwrap();
        assert_all_back(&cache);
    }
}

/// Available room wakes the first waiter, whose waker allocates the id again.
#[test]
fn an_append_ends_although_its_id_is_admitted_again_at_once() {
    struct Admits(Arc<PagedKvCache>);
    impl Wake for Admits {
        fn wake(self: Arc<Self>) {
            self.0.allocate(S, 0).unwrap(); // takes no block, and passes all waiters
        }
    }
    for remove in WAYS {
        let cache = Arc::new(cache(4));
        [S, SeqId(2)].into_iter().for_each(|id| cache.allocate(id, 4).unwrap());
        let room = cache.reserve(2).unwrap();
        let mut first = cache.waiting().append(SeqId(2), 4).timeout(HANG);
        let admits = Waker::from(Arc::new(Admits(Arc::clone(&cache))));
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&admits)).is_pending());
        let mut waiter = Task::waiting(cache.waiting().append(S, 12).timeout(HANG));
        remove(&cache);
        assert_eq!(cache.get_sequence(S).map(|admitted| admitted.num_tokens), Some(0));
        assert_eq!(waiter.served().unwrap_err(), SequenceNotFound(S));
        drop((first, room, waiter));
        [S, SeqId(2)].into_iter().for_each(|id| cache.free(id).unwrap());
        assert_all_back(&cache);
    }
}

#[test]
fn all_appends_to_a_sequence_that_is_gone_are_told_wherever_they_wait() {
    let cache = cache(4).with_eviction_strategy(EvictionStrategy::LRU);
    (0..3).for_each(|id| cache.allocate(SeqId(id), 4).unwrap());
    let room = cache.reserve(1).unwrap();
    let mut first = Task::waiting(cache.waiting().append(SeqId(0), 8).timeout(HANG));
    let mut gone: Vec<_> = [1, 2, 1]
        .map(SeqId)
        .into_iter()
        .map(|id| (id, Task::waiting(cache.waiting().append(id, 8).timeout(HANG))))
        .collect();
    for id in [1, 2].map(SeqId) {
        cache.free(id).unwrap();
    }
    for (id, gone) in &mut gone {
        assert_eq!(gone.served().unwrap_err(), SequenceNotFound(*id));
    }
    assert_eq!(first.served().unwrap().new_blocks, 1..3);
    drop(room);
    cache.free(SeqId(0)).unwrap();
    assert_all_back(&cache);
}

/// A victim that was woken with `Stalled` may be freed: then the next stalled sequence is woken.
#[test]
fn a_victim_of_a_stall_that_is_freed_is_told_so_and_the_others_go_on() {
    let cache = cache(3);
    (1..=3).for_each(|id| cache.allocate(SeqId(id), 4).unwrap());
    let wait = |id| Task::new(cache.waiting().append(SeqId(id), 8).timeout(HANG));
    let mut tasks = [1, 2, 3].map(wait);
    tasks.iter_mut().for_each(|task| assert!(task.poll().is_pending()));
    let victim = cache.select_eviction_target().unwrap();
    assert_eq!(victim, SeqId(1));
    cache.free(victim).unwrap();
    assert_eq!(tasks[0].served().unwrap_err(), SequenceNotFound(victim));
    // One block is back, two are needed, and all that are left wait.
    assert_eq!(tasks[1].wakes() + tasks[2].wakes(), 1);
    let told = if tasks[1].wakes() > 0 { 1 } else { 2 };
    let stalled = SeqId(told as u64 + 1);
    while tasks[told].poll().is_pending() {}
    cache.free(stalled).unwrap();
    let other = SeqId(5 - stalled.0);
    drop(tasks[3 - told].served().unwrap());
    cache.free(other).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_blocking_append_ends_when_its_sequence_is_freed() {
    for remove in WAYS_OF_EMPTY {
        let (cache, room) = full(0);
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| cache.waiting().append(S, 8).timeout(HANG).block().map(drop));
            while cache.waiting().is_empty() {
                std::thread::yield_now();
            }
            remove(&cache);
            let told: Result<(), PagedKvError> = waiter.join().unwrap();
            assert_eq!(told, Err(SequenceNotFound(S)));
        });
        drop(room);
        assert_all_back(&cache);
    }
}
