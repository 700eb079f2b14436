//! Does the watermark hold, and does an eviction see what a lease did? What loom can hold of the cache.
#![cfg(paged_kv_loom)]

use std::sync::Arc;

use loom_tests::{Kv, assert_all_free, explore, race, spawn_at};
use paged_kv::{BlockPool, GatedPool, LeasedTable};

/// Each finds its two blocks at home, so that nothing but the fence lets it count the other's.
#[test]
fn of_two_that_come_in_at_once_none_leaves_too_little() {
    explore(|| {
        let gated = Arc::new(GatedPool::new(4, 2, 2));
        let theirs = Arc::clone(&gated);
        spawn_at(1, move || drop(theirs.pool.allocate(2).unwrap())).join().unwrap();
        let theirs = Arc::clone(&gated);
        let (here, there) = race(|| gated.allocate(2), move || theirs.allocate(2));
        assert!(here.is_err() || there.is_err(), "two of four blocks are to be left");
        drop((here, there));
        assert_all_free(&gated.pool);
    });
}

#[test]
fn an_eviction_sees_what_a_lease_did() {
    explore(|| {
        let (pool, kv) = (BlockPool::with_home_shards(3, 1), Arc::new(Kv::new(3)));
        let table = pool.allocate(2).unwrap();
        let ids = table.as_slice().to_vec();
        let leased = Arc::new(LeasedTable::new(table));
        assert!(leased.lease());
        let (theirs, their_kv) = (Arc::clone(&leased), Arc::clone(&kv));
        race(
            || {
                if let Some(evicted) = leased.evict() {
                    assert!(!leased.lease(), "it is gone");
                    drop(evicted);
                    kv.use_alone(pool.allocate(3).unwrap().as_slice(), 2);
                }
            },
            move || {
                their_kv.use_alone(&ids, 1);
                theirs.end_lease();
            },
        );
        drop(leased.evict());
        assert_all_free(&pool);
    });
}

/// Whoever is first: a lease keeps the table, or there is none to be had.
#[test]
fn of_a_lease_and_an_eviction_one_has_the_table() {
    explore(|| {
        let (pool, kv) = (BlockPool::with_home_shards(3, 1), Arc::new(Kv::new(3)));
        let table = pool.allocate(2).unwrap();
        let ids = table.as_slice().to_vec();
        let leased = Arc::new(LeasedTable::new(table));
        let (theirs, their_kv) = (Arc::clone(&leased), Arc::clone(&kv));
        race(
            || {
                if let Some(evicted) = leased.evict() {
                    drop(evicted);
                    kv.use_alone(pool.allocate(3).unwrap().as_slice(), 2);
                }
            },
            move || {
                if theirs.lease() {
                    their_kv.use_alone(&ids, 1);
                    theirs.end_lease();
                }
            },
        );
        drop(leased.evict());
        assert_all_free(&pool);
    });
}
