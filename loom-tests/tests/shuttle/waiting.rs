//! Is everybody who waits served, whoever grows, leaves or gives up meanwhile? shuttle fails an execution
//! in which all that are left sleep.

use std::pin::Pin;
use std::task::{Context, Waker};

use paged_kv::PagedKvError::{OutOfMemory, Stalled};
use paged_kv::wait::Patience;
use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, C, assert_all_free_at_end, cache};

const FOR_EVER: fn() -> Patience = Patience::default;

/// Asks once, and then gives up.
fn give_up(cache: &PagedKvCache, num_blocks: usize) {
    let mut wait = cache.reserve_wait(num_blocks, FOR_EVER());
    let _ = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
}

#[test]
fn all_who_wait_are_served() {
    explore(|| {
        let cache = cache(4);
        scope(|scope| {
            for (id, tokens) in [(A, 8), (B, 2), (C, 6)] {
                let cache = &cache;
                scope.spawn(move || {
                    cache.allocate_blocking(id, tokens, FOR_EVER()).expect("its turn comes");
                    cache.free(id).expect("nobody else frees it");
                });
            }
            give_up(&cache, 4);
            give_up(&cache, 1);
        });
        assert_eq!(cache.num_waiting(), 0);
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn all_whose_prompts_are_alike_are_served() {
    explore(|| {
        let cache = cache(4);
        scope(|scope| {
            for id in [A, B] {
                let cache = &cache;
                scope.spawn(move || {
                    let (prompt, options) = (cache.prompt(&[7; 7]), AdmitOptions::default());
                    let admitted = cache.admit_blocking(id, &prompt, &options, FOR_EVER());
                    assert_eq!(admitted.expect("its turn comes").num_tokens, 7);
                    cache.commit(id, 7).expect("it is there");
                    cache.free(id).expect("nobody else frees it");
                });
            }
            let room = cache.reserve_blocking(3, FOR_EVER()).expect("its turn comes");
            drop(room);
        });
        assert_all_free_at_end(&cache);
    });
}

/// They hold all there is and want more: one is told and leaves, however they meet.
#[test]
fn of_those_that_all_wait_to_grow_one_is_told() {
    explore(|| {
        let cache = cache(4);
        for id in [A, B] {
            cache.allocate(id, 4).expect("there is room");
        }
        let grow = |id: SeqId| match cache.append_blocking(id, 1, FOR_EVER()) {
            Ok(append) => {
                drop(append);
                cache.free(id).expect("nobody else frees it");
                false
            }
            Err(Stalled(told)) => {
                assert_eq!(told, id);
                cache.free(id).expect("nobody else frees it");
                true
            }
            Err(refusal) => panic!("{refusal}"),
        };
        scope(|scope| {
            let other = scope.spawn(|| grow(A));
            let told = [grow(B), other.join().expect("it ends")];
            assert_eq!(told.iter().filter(|&&told| told).count(), 1);
        });
        assert_all_free_at_end(&cache);
    });
}

/// Nobody who does not wait comes in while somebody waits for all there is.
#[test]
fn a_stream_of_small_requests_ends_when_a_large_one_waits() {
    explore(|| {
        let cache = cache(3);
        scope(|scope| {
            let stream = scope.spawn(|| {
                for id in 1..6 {
                    match cache.allocate(SeqId(id), 2) {
                        Ok(()) => cache.free(SeqId(id)).expect("nobody else frees it"),
                        Err(OutOfMemory { .. }) => {}
                        Err(refusal) => panic!("{refusal}"),
                    }
                }
            });
            drop(cache.reserve_blocking(3, FOR_EVER()).expect("its turn comes"));
            stream.join().expect("it ends");
        });
        assert_all_free_at_end(&cache);
    });
}
