//! How is a model explored, and what must hold at its end? What the models in `tests` share.
#![cfg(paged_kv_loom)]

mod explore;
mod kv;

pub use explore::{explore, spawn_at};
pub use kv::Kv;

use paged_kv::BlockPool;

/// What every model asserts at its end, when its tables are gone and its threads joined.
pub fn assert_all_free(pool: &BlockPool) {
    assert_eq!(pool.free_block_count(), pool.total_blocks());
    pool.validate().expect("the free list and the words agree");
}
