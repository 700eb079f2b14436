//! Models of prefix reuse: a match gets published contents only, while other threads reclaim and publish.

mod common;

use std::sync::Arc;

use common::{Kv, Told, explore, race, spawn_at};
use paged_kv::loom_api::{Admitted, ReusePool};
use paged_kv::{BlockId, ReclaimPolicy};

/// Contents, by their hashes. Their cells hold the same numbers.
const A: u128 = 0xA << 100 | 0xA;
const B: u128 = 0xB << 100 | 0xB;
const C: u128 = 0xC << 100 | 0xC;

/// Creates a pool that keeps contents, and the cells of its blocks.
fn reuse_pool(num_blocks: usize, shards: usize) -> (Arc<ReusePool>, Arc<Kv>) {
    (Arc::new(ReusePool::new(num_blocks, shards)), Arc::new(Kv::new(num_blocks)))
}

/// Admits `hashes`, checks the hits, computes and publishes the rest.
fn serve(pool: &ReusePool, kv: &Kv, hashes: &[u128]) -> Option<Admitted> {
    let admitted = pool.admit(hashes).ok()?;
    for (index, (&id, &hash)) in admitted.table.as_slice().iter().zip(hashes).enumerate() {
        if index < admitted.hits {
            assert_eq!(kv.read(id), hash as u64, "{id} holds what its hash promises");
        } else {
            kv.write(id, hash as u64);
            pool.publish(&admitted, index, hash);
        }
    }
    Some(admitted)
}

fn assert_all_room(pool: &ReusePool) {
    assert_eq!(pool.pool.used_block_count(), 0);
    pool.pool.validate().expect("words, entries and ledgers agree");
}

/// Fills the cache with `contents`, which are idle afterwards.
fn cached(pool: &ReusePool, kv: &Kv, contents: &[u128]) {
    for &content in contents {
        drop(serve(pool, kv, &[content]).expect("there is room"));
    }
}

#[test]
fn a_match_sees_the_writes_of_the_publisher() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (mine, theirs) = race(
            || serve(&pool, &kv, &[A]).is_some(),
            move || serve(&their_pool, &their_kv, &[A]).is_some(),
        );
        assert!(mine && theirs);
        assert_all_room(&pool);
    });
}

/// The block gets the content key that it had before, so the key alone does not show the new content.
#[test]
fn a_match_sees_the_second_publication_of_a_shared_block() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                drop(pool.pool.allocate(1));
                let Ok(mut mine) = pool.admit(&[A]) else { return };
                if mine.hits == 0 {
                    kv.write(BlockId(0), A as u64);
                    let fork = pool.fork(&mut mine).expect("few owners");
                    pool.publish(&mine, 0, A);
                    drop(fork);
                }
            },
            move || drop(serve(&their_pool, &their_kv, &[A])),
        );
        assert_all_room(&pool);
    });
}

#[test]
fn a_reclaimed_block_is_in_one_hand() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (mine, theirs) = race(
            || serve(&pool, &kv, &[A]).is_some(),
            move || serve(&their_pool, &their_kv, &[B]).is_some(),
        );
        assert!(mine || theirs, "of two that do not fit together, one fits");
        assert_all_room(&pool);
    });
}

#[test]
fn a_match_beside_a_reclaim_and_a_new_key_gets_the_old_content_or_none() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 1);
        cached(&pool, &kv, &[A, B]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || drop(serve(&pool, &kv, &[A])),
            move || {
                // Takes the free block, and reclaims one of the cached blocks.
                drop(serve(&their_pool, &their_kv, &[C, A]));
                drop(serve(&their_pool, &their_kv, &[B]));
            },
        );
        assert_all_room(&pool);
    });
}

/// Whichever of the two copies is reclaimed first, the other one is found.
#[test]
fn two_publishers_of_one_content_are_both_found() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        let (mine, theirs) = (pool.admit(&[A]).unwrap(), pool.admit(&[A]).unwrap());
        kv.write(mine.table.as_slice()[0], A as u64);
        kv.write(theirs.table.as_slice()[0], A as u64);
        let their_pool = Arc::clone(&pool);
        let ((mine, my_count), (theirs, their_count)) = race(
            || {
                let count = pool.publish(&mine, 0, A);
                (mine, count)
            },
            move || {
                let count = their_pool.publish(&theirs, 0, A);
                (theirs, count)
            },
        );
        assert_eq!(pool.copies(A), 2);
        assert!(my_count + their_count >= 1, "one of them was first, or neither saw the other");
        drop(mine);
        drop(pool.pool.allocate(2).expect("one is free, one is idle"));
        assert_eq!(pool.copies(A), 1);
        assert_eq!(pool.admit(&[A]).unwrap().hits, 1);
        drop(theirs);
        assert_all_room(&pool);
    });
}

