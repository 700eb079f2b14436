//! Tests of epochs: an epoch distinguishes a sequence from every other one that was ever under its id.

mod common;

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread::Builder;

use common::{assert_empties, lease_row, s};
use paged_kv::{AdmitOptions, AppendBatch, PagedKvCache, PagedKvError};

#[test]
fn no_two_sequences_have_one_epoch_however_many_threads_there_were() {
    // More threads than 16 bits can number.
    const THREADS: usize = 66_000;
    const AT_ONCE: usize = 100;
    let cache = PagedKvCache::new(256, 4, 1, 1);
    let epochs = Mutex::new(HashSet::new());
    let (cache, epochs) = (&cache, &epochs);
    for _ in 0..THREADS / AT_ONCE {
        std::thread::scope(|scope| {
            for id in (0..AT_ONCE as u64).map(s) {
                let admit = move || {
                    cache.allocate(id, 0).expect("it needs no room");
                    let epoch = cache.get_sequence(id).expect("it is there").epoch;
                    cache.free(id).expect("it is there");
                    assert!(epochs.lock().expect("no thread panicked").insert(epoch), "{epoch:?}");
                };
                let thread = Builder::new().stack_size(1 << 16);
                thread.spawn_scoped(scope, admit).expect("a thread can be started");
            }
        });
    }
    assert_eq!(epochs.lock().expect("no thread panicked").len(), THREADS);
    assert_empties(cache);
}

#[test]
fn a_fork_has_an_epoch_of_its_own_and_is_committed_by_its_own_row() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let admission = cache.admit(s(1), &[7; 10]).unwrap();
    let epoch_of = |id| cache.get_sequence(id).expect("it is there").epoch;
    assert_eq!(epoch_of(s(1)), admission.epoch);
    cache.fork(s(1), s(2)).unwrap();
    cache.fork_n(s(1), &[s(3), s(4)]).unwrap();
    let epochs: HashSet<_> = (1..5).map(|id| epoch_of(s(id))).collect();
    assert_eq!(epochs.len(), 4);
    let (mut step, mut late) = (cache.step(Default::default()), lease_row(&cache, s(2)));
    assert_eq!(step.commit(&mut late, 10), Ok(2));
    assert_eq!((cache.prefix().probe(&cache.prompt(&[7; 10])), step.complete().published), (0, 2));
    assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 10])), 8);
    cache.free(s(2)).unwrap();
    cache.admit(s(2), &[8; 10]).unwrap();
    let mut step = cache.step(Default::default());
    let gone = Err(PagedKvError::SequenceNotFound(s(2)));
    assert_eq!(step.commit(&mut late, 10), gone, "it is its predecessor's");
    assert_eq!(step.complete().published, 0);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[8; 10])), 0);
    assert_empties(&cache);
}

/// The operations of a lease act on the sequence that it was taken on.
#[test]
fn a_lease_outlives_its_id_and_touches_no_successor() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(s(1), &[7; 6]).unwrap();
    let mut lease = cache.lease(&[s(1)]).unwrap();
    cache.free_when_released(s(1)).unwrap();
    cache.admit_with(s(1), &cache.prompt(&[8; 5]), &AdmitOptions::default()).unwrap();
    let (before, mut batch) = (cache.get_sequence(s(1)), AppendBatch::default());
    lease.append_batch(&[7], &mut batch).unwrap();
    let mut step = cache.step(Default::default());
    let mut rows: Vec<_> = lease.rows().map(|row| (row, 1)).collect();
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    step.abort(&mut rows).unwrap();
    lease.append_batch(&[2], &mut batch).unwrap();
    assert_eq!(cache.get_sequence(s(1)), before);
    assert_eq!(cache.used_block_count(), 4 + 2);
    let second = cache.lease(&[s(1)]).unwrap();
    lease.release(s(1)).unwrap();
    assert_eq!((cache.used_block_count(), cache.get_sequence(s(1)).unwrap().leases), (2, 1));
    drop((second, lease, batch));
    assert_empties(&cache);
}

#[test]
fn a_lease_that_lets_rows_go_keeps_the_order_of_the_others() {
    let cache = PagedKvCache::new(32, 4, 1, 1);
    let ids: Vec<_> = (1..7).map(s).collect();
    ids.iter().for_each(|&id| cache.allocate(id, 4).unwrap());
    let mut lease = cache.lease(&ids).unwrap();
    let mut left = ids;
    for (released, lengths) in [(2, &[1, 2, 3, 4, 5][..]), (1, &[5, 6, 7, 8]), (5, &[9, 1, 2])] {
        lease.release(s(released)).unwrap();
        left.retain(|&id| id != s(released));
        assert!(lease.ids().eq(left.iter().copied()), "{:?}", lease);
        let num_tokens = |id| cache.get_sequence(id).unwrap().num_tokens;
        let before: Vec<_> = left.iter().map(|&id| num_tokens(id)).collect();
        lease.append_batch(lengths, &mut AppendBatch::default()).unwrap();
        for ((&id, before), new) in left.iter().zip(before).zip(lengths) {
            assert_eq!(num_tokens(id), before + new, "{id}");
        }
    }
    drop(lease);
    assert_empties(&cache);
}
