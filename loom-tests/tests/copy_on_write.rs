//! Is a shared block ever written, and a private one ever copied for nothing?
#![cfg(paged_kv_loom)]

use std::sync::Arc;

use loom_tests::{Kv, assert_all_free, assert_used, explore, pool_and_kv, race};
use paged_kv::{Append, AppendBatch, BlockId, PagedKvError, Sequence, append_batch};

const BLOCK_SIZE: usize = 2;
const SHARED: u64 = 7;

/// Appends a token as an engine would: makes the copy, then writes the last block.
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

/// A sequence of one full and one half full block, and its fork.
fn sequence_and_fork(pool: &paged_kv::BlockPool, kv: &Kv) -> (Sequence, Sequence) {
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

/// Nothing free: whoever asks for a copy's destination is refused, unless the other has left.
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

/// The batch may take blocks for copies that it no longer needs: none may be lost.
#[test]
fn a_batch_beside_a_leaving_sharer_loses_no_block() {
    explore(|| {
        let (pool, kv) = pool_and_kv(4, 2);
        let (sequence, fork) = sequence_and_fork(&pool, &kv);
        let other = pool.allocate_sequence(2, BLOCK_SIZE).unwrap();
        let their_kv = Arc::clone(&kv);
        let (rows, ()) = race(
            || {
                let mut rows = [(sequence, 1), (other, 1)];
                let mut batch = AppendBatch::default();
                match append_batch(&mut rows, &mut batch) {
                    Ok(()) => {
                        make_copy_and_write(&rows[0].0, &batch.as_slice()[0], &kv, 1);
                        let used = if batch.as_slice()[0].copy.is_some() { 5 } else { 4 };
                        assert!(used <= 4, "a copy needs a fifth block");
                        assert_eq!(rows[1].0.num_blocks(), 2);
                    }
                    Err(refusal) => {
                        let short = PagedKvError::OutOfMemory { requested: 2, available: 1 };
                        assert_eq!(refusal, short);
                        assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (3, 2));
                    }
                }
                rows
            },
            move || {
                assert_eq!(their_kv.read(fork.block_ids()[1]), SHARED);
                drop(fork);
            },
        );
        assert_used(&pool, rows.iter().map(|(sequence, _)| sequence.num_blocks()).sum());
        drop(rows);
        assert_all_free(&pool);
    });
}

/// Both rows of the batch share the block with each other and with a thread that leaves.
#[test]
fn a_batch_of_sharers_copies_for_all_but_the_last() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let (mut sequence, fork) = sequence_and_fork(&pool, &kv);
        let third = sequence.fork().unwrap();
        let (rows, ()) = race(
            || {
                let mut rows = [(sequence, 1), (third, 1)];
                let mut batch = AppendBatch::default();
                append_batch(&mut rows, &mut batch).expect("there is room for three copies");
                rows
            },
            move || drop(fork),
        );
        let [(here, _), (there, _)] = &rows;
        assert_ne!(here.block_ids()[1], there.block_ids()[1]);
        assert_eq!(pool.owners(here.block_ids()[1]), Ok(1));
        assert_eq!(pool.owners(there.block_ids()[1]), Ok(1));
        assert_used(&pool, 3);
        drop(rows);
        assert_all_free(&pool);
    });
}
