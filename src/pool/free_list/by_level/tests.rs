//! Tests of reclaim by level: random operations against a sequential model, and the part of storms that sets levels.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use super::super::between_shards::{LRU, Pool, Random};
use super::super::oldest::tests::hold_oldest;
use super::*;
use crate::pool::content_key::{ContentKey, Mark, NewKey};
use crate::pool::idle::policy::{ReclaimPolicy, Retention};
use crate::pool::level::Level;

const LEVELS: [Level; 5] = [Level::Lowest, Level::Low, Level::Default, Level::High, Level::Highest];

/// The level of a content in the model, and its duration in minutes.
type Note = (Level, Option<u64>);

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

fn note_of((level, ttl): Note) -> LevelNote {
    LevelNote::new(level, ttl.map(minutes))
}

fn random_note(random: &mut Random) -> Note {
    // No time of a release and a duration make a multiple of ten minutes.
    let ttls = [None, Some(65), Some(125), Some(185)];
    (LEVELS[random.below(5)], ttls[random.below(4)])
}

/// Sets levels of blocks and moves the clock, as part of a storm.
pub(in crate::pool::free_list) fn disturb_levels(
    pool: &Pool,
    random: &mut Random,
    held: &[BlockId],
) {
    let Some(levels) = pool.list.levels() else { return };
    let note = note_of(random_note(random));
    match random.below(40) {
        0..16 => levels.set(held.iter().map(|&id| (id, note)), levels.resets(), &pool.words),
        16..20 => {
            let id = BlockId(random.below(pool.list.total()) as u32);
            let new = NewLevel { id, key: pool.words.keyed().key(id), note };
            pool.list.set_levels(&[new], levels.resets(), &pool.words);
        }
        20..24 => levels.skip(minutes(10)),
        24 => _ = levels.reset(|| levels.resets() + 1, &pool.words),
        _ => {}
    }
}

/// An idle block, and its deadline with the number of its release.
type Released = (BlockId, Option<(u64, u64)>);

/// The order of the idle blocks of one shard, in which every content has its own level.
#[derive(Default)]
struct Model {
    queues: [Vec<Released>; 5],
    notes: HashMap<BlockId, Note>,
    now: u64,
    releases: u64,
}

impl Model {
    fn release(&mut self, ids: &[BlockId]) {
        for &id in ids.iter().rev() {
            let (level, ttl) = self.notes.get(&id).copied().unwrap_or((Level::Default, None));
            self.releases += 1;
            let deadline = ttl.filter(|_| level != Level::Default);
            let deadline = deadline.map(|ttl| (self.now + ttl, self.releases));
            self.queues[level as usize].push((id, deadline));
        }
    }

    fn note(&mut self, id: BlockId, note: Note) {
        self.notes.insert(id, note);
    }

    fn remove(&mut self, id: BlockId) {
        self.queues.iter_mut().for_each(|queue| queue.retain(|&(other, _)| other != id));
    }

    fn expire(&mut self) {
        let now = self.now;
        let is_expired = |&(_, deadline): &Released| deadline.is_some_and(|(time, _)| time <= now);
        let mut expired: Vec<_> = self
            .queues
            .iter_mut()
            .flat_map(|queue| queue.extract_if(.., |at| is_expired(at)))
            .collect();
        expired.sort_by_key(|&(_, deadline)| deadline);
        for (id, _) in expired {
            self.notes.remove(&id);
            self.queues[Level::Default as usize].push((id, None));
        }
    }

    fn idle(&self) -> Vec<BlockId> {
        self.queues.iter().flatten().map(|&(id, _)| id).collect()
    }

    /// Ends the contents of the first `n` idle blocks.
    fn reclaim(&mut self, n: usize) -> Vec<BlockId> {
        self.expire();
        let mut ids = self.idle();
        ids.truncate(n);
        for &id in &ids {
            self.remove(id);
            self.notes.remove(&id);
        }
        ids
    }

    fn reset(&mut self) {
        self.notes.clear();
        // The idle blocks that had a level are the lowest, and have no deadlines.
        for level in [1, 3, 4] {
            let dropped = std::mem::take(&mut self.queues[level]);
            self.queues[0].extend(dropped);
        }
        for (id, deadline) in &mut self.queues[0] {
            *deadline = None;
            self.notes.insert(*id, (Level::Lowest, None));
        }
    }
}

