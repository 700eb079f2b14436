//! Models of a learned order of reclaim: no block is lost between the lists of the classes, and its counts are exact.

mod common;

use std::sync::Arc;

use common::{Kv, explore, explore_large, race, spawn_at};
use paged_kv::loom_api::{Admitted, LearnedCounts, ReusePool};
use paged_kv::{Level, ReclaimPolicy};

/// Contents, by their hashes. Their cells hold the same numbers.
const A: u128 = 0xA << 100 | 0xA;
const B: u128 = 0xB << 100 | 0xB;
const C: u128 = 0xC << 100 | 0xC;

const POLICY: ReclaimPolicy = ReclaimPolicy::HitDensity;

/// A pool with a learned order over two shards, and the cells of its blocks.
#[derive(Clone)]
struct Learning {
    pool: Arc<ReusePool>,
    kv: Arc<Kv>,
}

impl Learning {
    fn new(num_blocks: usize) -> Self {
        let pool = Arc::new(ReusePool::with_policy(num_blocks, 2, POLICY));
        Self { pool, kv: Arc::new(Kv::new(num_blocks)) }
    }

    /// Admits one content without a count of its uses, and computes and publishes it if it is new.
    fn serve(&self, content: u128) -> Option<Admitted> {
        self.compute(content, self.pool.admit(&[content]).ok()?)
    }

    fn compute(&self, content: u128, admitted: Admitted) -> Option<Admitted> {
        let id = admitted.table.as_slice()[0];
        if admitted.hits == 0 {
            self.kv.write(id, content as u64);
            self.pool.publish(&admitted, 0, content);
        } else {
            assert_eq!(self.kv.read(id), content as u64, "{id} holds what its hash promises");
        }
        Some(admitted)
    }

    /// Leaves `contents` idle, released with notes.
    fn cache(&self, contents: &[u128]) {
        for &content in contents {
            self.pool.release_noted(self.serve(content).expect("there is room"));
        }
    }

    /// Serves one content, and notes its release.
    fn match_and_release(&self, content: u128) {
        if let Some(admitted) = self.serve(content) {
            self.pool.release_noted(admitted);
        }
    }

    /// Takes blocks, and writes them as their only owner.
    fn take(&self, num_blocks: usize) -> bool {
        let taken = self.pool.pool.allocate(num_blocks);
        taken.is_ok_and(|table| {
            self.kv.use_alone(table.as_slice(), 7);
            true
        })
    }

    /// Asserts at rest that a prompt counts the first use after a release, and no use of a content that was not released.
    fn assert_uses_are_counted_once(&self) {
        let hits = || self.pool.learned().hits;
        let held = self.serve(C).expect("there is room");
        let before = hits();
        self.pool.count_prompt(&[C]);
        assert_eq!(hits(), before, "it is not released");
        self.pool.release_noted(held);
        (0..2).for_each(|_| self.pool.count_prompt(&[C]));
        assert_eq!(hits(), before + 1);
    }

    /// Asserts at rest that all blocks are room, and that a thread finds each of them.
    fn assert_all_room(&self) {
        let pool = &self.pool.pool;
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().expect("words, entries and ledgers agree");
        assert!(self.take(pool.total_blocks()), "each block is found");
    }
}

#[test]
fn two_releases_beside_a_reclaim_lose_no_block() {
    explore(|| {
        let cache = Learning::new(2);
        let (one, other) = (cache.serve(A).unwrap(), cache.serve(B).unwrap());
        let theirs = cache.clone();
        race(
            || {
                cache.pool.release_noted(one);
                assert!(cache.take(1), "one block is room");
            },
            move || theirs.pool.release_noted(other),
        );
        cache.assert_all_room();
    });
}

/// The reclaim takes the blocks of the other shard, whose owner releases a later one there.
#[test]
fn a_release_beside_a_reclaim_from_its_shard_loses_no_block() {
    explore(|| {
        let cache = Learning::new(3);
        let theirs = cache.clone();
        let ready = spawn_at(1, move || {
            theirs.cache(&[A]);
            theirs.serve(B)
        });
        let held = ready.join().unwrap().unwrap();
        cache.cache(&[C]);
        let theirs = cache.clone();
        let (took, ()) = race(|| cache.take(2), move || theirs.pool.release_noted(held));
        assert!(took, "two blocks are room throughout");
        cache.assert_all_room();
    });
}

/// Each looks into the shard of the other, with its own claimed.
#[test]
fn two_reclaims_that_choose_from_each_others_shards_both_succeed() {
    explore(|| {
        let cache = Learning::new(2);
        let theirs = cache.clone();
        spawn_at(1, move || theirs.cache(&[A])).join().unwrap();
        cache.cache(&[B]);
        let theirs = cache.clone();
        let (mine, other) = race(|| cache.take(1), move || theirs.take(1));
        assert!(mine && other, "each takes one of two");
        cache.assert_all_room();
    });
}

#[test]
fn a_match_beside_a_reclaim_finds_the_content_or_none() {
    explore(|| {
        let cache = Learning::new(2);
        cache.cache(&[A, B]);
        let theirs = cache.clone();
        race(|| cache.match_and_release(A), move || theirs.take(2));
        cache.assert_all_room();
    });
}

