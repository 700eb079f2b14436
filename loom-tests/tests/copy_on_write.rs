//! Models of copy-on-write: no shared block is written, and no private block is copied without need.

mod common;

use std::sync::Arc;

use common::{Kv, assert_all_free, assert_used, explore, pool_and_kv, race, spawn_at};
use paged_kv::{
    Append, AppendBatch, BlockId, BlockPool, PagedKvCache, PagedKvError, Sequence, append_batch,
};

const BLOCK_SIZE: usize = 2;
const SHARED: u64 = 7;

/// Appends a token as an engine does: makes the copy, then writes the last block.
fn append_one(sequence: &mut Sequence, kv: &Kv, mark: u64) -> Option<BlockId> {
    let append = sequence.append(1).expect("there is room for a copy");
    make_copy_and_write(sequence, &append, kv, mark);
    append.copy.as_ref().map(|copy| copy.dst)
}

fn make_copy_and_write(sequence: &Sequence, append: &Append, kv: &Kv, mark: u64) {
    let last = *sequence.block_ids().last().unwrap();
    if let Some(copy) = &append.copy {
        assert_eq!(copy.dst, last);
        assert_ne!(copy.src, copy.dst);
        kv.write(copy.dst, kv.read(copy.src));
    }
    assert_eq!(kv.read(last), SHARED, "what the sharers wrote is there");
    kv.write(last, mark);
}

/// Creates a sequence of one full and one half full block, and its fork.
fn sequence_and_fork(pool: &BlockPool, kv: &Kv) -> (Sequence, Sequence) {
    let mut sequence = pool.allocate_sequence(3, BLOCK_SIZE).unwrap();
    sequence.block_ids().iter().for_each(|&id| kv.write(id, SHARED));
    let fork = sequence.fork().unwrap();
    (sequence, fork)
}

#[test]
fn two_sharers_that_append_at_once_get_blocks_of_their_own() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let (mut sequence, mut fork) = sequence_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        let (here, (fork, there)) = race(
            || append_one(&mut sequence, &kv, 1),
            move || {
                let copied = append_one(&mut fork, &their_kv, 2);
                (fork, copied)
            },
        );
        assert!(here.is_some() || there.is_some(), "one of two sharers copies");
        let last = |sequence: &Sequence| *sequence.block_ids().last().unwrap();
        assert_ne!(last(&sequence), last(&fork), "each writes a block of its own");
        assert_eq!((kv.read(last(&sequence)), kv.read(last(&fork))), (1, 2));
        assert_eq!(pool.owners(last(&sequence)), Ok(1));
        assert_eq!(pool.owners(last(&fork)), Ok(1));
        assert_used(&pool, 3);
        drop((sequence, fork));
        assert_all_free(&pool);
    });
}

/// A copy in the making holds its source: the other sharer still reads two owners, and copies too.
#[test]
fn a_source_stays_owned_until_its_copy_is_made() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let (mut sequence, mut fork) = sequence_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        let (here, (fork, there)) = race(
            || {
                let append = sequence.append(1).unwrap();
                make_copy_and_write(&sequence, &append, &kv, 1);
                append
            },
            move || {
                let append = fork.append(1).unwrap();
                make_copy_and_write(&fork, &append, &their_kv, 2);
                (fork, append)
            },
        );
        let (ours, theirs) = (here.copy.as_ref().unwrap(), there.copy.as_ref().unwrap());
        assert_eq!(ours.src, theirs.src);
        assert_ne!(ours.dst, theirs.dst);
        assert_eq!(kv.read(ours.src), SHARED);
        assert_used(&pool, 4);
        drop((here, there));
        assert_used(&pool, 3);
        drop((sequence, fork));
        assert_all_free(&pool);
    });
}

/// Of three sharers two append and one leaves: none writes a block that another reads.
#[test]
fn two_appends_beside_a_leaving_sharer_get_blocks_of_their_own() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let (mut sequence, mut fork) = sequence_and_fork(&pool, &kv);
        let third = sequence.fork().unwrap();
        let (their_kv, last_kv) = (Arc::clone(&kv), Arc::clone(&kv));
        let leaver = spawn_at(1, move || {
            assert_eq!(last_kv.read(third.block_ids()[1]), SHARED);
            drop(third);
        });
        let (_, fork) = race(
            || append_one(&mut sequence, &kv, 1),
            move || {
                append_one(&mut fork, &their_kv, 2);
                fork
            },
        );
        leaver.join().unwrap();
        assert_ne!(sequence.block_ids()[1], fork.block_ids()[1]);
        assert_used(&pool, 3);
        drop((sequence, fork));
        assert_all_free(&pool);
    });
}

