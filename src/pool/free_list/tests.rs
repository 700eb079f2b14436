//! Tests of the free list: each way to take blocks beyond the home shard, and to give them back, by itself.

use std::collections::HashSet;

use super::*;
use crate::pool::content_key::NewKey;
use crate::pool::idle::policy::ReclaimPolicy;

const SHARDS: usize = 4;

/// A list and words whose blocks a test places: shards in order from this thread's home.
struct Spread {
    list: FreeList,
    words: BlockWords,
}

impl Spread {
    /// Creates a list with `free[i]` free blocks in shard i. More than fit in a shard are not allowed.
    fn new(free: [usize; SHARDS], keep: Retention) -> Self {
        let total = free.iter().sum();
        let words = match keep {
            Retention::Nothing => BlockWords::new(total).unwrap(),
            _ => BlockWords::with_keys(total).unwrap(),
        };
        let list = FreeList::new(0, total, SHARDS, keep).unwrap();
        while list.depot.pop().is_some() {}
        list.shards.iter().for_each(|shard| shard.claim().set_len(0));
        let spread = Self { list, words };
        let mut ids = (0..total as u32).map(BlockId);
        for (at, &n) in free.iter().enumerate() {
            let mut claim = spread.shard(at).claim();
            ids.by_ref().take(n).for_each(|id| claim.push(id, &spread.list.depot));
        }
        spread
    }

    fn shard(&self, from_home: usize) -> &Shard {
        self.list.shard_of(thread_ordinal() + from_home)
    }

    fn lengths(&self) -> [usize; SHARDS] {
        std::array::from_fn(|at| self.shard(at).claim().len())
    }

    /// Takes all free blocks of a shard, keys them and makes them idle there, the last block first.
    fn make_idle(&self, from_home: usize) -> Vec<BlockId> {
        let mut claim = self.shard(from_home).claim();
        let (n, mut ids) = (claim.len(), Vec::new());
        claim.pop_owned(n, &self.words, &mut ids);
        self.list.took(&claim, n);
        for &id in &ids {
            let key = ContentKey::new(u128::from(id.0) + 1);
            assert!(self.words.set_key(id, NewKey::only(key), true, |_| {}));
        }
        self.list.give_batch(&mut claim, &ids, &self.words);
        ids
    }

    /// Asserts that `used` blocks are used and `idle` of the others idle, and that the audit finds no fault.
    #[track_caller]
    fn assert_used_and_idle(&self, used: usize, idle: usize) {
        assert_eq!((self.list.used(), self.list.idle_totals().idle), (used, idle));
        assert_eq!(self.list.audit(0, &self.words), Ok(()));
    }
}

fn distinct(ids: &[BlockId]) -> usize {
    ids.iter().collect::<HashSet<_>>().len()
}

/// The first id of `out` before a call: the free list appends and leaves it there.
const THERE: BlockId = BlockId(u32::MAX);

const CONTENTS: Retention = Retention::Contents(ReclaimPolicy::Lru);

#[test]
fn a_caller_with_all_claims_takes_from_shards_and_depot() {
    for n in [0, 1, 40, 40 + BATCH, 39 + 2 * BATCH, 40 + 2 * BATCH] {
        let spread = Spread::new([0, 10, 2 * BATCH, 30], Retention::Nothing);
        let mut third = spread.shard(2).claim();
        third.push(BlockId(0), &spread.list.depot); // this spills a batch
        let len = third.len();
        third.set_len(len - 1);
        drop(third);
        assert_eq!((spread.lengths()[2], spread.list.depot.len()), (BATCH, 1));
        let mut out = vec![THERE];
        assert_eq!(spread.list.take_from_all(n, &spread.words, &mut out).map(drop), Ok(()));
        assert_eq!((out.len(), distinct(&out), out[0]), (1 + n, 1 + n, THERE));
        spread.assert_used_and_idle(n, 0);
    }
}

#[test]
fn a_caller_with_all_claims_takes_free_blocks_before_contents() {
    for (n, left) in [(30, 60), (31, 59), (89, 1), (90, 0)] {
        let spread = Spread::new([20, 40, 20, 10], CONTENTS);
        let idle = [spread.make_idle(0), spread.make_idle(1)].concat();
        spread.assert_used_and_idle(0, 60);
        let mut out = vec![THERE];
        assert_eq!(spread.list.take_from_all(n, &spread.words, &mut out).map(drop), Ok(()));
        assert_eq!((out.len(), distinct(&out)), (1 + n, 1 + n));
        assert!(out[1..31].iter().all(|id| !idle.contains(id)), "the free ones first");
        spread.assert_used_and_idle(n, left);
        assert_eq!(spread.list.idle_totals().reclaimed, n as u64 - 30);
    }
}

