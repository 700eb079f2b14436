//! Models of batches and steps that copy on write while a sharer leaves: they lose no block, and write no
//! block that another sequence reads.

use paged_kv::{Append, AppendBatch, PagedKvCache, PagedKvError, Sequence, append_batch};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{Contents, assert_all_free_at_end, cache};

const SHARED: u64 = 7;

/// Creates a sequence of one full and one half full block, and its fork.
fn sequence_and_fork(cache: &PagedKvCache, kv: &Contents) -> (Sequence, Sequence) {
    let mut sequence = cache.allocate_sequence(3).expect("there is room");
    sequence.block_ids().iter().for_each(|&id| kv.write(id, SHARED));
    let fork = sequence.fork().expect("few owners");
    (sequence, fork)
}

/// Makes the copy and then writes the last block, as an engine does.
fn make_copy_and_write(sequence: &Sequence, append: &Append, kv: &Contents) {
    let last = *sequence.block_ids().last().expect("it has blocks");
    if let Some(copy) = &append.copy {
        assert_eq!(copy.dst, last);
        assert_ne!(copy.src, copy.dst);
        kv.write(copy.dst, kv.read(copy.src));
    }
    assert_eq!(kv.read(last), SHARED, "what the sharers wrote is there");
    kv.write(last, 1);
}

/// Reads the shared block as a sharer, and leaves.
fn leave(fork: Sequence, kv: &Contents) {
    assert_eq!(kv.read(fork.block_ids()[1]), SHARED);
    drop(fork);
}

fn assert_used(cache: &PagedKvCache, rows: &[(Sequence, usize)]) {
    let blocks: usize = rows.iter().map(|(sequence, _)| sequence.num_blocks()).sum();
    assert_eq!(cache.used_block_count(), blocks);
}

/// A prefix of the rows grows, whatever the sharer does during the call, and no block is lost.
#[test]
fn a_step_that_may_stop_early_loses_no_block() {
    explore(|| {
        let (cache, kv) = (cache(4), Contents::new(4));
        let (sequence, fork) = sequence_and_fork(&cache, &kv);
        let mut rows = [(sequence, 1), (cache.allocate_sequence(2).expect("there is room"), 1)];
        scope(|scope| {
            scope.spawn(|| leave(fork, &kv));
            let mut step = cache.step(Default::default());
            let grown = step.grow(&mut rows).expect("one row fits at least");
            let lengths = rows.each_ref().map(|(sequence, _)| sequence.num_tokens());
            match (grown.grown_rows, grown.missing_blocks) {
                (2, 0) => assert_eq!(lengths, [4, 3]),
                (1, 1) => assert_eq!(lengths, [4, 2]),
                _ => panic!("one row fits at least, and is one block short at most: {grown:?}"),
            }
            step.complete();
        });
        assert_used(&cache, &rows);
        drop(rows);
        assert_all_free_at_end(&cache);
    });
}

/// The sharer leaves, and only then does a thread take the last free block. At every moment either a copy
/// has a free block, or no copy is needed. Another row needs a block of its own.
#[test]
fn a_batch_is_not_refused_for_a_copy_planned_too_early() {
    explore(|| {
        let (cache, kv) = (cache(5), Contents::new(5));
        let (sequence, fork) = sequence_and_fork(&cache, &kv);
        let mut rows = [(sequence, 1), (cache.allocate_sequence(2).expect("there is room"), 1)];
        scope(|scope| {
            scope.spawn(|| {
                leave(fork, &kv);
                drop(cache.pool().allocate(1));
            });
            let mut batch = AppendBatch::default();
            append_batch(&mut rows, &mut batch).expect("room for a copy, or none to make");
        });
        drop(rows);
        assert_all_free_at_end(&cache);
    });
}

/// The batch plans a copy. It may find enough blocks only without the copy: then it needs one block
/// fewer.
#[test]
fn a_batch_beside_a_leaving_sharer_loses_no_block() {
    explore(|| {
        let (cache, kv) = (cache(4), Contents::new(4));
        let (sequence, fork) = sequence_and_fork(&cache, &kv);
        let mut rows = [(sequence, 1), (cache.allocate_sequence(2).expect("there is room"), 1)];
        scope(|scope| {
            scope.spawn(|| leave(fork, &kv));
            let mut batch = AppendBatch::default();
            match append_batch(&mut rows, &mut batch) {
                Ok(()) => {
                    let append = &batch.as_slice()[0];
                    assert!(append.copy.is_none(), "a copy needs a fifth block");
                    make_copy_and_write(&rows[0].0, append, &kv);
                }
                Err(refusal) => {
                    let short = PagedKvError::OutOfMemory { requested: 2, available: 1 };
                    assert_eq!(refusal, short);
                    assert_eq!((rows[0].0.num_tokens(), rows[1].0.num_tokens()), (3, 2));
                }
            }
        });
        assert_used(&cache, &rows);
        drop(rows);
        assert_all_free_at_end(&cache);
    });
}

/// Two rows share the block with each other, and with a sequence of another thread that leaves.
#[test]
fn rows_of_a_batch_that_share_a_block_get_blocks_of_their_own() {
    explore(|| {
        let (cache, kv) = (cache(5), Contents::new(5));
        let (mut sequence, fork) = sequence_and_fork(&cache, &kv);
        let third = sequence.fork().expect("few owners");
        let mut rows = [(sequence, 1), (third, 1)];
        scope(|scope| {
            scope.spawn(|| leave(fork, &kv));
            let mut batch = AppendBatch::default();
            append_batch(&mut rows, &mut batch).expect("there is room for three copies");
            for (row, append) in rows.iter().zip(batch.as_slice()) {
                make_copy_and_write(&row.0, append, &kv);
            }
        });
        let [(first, _), (second, _)] = &rows;
        assert_ne!(first.block_ids()[1], second.block_ids()[1]);
        assert_eq!(cache.pool().owners(first.block_ids()[1]), Ok(1));
        assert_eq!(cache.pool().owners(second.block_ids()[1]), Ok(1));
        assert_eq!(cache.used_block_count(), 3);
        drop(rows);
        assert_all_free_at_end(&cache);
    });
}
