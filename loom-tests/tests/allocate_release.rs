//! Is a block ever in two hands, and is room ever lost?
#![cfg(paged_kv_loom)]

use std::sync::Arc;

use loom_tests::{Kv, assert_all_free, explore, spawn_at};
use paged_kv::BlockPool;

/// Two threads at homes `homes`, each allocating and giving back the sizes of `asks` in turn.
fn allocate_and_release(num_blocks: usize, shards: usize, homes: [usize; 2], asks: &'static [usize]) {
    explore(move || {
        let pool = Arc::new(BlockPool::with_home_shards(num_blocks, shards));
        let kv = Arc::new(Kv::new(num_blocks));
        let threads = homes.map(|home| {
            let (pool, kv) = (Arc::clone(&pool), Arc::clone(&kv));
            spawn_at(home, move || {
                for &n in asks {
                    let table = pool.allocate(n).expect("there is room for both throughout");
                    kv.use_alone(table.as_slice(), home as u64);
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_all_free(&pool);
    });
}

#[test]
fn a_block_is_in_one_hand_in_a_lone_shard() {
    allocate_and_release(3, 1, [0, 0], &[1]);
}
#[test]
fn a_block_is_in_one_hand_between_two_shards() {
    allocate_and_release(3, 2, [0, 1], &[1]);
}