/// The reclaim has the claim of its home only, and so the match is made between its looks at the block.
#[test]
fn a_match_from_another_shard_beside_a_reclaim_finds_the_content_or_none() {
    explore_large(|| {
        let cache = Learning::new(1);
        cache.cache(&[A]);
        let theirs = cache.clone();
        race(|| cache.take(1), move || drop(theirs.serve(A)));
        cache.assert_all_room();
    });
}

/// A prompt counts the use of a content without a claim, and may write the note of a block after its reclaim.
#[test]
fn a_counted_prompt_beside_a_reclaim_loses_no_block() {
    explore(|| {
        let cache = Learning::new(2);
        let others = cache.pool.pool.allocate(1).unwrap();
        cache.cache(&[A]);
        let theirs = cache.clone();
        race(|| cache.pool.count_prompt(&[A]), move || theirs.match_and_release(B));
        // A use of a reclaimed content counts for those that are not sampled, too.
        assert!([0, 1, 4].contains(&cache.pool.learned().hits), "a release has one first use");
        cache.assert_uses_are_counted_once();
        drop(others);
        cache.assert_all_room();
    });
}

#[test]
fn two_releases_of_a_shared_content_leave_it_idle_once() {
    explore(|| {
        let cache = Learning::new(2);
        let (one, other) = (cache.serve(A).unwrap(), cache.serve(A).unwrap());
        let theirs = cache.clone();
        race(|| cache.pool.release_noted(one), move || theirs.pool.release_noted(other));
        let counted = cache.pool.learned();
        assert_eq!((counted.releases, cache.pool.probe(&[A])), (2, 1));
        cache.assert_all_room();
    });
}

/// The other copy of a content takes the place of the idle one.
#[test]
fn a_copy_that_replaces_an_idle_one_beside_a_reclaim_loses_no_block() {
    explore(|| {
        let cache = Learning::new(2);
        let again = cache.pool.admit(&[A]).unwrap();
        cache.kv.write(again.table.as_slice()[0], A as u64);
        cache.cache(&[A]);
        let theirs = cache.clone();
        race(
            || {
                cache.pool.publish(&again, 0, A);
                cache.pool.release_noted(again);
            },
            move || theirs.take(1),
        );
        cache.assert_all_room();
    });
}

#[test]
fn a_reset_beside_a_release_loses_no_block() {
    explore(|| {
        let cache = Learning::new(2);
        let held = cache.serve(A).unwrap();
        let theirs = cache.clone();
        race(
            || cache.pool.release_noted(held),
            move || {
                theirs.pool.reset();
                assert!(theirs.take(1), "one block is room throughout");
            },
        );
        assert_eq!(cache.pool.probe(&[A]), 0);
        cache.assert_all_room();
    });
}

/// The content moves from the queue of its level to the list of its class.
#[test]
fn a_level_that_ends_in_a_learned_order_beside_a_match_loses_no_block() {
    explore_large(|| {
        let pool = Arc::new(ReusePool::with_levels(1, 2, POLICY));
        let cache = Learning { pool, kv: Arc::new(Kv::new(1)) };
        cache.cache(&[A]);
        assert_eq!(cache.pool.set_level(A, Level::High, true), 1);
        let theirs = cache.clone();
        race(|| drop(cache.serve(A)), move || theirs.take(1));
        cache.assert_all_room();
    });
}

/// The second of two prompts is the one with which learning is due, so that each thread may find it due.
#[test]
fn of_two_threads_to_which_learning_is_due_one_learns() {
    explore(|| {
        let cache = Learning::new(2);
        cache.cache(&[A, B]);
        let theirs = cache.clone();
        race(|| cache.pool.count_prompt(&[A]), move || theirs.pool.count_prompt(&[B]));
        assert!(cache.pool.learned().times <= 1, "the second has nothing to learn");
        // Neither may have seen both prompts, or the other one's use.
        cache.pool.count_prompt(&[C, C]);
        let counted = cache.pool.learned();
        let LearnedCounts { releases, hits, learned_releases, learned_hits, .. } = counted;
        let is_two = |learned: f64| (1.99..=2.0).contains(&learned);
        assert_eq!((releases, hits), (2, 2));
        assert!(is_two(learned_releases) && is_two(learned_hits), "{counted:?}");
    });
}

/// Learning is due at each prompt, and so to both threads.
#[test]
fn counts_that_two_threads_learn_are_learned_once() {
    explore(|| {
        let cache = Learning::new(1);
        cache.cache(&[A]);
        let theirs = cache.clone();
        race(|| cache.pool.count_prompt(&[A]), move || theirs.pool.count_prompt(&[B]));
        cache.pool.count_prompt(&[C]);
        let LearnedCounts { learned_releases, learned_hits, .. } = cache.pool.learned();
        let is_one = |learned: f64| (0.99..=1.0).contains(&learned);
        assert!(is_one(learned_releases) && is_one(learned_hits), "each count is learned once");
    });
}

#[test]
fn the_clock_of_a_learned_order_does_not_go_back() {
    explore(|| {
        let cache = Learning::new(3);
        let theirs = cache.clone();
        let read_after_a_prompt = |cache: &Learning| {
            cache.pool.count_prompt(&[A]);
            cache.pool.time()
        };
        let (mine, other) =
            race(|| read_after_a_prompt(&cache), move || read_after_a_prompt(&theirs));
        assert!(cache.pool.time() >= mine.max(other));
    });
}