#[test]
fn a_short_take_with_all_claims_reports_and_leaves_the_blocks() {
    let spread = Spread::new([20, 40, 20, 10], CONTENTS);
    let idle = spread.make_idle(1);
    let mut out = vec![THERE];
    assert_eq!(spread.list.take_from_all(91, &spread.words, &mut out), Err(90));
    assert_eq!(out, [THERE]);
    spread.assert_used_and_idle(0, 40);
    assert!(idle.iter().all(|&id| spread.words.state(id).is_idle()));
    assert_eq!(spread.list.take_from_all(90, &spread.words, &mut out).map(drop), Ok(()));
}

#[test]
fn a_stealing_thread_moves_half_a_shard_home() {
    for (n, left) in [(10, [40, 50, 0, 0]), (60, [0, 40, 0, 0]), (100, [0, 0, 0, 0])] {
        let spread = Spread::new([0, 100, 0, 0], Retention::Nothing);
        let mut out = vec![THERE];
        let (mut home, search) = (spread.shard(0).claim(), Search::AllShards);
        assert!(spread.list.gather(&mut home, n, &spread.words, &mut out, search).is_some());
        drop(home);
        assert_eq!((out.len(), distinct(&out), spread.lengths()), (1 + n, 1 + n, left));
        spread.assert_used_and_idle(n, 0);
        spread.list.give(&out[1..], &spread.words);
        assert_eq!((spread.list.used(), spread.list.peak()), (0, n), "what was used then");
    }
}

#[test]
fn a_stealing_thread_stops_once_it_has_enough() {
    let spread = Spread::new([5, 10, 20, 40], Retention::Nothing);
    let mut out = vec![THERE];
    let (mut home, search) = (spread.shard(0).claim(), Search::AllShards);
    assert!(spread.list.gather(&mut home, 16, &spread.words, &mut out, search).is_some());
    drop(home);
    assert_eq!(out.len(), 17);
    assert_eq!(spread.lengths(), [9, 0, 10, 40], "half of the second stayed, and all of the third");
    spread.assert_used_and_idle(16, 0);
}

#[test]
fn a_short_gather_keeps_blocks_home_and_contents_in_place() {
    let spread = Spread::new([5, 10, 20, 40], CONTENTS);
    let idle = spread.make_idle(0);
    let mut out = vec![THERE];
    for search in [Search::Near, Search::AllShards] {
        let mut home = spread.shard(0).claim();
        assert!(spread.list.gather(&mut home, 76, &spread.words, &mut out, search).is_none());
        drop(home);
        assert_eq!(out, [THERE]);
        spread.assert_used_and_idle(0, 5);
        assert!(idle.iter().all(|&id| spread.words.state(id).is_idle()));
    }
    assert_eq!(spread.lengths().iter().sum::<usize>() + BATCH * spread.list.depot.len(), 70);
}

#[test]
fn contents_of_other_shards_are_reclaimed_where_the_home_has_none() {
    let spread = Spread::new([0, 10, 0, 10], CONTENTS);
    let idle = [spread.make_idle(1), spread.make_idle(3)].concat();
    let mut out = vec![THERE];
    let mut home = spread.shard(0).claim();
    for n in [1, 12, 7] {
        out.truncate(1);
        let search = Search::Near;
        assert!(spread.list.gather(&mut home, n, &spread.words, &mut out, search).is_some());
        assert_eq!((out.len(), distinct(&out)), (1 + n, 1 + n));
        assert!(out[1..].iter().all(|id| idle.contains(id)));
    }
    drop(home);
    spread.assert_used_and_idle(20, 0);
}