/// Performs one operation on the pool and on the model, whose results must be equal.
fn step(pool: &Pool, model: &mut Model, held: &mut Vec<BlockId>, random: &mut Random) {
    let Pool { list, words, .. } = pool;
    let levels = list.levels().expect("the pool has levels");
    match random.below(20) {
        0..6 => {
            let free = list.total() - held.len() - model.idle().len();
            let (n, start) = (1 + random.below(12), held.len());
            let taken = list.take(n, words, held);
            if n > free + model.idle().len() {
                assert_eq!(taken, Err(free + model.idle().len()), "only too few blocks refuse");
                return;
            }
            let reclaimed = n.saturating_sub(free);
            assert_eq!(taken, Ok(reclaimed));
            if reclaimed > 0 {
                assert_eq!(held[held.len() - reclaimed..], model.reclaim(reclaimed));
            }
            pool.set_keys(&held[start..], false);
        }
        6..9 => {
            for &id in held.iter() {
                if random.below(2) == 0 {
                    continue;
                }
                let note = random_note(random);
                levels.set([(id, note_of(note))].into_iter(), levels.resets(), words);
                model.note(id, note);
            }
        }
        9..13 => {
            let kept = random.below(held.len() + 1);
            list.give(&held[kept..], words);
            model.release(&held[kept..]);
            held.truncate(kept);
        }
        13..15 => {
            let idle = model.idle();
            let matched: Vec<_> =
                idle.into_iter().filter(|_| random.below(6) == 0).take(8).collect();
            pool.acquire(&matched);
            matched.iter().for_each(|&id| model.remove(id));
            held.extend(matched);
        }
        15 => {
            let all: Vec<BlockId> = held.iter().copied().chain(model.idle()).collect();
            let (Some(at), note) = (all.len().checked_sub(1), random_note(random)) else { return };
            let id = all[random.below(at + 1)];
            let new = NewLevel { id, key: words.keyed().key(id), note: note_of(note) };
            assert_eq!(list.set_levels(&[new], levels.resets(), words), (1, held.contains(&id)));
            model.note(id, note);
            if !held.contains(&id) {
                model.remove(id);
                model.release(&[id]);
            }
        }
        16 => {
            let n = random.below(6);
            assert_eq!(list.forget_idle(n, words), model.reclaim(n));
        }
        17 if random.below(10) == 0 => {
            levels.reset(|| levels.resets() + 1, words);
            model.reset();
        }
        17 => {
            model.expire();
            let unused = hold_oldest(pool, random.below(9), |at| at % 2 == 0);
            list.give_as_old(&unused, words);
            let listed: Vec<_> = list.list_oldest(50, words).iter().map(|aged| aged.id).collect();
            assert_eq!(listed, model.idle());
        }
        _ => {
            levels.skip(minutes(10));
            model.now += 10;
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of operations: minutes under an interpreter")]
fn levels_and_their_ends_are_those_of_a_sequential_model() {
    for seed in 0..40 {
        let pool = Pool::new(&[40], Retention::Levels(ReclaimPolicy::Lru));
        let (mut model, mut held, mut random) = (Model::default(), Vec::new(), Random(seed));
        for _ in 0..1_000 {
            step(&pool, &mut model, &mut held, &mut random);
            if random.below(20) == 0 {
                pool.assert_consistent();
            }
        }
        pool.list.give(&held, &pool.words);
        pool.assert_consistent();
        assert_eq!((pool.list.used(), pool.list.room()), (0, 40));
    }
}

/// Gives blocks of one shard the levels of `notes`, in turn, and releases them there.
fn release_with_levels(pool: &Pool, at: usize, notes: &[Note]) -> Vec<BlockId> {
    let (ids, levels) = (pool.take_free(at), pool.list.levels().expect("it has levels"));
    pool.set_keys(&ids, false);
    let note = |at: usize| note_of(notes[at % notes.len()]);
    levels.set(ids.iter().enumerate().map(|(at, &id)| (id, note(at))), 0, &pool.words);
    pool.give(at, &ids);
    ids
}

#[test]
#[cfg_attr(miri, ignore = "several pools: minutes under an interpreter")]
fn levels_hold_between_shards() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity] {
        let pool = Pool::new(&[0, 30, 30, 30], Retention::Levels(policy));
        let high = release_with_levels(&pool, 1, &[(Level::High, None)]);
        let default = release_with_levels(&pool, 2, &[(Level::Default, None)]);
        let low = release_with_levels(&pool, 3, &[(Level::Low, None)]);
        for ids in [low, default, high] {
            let mut taken = Vec::new();
            assert_eq!(pool.list.take(30, &pool.words, &mut taken), Ok(30));
            assert!(taken.iter().all(|id| ids.contains(id)), "{policy:?}");
        }
        pool.assert_consistent();
    }
}

/// Blocks of the highest level are room: one at a time, at once, and when they are forgotten.
#[test]
#[cfg_attr(miri, ignore = "several pools: minutes under an interpreter")]
fn a_level_refuses_no_request() {
    for n in [1, 90, 0] {
        let pool = Pool::new(&[0, 30, 30, 30], LEVELS_OF_LRU);
        (1..4).for_each(|at| _ = release_with_levels(&pool, at, &[(Level::Highest, None)]));
        assert_eq!(pool.list.room(), 90);
        let mut taken = Vec::new();
        match n {
            0 => assert_eq!(pool.list.forget_idle(100, &pool.words).len(), 90),
            _ => (0..90 / n).for_each(|_| {
                assert_eq!(pool.list.take(n, &pool.words, &mut taken), Ok(n));
            }),
        }
        pool.assert_consistent();
        assert_eq!(pool.list.room(), 90 - taken.len());
    }
}

/// A thread with all claims reclaims in the order of the levels, too.
#[test]
fn with_all_claims_higher_levels_are_reclaimed_last() {
    let pool = Pool::new(&[2, 2, 2, 0], LEVELS_OF_LRU);
    let high = release_with_levels(&pool, 0, &[(Level::High, None)]);
    let default = release_with_levels(&pool, 1, &[(Level::Default, None)]);
    let low = release_with_levels(&pool, 2, &[(Level::Low, None)]);
    for ids in [low, default, high] {
        let mut taken = Vec::new();
        assert_eq!(pool.list.take_from_all(2, &pool.words, &mut taken), Ok(2));
        assert!(taken.iter().all(|id| ids.contains(id)));
    }
    pool.assert_consistent();
}

const LEVELS_OF_LRU: Retention = Retention::Levels(ReclaimPolicy::Lru);

/// The next content of a block does not inherit a level.
#[test]
#[cfg_attr(miri, ignore = "several pools: minutes under an interpreter")]
fn a_level_ends_with_its_content() {
    for ends_by_uncaching in [true, false] {
        let pool = Pool::new(&[2], LEVELS_OF_LRU);
        let levels = pool.list.levels().expect("it has levels");
        let ids = release_with_levels(&pool, 0, &[(Level::Highest, None)]);
        if ends_by_uncaching {
            pool.acquire(&ids[..1]);
            assert!(pool.words.view().try_end_caching(ids[0]));
            levels.clear(&ids[..1]);
            pool.give(0, &ids[..1]);
        } else {
            assert_eq!(pool.list.forget_idle(1, &pool.words).len(), 1);
        }
        let taken = pool.take_free(0);
        pool.set_keys(&taken, false);
        pool.give(0, &taken);
        let listed: Vec<_> =
            pool.list.list_oldest(2, &pool.words).iter().map(|aged| aged.id).collect();
        assert_eq!((taken.len(), listed.len(), listed[0]), (1, 2, taken[0]));
        pool.assert_consistent();
    }
}

/// A block is held ahead of its reclaim, which meets it, and comes back first in its level.
#[test]
fn a_held_block_that_was_passed_comes_back_first_in_its_level() {
    let pool = Pool::new(&[6], LEVELS_OF_LRU);
    let ids = release_with_levels(&pool, 0, &[(Level::Low, Some(65))]);
    let held = hold_oldest(&pool, 1, |_| true);
    assert_eq!(held[0].0, ids[5], "the last block was released first");
    let mut taken = Vec::new();
    assert_eq!(pool.list.take(2, &pool.words, &mut taken), Ok(2));
    assert_eq!(taken, [ids[4], ids[3]]);
    pool.list.give_as_old(&held, &pool.words);
    pool.assert_consistent();
    let listed: Vec<_> = pool.list.list_oldest(9, &pool.words).iter().map(|aged| aged.id).collect();
    assert_eq!(listed, [ids[5], ids[2], ids[1], ids[0]]);
    pool.list.levels().expect("it has levels").skip(minutes(70));
    pool.list.take(1, &pool.words, &mut taken).expect("there is room");
    assert_eq!(taken[2], ids[5], "its level ended with those after it, or before");
}

/// Pools without levels keep their memory and have no other lists.
#[test]
fn a_pool_without_levels_sets_none() {
    let pool = Pool::new(&[4], LRU);
    let ids = pool.make_idle(0);
    let (id, note) = (ids[0], note_of((Level::High, None)));
    let new = NewLevel { id, key: pool.words.keyed().key(id), note };
    assert_eq!(pool.list.set_levels(&[new], 0, &pool.words), (0, false));
    assert!(pool.list.levels().is_none());
}

fn set_spare_keys(pool: &Pool, ids: &[BlockId]) {
    for &id in ids {
        let key = ContentKey::new(7 << 64 | u128::from(id.0));
        let new = NewKey { key, mark: Mark::new(1), hot: false, spare: true };
        assert!(pool.words.set_key(id, new, true, |_| {}));
    }
}

/// A spare copy that was reclaimed with too few others is reclaimed first the next time, too.
#[test]
#[cfg_attr(miri, ignore = "several pools: minutes under an interpreter")]
fn a_spare_copy_that_is_put_back_is_the_first_again() {
    for ttl in [None, Some(65)] {
        let pool = Pool::new(&[5], LEVELS_OF_LRU);
        let levels = pool.list.levels().expect("it has levels");
        let ids = pool.take_free(0);
        set_spare_keys(&pool, &ids[..1]);
        pool.set_keys(&ids[1..], false);
        let highest = (ids[0], note_of((Level::Highest, ttl)));
        let high = ids[1..4].iter().map(|&id| (id, note_of((Level::High, None))));
        levels.set(high.chain([highest]), 0, &pool.words);
        pool.give(0, &ids);
        let mut taken = Vec::new();
        assert_eq!(pool.list.take(3, &pool.words, &mut taken), Ok(3));
        taken.sort_unstable_by_key(|id| Reverse(id.0));
        assert_eq!(taken, [ids[0], ids[3], ids[4]]);
        pool.assert_consistent();
    }
}

#[test]
#[cfg_attr(miri, ignore = "several pools: minutes under an interpreter")]
fn spare_copies_of_all_shards_go_before_contents() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::HitDensity] {
        for keep in [Retention::Contents(policy), Retention::Levels(policy)] {
            for at_home in [false, true] {
                let pool = Pool::new(&[20, 20], keep);
                let (home, other) = (pool.take_free(0), pool.take_free(1));
                let (spare, contents) = if at_home { (&home, &other) } else { (&other, &home) };
                set_spare_keys(&pool, spare);
                pool.set_keys(contents, false);
                pool.give(usize::from(!at_home), spare);
                pool.give(usize::from(at_home), contents);
                let taken: Vec<BlockId> = (0..20).flat_map(|_| pool.take(0, 1)).collect();
                let num_spare = taken.iter().filter(|id| spare.contains(id)).count();
                assert!(num_spare >= 19, "{keep:?}: {num_spare} of 20 are spare");
            }
        }
    }
}

