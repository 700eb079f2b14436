//! Tests of evictions that race with other threads: the chosen sequence is evicted, or none.

use super::*;
use crate::id::AdmissionEpoch;

const A: SeqId = SeqId(1);
const OURS: Worker = Worker(1);
const THEIRS: Worker = Worker(2);

/// Creates a cache with a sequence of our worker of `num_blocks` blocks, and returns it with the sequence's
/// key.
fn chosen(num_blocks: usize) -> (PagedKvCache, EvictionKey) {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.allocate(A, 4 * num_blocks).unwrap();
    cache.set_worker(A, OURS).unwrap();
    let key = cache.eviction_keys(|_| true)[0];
    (cache, key)
}

/// The acts of another thread between a choice and its execution.
type Between = fn(&PagedKvCache);

fn another_comes(cache: &PagedKvCache) {
    cache.free(A).unwrap();
    cache.allocate(A, 32).unwrap();
    cache.set_worker(A, OURS).unwrap();
}

fn another_comes_with_a_lock_of_its_own(cache: &PagedKvCache) {
    another_comes(cache);
    drop(cache.lease(&[A]).unwrap());
}

fn it_is_evicted_and_comes_again(cache: &PagedKvCache) {
    cache.evict().unwrap();
    cache.allocate(A, 32).unwrap();
}

fn it_is_freed(cache: &PagedKvCache) {
    cache.free(A).unwrap();
}

fn it_is_given_away(cache: &PagedKvCache) {
    cache.set_worker(A, THEIRS).unwrap();
}

fn it_is_given_away_with_a_lock_of_its_own(cache: &PagedKvCache) {
    let lease = cache.lease(&[A]).unwrap();
    cache.set_worker(A, THEIRS).unwrap();
    drop(lease);
}

const OTHERS: [Between; 4] = [
    another_comes,
    another_comes_with_a_lock_of_its_own,
    it_is_evicted_and_comes_again,
    it_is_freed,
];

fn blocks_of(cache: &PagedKvCache) -> Option<usize> {
    cache.get_sequence(A).map(|info| info.num_blocks())
}

#[test]
fn an_eviction_takes_the_sequence_that_was_chosen_or_none() {
    for between in OTHERS {
        for worker in [None, Some(OURS)] {
            let (cache, key) = chosen(8);
            between(&cache);
            let (before, evictions) = (blocks_of(&cache), cache.stats().total_evictions);
            assert_eq!(cache.evict_one(&key, worker, |_| ()), None);
            assert_eq!((blocks_of(&cache), cache.stats().total_evictions), (before, evictions));
            cache.validate().unwrap();
        }
    }
}

#[test]
fn a_trim_by_strategy_takes_the_sequence_that_was_chosen_or_none() {
    for between in OTHERS {
        let (cache, key) = chosen(8);
        between(&cache);
        let before = blocks_of(&cache);
        assert!(!cache.trim_one(&key, 4, 4));
        assert_eq!(blocks_of(&cache), before);
    }
    let (cache, key) = chosen(8);
    cache.touch(A).unwrap();
    assert!(cache.trim_one(&key, 4, 4), "a use is no other sequence");
    assert_eq!(blocks_of(&cache), Some(2));
}

#[test]
fn a_sequence_that_was_given_away_stays_if_it_was_chosen_for_its_worker() {
    for between in [it_is_given_away as Between, it_is_given_away_with_a_lock_of_its_own] {
        let (cache, key) = chosen(8);
        between(&cache);
        assert_eq!(cache.evict_one(&key, Some(OURS), |_| ()), None);
        assert_eq!(cache.get_sequence(A).unwrap().worker, Some(THEIRS));
        // An eviction without a worker takes it all the same, and its new worker is informed.
        assert_eq!(cache.evict_one(&key, None, |tracked| tracked.worker), Some(Some(THEIRS)));
        assert_eq!(cache.touch(A), Err(PagedKvError::SequenceEvicted(A)));
        assert_eq!(cache.used_block_count(), 0);
    }
}

