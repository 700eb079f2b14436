//! Models of waiting: every waiter is served, whatever other threads grow, leave or cancel. shuttle fails
//! an execution in which all remaining threads sleep.

use std::pin::Pin;
use std::task::{Context, Waker};

use paged_kv::PagedKvError::{OutOfMemory, SequenceNotFound, Stalled};
use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, C, assert_all_free_at_end, cache};

/// Polls a request once, and then drops it.
fn give_up(cache: &PagedKvCache, num_blocks: usize) {
    let mut wait = cache.waiting().reserve(num_blocks);
    let _ = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
}

#[test]
fn all_waiters_are_served() {
    explore(|| {
        let cache = cache(4);
        scope(|scope| {
            for (id, tokens) in [(A, 8), (B, 2), (C, 6)] {
                let cache = &cache;
                scope.spawn(move || {
                    cache.waiting().allocate(id, tokens).block().expect("its turn comes");
                    cache.free(id).expect("nobody else frees it");
                });
            }
            give_up(&cache, 4);
            give_up(&cache, 1);
        });
        assert_eq!(cache.waiting().len(), 0);
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
                    let admitted = cache.waiting().admit(id, &prompt, &options).block();
                    assert_eq!(admitted.expect("its turn comes").num_tokens, 7);
                    cache.commit(id, 7).expect("it is there");
                    cache.free(id).expect("nobody else frees it");
                });
            }
            let room = cache.waiting().reserve(3).block().expect("its turn comes");
            drop(room);
        });
        assert_all_free_at_end(&cache);
    });
}

/// The sequences hold all blocks and wait for more. One of them gets `Stalled` and leaves, in whatever
/// order they meet.
#[test]
fn of_those_that_all_wait_to_grow_one_is_told() {
    explore(|| {
        let cache = cache(4);
        for id in [A, B] {
            cache.allocate(id, 4).expect("there is room");
        }
        scope(|scope| {
            let other = scope.spawn(|| grow_or_leave(&cache, A, 1));
            let told = [grow_or_leave(&cache, B, 1), other.join().expect("it ends")];
            assert_eq!(told.iter().filter(|&&told| told).count(), 1);
        });
        assert_all_free_at_end(&cache);
    });
}

/// Appends and frees the sequence; true if it got `Stalled` and leaves without growing.
fn grow_or_leave(cache: &PagedKvCache, id: SeqId, num_tokens: usize) -> bool {
    let appended = cache.waiting().append(id, num_tokens).block();
    let told = match appended {
        Ok(append) => {
            drop(append);
            false
        }
        Err(Stalled(told)) => {
            assert_eq!(told, id);
            true
        }
        Err(refusal) => panic!("{refusal}"),
    };
    cache.free(id).expect("nobody else frees it");
    told
}

/// A handle or a step held the last block that neither sequence has. It comes back, and does not suffice.
#[test]
fn one_waiter_stalls_after_the_last_release_falls_short() {
    for is_fenced in [false, true] {
        explore(move || {
            let cache = cache(4);
            cache.allocate(A, 4).expect("there is room");
            cache.allocate(B, 2).expect("there is room");
            let mut handle = cache.allocate_sequence(2).expect("there is room");
            let mut step = cache.step(Default::default());
            if is_fenced {
                step.join(&mut handle).unwrap();
            }
            let held_by_handle = (!is_fenced).then_some(handle);
            scope(|scope| {
                let other = scope.spawn(|| grow_or_leave(&cache, A, 4));
                let last = scope.spawn(|| grow_or_leave(&cache, B, 4));
                drop((held_by_handle, step));
                let told = [other.join().expect("it ends"), last.join().expect("it ends")];
                assert_eq!(told.iter().filter(|&&told| told).count(), 1);
            });
            assert_all_free_at_end(&cache);
        });
    }
}

/// No request that does not wait is admitted while a request waits for all blocks.
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
            drop(cache.waiting().reserve(3).block().expect("its turn comes"));
            stream.join().expect("it ends");
        });
        assert_all_free_at_end(&cache);
    });
}

/// The sequence is freed and its id is taken again, while an append waits for the sequence. The append
/// ends, and does not grow the later sequence.
#[test]
fn an_append_that_waits_for_a_sequence_that_is_freed_ends_and_grows_no_later_one() {
    for comes_back in [false, true] {
        explore(move || {
            let cache = cache(3);
            cache.allocate(A, 2).expect("there is room");
            let mut room = cache.reserve(2).expect("there is room");
            scope(|scope| {
                let mut wait = cache.waiting().append(A, 4);
                let asked = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
                assert!(asked.is_pending(), "there is no room");
                let waiter = scope.spawn(|| shuttle::future::block_on(wait).map(drop));
                cache.free(A).expect("no other thread frees it");
                if comes_back {
                    room.allocate(&cache, A, 2).expect("it has room of its own");
                }
                drop(room);
                let told = waiter.join().expect("it ends");
                assert_eq!(told, Err(SequenceNotFound(A)));
                let later = cache.get_sequence(A).map(|later| later.num_tokens);
                assert_eq!(later, comes_back.then_some(2));
            });
            assert_all_free_at_end(&cache);
        });
    }
}

/// Two sequences wait for each other as soon as the sharer of one of them is emptied, which releases no
/// block.
#[test]
fn one_is_told_when_a_sharer_is_emptied() {
    explore(|| {
        let cache = cache(3);
        cache.allocate(A, 4).expect("there is room");
        cache.allocate(B, 2).expect("there is room");
        cache.fork(A, C).expect("it is there");
        scope(|scope| {
            let other = scope.spawn(|| grow_or_leave(&cache, A, 1));
            let last = scope.spawn(|| grow_or_leave(&cache, B, 1));
            cache.truncate(C, 0).expect("it is there");
            let told = [other.join().expect("it ends"), last.join().expect("it ends")];
            assert_eq!(told.iter().filter(|&&told| told).count(), 1);
        });
        assert_all_free_at_end(&cache);
    });
}

/// A concurrent commit leaves the waiting prompt one block short, and one block is available.
#[test]
fn a_commit_beside_a_prompt_that_begins_to_wait_serves_it() {
    explore(|| {
        let cache = cache(4);
        cache.admit(A, &[7; 4]).expect("there is room");
        let room = cache.reserve(1).expect("there is room");
        scope(|scope| {
            let waiter = scope.spawn(|| {
                let (prompt, options) = (cache.prompt(&[7; 5]), AdmitOptions::default());
                cache.waiting().admit(B, &prompt, &options).block()
            });
            cache.commit(A, 4).expect("it is there");
            let admitted = waiter.join().expect("it ends").expect("its turn comes");
            assert_eq!(admitted.cached_tokens, 4);
        });
        drop(room);
        assert_all_free_at_end(&cache);
    });
}