#[test]
fn a_block_that_comes_back_from_a_copy_keeps_its_deadline() {
    let list = |pool: &Pool| -> Vec<BlockId> {
        let listed = pool.list.list_oldest(9, &pool.words);
        listed.iter().map(|aged| aged.id).collect()
    };
    let take = |pool: &Pool| {
        let mut taken = Vec::new();
        pool.list.take(1, &pool.words, &mut taken).expect("there is room");
        taken
    };
    let (long, short) = ((Level::High, Some(185)), (Level::High, Some(65)));
    let pool = Pool::new(&[3], LEVELS_OF_LRU);
    let ids = release_with_levels(&pool, 0, &[short, short, long]);
    let held = hold_oldest(&pool, 1, |_| true);
    assert_eq!(take(&pool), [ids[1]]);
    pool.list.give_as_old(&held, &pool.words);
    pool.list.levels().expect("it has levels").skip(minutes(70));
    assert_eq!(list(&pool), [ids[0], ids[2]], "the first has ended");

    let (stays, ends) = ((Level::Low, None), (Level::Low, Some(65)));
    let pool = Pool::new(&[4], LEVELS_OF_LRU);
    let ids = release_with_levels(&pool, 0, &[stays, stays, stays, ends]);
    pool.list.levels().expect("it has levels").skip(minutes(60));
    let held = hold_oldest(&pool, 1, |_| true);
    assert_eq!(take(&pool), [ids[2]]);
    pool.list.give_as_old(&held, &pool.words);
    pool.list.levels().expect("it has levels").skip(minutes(10));
    assert_eq!(list(&pool), [ids[1], ids[0], ids[3]], "the last has ended");
}