#[test]
fn a_sequence_that_got_a_worker_since_it_was_chosen_is_known_as_evicted() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.allocate(A, 4).unwrap();
    let key = cache.eviction_keys(|_| true)[0];
    cache.set_worker(A, OURS).unwrap();
    assert_eq!(cache.evict_one(&key, None, |_| ()), Some(()));
    assert_eq!(cache.free(A), Err(PagedKvError::SequenceEvicted(A)));
}

#[test]
fn a_lease_that_began_since_the_choice_keeps_the_sequence() {
    let (cache, key) = chosen(8);
    let lease = cache.lease(&[A]).unwrap();
    assert_eq!(cache.evict_one(&key, Some(OURS), |_| ()), None);
    assert!(!cache.trim_one(&key, 4, 4));
    drop(lease);
    assert!(cache.trim_one(&key, 4, 4));
    assert_eq!(cache.evict_one(&key, Some(OURS), |_| ()), Some(()));
}

/// The eviction waits for the other thread outside the map's lock, and then takes the sequence that is
/// there.
#[test]
fn a_victim_that_another_thread_is_at_goes_when_that_is_through() {
    for gives_away in [false, true] {
        let (cache, key) = chosen(8);
        let shared = cache.sequences.get_mut(&A).unwrap().share();
        let at_it = shared.write();
        std::thread::scope(|scope| {
            let eviction = scope.spawn(|| cache.evict_one(&key, Some(OURS), |_| ()));
            while !eviction.is_finished() && crate::sync::Arc::strong_count(&shared) < 3 {
                std::thread::yield_now();
            }
            assert!(!eviction.is_finished(), "another thread is at the victim");
            assert!(cache.sequence_ids().contains(&A));
            drop(at_it);
            // Either `set_worker` comes first, or the eviction.
            let given_away = gives_away && cache.set_worker(A, THEIRS).is_ok();
            assert_eq!(eviction.join().unwrap().is_some(), !given_away);
            assert_eq!(cache.sequence_ids().contains(&A), given_away);
        });
    }
}

#[test]
fn an_attempt_in_vain_is_no_eviction_under_way() {
    let (cache, key) = chosen(8);
    let begun_and_over = || {
        let count = |counter: &crate::sync::AtomicU64| counter.load(Ordering::Relaxed);
        (count(&cache.evictions_begun), count(&cache.evictions_over))
    };
    let lease = cache.lease(&[A]).unwrap();
    assert_eq!(cache.evict_one(&key, None, |_| ()), None);
    assert_eq!(begun_and_over(), (0, 0));
    drop(lease);
    let looked = std::panic::AssertUnwindSafe(|| cache.evict_one(&key, None, |_| panic!("of it")));
    assert!(std::panic::catch_unwind(looked).is_err());
    assert_eq!(begun_and_over(), (1, 1), "an eviction that panicked is over");
    assert_eq!(cache.evict(), Err(PagedKvError::NothingToEvict), "at once");
}

/// As in a waker that is called while the victim's blocks are released.
#[test]
fn an_eviction_inside_an_eviction_does_not_wait_for_it() {
    let (cache, key) = chosen(8);
    let inside = cache.evict_one(&key, None, |_| (cache.evict(), evictions_of_this_thread()));
    assert_eq!(inside, Some((Err(PagedKvError::NothingToEvict), 1)));
    assert_eq!(evictions_of_this_thread(), 0);
}

#[test]
fn the_refusal_of_an_evicted_sequence_is_of_that_sequence() {
    let (cache, key) = chosen(8);
    cache.evict().unwrap();
    let (of_it, of_another) = (Some(key.epoch), Some(AdmissionEpoch(u64::MAX)));
    assert_eq!(cache.missing_of(A, of_it)(), PagedKvError::SequenceEvicted(A));
    assert_eq!(cache.missing_of(A, of_another)(), PagedKvError::SequenceNotFound(A));
    let gone = cache.trim_unleased(A, of_it, |_| ());
    assert_eq!(gone, Err(PagedKvError::SequenceEvicted(A)));
}