/// Both sharers truncate into a full block of the run they share, and write there. One of them does so
/// after a draft of another block.
#[test]
fn two_sharers_that_truncate_and_append_get_blocks_of_their_own() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let mut sequence = pool.allocate_sequence(4, BLOCK_SIZE).unwrap();
        sequence.block_ids().iter().for_each(|&id| kv.write(id, SHARED));
        let mut fork = sequence.fork().unwrap();
        let their_kv = Arc::clone(&kv);
        let (_, fork) = race(
            || {
                // Grows beyond the shared blocks, and truncates back into them.
                drop(sequence.append(1).unwrap());
                sequence.truncate(3).unwrap();
                append_one(&mut sequence, &kv, 1)
            },
            move || {
                fork.truncate(3).unwrap();
                append_one(&mut fork, &their_kv, 2);
                fork
            },
        );
        assert_ne!(sequence.block_ids()[1], fork.block_ids()[1]);
        assert_used(&pool, 4 - usize::from(sequence.block_ids()[0] == fork.block_ids()[0]));
        drop((sequence, fork));
        assert_all_free(&pool);
    });
}

/// An owner by id is a sharer like any other.
#[test]
fn an_append_beside_a_release_by_id_copies_or_writes_in_place() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let mut sequence = pool.allocate_sequence(1, BLOCK_SIZE).unwrap();
        let id = sequence.block_ids()[0];
        kv.write(id, SHARED);
        pool.retain(id).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), sequence) = race(
            || {
                assert_eq!(kv.read(id), SHARED);
                pool.release(id).unwrap();
            },
            move || {
                append_one(&mut sequence, &their_kv, 1);
                sequence
            },
        );
        assert_used(&pool, 1);
        drop(sequence);
        assert_all_free(&pool);
    });
}

/// A prefix of the rows of a step grows, whatever the sharer does during the call, and no block is lost.
#[test]
fn a_step_that_may_stop_early_loses_no_block() {
    explore(|| {
        let builder = PagedKvCache::builder().num_blocks(4).block_size(BLOCK_SIZE).home_shards(2);
        let cache = builder.build().unwrap();
        let mut sequence = cache.allocate_sequence(3).unwrap();
        let fork = sequence.fork().unwrap();
        let mut rows = [(sequence, 1), (cache.allocate_sequence(2).unwrap(), 1)];
        let mut step = cache.step(Default::default());
        let (grown, ()) = race(|| step.grow(&mut rows).unwrap(), move || drop(fork));
        let lengths = rows.each_ref().map(|(sequence, _)| sequence.num_tokens());
        match (grown.grown_rows, grown.missing_blocks) {
            (2, 0) => assert_eq!(lengths, [4, 3]),
            (1, 1) => assert_eq!(lengths, [4, 2]),
            _ => panic!("one row fits at least, and is one block short at most: {grown:?}"),
        }
        step.complete();
        let blocks = rows.iter().map(|(sequence, _)| sequence.num_blocks()).sum();
        assert_used(cache.pool(), blocks);
        drop(rows);
        assert_all_free(cache.pool());
    });
}

/// No block is free: a thread that asks for a copy's destination is refused, unless the other sharer has
/// left.
#[test]
fn an_append_is_not_refused_a_copy_that_it_no_longer_needs() {
    explore(|| {
        let (pool, kv) = pool_and_kv(2, 2);
        let (mut sequence, fork) = sequence_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        let ((), sequence) = race(
            || {
                assert_eq!(kv.read(fork.block_ids()[1]), SHARED);
                drop(fork);
            },
            move || {
                match sequence.append(1) {
                    Ok(append) => {
                        assert!(append.copy.is_none(), "there was no block to copy to");
                        make_copy_and_write(&sequence, &append, &their_kv, 1);
                    }
                    Err(refusal) => {
                        let short = PagedKvError::OutOfMemory { requested: 1, available: 0 };
                        assert_eq!(refusal, short);
                        assert_eq!(sequence.num_tokens(), 3);
                    }
                }
                sequence
            },
        );
        assert_used(&pool, 2);
        drop(sequence);
        assert_all_free(&pool);
    });
}

