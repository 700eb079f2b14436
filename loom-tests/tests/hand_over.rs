//! Models of blocks that pass from owners counted by tables to owners counted by id, and of a claim whose
//! holder panics.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{assert_all_free, assert_used, explore, pool_and_kv, race};

const CONTENT: u64 = 7;

/// A table that a fork shares is handed over by id while the fork reads and leaves. The thread that gets
/// the ids reads the contents that both have seen. Each block is free exactly once.
#[test]
fn ids_handed_over_beside_a_leaving_sharer_own_their_blocks() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut table = pool.allocate(2).unwrap();
        table.as_slice().iter().for_each(|&id| kv.write(id, CONTENT));
        let fork = table.fork(1).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (ids, ()) = race(
            || table.take_ids().unwrap(),
            move || {
                fork.as_slice().iter().for_each(|&id| assert_eq!(their_kv.read(id), CONTENT));
                drop(fork);
                let other = their_pool.allocate(1).expect("one block is free throughout");
                their_kv.use_alone(other.as_slice(), 2);
            },
        );
        assert_used(&pool, 2);
        for id in ids {
            assert_eq!((kv.read(id), pool.owners(id)), (CONTENT, Ok(1)));
            pool.release(id).unwrap();
        }
        assert_all_free(&pool);
    });
}

/// Both sharers of a run are handed over at the same time: each block has two counts by id.
#[test]
fn two_sharers_handed_over_by_id_leave_two_counts() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut table = pool.allocate(2).unwrap();
        table.as_slice().iter().for_each(|&id| kv.write(id, CONTENT));
        let fork = table.fork(2).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let release = |pool: &paged_kv::BlockPool, id| pool.release(id).expect("it is owned");
        let ((), ids) = race(
            || {
                for id in table.take_ids().unwrap() {
                    assert_eq!(kv.read(id), CONTENT, "{id} is still owned");
                    release(&pool, id);
                }
                if let Ok(reused) = pool.allocate(2) {
                    kv.use_alone(reused.as_slice(), 1);
                }
            },
            move || {
                let mut fork = fork;
                let ids = fork.take_ids().unwrap();
                assert_eq!(their_kv.read(ids[0]), CONTENT, "{} is still owned", ids[0]);
                release(&their_pool, ids[0]);
                ids
            },
        );
        assert_eq!((kv.read(ids[1]), pool.owners(ids[1])), (CONTENT, Ok(1)));
        assert_used(&pool, 1);
        release(&pool, ids[1]);
        assert_all_free(&pool);
    });
}

/// The last owner by id releases the block in one thread, and another thread allocates it. The next owner
/// sees all accesses that were made while the block was owned by id.
#[test]
fn a_block_released_by_id_is_seen_by_its_next_owner() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 1);
        let ids = pool.allocate(3).unwrap().take_ids().unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (mine, theirs) = (ids[0], ids[1]);
        race(
            || {
                kv.write(mine, 1);
                pool.release(mine).unwrap();
                if let Ok(reused) = pool.allocate(1) {
                    kv.use_alone(reused.as_slice(), 1);
                }
            },
            move || {
                their_kv.write(theirs, 2);
                their_pool.release(theirs).unwrap();
                if let Ok(reused) = their_pool.allocate(1) {
                    their_kv.use_alone(reused.as_slice(), 2);
                }
            },
        );
        pool.release(ids[2]).unwrap();
        assert_all_free(&pool);
    });
}

/// A thread that counts a block by id without owning it may meet the owner's release, and then panics
/// inside a claim. The state of that block is the thread's fault. The shard belongs to all threads, and
/// keeps working.
#[test]
fn a_claim_is_given_up_by_whom_a_panic_ends() {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    explore(|| {
        let (pool, _) = pool_and_kv(3, 1);
        let mut others = pool.allocate(2).unwrap();
        let table = pool.allocate(1).unwrap();
        let id = table.as_slice()[0];
        let their_pool = Arc::clone(&pool);
        race(
            || {
                drop(table);
                others.truncate(1).unwrap();
            },
            move || {
                if their_pool.retain(id).is_ok() {
                    let release = AssertUnwindSafe(|| their_pool.release(id));
                    if catch_unwind(release).is_err() {
                        PANICKED.store(true, Ordering::Relaxed);
                    }
                }
            },
        );
        // A claim that its holder has not released would make this call wait forever.
        others.grow(1).expect("one was given back properly");
    });
    assert!(PANICKED.load(Ordering::Relaxed), "in some execution the release meets a free block");
}
