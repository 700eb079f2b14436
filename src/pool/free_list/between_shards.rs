//! Tests of blocks between shards: none is lost, none is forgotten, and the order of reclaim is that of the uses.

use std::thread;

use super::by_level::tests::disturb_levels;
use super::oldest::tests::hold_oldest;
use super::*;
use crate::pool::content_key::{ContentKey, Mark, NewKey};
use crate::pool::idle::policy::ReclaimPolicy;
use crate::sync::{AtomicU64, Ordering, fence};

pub(super) const LRU: Retention = Retention::Contents(ReclaimPolicy::Lru);
pub(super) const TWO_QUEUES: Retention = Retention::Contents(ReclaimPolicy::TwoQueue);

/// Operations of each thread of a storm.
const OPERATIONS: usize = 2_000;

/// A pool whose operations a test performs at the shards that it names.
pub(super) struct Pool {
    pub(super) list: FreeList,
    pub(super) words: BlockWords,
    keys: AtomicU64,
}

impl Pool {
    /// Creates a pool with `free[i]` free blocks in shard i.
    pub(super) fn new(free: &[usize], keep: Retention) -> Self {
        let total = free.iter().sum();
        let list = FreeList::new(0, total, free.len(), keep).unwrap();
        while list.depot.pop().is_some() {}
        list.shards.iter().for_each(|shard| shard.claim().set_len(0));
        let mut ids = (0..total as u32).map(BlockId);
        for (shard, &n) in list.shards.iter().zip(free) {
            let mut claim = shard.claim();
            ids.by_ref().take(n).for_each(|id| claim.push(id, &list.depot));
        }
        Self { list, words: BlockWords::with_keys(total).unwrap(), keys: AtomicU64::new(1) }
    }

    /// Takes all free blocks of a shard.
    pub(super) fn take_free(&self, at: usize) -> Vec<BlockId> {
        let (mut claim, mut ids) = (self.list.shards[at].claim(), Vec::new());
        let n = claim.len();
        claim.pop_owned(n, &self.words, &mut ids);
        self.list.took(&claim, n);
        ids
    }

    pub(super) fn take(&self, at: usize, n: usize) -> Vec<BlockId> {
        let (mut home, mut ids) = (self.list.shards[at].claim(), Vec::new());
        let taken = self.list.gather(&mut home, n, &self.words, &mut ids, Search::Near);
        assert!(taken.is_some(), "{n} blocks are in reach");
        ids
    }

    pub(super) fn set_keys(&self, ids: &[BlockId], hot: bool) {
        for &id in ids {
            let number = self.keys.fetch_add(1, Ordering::Relaxed);
            let key = ContentKey::new(u128::from(hot) << 64 | u128::from(number));
            let new = NewKey { key, mark: Mark::new(1), hot, spare: false };
            assert!(self.words.set_key(id, new, true, |_| {}));
        }
    }

    pub(super) fn give(&self, at: usize, ids: &[BlockId]) {
        for ids in ids.rchunks(BATCH) {
            self.list.give_batch(&mut self.list.shards[at].claim(), ids, &self.words);
        }
    }

    /// Makes all free blocks of a shard idle there.
    pub(super) fn make_idle(&self, at: usize) -> Vec<BlockId> {
        let ids = self.take_free(at);
        self.set_keys(&ids, false);
        self.give(at, &ids);
        ids
    }

    /// Takes `n` blocks at one shard, gives them new contents and makes them idle at another one.
    pub(super) fn serve(&self, at: usize, n: usize, leave_at: usize) -> Vec<BlockId> {
        let ids = self.take(at, n);
        self.set_keys(&ids, false);
        self.give(leave_at, &ids);
        ids
    }

    /// Drops stale entries as a thread with this home does, for which a turn suffices.
    /// Returns true if there was one.
    fn drop_in_turn(&self, at: usize) -> bool {
        let home = self.list.shards[at].claim();
        let is_due = home.is_due();
        if is_due {
            self.list.drop_in_turn(&home, &self.words);
        }
        assert!(!self.list.idle.is_full(), "no shard is claimed by another thread");
        is_due
    }

    /// Acquires idle blocks, as a match does.
    pub(super) fn acquire(&self, ids: &[BlockId]) {
        for ids in ids.chunks(BATCH) {
            let mut matching = self.list.matching(&self.words);
            ids.iter().for_each(|&id| assert!(matching.acquire_any(id)));
        }
    }

    fn num_free(&self) -> usize {
        let in_shards = self.list.shards.iter().map(|shard| shard.claim().len());
        in_shards.sum::<usize>() + self.list.depot.len() * BATCH
    }

    #[track_caller]
    pub(super) fn assert_consistent(&self) {
        assert_eq!(self.list.audit(0, &self.words), Ok(()));
        assert!(!self.list.has_room(self.list.room() + 1), "the floor is above the room");
    }
}

