//! Tests that the baselines do the work that the benches compare.

#[path = "mod.rs"]
mod baseline;

use std::collections::HashSet;
use std::thread;

use baseline::one_lock_cache::{Appended, OneLockCache, Refused};
use baseline::one_lock_pool::OneLockPool;
use baseline::one_lock_prefix::OneLockPrefix;
use baseline::queue_pool::QueuePool;
use paged_kv::BlockHash;

/// Runs `check` on each pool: allocate, retain, release, free blocks.
macro_rules! on_each_pool {
    ($blocks:expr, |$pool:ident| $check:expr) => {{
        let $pool = OneLockPool::new($blocks);
        $check
    }
    for queues in [1, 64] {
        let $pool = QueuePool::new($blocks, queues);
        $check
    }};
}

#[test]
fn pools_give_every_block_once_and_then_refuse() {
    on_each_pool!(64, |pool| {
        let mut ids = Vec::new();
        assert!(pool.allocate(60, &mut ids));
        assert!(!pool.allocate(5, &mut ids));
        assert!(pool.allocate(4, &mut ids));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 64);
        assert!(ids.iter().all(|&id| id < 64));
        pool.release(&ids);
        assert_eq!(pool.free_blocks(), 64);
    });
}

#[test]
fn pools_take_a_block_back_from_its_last_owner_only() {
    on_each_pool!(8, |pool| {
        let mut ids = Vec::new();
        assert!(pool.allocate(8, &mut ids));
        pool.retain(&ids[..3]);
        pool.release(&ids);
        assert_eq!(pool.free_blocks(), 5);
        pool.release(&ids[..3]);
        assert_eq!(pool.free_blocks(), 8);
    });
}

#[test]
fn pools_lose_nothing_between_threads() {
    on_each_pool!(512, |pool| {
        thread::scope(|scope| {
            for n in 1..=8 {
                let pool = &pool;
                scope.spawn(move || {
                    let mut ids = Vec::new();
                    for _ in 0..2_000 {
                        assert!(pool.allocate(n, &mut ids));
                        pool.retain(&ids);
                        pool.release(&ids);
                        pool.release(&ids);
                        ids.clear();
                    }
                });
            }
        });
        assert_eq!(pool.free_blocks(), 512);
    });
}

#[test]
fn the_cache_copies_a_shared_partly_filled_block_and_the_last_sharer_does_not() {
    let cache = OneLockCache::new(8, 4);
    cache.allocate(1, 6).unwrap();
    cache.fork(1, 2).unwrap();
    assert_eq!(cache.free_blocks(), 6);
    let append = cache.append(2, 1).unwrap();
    let (src, dst) = append.copy.expect("the second block is shared");
    assert_eq!(cache.with_blocks(1, |ids| ids[1]), Ok(src));
    assert_eq!(cache.with_blocks(2, |ids| ids[1]), Ok(dst));
    assert_eq!(cache.append(1, 3), Ok(Appended { new_blocks: 2..3, copy: None }));
    assert_eq!(cache.free_blocks(), 4);
    cache.free(1).unwrap();
    cache.free(2).unwrap();
    assert_eq!((cache.free_blocks(), cache.len()), (8, 0));
}

#[test]
fn the_cache_refuses_invalid_calls_and_changes_nothing() {
    let cache = OneLockCache::new(4, 4);
    let first = cache.allocate(1, 9).unwrap();
    assert_eq!(cache.allocate(1, 1).unwrap_err(), Refused::Exists);
    assert_eq!(cache.allocate(2, 5).unwrap_err(), Refused::OutOfBlocks);
    assert_eq!(cache.append(1, 8).unwrap_err(), Refused::OutOfBlocks);
    assert_eq!(cache.append(3, 1).unwrap_err(), Refused::Missing);
    assert_eq!(cache.truncate(1, 10), Err(Refused::TooShort));
    assert_eq!((cache.free_blocks(), cache.len()), (1, 1));
    assert_eq!(cache.append_at(first, 3).unwrap().new_blocks, 3..3);
    cache.truncate(1, 4).unwrap();
    assert_eq!(cache.free_blocks(), 3);
    cache.free_at(first);
    assert_eq!(cache.free(1), Err(Refused::Missing));
}

#[test]
fn the_cache_evicts_the_least_recently_used() {
    let cache = OneLockCache::new(16, 4);
    let places: Vec<_> = (0..6).map(|id| cache.allocate(id, 4).unwrap()).collect();
    cache.append(0, 0).unwrap();
    cache.fork_at(places[2], 9);
    assert_eq!(cache.evict(1), [1]);
    assert_eq!(cache.evict(3), [2, 3, 4]);
    assert_eq!(cache.evict(9), [5, 0, 9]);
    assert_eq!((cache.free_blocks(), cache.len()), (16, 0));
}

#[test]
fn the_cache_exports_padded_rows() {
    let cache = OneLockCache::new(16, 4);
    cache.allocate(7, 8).unwrap();
    let mut table = [9; 6];
    cache.export(&[7], &mut table, 3, -1).unwrap();
    assert_eq!(table, [1, 0, -1, 9, 9, 9]);
    assert_eq!(cache.export(&[7], &mut table, 1, -1), Err(Refused::TooShort));
}

