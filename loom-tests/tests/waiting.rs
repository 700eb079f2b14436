//! Is whoever waits for room woken, whoever else leaves, gives or takes meanwhile? loom fails an
//! execution in which a thread sleeps and nobody is left to wake it.
#![cfg(paged_kv_loom)]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use loom::future::block_on;
use loom_tests::{assert_all_free, explore, pool_and_kv, race, spawn_at};
use paged_kv::BlockPool;
use paged_kv::wait_model::{RoomWait, num_waiting};

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