#[test]
fn near_is_the_home_and_the_depot_and_no_more_than_a_batch_of_it() {
    let spread = Spread::new([10, 20, 0, 0], Retention::Nothing);
    let mut out = vec![THERE];
    assert!(spread.list.try_take_fast(11, &spread.words, &mut out).is_none());
    assert!(spread.list.try_take_fast(10, &spread.words, &mut out).is_some());
    assert_eq!((out.len(), spread.lengths()), (11, [0, 20, 0, 0]));
    let ids = std::array::from_fn(|at| BlockId(10 + at as u32));
    let spread = Spread::new([10, BATCH, 0, 0], Retention::Nothing);
    spread.shard(1).claim().set_len(0);
    assert!(spread.list.depot.push(FreeBatch(ids)).is_ok());
    assert!(spread.list.try_take_fast(BATCH + 1, &spread.words, &mut out).is_none());
    out.truncate(1);
    assert!(spread.list.try_take_fast(BATCH, &spread.words, &mut out).is_some());
    assert_eq!((out.len(), distinct(&out)), (1 + BATCH, 1 + BATCH));
    spread.assert_used_and_idle(BATCH, 0);
}

#[test]
fn blocks_come_back_to_the_home_in_their_order_and_by_batches() {
    let spread = Spread::new([2 * BATCH, BATCH, 0, 0], Retention::Nothing);
    let mut out = Vec::new();
    for n in [1, BATCH, BATCH + 1, 2 * BATCH] {
        out.clear();
        assert_eq!(spread.list.take(n, &spread.words, &mut out).map(drop), Ok(()));
        spread.assert_used_and_idle(n, 0);
        spread.list.give(&out, &spread.words);
        spread.assert_used_and_idle(0, 0);
        let first = out[0];
        out.clear();
        assert_eq!(spread.list.take(1, &spread.words, &mut out).map(drop), Ok(()));
        assert_eq!(out, [first], "the last to come back goes first");
        spread.list.give(&out, &spread.words);
    }
    assert_eq!(spread.list.room(), 3 * BATCH);
}

#[test]
fn a_claim_passes_over_a_shard_that_is_claimed() {
    let spread = Spread::new([1, 1, 1, 1], Retention::Nothing);
    let (home, second) = (spread.shard(0).claim(), spread.shard(1).claim());
    let third = spread.list.claim();
    assert!(std::ptr::eq(third.shard, spread.shard(2)));
    assert!(spread.shard(2).try_claim().is_none());
    drop(third);
    drop(home);
    assert!(std::ptr::eq(spread.list.claim().shard, spread.shard(0)));
    drop(second);
}

/// A thread acquires a block by a stale index entry, under which the block has another key by now. While it
/// holds the block, another thread matches it by the right key and may release it last.
#[test]
fn a_mistaken_acquirer_counts_its_block_before_others_release_it() {
    for other_leaves_last in [true, false] {
        let spread = Spread::new([1, 0, 0, 0], Retention::Contents(ReclaimPolicy::Lru));
        let (list, words) = (&spread.list, &spread.words);
        let id = spread.make_idle(0)[0];
        let counts = || (list.used(), list.idle_totals().idle);
        let other = || {
            let mut other = list.matching(words);
            assert!(other.acquire(id, ContentKey::new(u128::from(id.0) + 1)));
        };
        let mut mistaken = list.matching(words);
        let was_idle = words.view().acquire(id, true).expect("it is cached");
        if other_leaves_last {
            other();
            mistaken.leave(id, was_idle);
        } else {
            mistaken.leave(id, was_idle);
            assert_eq!(counts(), (0, 1));
            other();
        }
        assert_eq!(counts(), (1, 0));
        list.give(&[id], words);
        assert_eq!(counts(), (0, 1));
        drop(mistaken);
        spread.assert_used_and_idle(0, 1);
    }
}

#[test]
fn a_block_that_is_touched_stays_idle_and_goes_last() {
    let spread = Spread::new([3, 0, 0, 0], Retention::Contents(ReclaimPolicy::Lru));
    let (list, words) = (&spread.list, &spread.words);
    let ids = spread.make_idle(0);
    let key = |id: BlockId| ContentKey::new(u128::from(id.0) + 1);
    let before = list.totals();
    list.matching(words).touch(ids[2], key(ids[2]));
    list.matching(words).touch(ids[1], key(ids[0])); // a different content
    spread.assert_used_and_idle(0, 3);
    assert_eq!(list.totals(), before);
    let mut taken = Vec::new();
    list.take(3, words, &mut taken).unwrap();
    assert_eq!(taken, [ids[1], ids[0], ids[2]]);
    list.matching(words).touch(ids[0], key(ids[0])); // in use, and no longer cached
    spread.assert_used_and_idle(3, 0);
}