/// The sharer leaves, and only then does a thread take the last free block. At every moment either a copy
/// has a free block, or no copy is needed.
#[test]
fn an_append_is_not_refused_for_a_copy_planned_too_early() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let (mut sequence, fork) = sequence_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        let (taken, sequence) = race(
            || {
                drop(fork);
                pool.allocate(1)
            },
            move || {
                append_one(&mut sequence, &their_kv, 1);
                sequence
            },
        );
        drop((taken, sequence));
        assert_all_free(&pool);
    });
}

/// The same holds for a batch of which another row needs a block of its own.
#[test]
fn a_batch_is_not_refused_for_a_copy_planned_too_early() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let (sequence, fork) = sequence_and_fork(&pool, &kv);
        let other = pool.allocate_sequence(2, BLOCK_SIZE).unwrap();
        let (taken, rows) = race(
            || {
                drop(fork);
                pool.allocate(1)
            },
            || {
                let mut rows = [(sequence, 1), (other, 1)];
                let mut batch = AppendBatch::default();
                append_batch(&mut rows, &mut batch).expect("room for a copy, or none to make");
                rows
            },
        );
        drop((taken, rows));
        assert_all_free(&pool);
    });
}

#[test]
fn an_append_beside_a_leaving_sharer_copies_or_writes_in_place() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let (mut sequence, fork) = sequence_and_fork(&pool, &kv);
        let their_kv = Arc::clone(&kv);
        race(
            || append_one(&mut sequence, &kv, 1),
            move || {
                assert_eq!(their_kv.read(fork.block_ids()[1]), SHARED);
                drop(fork);
            },
        );
        assert_used(&pool, 2);
        drop(sequence);
        assert_all_free(&pool);
    });
}

/// The batch plans a copy. It may find enough blocks only without the copy: then it needs one block
/// fewer.
#[test]
fn a_batch_beside_a_leaving_sharer_loses_no_block() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let (sequence, fork) = sequence_and_fork(&pool, &kv);
        let other = pool.allocate_sequence(2, BLOCK_SIZE).unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), rows) = race(
            || {
                assert_eq!(kv.read(fork.block_ids()[1]), SHARED);
                drop(fork);
            },
            move || {
                let mut rows = [(sequence, 1), (other, 1)];
                let mut batch = AppendBatch::default();
                match append_batch(&mut rows, &mut batch) {
                    Ok(()) => {
                        let append = &batch.as_slice()[0];
                        assert!(append.copy.is_none(), "a copy needs a fifth block");
                        make_copy_and_write(&rows[0].0, append, &their_kv, 1);
                    }
                    Err(refusal) => {
                        let short = PagedKvError::OutOfMemory { requested: 2, available: 1 };
                        assert_eq!(refusal, short);
                        assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (3, 2));
                    }
                }
                rows
            },
        );
        assert_used(&pool, rows.iter().map(|(sequence, _)| sequence.num_blocks()).sum());
        drop(rows);
        assert_all_free(&pool);
    });
}

/// Two rows share the block with each other, and with a sequence of another thread that leaves.
#[test]
fn rows_of_a_batch_that_share_a_block_get_blocks_of_their_own() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let (mut sequence, fork) = sequence_and_fork(&pool, &kv);
        let third = sequence.fork().unwrap();
        let their_kv = Arc::clone(&kv);
        let ((), rows) = race(
            || {
                assert_eq!(kv.read(fork.block_ids()[1]), SHARED);
                drop(fork);
            },
            move || {
                let mut rows = [(sequence, 1), (third, 1)];
                let mut batch = AppendBatch::default();
                append_batch(&mut rows, &mut batch).expect("there is room for three copies");
                for (row, append) in rows.iter().zip(batch.as_slice()) {
                    make_copy_and_write(&row.0, append, &their_kv, 1);
                }
                rows
            },
        );
        let [(first, _), (second, _)] = &rows;
        assert_ne!(first.block_ids()[1], second.block_ids()[1]);
        assert_eq!(pool.owners(first.block_ids()[1]), Ok(1));
        assert_eq!(pool.owners(second.block_ids()[1]), Ok(1));
        assert_used(&pool, 3);
        drop(rows);
        assert_all_free(&pool);
    });
}
