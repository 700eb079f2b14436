//! Models of shared runs: a holder that leaves a part of a run leaves exactly that part.

mod common;

use std::sync::Arc;

use common::{Kv, assert_all_free, assert_used, explore, pool_and_kv, race, spawn_at};
use paged_kv::{BlockId, BlockPool, BlockTable};

const SHARED: u64 = 7;

fn assert_reads_shared(kv: &Kv, table: &BlockTable) {
    table.as_slice().iter().for_each(|&id| assert_eq!(kv.read(id), SHARED, "{id} was kept"));
}

/// Creates a table of three blocks in one run, shared with a fork.
fn table_and_fork(pool: &BlockPool, kv: &Kv) -> (BlockTable, BlockTable) {
    let mut table = pool.allocate(3).unwrap();
    table.as_slice().iter().for_each(|&id| kv.write(id, SHARED));
    let fork = table.fork(3).unwrap();
    (table, fork)
}

/// Uses every free block alone.
fn use_free_blocks(pool: &BlockPool, kv: &Kv) {
    let table = pool.allocate(pool.free_block_count()).expect("nobody else allocates");
    kv.use_alone(table.as_slice(), 1);
}

/// Has `here` change the table while `there` changes its fork. Then the blocks that either holds are
/// used, and no others.
fn both_change(here: fn(&mut BlockTable), there: fn(BlockTable) -> Vec<BlockTable>) {
    explore(move || {
        let (pool, kv) = pool_and_kv(3, 2);
        let (mut table, fork) = table_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        let ((), theirs) = race(
            || {
                here(&mut table);
                assert_reads_shared(&kv, &table);
            },
            move || {
                assert_reads_shared(&their_kv, &fork);
                let tables = there(fork);
                tables.iter().for_each(|table| assert_reads_shared(&their_kv, table));
                tables
            },
        );
        let mut held: Vec<BlockId> =
            theirs.iter().chain([&table]).flat_map(|table| table.as_slice()).copied().collect();
        held.sort();
        held.dedup();
        assert_used(&pool, held.len());
        drop(table);
        theirs.iter().for_each(|table| assert_reads_shared(&kv, table));
        drop(theirs);
        assert_all_free(&pool);
    });
}

#[test]
fn a_truncation_beside_a_leaving_sharer_is_exact() {
    both_change(|table| table.truncate(1).unwrap(), |_| vec![]);
}

#[test]
fn two_truncations_of_a_run_are_exact() {
    both_change(
        |table| table.truncate(1).unwrap(),
        |mut table| {
            table.truncate(2).unwrap();
            vec![table]
        },
    );
}

#[test]
fn a_trim_beside_a_leaving_sharer_is_exact() {
    both_change(|table| table.remove(1..2).unwrap(), |_| vec![]);
}

#[test]
fn two_trims_of_a_run_are_exact() {
    both_change(
        |table| table.remove(1..2).unwrap(),
        |mut table| {
            table.remove(0..1).unwrap();
            vec![table]
        },
    );
}

#[test]
fn a_trim_beside_a_fork_and_a_truncation_of_the_other_holder_is_exact() {
    both_change(
        |table| table.remove(1..2).unwrap(),
        |mut table| {
            let fork = table.fork(3).unwrap();
            table.truncate(2).unwrap();
            vec![table, fork]
        },
    );
}

#[test]
fn a_trim_beside_a_fork_that_replaces_the_other_holder_is_exact() {
    both_change(
        |table| table.remove(1..2).unwrap(),
        |mut table| {
            let fork = table.fork(3).unwrap();
            drop(table);
            vec![fork]
        },
    );
}

