//! Models of shared blocks: their counts are exact, and the last sharer to leave sees the accesses of all
//! others.

mod common;

use std::sync::Arc;

use common::{Kv, assert_all_free, assert_used, explore, pool_and_kv, race, spawn_at};
use paged_kv::{BlockPool, BlockTable};

/// Reads the blocks as one of their owners, releases them, and uses alone the blocks that it can get.
fn read_leave_and_reuse(pool: &BlockPool, kv: &Kv, table: BlockTable, mark: u64) {
    for &id in table.as_slice() {
        assert_eq!(kv.read(id), 7, "shared blocks are not written");
    }
    drop(table);
    if let Ok(reused) = pool.allocate(1) {
        kv.use_alone(reused.as_slice(), mark);
    }
}

/// Has two owners of `num_blocks` blocks, of which `full` are in a run, leave at the same time.
fn two_sharers_leave(num_blocks: usize, full: usize) {
    explore(move || {
        let (pool, kv) = pool_and_kv(num_blocks, 2);
        let mut table = pool.allocate(num_blocks).unwrap();
        kv.use_alone(table.as_slice(), 7);
        let fork = table.fork(full).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || read_leave_and_reuse(&pool, &kv, table, 1),
            move || read_leave_and_reuse(&their_pool, &their_kv, fork, 2),
        );
        assert_all_free(&pool);
    });
}

#[test]
fn last_release_sees_every_owner() {
    two_sharers_leave(1, 0);
}

#[test]
fn last_holder_of_a_run_sees_every_other() {
    two_sharers_leave(1, 1);
}

#[test]
fn two_sharers_of_a_run_and_a_tail_leave_at_once() {
    two_sharers_leave(3, 2);
}

#[test]
fn three_sharers_of_a_tail_leave_at_once() {
    explore(|| {
        let (pool, kv) = pool_and_kv(1, 2);
        let mut table = pool.allocate(1).unwrap();
        kv.use_alone(table.as_slice(), 7);
        let threads = [0, 1].map(|home| {
            let fork = table.fork(0).unwrap();
            let kv = Arc::clone(&kv);
            spawn_at(home, move || {
                assert_eq!(kv.read(fork.as_slice()[0]), 7);
                drop(fork);
            })
        });
        read_leave_and_reuse(&pool, &kv, table, 1);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_all_free(&pool);
    });
}

/// One sharer becomes the only owner and writes in place: the other's reads must be ordered before that.
#[test]
fn a_sole_owner_sees_the_others_leave() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut table = pool.allocate(2).unwrap();
        kv.use_alone(table.as_slice(), 7);
        let fork = table.fork(1).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), table) = race(
            || {
                assert_eq!(kv.read(fork.as_slice()[1]), 7);
                drop(fork);
            },
            move || {
                if table.is_exclusive(1) {
                    their_kv.write(table.as_slice()[1], 1);
                }
                table
            },
        );
        assert!(table.is_exclusive(1));
        drop(table);
        assert_all_free(&pool);
    });
}

/// The forking holder owns the blocks, so no other thread may give them back.
#[test]
fn a_fork_survives_the_release_of_the_other_holder() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut table = pool.allocate(3).unwrap();
        kv.use_alone(table.as_slice(), 7);
        let mut fork = table.fork(2).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), forks) = race(
            || drop(table),
            move || {
                let again = fork.fork(2).unwrap();
                fork.as_slice().iter().for_each(|&id| assert_eq!(their_kv.read(id), 7));
                (fork, again)
            },
        );
        assert_eq!(pool.owners(forks.1.as_slice()[0]), Ok(1));
        assert_eq!(pool.owners(forks.1.as_slice()[2]), Ok(2));
        assert!(!forks.1.is_exclusive(0), "a run may be read by others, whatever its words say");
        assert_used(&pool, 3);
        drop(forks);
        assert_all_free(&pool);
    });
}

#[test]
fn a_chain_of_runs_is_let_go_once() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let mut table = pool.allocate(1).unwrap();
        let first = table.fork(1).unwrap();
        table.grow(1).unwrap();
        let second = table.fork(2).unwrap();
        table.grow(1).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || drop((table, first)),
            move || {
                drop(second);
                if let Ok(reused) = their_pool.allocate(2) {
                    their_kv.use_alone(reused.as_slice(), 2);
                }
            },
        );
        assert_all_free(&pool);
    });
}