/// One copy is in use throughout. The other is reclaimed, put back, and gets a new content key.
#[test]
fn a_copy_in_use_is_found_while_the_other_is_reclaimed() {
    explore(|| {
        let (pool, kv) = reuse_pool(2, 1);
        let (mine, theirs) = (pool.admit(&[A]).unwrap(), pool.admit(&[A]).unwrap());
        for copy in [&mine, &theirs] {
            kv.write(copy.table.as_slice()[0], A as u64);
            pool.publish(copy, 0, A);
        }
        drop(theirs);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                assert_eq!(pool.probe(&[A]), 1);
                let again = pool.admit(&[A]).expect("a hit takes no room but its own");
                assert_eq!((again.hits, kv.read(again.table.as_slice()[0])), (1, A as u64));
            },
            move || {
                assert!(their_pool.pool.allocate(2).is_err(), "one block is room");
                drop(serve(&their_pool, &their_kv, &[B]));
            },
        );
        assert_eq!(pool.probe(&[A]), 1);
        drop(mine);
        assert_all_room(&pool);
    });
}

#[test]
fn contents_published_before_a_reset_match_no_later_prompt() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        let old = pool.admit(&[A]).unwrap();
        kv.write(old.table.as_slice()[0], A as u64);
        let their_pool = Arc::clone(&pool);
        let (new, old) = race(
            || {
                pool.reset();
                pool.admit(&[A]).unwrap()
            },
            move || {
                their_pool.publish(&old, 0, A);
                // Matches the content that it published, or runs after the reset and finds none.
                let again = their_pool.admit(&[A]).unwrap();
                (old, again)
            },
        );
        assert_eq!(new.hits, 0);
        assert_eq!(pool.probe(&[A]), 0);
        drop((new, old));
        assert_all_room(&pool);
    });
}

#[test]
fn idle_blocks_are_room_until_they_are_matched() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        cached(&pool, &kv, &[A, B]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        // Each needs two of three blocks: the first of them gets its blocks.
        let (mine, theirs) =
            race(|| serve(&pool, &kv, &[A, C]), move || serve(&their_pool, &their_kv, &[B, C]));
        assert!(mine.is_some() || theirs.is_some(), "of two that do not fit together, one fits");
        drop((mine, theirs));
        assert_all_room(&pool);
    });
}

/// The block is matched as soon as it is idle, before it is counted as given back. Until then it counts
/// as taken twice, and no refusal may rest on that.
#[test]
fn a_block_matched_before_its_count_causes_no_refusal() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        let leaving = serve(&pool, &kv, &[A]).unwrap();
        let their_pool = Arc::clone(&pool);
        race(
            || drop(leaving),
            move || {
                let again = their_pool.admit(&[A]).unwrap();
                assert_eq!(again.hits, 1, "it is cached throughout");
                drop(their_pool.pool.allocate(2).expect("two blocks are free throughout"));
            },
        );
        assert_all_room(&pool);
    });
}

#[test]
fn a_two_queue_match_takes_the_block_a_reclaimer_leaves() {
    explore(|| {
        let pool = Arc::new(ReusePool::with_policy(3, 2, ReclaimPolicy::TwoQueue));
        let kv = Arc::new(Kv::new(3));
        // A was requested again, B was not.
        cached(&pool, &kv, &[A, B, A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (mine, theirs) = race(
            || serve(&pool, &kv, &[A]).is_some(),
            move || serve(&their_pool, &their_kv, &[C, B]).is_some(),
        );
        assert!(mine && theirs, "three blocks are enough");
        assert_all_room(&pool);
    });
}

#[test]
fn a_probe_never_reads_half_a_key() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        cached(&pool, &kv, &[A]);
        let their_pool = Arc::clone(&pool);
        const HALVES: u128 = 0xA << 100 | 0xB;
        const OTHER_HALVES: u128 = 0xB << 100 | 0xA;
        race(
            || {
                let admitted = pool.admit(&[B]).unwrap();
                pool.publish(&admitted, 0, B);
            },
            move || {
                assert!(!their_pool.is_cached_as(BlockId(0), HALVES));
                assert!(!their_pool.is_cached_as(BlockId(0), OTHER_HALVES));
            },
        );
        assert_eq!(pool.probe(&[B]), 1);
        assert_eq!(pool.probe(&[A]), 0);
        assert_all_room(&pool);
    });
}

#[test]
fn of_two_forks_one_keys_the_block_they_share() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        let mut mine = pool.admit(&[A]).unwrap();
        kv.write(BlockId(0), A as u64);
        let theirs = pool.fork(&mut mine).unwrap();
        let their_pool = Arc::clone(&pool);
        let (my_count, their_count) =
            race(|| pool.publish(&mine, 0, A), move || their_pool.publish(&theirs, 0, A));
        assert_eq!(my_count + their_count, 1, "a block gets a key once");
        assert_eq!(pool.probe(&[A]), 1);
        drop(mine);
        assert_all_room(&pool);
    });
}