/// A block that a truncation gives back may be used again, by one new owner only. The other holder has
/// finished its reads of the block by then.
#[test]
fn a_block_leaves_a_run_when_its_last_holder_has_read_it() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let (mut table, fork) = table_and_fork(&pool, &kv);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                assert_reads_shared(&kv, &table);
                table.truncate(1).unwrap();
                if let Ok(reused) = pool.allocate(1) {
                    kv.use_alone(reused.as_slice(), 1);
                }
            },
            move || {
                assert_reads_shared(&their_kv, &fork);
                drop(fork);
                if let Ok(reused) = their_pool.allocate(1) {
                    their_kv.use_alone(reused.as_slice(), 2);
                }
            },
        );
        assert_used(&pool, 1);
        drop(table);
        use_free_blocks(&pool, &kv);
        assert_all_free(&pool);
    });
}

/// Two holders share a run and its parent at different lengths, and leave them from both ends.
#[test]
fn leaving_a_child_run_keeps_its_parent() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut table = pool.allocate(1).unwrap();
        let prompt = table.fork(1).unwrap();
        table.grow(2).unwrap();
        table.as_slice().iter().for_each(|&id| kv.write(id, SHARED));
        let mut fork = table.fork(3).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), fork) = race(
            || {
                drop(prompt);
                table.truncate(2).unwrap();
                assert_reads_shared(&kv, &table);
            },
            move || {
                fork.truncate(1).unwrap();
                assert_reads_shared(&their_kv, &fork);
                fork
            },
        );
        assert_used(&pool, 2);
        drop(table);
        assert_used(&pool, 1);
        assert_reads_shared(&kv, &fork);
        drop(fork);
        assert_all_free(&pool);
    });
}

/// The trims begin in the parent, so the table leaves two runs one after the other.
#[test]
fn leaving_a_run_and_its_parent_beside_the_other_holder_is_exact() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let mut table = pool.allocate(2).unwrap();
        drop(table.fork(2).unwrap());
        table.grow(2).unwrap();
        table.as_slice().iter().for_each(|&id| kv.write(id, SHARED));
        let mut fork = table.fork(4).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), fork) = race(
            || {
                table.remove(1..3).unwrap();
                assert_reads_shared(&kv, &table);
            },
            move || {
                fork.remove(0..1).unwrap();
                fork.truncate(2).unwrap();
                assert_reads_shared(&their_kv, &fork);
                fork
            },
        );
        assert_used(&pool, 4);
        drop(table);
        assert_used(&pool, 2);
        assert_reads_shared(&kv, &fork);
        drop(fork);
        assert_all_free(&pool);
    });
}

#[test]
fn three_holders_of_a_run_change_at_once() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let (mut table, mut fork) = table_and_fork(&pool, &kv);
        let third = table.fork(3).unwrap();
        let leaver = spawn_at(1, move || drop(third));
        let their_kv = Arc::clone(&kv);
        let ((), fork) = race(
            || {
                table.truncate(1).unwrap();
                assert_reads_shared(&kv, &table);
            },
            move || {
                fork.truncate(2).unwrap();
                assert_reads_shared(&their_kv, &fork);
                fork
            },
        );
        leaver.join().unwrap();
        assert_used(&pool, 2);
        drop(fork);
        assert_used(&pool, 1);
        drop(table);
        assert_all_free(&pool);
    });
}

/// Both sharers apply StreamingLLM trims with different windows.
#[test]
fn two_streaming_trims_of_a_run_are_exact() {
    explore(|| {
        let (pool, _) = pool_and_kv(5, 2);
        let mut sequence = pool.allocate_sequence(4, 1).unwrap();
        let mut fork = sequence.fork().unwrap();
        let (given_up, (fork, theirs)) = race(
            || sequence.apply_streaming_llm(1, 1).unwrap(),
            move || {
                let given_up = fork.apply_streaming_llm(1, 2).unwrap();
                (fork, given_up)
            },
        );
        assert_eq!((given_up, theirs), (2, 1));
        assert_used(&pool, 3);
        drop(fork);
        assert_used(&pool, 2);
        drop(sequence);
        assert_all_free(&pool);
    });
}