fn hashes<const N: usize>(names: [u128; N]) -> [BlockHash; N] {
    names.map(BlockHash::from_u128)
}

/// Admits a request of all `hashes`, and publishes the blocks that were not cached.
fn serve(cache: &OneLockPrefix, hashes: &[BlockHash]) -> (usize, Vec<u32>) {
    let mut table = Vec::new();
    let hits = cache.admit(hashes, hashes.len(), &mut table).expect("there is room");
    cache.commit(&table[hits..], &hashes[hits..]);
    (hits, table)
}

#[test]
fn the_prefix_cache_matches_the_longest_prefix_and_shares_its_blocks() {
    let cache = OneLockPrefix::new(8);
    let (hits, mut first) = serve(&cache, &hashes([1, 2, 3]));
    assert_eq!((hits, cache.room()), (0, 5));
    let (hits, mut second) = serve(&cache, &hashes([1, 2, 4, 3]));
    assert_eq!((hits, cache.room()), (2, 3));
    assert_eq!(first[..2], second[..2]);
    assert_eq!(cache.probe(&hashes([1, 2, 3])), 3);
    assert_eq!(cache.probe(&hashes([2, 9, 3])), 1);
    cache.release(&mut first);
    cache.release(&mut second);
    assert_eq!((cache.room(), cache.probe(&hashes([1, 2, 4]))), (8, 3));
    assert!(first.is_empty() && second.is_empty());
}

#[test]
fn a_batch_under_one_lock_appends_to_all_and_finds_their_last_slots() {
    let cache = OneLockCache::new(8, 4);
    cache.allocate(1, 3).unwrap();
    cache.allocate(2, 4).unwrap();
    assert_eq!(cache.append_all(&[1, 2]), Ok(()));
    let last = |id| cache.with_blocks(id, |ids| i64::from(*ids.last().unwrap())).unwrap();
    let mut slots = [0; 2];
    assert_eq!(cache.last_slots(&[1, 2], &mut slots), Ok(()));
    assert_eq!(slots, [4 * last(1) + 3, 4 * last(2)]);
    assert_eq!(cache.append_all(&[3]), Err(Refused::Missing));
}

#[test]
fn the_prefix_cache_gives_up_tails_first_and_the_least_recently_used_first() {
    let cache = OneLockPrefix::new(4);
    let (_, mut first) = serve(&cache, &hashes([1, 2]));
    let (_, mut second) = serve(&cache, &hashes([3, 4]));
    cache.release(&mut first);
    cache.release(&mut second);
    let (hits, mut third) = serve(&cache, &hashes([5]));
    assert_eq!((hits, cache.probe(&hashes([1, 2])), cache.probe(&hashes([3, 4]))), (0, 1, 2));
    assert_eq!(serve(&cache, &hashes([1])).0, 1);
    cache.release(&mut third);
    assert_eq!(serve(&cache, &hashes([6])).0, 0);
    assert_eq!((cache.probe(&hashes([1])), cache.probe(&hashes([3, 4]))), (1, 1));
}

#[test]
fn the_prefix_cache_admits_all_or_nothing() {
    let cache = OneLockPrefix::new(4);
    let (_, mut first) = serve(&cache, &hashes([1, 2]));
    cache.release(&mut first);
    let mut table = Vec::new();
    assert_eq!(cache.admit(&hashes([1, 2]), 5, &mut table), None);
    assert_eq!((table.len(), cache.room(), cache.probe(&hashes([1, 2]))), (0, 4, 2));
    assert_eq!(cache.admit(&hashes([1, 2]), 4, &mut table), Some(2));
    assert!(!cache.grow(1, &mut table));
    cache.release(&mut table);
    assert!(cache.grow(4, &mut table));
    assert_eq!(cache.probe(&hashes([1])), 0);
}

#[test]
fn the_prefix_cache_keeps_the_first_of_two_blocks_of_one_content() {
    let cache = OneLockPrefix::new(4);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    cache.admit(&[], 1, &mut first);
    cache.admit(&[], 1, &mut second);
    assert_eq!(cache.commit(&first, &hashes([1])), 1);
    assert_eq!(cache.commit(&second, &hashes([1])), 0);
    cache.release(&mut second);
    cache.release(&mut first);
    assert_eq!((cache.room(), cache.probe(&hashes([1]))), (4, 1));
}

#[test]
fn the_prefix_cache_loses_nothing_between_threads() {
    let cache = OneLockPrefix::new(256);
    thread::scope(|scope| {
        for thread in 0..8 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..1_000 {
                    let own = 1_000 * (thread + 1) + round % 64;
                    let (_, mut table) = serve(cache, &hashes([1, 2, 3, own, own + 500]));
                    assert!(cache.grow(1, &mut table));
                    cache.release(&mut table);
                }
            });
        }
    });
    assert_eq!((cache.room(), cache.probe(&hashes([1, 2, 3]))), (256, 3));
    let mut table = Vec::new();
    assert!(cache.grow(256, &mut table));
    assert_eq!(table.iter().collect::<HashSet<_>>().len(), 256);
}