#[test]
fn an_owner_by_id_beside_a_publication_stays_counted() {
    explore(|| {
        let (pool, _) = reuse_pool(3, 2);
        let mine = pool.admit(&[A]).unwrap();
        let id = mine.table.as_slice()[0];
        let their_pool = Arc::clone(&pool);
        race(|| pool.publish(&mine, 0, A), move || their_pool.pool.retain(id).unwrap());
        assert_eq!(pool.pool.owners(id), Ok(2));
        pool.pool.release(id).unwrap();
        drop(mine);
        assert_all_room(&pool);
    });
}

/// The cached copy is idle, and stays available while it becomes the most recently used one.
#[test]
fn a_recomputed_content_takes_no_room_for_its_cached_copy() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        let again = pool.admit(&[A]).unwrap();
        cached(&pool, &kv, &[A]);
        let their_pool = Arc::clone(&pool);
        race(
            || pool.publish(&again, 0, A),
            move || drop(their_pool.pool.allocate(2).expect("two blocks are room throughout")),
        );
        drop(again);
        assert_all_room(&pool);
    });
}

#[test]
fn two_sharers_of_a_match_leave_it_idle_once() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        cached(&pool, &kv, &[A]);
        let (mine, theirs) = (pool.admit(&[A]).unwrap(), pool.admit(&[A]).unwrap());
        race(move || drop(mine), move || drop(theirs));
        assert_eq!(pool.probe(&[A]), 1);
        assert_all_room(&pool);
        drop(pool.pool.allocate(3).expect("idle blocks are room"));
        assert_eq!(pool.probe(&[A]), 0);
        assert_all_room(&pool);
    });
}

/// A match left an entry in shard 0 for an earlier content's first epoch. The entry leads to a block that
/// the last owner of its next content releases in shard 1. The accesses of that owner are ordered by the
/// block's word alone.
#[test]
fn a_block_reclaimed_by_an_old_entry_is_seen_as_its_last_owner_left_it() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 2);
        cached(&pool, &kv, &[A]);
        let again = pool.admit(&[A]).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let other = spawn_at(1, move || {
            drop(again);
            serve(&their_pool, &their_kv, &[B]).expect("what is idle in its shard is room")
        });
        let other = other.join().unwrap();
        let (their_kv, left) = (Arc::clone(&kv), Told::new());
        let told = left.clone();
        race(
            || {
                if told.is_told() {
                    drop(serve(&pool, &kv, &[C]));
                }
            },
            move || {
                their_kv.read(other.table.as_slice()[0]);
                drop(other);
                left.tell();
            },
        );
        assert_all_room(&pool);
    });
}

/// A block is reclaimed for an allocation that it does not suffice for, and is idle again. A thread that
/// then matches it and releases it in another shard has seen its users. So has the thread that reclaims
/// it there.
#[test]
fn a_block_put_back_after_a_reclaim_keeps_its_accesses() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 2);
        cached(&pool, &kv, &[A]);
        let mine = pool.admit(&[A]).unwrap();
        let (their_pool, their_kv, put_back) = (Arc::clone(&pool), Arc::clone(&kv), Told::new());
        let told = put_back.clone();
        race(
            || {
                kv.read(mine.table.as_slice()[0]);
                drop(mine);
                assert!(pool.pool.allocate(2).is_err(), "there is one block");
                put_back.tell();
            },
            move || {
                if told.is_told() {
                    drop(serve(&their_pool, &their_kv, &[A]));
                    drop(serve(&their_pool, &their_kv, &[B]));
                }
            },
        );
        assert_all_room(&pool);
    });
}

/// Of an uncaching and a match of the same idle block, each sees the block as the other leaves it.
fn uncaching_beside_a_request(
    uncache: fn(&ReusePool) -> usize,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        let (pool, kv) = reuse_pool(1, 2);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (ended, served) =
            race(|| uncache(&pool), move || serve(&their_pool, &their_kv, &[A]).is_some());
        assert!(ended <= 1 && (served || ended == 1));
        assert_all_room(&pool);
    }
}

#[test]
fn a_block_that_is_uncached_beside_a_match_is_free_or_owned() {
    explore(uncaching_beside_a_request(|pool| usize::from(pool.uncache(BlockId(0)))));
}

#[test]
fn a_block_that_is_forgotten_beside_a_match_is_free_or_owned() {
    explore(uncaching_beside_a_request(|pool| pool.forget(1)));
}

#[test]
fn a_content_that_is_forgotten_beside_a_match_is_free_or_owned() {
    explore(uncaching_beside_a_request(|pool| pool.forget_content(A)));
}

