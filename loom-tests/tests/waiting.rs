//! Is whoever waits for room woken, whoever else leaves, gives or takes meanwhile? loom fails an
//! execution in which a thread sleeps and nobody is left to wake it.
#![cfg(paged_kv_loom)]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use loom::future::block_on;
use loom_tests::{assert_all_free, explore, pool_and_kv, race, spawn_at};
use paged_kv::BlockPool;
use paged_kv::reuse_model::{AdmitWait, ReusePool};
use paged_kv::wait_model::{RoomWait, num_waiting};

/// Contents, by their hashes.
const A: u128 = 0xA << 100 | 0xA;
const B: u128 = 0xB << 100 | 0xB;

/// One that is in the queue, and whose task never runs again.
fn asleep(pool: &BlockPool, num_blocks: usize) -> RoomWait {
    let mut wait = RoomWait::new(pool, num_blocks);
    let polled = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "there is no room");
    wait
}

#[test]
fn a_release_wakes_who_goes_to_sleep_beside_it() {
    for shards in [1, 2] {
        explore(move || {
            let (pool, kv) = pool_and_kv(1, shards);
            let held = pool.allocate(1).unwrap();
            kv.use_alone(held.as_slice(), 1);
            let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
            race(
                || drop(held),
                move || {
                    let granted = block_on(RoomWait::new(&their_pool, 1));
                    their_kv.use_alone(granted.as_slice(), 2);
                },
            );
            assert_eq!(num_waiting(&pool), 0);
            assert_all_free(&pool);
        });
    }
}

/// Each sees too little room alone, and the one that waits may have looked between them.
#[test]
fn two_releases_that_suffice_together_wake_the_waiter() {
    explore(|| {
        let (pool, _) = pool_and_kv(2, 2);
        let (one, other) = (pool.allocate(1).unwrap(), pool.allocate(1).unwrap());
        let their_pool = Arc::clone(&pool);
        let waiter = spawn_at(0, move || drop(block_on(RoomWait::new(&their_pool, 2))));
        race(|| drop(one), move || drop(other));
        waiter.join().unwrap();
        assert_all_free(&pool);
    });
}

/// The one in front is woken by the release, leaves at the same time, and was the only one awake.
#[test]
fn who_leaves_in_front_wakes_the_next() {
    explore(|| {
        let (pool, _) = pool_and_kv(1, 2);
        let held = pool.allocate(1).unwrap();
        let front = asleep(&pool, 1);
        let their_pool = Arc::clone(&pool);
        let next = spawn_at(1, move || drop(block_on(RoomWait::new(&their_pool, 1))));
        // A deadline that passes beside the wake-up.
        let release = spawn_at(1, move || drop(held));
        drop(front);
        release.join().unwrap();
        next.join().unwrap();
        assert_eq!(num_waiting(&pool), 0);
        assert_all_free(&pool);
    });
}

/// A large request in front leaves: there was room for the small one behind it all along.
#[test]
fn who_leaves_in_front_lets_the_room_be_used_that_it_waited_to_have_more_of() {
    explore(|| {
        let (pool, _) = pool_and_kv(2, 1);
        let held = pool.allocate(1).unwrap();
        let front = asleep(&pool, 2);
        let their_pool = Arc::clone(&pool);
        race(|| drop(front), move || drop(block_on(RoomWait::new(&their_pool, 1))));
        drop(held);
        assert_all_free(&pool);
    });
}

/// One release, two that wait for it: the first gives what it got back, and so the second is served.
#[test]
fn who_is_served_hands_on_what_it_leaves() {
    explore(|| {
        let (pool, kv) = pool_and_kv(1, 1);
        let held = pool.allocate(1).unwrap();
        let first = asleep(&pool, 1);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                drop(held);
                let granted = block_on(first);
                kv.use_alone(granted.as_slice(), 1);
            },
            move || {
                let granted = block_on(RoomWait::new(&their_pool, 1));
                their_kv.use_alone(granted.as_slice(), 2);
            },
        );
        assert_all_free(&pool);
    });
}

/// Somebody who does not wait takes the room of the one that was woken, and gives it back.
#[test]
fn who_is_passed_is_woken_again() {
    explore(|| {
        let (pool, _) = pool_and_kv(1, 1);
        let held = pool.allocate(1).unwrap();
        let their_pool = Arc::clone(&pool);
        let waiter = spawn_at(1, move || drop(block_on(RoomWait::new(&their_pool, 1))));
        drop(held);
        drop(pool.allocate(1));
        waiter.join().unwrap();
        assert_all_free(&pool);
    });
}

/// What another thread publishes beside it is most of its prompt, and then there is room for the rest.
#[test]
fn a_publication_wakes_a_prompt_that_goes_to_sleep() {
    explore(|| {
        let pool = Arc::new(ReusePool::new(2, 1));
        let admitted = pool.admit(&[A]).expect("there is room");
        let their_pool = Arc::clone(&pool);
        let waiter = spawn_at(1, move || {
            let waited = block_on(AdmitWait::new(&their_pool, &[A, B]));
            assert_eq!(waited.hits, 1);
        });
        assert_eq!(pool.publish(&admitted, 0, A), 1);
        waiter.join().unwrap();
        drop(admitted);
        assert_all_free(&pool.pool);
    });
}

/// The first waits for all there is; behind it nothing is published in vain once it has left.
#[test]
fn a_prompt_that_becomes_the_first_sees_what_was_published_beside_that() {
    explore(|| {
        let pool = Arc::new(ReusePool::new(2, 1));
        let admitted = pool.admit(&[A]).expect("there is room");
        let front = asleep(&pool.pool, 2);
        let their_pool = Arc::clone(&pool);
        let waiter = spawn_at(1, move || drop(block_on(AdmitWait::new(&their_pool, &[A, B]))));
        let their_pool = Arc::clone(&pool);
        let publisher = spawn_at(1, move || {
            assert_eq!(their_pool.publish(&admitted, 0, A), 1);
            admitted
        });
        drop(front);
        waiter.join().unwrap();
        drop(publisher.join().unwrap());
        assert_all_free(&pool.pool);
    });
}

/// A match of idle blocks takes room and need alike, and the room that comes back is enough then.
#[test]
fn a_match_beside_a_prompt_that_goes_to_sleep_is_seen_by_it() {
    explore(|| {
        let pool = Arc::new(ReusePool::new(3, 1));
        let admitted = pool.admit(&[A]).expect("there is room");
        pool.publish(&admitted, 0, A);
        drop(admitted);
        let held = [(); 2].map(|()| pool.pool.allocate(1).expect("there is room"));
        let [one, other] = held;
        let their_pool = Arc::clone(&pool);
        let waiter = spawn_at(1, move || drop(block_on(AdmitWait::new(&their_pool, &[A, B]))));
        let matched = pool.admit(&[A]).expect("it is idle, and needs no other");
        drop(one);
        waiter.join().unwrap();
        drop((matched, other));
        assert_all_free(&pool.pool);
    });
}
