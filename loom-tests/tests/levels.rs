//! Models of levels: no block is lost between the queues of the levels and the lists of the shards, and none refuses.

mod common;

use std::sync::Arc;

use common::{explore, explore_large, race};
use paged_kv::loom_api::{Admitted, ReusePool};
use paged_kv::{Level, ReclaimPolicy};

/// Contents, by their hashes.
const A: u128 = 0xA << 100 | 0xA;
const B: u128 = 0xB << 100 | 0xB;

/// Admits one content, and publishes it if it is new.
fn serve(pool: &ReusePool, content: u128) -> Option<Admitted> {
    let admitted = pool.admit(&[content]).ok()?;
    if admitted.hits == 0 {
        pool.publish(&admitted, 0, content);
    }
    Some(admitted)
}

/// Creates a pool of two shards that caches `contents` at a level, which ends at once if it `ends`.
fn cached(num_blocks: usize, contents: &[u128], level: Level, ends: bool) -> Arc<ReusePool> {
    let pool = ReusePool::with_levels(num_blocks, 2, ReclaimPolicy::Lru);
    for &content in contents {
        drop(serve(&pool, content).expect("there is room"));
        assert_eq!(pool.set_level(content, level, ends), 1);
    }
    Arc::new(pool)
}

fn assert_all_room(pool: &ReusePool) {
    assert_eq!(pool.pool.used_block_count(), 0);
    pool.pool.validate().expect("words, entries and ledgers agree");
}

#[test]
fn two_releases_of_a_content_with_a_level_leave_an_entry() {
    explore(|| {
        let pool = cached(2, &[A], Level::High, false);
        let theirs = Arc::clone(&pool);
        race(|| drop(serve(&pool, A)), move || drop(serve(&theirs, A)));
        assert_all_room(&pool);
        assert_eq!(pool.probe(&[A]), 1);
    });
}

#[test]
fn a_level_that_ends_beside_an_allocation_refuses_none_of_two() {
    explore_large(|| {
        let pool = cached(2, &[A, B], Level::High, true);
        let theirs = Arc::clone(&pool);
        let (mine, theirs) =
            race(|| pool.pool.allocate(1).is_ok(), move || theirs.pool.allocate(1).is_ok());
        assert!(mine && theirs, "two blocks are room");
        assert_all_room(&pool);
    });
}

#[test]
fn a_match_beside_the_end_of_a_level_loses_no_block() {
    for level in [Level::Low, Level::Highest] {
        explore_large(move || {
            let pool = cached(2, &[A], level, true);
            let theirs = Arc::clone(&pool);
            race(|| drop(serve(&pool, A)), move || drop(theirs.pool.allocate(2)));
            assert_all_room(&pool);
        });
    }
}

#[test]
fn a_new_level_beside_a_reclaim_loses_no_block() {
    explore(|| {
        let pool = cached(2, &[A], Level::Low, false);
        let theirs = Arc::clone(&pool);
        race(|| _ = pool.set_level(A, Level::High, false), move || drop(theirs.pool.allocate(2)));
        assert_all_room(&pool);
    });
}

#[test]
fn a_reset_beside_a_release_loses_no_block() {
    explore(|| {
        let pool = cached(2, &[A], Level::High, false);
        let theirs = Arc::clone(&pool);
        race(|| drop(serve(&pool, A)), move || theirs.reset());
        assert_all_room(&pool);
    });
}
