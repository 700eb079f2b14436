//! Tests of the oldest idle blocks of several shards: they are listed in the reclaim order, and come back to their places.

use super::super::between_shards::{LRU, Pool, TWO_QUEUES};
use super::*;
use crate::pool::idle::AgeBound;
use crate::pool::idle::policy::Retention;

/// Holds those of the `n` oldest idle blocks that `select` returns true for. Returns them with their times.
pub(in crate::pool::free_list) fn hold_oldest(
    pool: &Pool,
    n: usize,
    select: impl Fn(usize) -> bool,
) -> Vec<(BlockId, u64)> {
    let oldest = pool.list.list_oldest(n, &pool.words).into_iter().enumerate();
    let mut matching = pool.list.matching(&pool.words);
    let held = oldest.filter(|(at, block)| select(*at) && matching.hold(block.id));
    held.map(|(_, block)| (block.id, block.time)).collect()
}

fn oldest(pool: &Pool, n: usize) -> Vec<BlockId> {
    pool.list.list_oldest(n, &pool.words).iter().map(|block| block.id).collect()
}

fn ids(held: &[(BlockId, u64)]) -> Vec<BlockId> {
    held.iter().map(|&(id, _)| id).collect()
}

/// Creates a pool of four shards. Each gets idle blocks by turns, so that the order leads through all shards.
fn pool_of_turns(keep: Retention) -> Pool {
    let pool = Pool::new(&[200, 0, 0, 0], keep);
    let all = pool.take_free(0);
    for (turn, part) in all.chunks(25).enumerate() {
        pool.set_keys(part, keep == TWO_QUEUES && turn % 2 == 0);
        pool.give(turn % 4, part);
    }
    pool
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of blocks: minutes under an interpreter")]
fn the_oldest_are_listed_as_they_are_reclaimed() {
    for keep in [LRU, TWO_QUEUES] {
        let pool = pool_of_turns(keep);
        let listed = oldest(&pool, 200);
        assert_eq!(listed.len(), 200);
        assert_eq!(oldest(&pool, 60), listed[..60]);
        let forgotten: Vec<BlockId> =
            (0..40).flat_map(|_| pool.list.forget_idle(5, &pool.words)).collect();
        assert_eq!(forgotten.len(), 200);
        // A shard adds its entries to the clock 64 at a time, so that turns of 25 may change places.
        let place = |id: &BlockId| forgotten.iter().position(|other| other == id).unwrap();
        let off = listed.iter().enumerate().filter(|(at, id)| place(id).abs_diff(*at) > 75);
        assert_eq!(off.count(), 0, "{keep:?}");
        pool.assert_consistent();
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of blocks: minutes under an interpreter")]
fn held_blocks_come_back_to_their_places_in_all_shards() {
    for keep in [LRU, TWO_QUEUES] {
        let pool = pool_of_turns(keep);
        let listed = oldest(&pool, 200);
        for select in [|at: usize| at.is_multiple_of(3), |at| at > 20, |_| true] {
            let (room, held) = (pool.list.room(), hold_oldest(&pool, 100, select));
            assert_eq!(pool.list.room(), room - held.len());
            assert!(oldest(&pool, 200).iter().all(|id| !ids(&held).contains(id)));
            pool.assert_consistent();
            pool.list.give_as_old(&held, &pool.words);
            assert_eq!(oldest(&pool, 200), listed);
            assert_eq!(pool.list.room(), room);
            pool.assert_consistent();
        }
    }
}

/// Stale entries are dropped meanwhile, in all shards.
#[test]
#[cfg_attr(miri, ignore = "hundreds of blocks: minutes under an interpreter")]
fn held_blocks_keep_their_places_while_stale_entries_are_dropped() {
    let pool = pool_of_turns(LRU);
    let listed = oldest(&pool, 200);
    let held = hold_oldest(&pool, 100, |at| at % 2 == 0);
    let used = oldest(&pool, 30);
    pool.acquire(&used);
    for shard in &pool.list.shards {
        shard.claim().shard.idle.drop_stale(&pool.list.idle, &pool.words);
    }
    pool.list.give_as_old(&held, &pool.words);
    let left: Vec<BlockId> = listed.iter().copied().filter(|id| !used.contains(id)).collect();
    assert_eq!(oldest(&pool, 200), left);
    pool.give(2, &used);
    pool.assert_consistent();
}

/// A reclaim of blocks that are older than all of a shard trims its lists, past no held block.
#[test]
fn held_blocks_keep_their_places_while_lists_are_trimmed() {
    let pool = Pool::new(&[6, 0], LRU);
    pool.make_idle(0);
    let listed = oldest(&pool, 6);
    pool.acquire(&listed[..1]);
    let held: Vec<(BlockId, u64)> = hold_oldest(&pool, 2, |_| true);
    let bound = AgeBound::at_least(u64::MAX, pool.list.idle.now());
    let mut out = Vec::new();
    pool.list.shards[0].claim().reclaim(1, bound, &pool.list.idle, &pool.words, &mut out);
    assert!(out.is_empty());
    pool.list.give_as_old(&held, &pool.words);
    assert_eq!(oldest(&pool, 6), listed[1..]);
    pool.give(1, &listed[..1]);
    pool.assert_consistent();
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of blocks: minutes under an interpreter")]
fn held_blocks_that_a_reclaim_has_passed_come_back_as_the_oldest() {
    let pool = pool_of_turns(LRU);
    let held = hold_oldest(&pool, 40, |at| at % 2 == 0);
    // All that is left is reclaimed, past the held ones.
    assert_eq!(pool.list.forget_idle(200, &pool.words).len(), 180);
    pool.assert_consistent();
    let later = pool.take(0, 50);
    pool.set_keys(&later, false);
    pool.give(thread_home(), &later);
    pool.list.give_as_old(&held, &pool.words);
    assert_eq!(oldest(&pool, 20), ids(&held));
    pool.assert_consistent();
    let forgotten = pool.list.forget_idle(20, &pool.words);
    assert_eq!(forgotten, ids(&held));
}

fn thread_home() -> usize {
    crate::sync::thread_ordinal() & 3
}

#[test]
fn a_held_block_that_is_used_meanwhile_is_the_newest_and_one_that_is_uncached_is_free() {
    for uses in [0, 1, 2] {
        let pool = Pool::new(&[6, 0], LRU);
        let all = pool.make_idle(0);
        let held = hold_oldest(&pool, 3, |_| true);
        let id = held[1].0;
        match uses {
            0 => assert!(pool.words.view().try_end_caching(id)),
            1 => {
                pool.acquire(&[id]);
                pool.give(1, &[id]);
            }
            _ => pool.acquire(&[id]),
        }
        pool.list.give_as_old(&held, &pool.words);
        pool.assert_consistent();
        let listed = oldest(&pool, 6);
        assert_eq!(listed[..2], [held[0].0, held[2].0]);
        match uses {
            0 => assert_eq!((listed.len(), pool.list.idle_totals().idle), (5, 5)),
            1 => assert_eq!(listed.last(), Some(&id)),
            _ => {
                assert!(!listed.contains(&id));
                pool.give(1, &[id]);
            }
        }
        pool.assert_consistent();
        assert_eq!((pool.list.room(), all.len()), (6, 6));
    }
}

/// An owner by id is added to a held block, which then has two owners.
#[test]
fn a_held_block_that_is_retained_by_its_id_stays_owned() {
    let pool = Pool::new(&[3, 0], LRU);
    pool.make_idle(0);
    let held = hold_oldest(&pool, 1, |_| true);
    pool.words.retain(held[0].0).unwrap();
    pool.list.give_as_old(&held, &pool.words);
    pool.assert_consistent();
    assert_eq!(pool.list.used(), 1);
    pool.give(0, &[held[0].0]);
    pool.assert_consistent();
    assert_eq!((pool.list.used(), oldest(&pool, 3).last()), (0, Some(&held[0].0)));
}

/// More blocks than a batch, to a shard whose list begins in the middle of a slot.
#[test]
#[cfg_attr(miri, ignore = "hundreds of blocks: minutes under an interpreter")]
fn more_than_a_batch_comes_back_before_the_blocks_of_a_slot() {
    let pool = Pool::new(&[600, 0], LRU);
    let mut all = Vec::new();
    assert_eq!(pool.list.take(600, &pool.words, &mut all), Ok(0));
    pool.set_keys(&all, false);
    pool.give(thread_home() & 1, &all);
    let held = hold_oldest(&pool, 300, |_| true);
    assert_eq!(pool.list.forget_idle(100, &pool.words).len(), 100);
    let left = oldest(&pool, 600);
    pool.list.give_as_old(&held, &pool.words);
    pool.assert_consistent();
    let listed = oldest(&pool, 600);
    assert_eq!(listed.len(), 500);
    let places = |of: &[BlockId]| -> Vec<usize> {
        of.iter().map(|id| listed.iter().position(|other| other == id).unwrap()).collect()
    };
    assert!(places(&ids(&held)).is_sorted() && places(&left).is_sorted());
    let (last, first) = (places(&ids(&held)), places(&left));
    assert!(last.last() < first.first(), "all of them before the others");
}
