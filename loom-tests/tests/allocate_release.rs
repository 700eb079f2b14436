//! Models of allocation and release: a block has one owner at a time, and its next owner sees the writes
//! of its last one.

mod common;

use std::sync::Arc;

use common::{Kv, assert_all_free, explore, pool_and_kv, race, spawn_at};
use paged_kv::BlockPool;

fn allocate_and_use(pool: &BlockPool, kv: &Kv, asks: &[usize], mark: u64) {
    for &n in asks {
        let table = pool.allocate(n).expect("there is room for all throughout");
        kv.use_alone(table.as_slice(), mark);
    }
}

/// Allocates and releases `asks` in turn on two threads, at homes 0 and 1 of a pool.
fn both_allocate(num_blocks: usize, shards: usize, asks: &'static [usize]) {
    explore(move || {
        let (pool, kv) = pool_and_kv(num_blocks, shards);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || allocate_and_use(&pool, &kv, asks, 1),
            move || allocate_and_use(&their_pool, &their_kv, asks, 2),
        );
        assert_all_free(&pool);
    });
}

#[test]
fn a_block_is_in_one_hand_in_a_lone_shard() {
    both_allocate(3, 1, &[1, 1]);
}

#[test]
fn a_block_is_in_one_hand_between_two_shards() {
    both_allocate(3, 2, &[1, 1]);
}

#[test]
fn a_batch_is_in_one_hand_when_it_is_stolen() {
    both_allocate(4, 2, &[2, 1]);
}

#[test]
fn a_batch_is_in_one_hand_through_the_depot() {
    both_allocate(8, 2, &[3, 2]);
}

#[test]
fn three_threads_hold_three_blocks() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let threads = [0, 1].map(|home| {
            let (pool, kv) = (Arc::clone(&pool), Arc::clone(&kv));
            spawn_at(home, move || allocate_and_use(&pool, &kv, &[1], home as u64))
        });
        allocate_and_use(&pool, &kv, &[1], 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_all_free(&pool);
    });
}

/// One block: the second thread gets it only after the first has released it.
fn a_lone_block_changes_hands(shards: usize) {
    explore(move || {
        let (pool, kv) = pool_and_kv(1, shards);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let table = pool.allocate(1).unwrap();
        race(
            || {
                kv.use_alone(table.as_slice(), 1);
                drop(table);
            },
            move || {
                if let Ok(table) = their_pool.allocate(1) {
                    their_kv.use_alone(table.as_slice(), 2);
                }
            },
        );
        assert_all_free(&pool);
    });
}

#[test]
fn a_blocks_next_owner_sees_its_last() {
    a_lone_block_changes_hands(1);
}

#[test]
fn a_blocks_next_owner_sees_its_last_through_a_steal() {
    a_lone_block_changes_hands(2);
}

/// The release of the fifth block fills shard 0 beyond two magazines and pushes one magazine to the
/// depot. The other thread takes it from there, although shard 0 may be claimed.
#[test]
fn a_blocks_next_owner_sees_its_last_through_the_depot() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let all = pool.allocate(5).unwrap();
        race(
            || {
                kv.use_alone(all.as_slice(), 1);
                drop(all);
            },
            move || {
                if let Ok(table) = their_pool.allocate(2) {
                    their_kv.use_alone(table.as_slice(), 2);
                }
            },
        );
        assert_all_free(&pool);
    });
}
