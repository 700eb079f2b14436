//! Is what a listener holds true, however publishing, reclaiming and resets interleave?

#![cfg(paged_kv_loom)]

use std::collections::HashSet;
use std::sync::Arc;

use loom::sync::Mutex;
use loom_tests::{explore, race};
use paged_kv::reuse_model::ReusePool;
use paged_kv::{BlockHash, EventSink, KvEvent};

const A: u128 = 0xa;
const B: u128 = 0xb;

/// What it holds: each content once. Others may come between a change and the word of it, for loom
/// sees the lock.
struct Listener(Mutex<HashSet<BlockHash>>);

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        let mut held = self.0.lock().unwrap();
        for &hash in event.hashes() {
            match event {
                KvEvent::BlockStored { .. } => assert!(held.insert(hash), "announced once"),
                _ => assert!(held.remove(&hash), "announced before it was removed"),
            }
        }
        if *event == KvEvent::AllBlocksCleared {
            held.clear();
        }
    }
}

fn listening(num_blocks: usize) -> (Arc<ReusePool>, Arc<Listener>) {
    let listener = Arc::new(Listener(Mutex::new(HashSet::new())));
    (Arc::new(ReusePool::with_listener(num_blocks, 1, listener.clone())), listener)
}

/// Admits, publishes and releases.
fn serve(pool: &ReusePool, hash: u128) {
    if let Ok(admitted) = pool.admit(&[hash])
        && admitted.hits == 0
    {
        pool.publish(&admitted, 0, hash);
    }
}

fn assert_true(pool: &ReusePool, listener: &Listener) {
    let held = listener.0.lock().unwrap();
    for hash in [A, B] {
        let is_held = held.contains(&BlockHash::from_u128(hash));
        assert_eq!(pool.probe(&[hash]), usize::from(is_held), "{hash:x}");
    }
}

#[test]
fn a_removal_does_not_overtake_its_announcement() {
    explore(|| {
        let (pool, listener) = listening(1);
        serve(&pool, A);
        let theirs = Arc::clone(&pool);
        race(|| serve(&pool, B), move || serve(&theirs, A));
        assert_true(&pool, &listener);
    });
}

#[test]
fn a_content_that_moves_while_it_is_reclaimed_stays_announced() {
    explore(|| {
        let (pool, listener) = listening(2);
        let copy = pool.admit(&[A]).unwrap();
        serve(&pool, A); // idle, while another copy is being computed
        let theirs = Arc::clone(&pool);
        race(
            || {
                pool.publish(&copy, 0, A);
                drop(copy);
            },
            move || serve(&theirs, B),
        );
        assert_true(&pool, &listener);
    });
}

#[test]
fn a_reset_is_in_order_with_what_is_published() {
    explore(|| {
        let (pool, listener) = listening(2);
        let theirs = Arc::clone(&pool);
        race(|| serve(&pool, A), move || theirs.reset());
        assert_true(&pool, &listener);
    });
}

/// The home of a content and its copy are reclaimed by two threads: it is removed with the last.
#[test]
fn a_content_is_removed_with_the_last_of_its_copies() {
    explore(|| {
        let (pool, listener) = listening(2);
        let (home, copy) = (pool.admit(&[A]).unwrap(), pool.admit(&[A]).unwrap());
        assert_eq!((pool.publish(&home, 0, A), pool.publish(&copy, 0, A)), (1, 0));
        drop((home, copy));
        let theirs = Arc::clone(&pool);
        race(
            // The listener may learn of it a little later, from the other thread.
            || drop(pool.pool.allocate(1).unwrap()),
            move || serve(&theirs, B),
        );
        assert_true(&pool, &listener);
    });
}

/// Published by one that knows its hash only, and matched at once by one that knows its tokens.
#[test]
fn who_matches_an_untold_content_knows_that_it_is() {
    explore(|| {
        let (pool, listener) = listening(2);
        let hashed = pool.admit(&[A]).unwrap();
        let theirs = Arc::clone(&pool);
        race(
            || {
                pool.publish_untold(&hashed, 0, A);
            },
            move || {
                let matched = theirs.admit(&[A]).unwrap();
                theirs.tell_matched(&matched, A);
                if matched.hits == 0 {
                    theirs.publish(&matched, 0, A);
                }
            },
        );
        drop(hashed);
        assert_true(&pool, &listener);
    });
}