/// Another thread ends the content of a block while a thread that acquired it by mistake is its owner.
#[test]
fn a_block_whose_mistaken_owner_leaves_last_is_free() {
    let pool = Pool::new(&[1, 0], LRU);
    let id = pool.take_free(0)[0];
    pool.set_keys(&[id], false);
    let mut mistaken = pool.list.matching(&pool.words);
    let was_idle = pool.words.view().acquire(id, true).expect("it is cached");
    pool.words.clear_key(id);
    let other = (thread_ordinal() + 1) & 1; // than the one that is claimed
    pool.give(other, &[id]);
    mistaken.leave(id, was_idle);
    drop(mistaken);
    pool.assert_consistent();
    assert_eq!(pool.list.used(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "one thread reclaims hundreds of blocks: minutes under an interpreter")]
fn a_thread_that_only_takes_reclaims_the_oldest() {
    for home_releases in [true, false] {
        let pool = Pool::new(&[1, 100, 100, 100], LRU);
        let oldest = pool.make_idle(1);
        [2, 3].into_iter().for_each(|at| _ = pool.make_idle(at));
        let first = if home_releases { pool.make_idle(0) } else { pool.take(0, 1) };
        assert_eq!(first.len(), 1);
        let taken: Vec<BlockId> = (0..80).flat_map(|_| pool.take(0, 1)).collect();
        let num_oldest = taken.iter().filter(|id| oldest.contains(id)).count();
        assert!(num_oldest >= 60, "{num_oldest} of 80");
    }
}

/// One thread takes, another one releases, and contents that neither uses lie in a third shard.
#[test]
#[cfg_attr(miri, ignore = "one thread reclaims thousands of blocks: minutes under an interpreter")]
fn contents_of_a_shard_that_no_thread_uses_are_reclaimed_in_time() {
    for (keep, hot, rounds) in [(LRU, false, 200), (TWO_QUEUES, true, 2_000)] {
        let pool = Pool::new(&[0, 100, 0, 100], keep);
        let unused = pool.take_free(1);
        pool.set_keys(&unused, hot);
        pool.give(1, &unused);
        pool.make_idle(3);
        let keys: Vec<_> = unused.iter().map(|&id| pool.words.keyed().key(id)).collect();
        (0..rounds).for_each(|_| _ = pool.serve(0, 4, 3));
        let is_left = |(&id, &key): (&BlockId, &ContentKey)| pool.words.keyed().key(id) == key;
        let left = unused.iter().zip(&keys).filter(|&pair| is_left(pair)).count();
        assert!(left < 10, "{left} of 100 are left after {rounds} rounds");
    }
}

#[test]
#[cfg_attr(miri, ignore = "one thread reclaims hundreds of blocks: minutes under an interpreter")]
fn the_oldest_contents_of_all_shards_are_forgotten_first() {
    for (oldest, newest) in [(0, 1), (1, 0)] {
        let pool = Pool::new(&[250, 250, 0, 0], LRU);
        let ids = pool.make_idle(oldest);
        pool.make_idle(newest);
        let forgotten = pool.list.forget_idle(220, &pool.words);
        let num_oldest = forgotten.iter().filter(|id| ids.contains(id)).count();
        assert!(num_oldest >= 150, "{num_oldest} of 220");
        assert_eq!(pool.list.forget_idle(500, &pool.words).len(), 280);
        pool.assert_consistent();
    }
}

/// Another shard has the oldest blocks, and behind them younger ones than the home.
#[test]
#[cfg_attr(miri, ignore = "one thread reclaims thousands of blocks: minutes under an interpreter")]
fn only_the_older_blocks_of_another_shard_come_before_those_of_the_home() {
    let list = FreeList::new(0, 4_096, 4, LRU).unwrap();
    let words = BlockWords::with_keys(4_096).unwrap();
    let pool = Pool { list, words, keys: AtomicU64::new(1) };
    let mut all = Vec::new();
    assert_eq!(pool.list.take(4_096, &pool.words, &mut all), Ok(0));
    pool.set_keys(&all, false);
    pool.give(1, &all[..10]);
    pool.give(2, &all[10..410]);
    assert_eq!(pool.take(2, 400).len(), 400);
    pool.give(0, &all[410..1_410]);
    pool.give(1, &all[1_410..2_410]);
    let taken = pool.take(0, 64);
    let count = |ids: &[BlockId]| taken.iter().filter(|id| ids.contains(id)).count();
    // Up to 7 entries share the time of an older one.
    let counts = (count(&all[..10]), count(&all[410..1_410]));
    assert!(counts.0 == 10 && counts.1 >= 54 - 7, "{counts:?}");
}

/// Contents that hit again and again leave a stale entry each time, in the shard that released them before.
#[test]
#[cfg_attr(miri, ignore = "one thread reclaims thousands of blocks: minutes under an interpreter")]
fn stale_entries_of_all_shards_are_dropped_before_the_slab_is_full() {
    for (keep, hot) in [(LRU, false), (TWO_QUEUES, true)] {
        let pool = Pool::new(&[200, 0, 0, 0], keep);
        let ids = pool.take_free(0);
        pool.set_keys(&ids, hot);
        pool.give(0, &ids);
        for round in 0..400 {
            pool.acquire(&ids);
            // Most releases are in one shard; the others keep their stale entries.
            let at = if round % 7 == 0 { round / 7 % 4 } else { 3 };
            for ids in ids.rchunks(BATCH) {
                pool.drop_in_turn(at);
                pool.give(at, ids);
            }
        }
        pool.assert_consistent();
    }
}

/// Threads serve requests of the same contents in bursts, so that some shards have far more stale entries than
/// others.
#[test]
#[cfg_attr(miri, ignore = "one thread reclaims millions of blocks: hours under an interpreter")]
fn requests_of_16_threads_over_64_shards_never_fill_the_slab() {
    let (list, words) = (FreeList::new(0, 65_536, 64, LRU), BlockWords::with_keys(65_536));
    let pool = Pool { list: list.unwrap(), words: words.unwrap(), keys: AtomicU64::new(1) };
    let (mut all, mut random, mut drops) = (Vec::new(), Random(1), 0);
    assert_eq!(pool.list.take(65_536, &pool.words, &mut all), Ok(0));
    pool.set_keys(&all, false);
    all.chunks(BATCH).enumerate().for_each(|(at, ids)| pool.give(at % 16, ids));
    for _ in 0..400 {
        let at = random.below(16);
        for _ in 0..random.below(40) {
            let first = random.below(all.len() - 512);
            let ids = &all[first..first + 512];
            pool.acquire(ids);
            for ids in ids.rchunks(BATCH) {
                drops += usize::from(pool.drop_in_turn(at));
                pool.give(at, ids);
            }
        }
    }
    assert!(drops > 10, "stale entries were dropped {drops} times");
    pool.assert_consistent();
}

/// A thread that lost its core holds a claim.
#[test]
#[cfg_attr(miri, ignore = "one thread fills the slab: minutes under an interpreter")]
fn a_full_slab_gets_room_while_another_shard_is_claimed() {
    let pool = Pool::new(&[100, 0, 0, 0], LRU);
    let ids = pool.make_idle(0);
    let mut rounds = 0;
    while !pool.list.idle.is_full() {
        ids.iter().for_each(|&id| assert!(pool.words.view().acquire(id, false).is_some()));
        let claim = pool.list.shards[3].claim();
        claim.ledger().revived(100);
        pool.list.took(&claim, 100);
        drop(claim);
        pool.give(3, &ids);
        rounds += 1;
    }
    assert!(rounds > 1, "a slab has room for stale entries");
    let claim = pool.list.shards[0].claim();
    pool.list.drop_until_not_full(&pool.words);
    assert!(!pool.list.idle.is_full());
    drop(claim);
    pool.assert_consistent();
}

/// A block went idle in one shard, was reclaimed through another one, and has a new content since.
#[test]
fn an_entry_of_an_earlier_content_is_stale() {
    let pool = Pool::new(&[101, 0], LRU);
    let all = pool.take_free(0);
    pool.set_keys(&all, false);
    let (first, others) = (&all[..1], &all[1..]);
    pool.give(0, first);
    let claim = pool.list.shards[1].claim();
    assert!(pool.words.view().acquire(first[0], false).is_some());
    claim.ledger().revived(1);
    pool.list.took(&claim, 1);
    drop(claim);
    pool.give(1, first);
    pool.give(0, others);
    assert_eq!(pool.serve(1, 1, 1), first);
    assert!(!pool.take(0, 3).contains(&first[0]), "it has the newest content of 101");
}

/// The numbers of blocks are such that a shard's turn could come at the same place of each allocation.
#[test]
#[cfg_attr(miri, ignore = "one thread reclaims thousands of blocks: minutes under an interpreter")]
fn free_blocks_of_all_shards_are_found_in_turn() {
    let mut spread = [38; 16];
    (spread[0], spread[1], spread[2]) = (256, 0, 274);
    for (free, n) in [(&spread[..], 64), (&spread[..], 63), (&[256, 256][..], 128)] {
        let pool = Pool::new(free, LRU);
        pool.make_idle(0);
        for _ in 0..500 {
            pool.serve(0, n, 0);
        }
        let left = pool.num_free();
        assert!(left < 2 * n, "{left} blocks are free while contents are reclaimed");
        pool.assert_consistent();
    }
}

/// Random numbers for a storm.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Takes, matches, touches, holds, forgets and gives back blocks at random; ends without a block.
fn disturb(pool: &Pool, mut random: Random) {
    let Pool { list, words, .. } = pool;
    let (total, mut held, mut unused) = (list.total(), Vec::new(), Vec::new());
    let key_of = |id: BlockId| ContentKey::new(u128::from(id.0) + 1);
    for _ in 0..OPERATIONS {
        disturb_levels(pool, &mut random, &held);
        match random.below(16) {
            0..4 => {
                let most = if random.below(8) == 0 { total } else { total.min(9) };
                let (n, start) = (1 + random.below(most), held.len());
                match random.below(3) {
                    0 => _ = list.try_take_fast(n, words, &mut held),
                    _ => _ = list.take(n, words, &mut held),
                }
                for &id in &held[start..] {
                    let (hot, spare) = (random.below(3) == 0, random.below(4) == 0);
                    let new = NewKey { key: key_of(id), mark: Mark::new(1), hot, spare };
                    if random.below(10) > 0 {
                        words.set_key(id, new, true, |_| {});
                    }
                }
            }
            4..10 => {
                let mut matching = list.matching(words);
                for _ in 0..1 + random.below(total.min(BATCH)) {
                    let id = BlockId(random.below(total) as u32);
                    let key =
                        if random.below(30) == 0 { ContentKey::new(7 << 64) } else { key_of(id) };
                    if words.state(id).owners() < 30 && matching.acquire(id, key) {
                        held.push(id);
                    }
                }
            }
            10 => {
                let mut matching = list.matching(words);
                for _ in 0..1 + random.below(BATCH) {
                    let id = BlockId(random.below(total) as u32);
                    matching.touch(id, key_of(id));
                }
            }
            11 if random.below(20) == 0 => {
                list.forget_idle(1 + random.below(total), words);
            }
            11 => {
                let before = std::mem::take(&mut unused);
                unused = hold_oldest(pool, random.below(total.min(BATCH)), |_| true);
                list.give_as_old(&before, words);
            }
            12 if random.below(50) == 0 => assert_eq!(list.audit(0, words), Ok(())),
            _ => {
                let kept = if random.below(4) == 0 { 0 } else { random.below(held.len() + 1) };
                list.give(&held[kept..], words);
                held.truncate(kept);
            }
        }
    }
    list.give(&held, words);
    list.give_as_old(&unused, words);
}

#[test]
#[cfg_attr(miri, ignore = "many threads on many shards: minutes under an interpreter")]
fn small_pools_lose_no_block_under_many_threads() {
    let shapes = [(1, 64, 8), (3, 2, 8), (130, 4, 12), (300, 64, 40), (128, 2, 8), (2_048, 16, 16)];
    for (total, shards, threads) in shapes {
        for keep in [LRU, TWO_QUEUES, Retention::Levels(ReclaimPolicy::Lru)] {
            let list = FreeList::new(0, total, shards, keep).unwrap();
            let words = BlockWords::with_keys(total).unwrap();
            let pool = Pool { list, words, keys: AtomicU64::new(1) };
            thread::scope(|scope| {
                for seed in 0..threads {
                    let pool = &pool;
                    scope.spawn(move || disturb(pool, Random(seed)));
                }
            });
            pool.assert_consistent();
            assert_eq!((pool.list.used(), pool.list.room()), (0, total));
            let mut out = Vec::new();
            assert!(pool.list.take(total, &pool.words, &mut out).is_ok());
            pool.assert_consistent();
        }
    }
}

/// Threads take many or few blocks, and give them back if they find that too few are left.
#[test]
#[cfg_attr(miri, ignore = "many threads on many shards: minutes under an interpreter")]
fn large_and_small_takes_at_once_leave_the_watermark() {
    const LEFT: usize = 200;
    for round in 0..60 {
        let keep = if round % 2 == 0 { Retention::Nothing } else { LRU };
        let pool = Pool::new(&[256; 4], keep);
        thread::scope(|scope| {
            for thread in 0..6_u64 {
                let Pool { list, words, .. } = &pool;
                scope.spawn(move || {
                    let mut random = Random(round << 8 | thread);
                    for _ in 0..60 {
                        let most = if thread < 2 { 300 } else { 4 };
                        let (n, mut out) = (1 + random.below(most), Vec::new());
                        if !list.has_room(n + LEFT) || list.take(n, words, &mut out).is_err() {
                            continue;
                        }
                        // As `BlockWatermark::take` does.
                        fence(Ordering::SeqCst);
                        if !list.has_room(LEFT) {
                            list.give(&out, words);
                        }
                    }
                });
            }
        });
        assert!(pool.list.room() >= LEFT, "{} are left", pool.list.room());
        pool.assert_consistent();
    }
}
