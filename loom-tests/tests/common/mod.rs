//! The parts that the models share: exploration, the pool with its cells, and the assertions at a model's
//! end.
#![allow(dead_code, unused_imports, reason = "each file of models uses some of it")]

mod explore;
mod kv;

pub use explore::{Told, explore, explore_large, race, spawn_at};
pub use kv::Kv;

use std::sync::Arc;

use paged_kv::BlockPool;

/// Creates a pool of `num_blocks` blocks over `shards` home shards, and the cells of its blocks. Fresh
/// blocks are in shard 0 and, from the fifth on, in the depot.
pub fn pool_and_kv(num_blocks: usize, shards: usize) -> (Arc<BlockPool>, Arc<Kv>) {
    (
        Arc::new(BlockPool::with_home_shards(num_blocks, shards).unwrap()),
        Arc::new(Kv::new(num_blocks)),
    )
}

/// Asserts at the end of a model, when its tables are gone and its threads joined, that all blocks are
/// free.
#[track_caller]
pub fn assert_all_free(pool: &BlockPool) {
    assert_used(pool, 0);
}

/// Asserts at rest that `blocks` blocks are used, and that the free list and the words agree.
#[track_caller]
pub fn assert_used(pool: &BlockPool, blocks: usize) {
    assert_eq!(pool.used_block_count(), blocks, "blocks used");
    assert_eq!(pool.free_block_count(), pool.total_blocks() - blocks, "blocks free");
    pool.validate().expect("the free list and the words agree");
}
