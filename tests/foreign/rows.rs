//! Rows of batches, iterators over exports and closures that panic, or that answer differently each time.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use paged_kv::export::{CsrBuffers, Gaps, TableShape, block_tables, csr, slot_mapping};
use paged_kv::{
    AppendBatch, BatchRow, BlockPool, PagedKvCache, SeqId, Sequence, append_batch,
    append_batch_fitting,
};

use crate::{BLOCK_SIZE, panic_quietly, watched};

/// A row that counts how often it is asked, and panics at one of the calls.
struct Row<'a> {
    sequence: Sequence,
    calls: &'a Cell<usize>,
    panics_at: usize,
}

impl Row<'_> {
    fn call(&self) -> usize {
        self.calls.set(self.calls.get() + 1);
        if self.calls.get() == self.panics_at {
            panic_quietly();
        }
        self.calls.get()
    }
}

impl BatchRow for Row<'_> {
    fn sequence(&mut self) -> &mut Sequence {
        self.call();
        &mut self.sequence
    }

    /// More each time it is asked.
    fn num_new_tokens(&self) -> usize {
        self.call()
    }
}

fn rows<'a>(pool: &BlockPool, calls: &'a Cell<usize>, panics_at: usize) -> Vec<Row<'a>> {
    let row = |_| {
        let sequence = pool.allocate_sequence(BLOCK_SIZE, BLOCK_SIZE).unwrap();
        Row { sequence, calls, panics_at }
    };
    (0..3).map(row).collect()
}

type Grow = fn(&mut [Row<'_>], &mut AppendBatch) -> bool;

const GROW: [Grow; 2] = [
    |rows, batch| append_batch(rows, batch).is_ok(),
    |rows, batch| append_batch_fitting(rows, batch).is_ok_and(|fitted| fitted.done == rows.len()),
];

#[test]
fn a_row_that_panics_leaves_every_row_as_it_was() {
    for grow in GROW {
        let pool = BlockPool::new(32);
        for panics_at in 1.. {
            let (calls, mut batch) = (Cell::new(0), AppendBatch::default());
            let mut rows = rows(&pool, &calls, panics_at);
            let grown = catch_unwind(AssertUnwindSafe(|| grow(&mut rows, &mut batch)));
            if grown.is_ok() {
                break;
            }
            assert!(rows.iter().all(|row| row.sequence.num_tokens() == BLOCK_SIZE));
            assert_eq!((pool.used_block_count(), batch.as_slice().len()), (3, 0));
            assert!(grow(&mut rows, &mut batch), "and can be asked again");
            assert_eq!(batch.as_slice().len(), 3);
            drop(rows);
            assert_eq!(pool.used_block_count(), 0);
            pool.validate().unwrap();
        }
    }
}

#[test]
fn a_row_is_asked_once_so_it_cannot_answer_differently() {
    for grow in GROW {
        let (pool, calls) = (BlockPool::new(32), Cell::new(0));
        let (mut rows, mut batch) = (rows(&pool, &calls, usize::MAX), AppendBatch::default());
        assert!(grow(&mut rows, &mut batch));
        assert_eq!(calls.get(), 6);
        let grown = rows.iter().map(|row| row.sequence.num_tokens() - BLOCK_SIZE);
        assert_eq!(grown.sum::<usize>(), 1 + 3 + 5);
    }
}

#[test]
fn a_row_may_call_the_cache() {
    struct Frees<'a>(&'a PagedKvCache, Sequence, u64);
    impl BatchRow for Frees<'_> {
        fn sequence(&mut self) -> &mut Sequence {
            self.0.free(SeqId(self.2)).unwrap();
            &mut self.1
        }
        fn num_new_tokens(&self) -> usize {
            self.0.validate().unwrap();
            1
        }
    }
    watched(|| {
        let cache = PagedKvCache::new(4, BLOCK_SIZE, 1, 1);
        let row = |id| {
            cache.allocate(SeqId(id), 4).unwrap();
            Frees(&cache, cache.allocate_sequence(4).unwrap(), id)
        };
        let mut rows = [row(1), row(2)];
        append_batch(&mut rows, &mut AppendBatch::default()).unwrap();
        assert_eq!(cache.used_block_count(), 4, "there was room once they had freed it");
    });
}

/// An iterator that panics at the n-th step of it and all its clones, or yields one less each time.
#[derive(Clone)]
struct Steps<'a> {
    of: &'a [Sequence],
    steps: &'a Cell<usize>,
    panics_at: usize,
}

impl<'a> Iterator for Steps<'a> {
    type Item = &'a Sequence;

    fn next(&mut self) -> Option<&'a Sequence> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() == self.panics_at {
            panic_quietly();
        }
        let (first, rest) = self.of.split_first()?;
        self.of = rest;
        Some(first)
    }
}

#[test]
fn an_iterator_that_panics_costs_the_export_and_nothing_else() {
    let pool = BlockPool::new(16);
    let sequences: Vec<_> = (1..4).map(|n| pool.allocate_sequence(4 * n, 4).unwrap()).collect();
    let shape = TableShape { stride: 4, pad: -1, gaps: Gaps::Show };
    let export = |kind: usize, rows: Steps<'_>| match kind {
        0 => block_tables(rows, &mut [0_i32; 12], shape).is_ok(),
        1 => {
            let (indptr, indices) = (&mut [0_i32; 4], &mut [0_i32; 12]);
            let last_page_len = &mut [0_i32; 3];
            csr(rows, CsrBuffers { indptr, indices, last_page_len }, -1, Gaps::Show).is_ok()
        }
        _ => {
            let rows = rows.map(|sequence| (sequence, 0..sequence.num_tokens()));
            slot_mapping(rows, Gaps::Show, &mut [0_i64; 24]).is_ok()
        }
    };
    for kind in 0..3 {
        for panics_at in 1.. {
            let steps = Cell::new(0);
            let rows = Steps { of: &sequences, steps: &steps, panics_at };
            let exported = catch_unwind(AssertUnwindSafe(|| export(kind, rows)));
            assert_eq!((pool.used_block_count(), pool.validate()), (6, Ok(())));
            if let Ok(exported) = exported {
                assert!(exported && panics_at > 6, "each row is looked at twice at least");
                break;
            }
        }
    }
}

#[test]
fn a_closure_that_panics_leaves_its_sequence_unlocked_and_what_it_did_done() {
    watched(|| {
        let cache = PagedKvCache::new(8, BLOCK_SIZE, 1, 1);
        (1..=3).for_each(|id| cache.allocate(SeqId(id), 8).unwrap());
        for depth in 0..3 {
            let looked = catch_unwind(AssertUnwindSafe(|| {
                cache.with_sequence(SeqId(1), |_| {
                    cache.with_sequence(SeqId(2), |sequence| {
                        match depth {
                            0 => panic_quietly(),
                            1 => cache.truncate(SeqId(3), 4).unwrap(),
                            _ => cache.free(SeqId(3)).unwrap(),
                        }
                        if sequence.num_tokens() > 0 {
                            panic_quietly();
                        }
                    })
                })
            }));
            assert!(looked.is_err());
            cache.validate().unwrap();
            _ = cache.append(SeqId(1), 1).unwrap();
            cache.truncate(SeqId(1), 8).unwrap();
            cache.truncate(SeqId(2), 8).unwrap();
            assert_eq!(cache.used_block_count(), [6, 5, 4][depth]);
        }
    });
}
