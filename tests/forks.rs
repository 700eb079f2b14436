//! Tests of forks to several ids: a call makes all forks or none, and none is mistaken for another
//! sequence that took its id.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::snapshot::Snapshot;
use common::{assert_empties, s};
use paged_kv::{PagedKvCache, PagedKvError, SeqId, Worker};

/// Returns ids that are refused as a whole, because 100 is listed twice. The first is 2.
fn refused_ids() -> Vec<SeqId> {
    (2..3).chain(100..140).chain(100..101).map(s).collect()
}

/// Forks sequence 1 many times to refused ids, while `other` runs again and again.
fn refuse_many_forks(cache: &PagedKvCache, mut other: impl FnMut()) {
    let (dsts, over) = (refused_ids(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let forking = scope.spawn(|| {
            let refuse = |_| cache.fork_n(s(1), &dsts);
            let refused = (0..3_000).map(refuse).all(|refused| {
                [s(2), s(100)]
                    .into_iter()
                    .any(|id| refused == Err(PagedKvError::SequenceExists(id)))
            });
            over.store(true, Ordering::Relaxed);
            refused
        });
        while !over.load(Ordering::Relaxed) {
            other();
        }
        assert!(forking.join().expect("it did not panic"), "refused each time, and for an id");
    });
}

#[test]
fn a_refused_fork_n_takes_back_its_own_forks_and_no_other_sequence() {
    let cache = PagedKvCache::new(64, 4, 1, 1);
    cache.allocate(s(1), 9).unwrap();
    let mut replaced = 0;
    refuse_many_forks(&cache, || {
        // The fork is freed, and a sequence of this thread takes its id.
        if cache.free(s(2)).is_err() || cache.allocate(s(2), 5).is_err() {
            return;
        }
        replaced += 1;
        let lease = (replaced % 2 == 0).then(|| cache.lease(&[s(2)]).ok()).flatten();
        std::thread::yield_now();
        let num_tokens = cache.get_sequence(s(2)).map(|info| info.num_tokens);
        drop(lease);
        let freed = cache.free(s(2));
        assert_eq!((num_tokens, freed), (Some(5), Ok(())), "this thread alone frees it");
    });
    println!("{replaced} forks were replaced");
    assert_eq!((cache.num_sequences(), cache.stats().total_forks), (1, 0));
    assert_empties(&cache);
}

#[test]
fn a_lease_on_a_fork_that_is_taken_back_keeps_its_blocks_until_it_ends() {
    let cache = PagedKvCache::new(64, 4, 1, 1);
    cache.allocate(s(1), 9).unwrap();
    let mut leased = 0;
    refuse_many_forks(&cache, || {
        if let Ok(lease) = cache.lease(&[s(2)]) {
            leased += 1;
            std::thread::yield_now();
            drop(lease);
        }
    });
    println!("{leased} forks were leased");
    assert_eq!((cache.num_sequences(), cache.used_block_count()), (1, 3));
    assert_empties(&cache);
}

#[test]
fn a_refused_fork_n_changes_nothing_that_can_be_seen() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.allocate(s(1), 9).unwrap();
    cache.allocate(s(5), 4).unwrap();
    let evicted = || {
        cache.allocate(s(2), 4).unwrap();
        cache.set_worker(s(2), Worker(7)).unwrap();
        (1..10).chain(3..4).for_each(|id| _ = cache.touch(s(id % 2 * 4 + 1)));
        assert_eq!(cache.evict(), Ok(s(2)));
    };
    let ids: [&[u64]; 4] = [&[2, 2], &[2, 3, 2], &[2, 5], &[2, 1]];
    for ids in ids {
        evicted();
        let (before, dsts) = (Snapshot::of(&cache), ids.iter().copied().map(s).collect::<Vec<_>>());
        let refused = cache.fork_n(s(1), &dsts);
        assert_eq!(refused, Err(PagedKvError::SequenceExists(*dsts.last().unwrap())), "{ids:?}");
        assert_eq!(Snapshot::of(&cache), before, "{ids:?}");
        let gone = Err(PagedKvError::SequenceEvicted(s(2)));
        assert_eq!(cache.touch(s(2)), gone, "{ids:?}: its worker has not been told yet");
        assert_eq!(cache.free(s(2)), gone);
    }
    assert_empties(&cache);
}