/// The forgotten content is that of the hash, never another one that the block holds by then.
#[test]
fn a_content_that_is_forgotten_beside_a_reclaim_ends_no_other_content() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (_, published) =
            race(|| pool.forget_content(A), move || serve(&their_pool, &their_kv, &[B]).is_some());
        assert_eq!((pool.probe(&[A]), pool.probe(&[B])), (0, usize::from(published)));
        assert_all_room(&pool);
    });
}

/// An owner that releases a block beside its uncaching, as the last one or not.
#[test]
fn a_block_that_is_uncached_beside_its_release_is_free_in_the_end() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 2);
        let owner = serve(&pool, &kv, &[A]).expect("there is room");
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (ended, ()) = race(
            || pool.uncache(BlockId(0)),
            move || {
                assert_eq!(their_kv.read(BlockId(0)), A as u64);
                drop(owner);
                drop(serve(&their_pool, &their_kv, &[B]));
            },
        );
        assert!(ended || pool.probe(&[A]) == 0);
        assert_all_room(&pool);
    });
}

/// A copy holds the oldest block while another thread reclaims all that it can: the copy reads the content of its key.
#[test]
fn a_held_block_is_reclaimed_by_no_other_thread() {
    explore(|| {
        let (pool, kv) = reuse_pool(2, 2);
        cached(&pool, &kv, &[A, B]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (_, served) = race(
            || {
                let held = pool.hold_oldest(1, &[A, B]);
                held.ids()
                    .iter()
                    .for_each(|&id| assert!([A as u64, B as u64].contains(&kv.read(id))));
            },
            move || serve(&their_pool, &their_kv, &[C]).is_some(),
        );
        assert!(served, "one block is idle throughout");
        assert_all_room(&pool);
        drop(pool.pool.allocate(2).expect("each idle block is found"));
    });
}

/// The block has the same content as before, computed anew by the other thread.
#[test]
fn a_held_block_that_was_published_again_shows_its_writes() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 1);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                let held = pool.hold_oldest(1, &[A]);
                held.ids().iter().for_each(|&id| assert_eq!(kv.read(id), A as u64));
            },
            move || {
                drop(their_pool.pool.allocate(1));
                drop(serve(&their_pool, &their_kv, &[A]));
            },
        );
        assert_all_room(&pool);
    });
}

/// The block is idle again, in its old place, before it is counted as given back.
#[test]
fn a_held_block_that_is_matched_before_its_count_causes_no_refusal() {
    explore(|| {
        let (pool, kv) = reuse_pool(3, 2);
        cached(&pool, &kv, &[A]);
        let held = pool.hold_oldest(1, &[A]);
        assert_eq!(held.ids().len(), 1);
        let their_pool = Arc::clone(&pool);
        race(
            || drop(held),
            move || {
                let again = their_pool.admit(&[A]).unwrap();
                assert_eq!(again.hits, 1, "it is cached throughout");
                drop(their_pool.pool.allocate(2).expect("two blocks are free throughout"));
            },
        );
        assert_all_room(&pool);
    });
}

/// The entry of a held block is removed by a reclaim, beside its return.
#[test]
fn a_held_block_that_is_passed_beside_its_return_is_found_again() {
    explore(|| {
        let (pool, kv) = reuse_pool(2, 2);
        cached(&pool, &kv, &[A, B]);
        let held = pool.hold_oldest(1, &[A, B]);
        assert_eq!(held.ids().len(), 1);
        let their_pool = Arc::clone(&pool);
        race(
            || drop(held),
            move || drop(their_pool.pool.allocate(1).expect("one block is idle throughout")),
        );
        assert_all_room(&pool);
        drop(pool.pool.allocate(2).expect("each idle block is found"));
    });
}

#[test]
fn a_held_block_beside_a_match_and_its_release_is_idle_once() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 2);
        cached(&pool, &kv, &[A]);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || drop(pool.hold_oldest(1, &[A])),
            move || assert_eq!(serve(&their_pool, &their_kv, &[A]).unwrap().hits, 1),
        );
        assert_all_room(&pool);
        assert_eq!(pool.probe(&[A]), 1);
        drop(pool.pool.allocate(1).expect("it is found"));
    });
}

#[test]
fn a_held_block_that_is_uncached_beside_its_return_is_free() {
    explore(|| {
        let (pool, kv) = reuse_pool(1, 2);
        cached(&pool, &kv, &[A]);
        let held = pool.hold_oldest(1, &[A]);
        let their_pool = Arc::clone(&pool);
        race(|| drop(held), move || assert_eq!(their_pool.forget_content(A), 1));
        assert_all_room(&pool);
        drop(pool.pool.allocate(1).expect("it is free"));
    });
}
