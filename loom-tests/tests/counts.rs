//! Models of counts and audits: they are true while other threads work.

mod common;

use std::sync::Arc;

use common::{assert_all_free, explore, pool_and_kv, race, spawn_at};
use paged_kv::PagedKvError;

/// One block is held throughout, and a thread allocates and releases a second one.
#[test]
fn the_used_count_stays_between_held_and_requested_blocks() {
    explore(|| {
        let (pool, _) = pool_and_kv(3, 2);
        let held = pool.allocate(1).unwrap();
        let their_pool = Arc::clone(&pool);
        race(
            || {
                for _ in 0..2 {
                    drop(pool.allocate(1).unwrap());
                }
            },
            move || {
                let used = their_pool.used_block_count();
                assert!((1..=2).contains(&used), "{used} used of 1 held and 1 that comes and goes");
            },
        );
        drop(held);
        assert_all_free(&pool);
    });
}

/// A table takes the block through one shard and gives it back through another.
#[test]
fn a_block_is_not_counted_as_given_before_it_was_taken() {
    explore(|| {
        let (pool, _) = pool_and_kv(3, 2);
        let (giver_pool, reader_pool) = (Arc::clone(&pool), Arc::clone(&pool));
        let reader = spawn_at(0, move || {
            let used = reader_pool.used_block_count();
            assert!(used <= 1, "{used} used of a pool in which one block comes and goes");
        });
        let table = pool.allocate(1).unwrap();
        let giver = spawn_at(1, move || {
            drop(table);
            drop(giver_pool);
        });
        giver.join().unwrap();
        reader.join().unwrap();
        assert_all_free(&pool);
    });
}

#[test]
fn an_audit_beside_work_finds_no_false_fault() {
    explore(|| {
        let (pool, _) = pool_and_kv(5, 2);
        let mut table = pool.allocate(2).unwrap();
        let fork = table.fork(1).unwrap();
        let their_pool = Arc::clone(&pool);
        race(
            || {
                drop(table);
                drop(pool.allocate(2).unwrap());
                drop(fork);
            },
            move || match their_pool.validate() {
                Ok(()) | Err(PagedKvError::Busy) => {}
                Err(fault) => panic!("{fault}"),
            },
        );
        assert_all_free(&pool);
    });
}
