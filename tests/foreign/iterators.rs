//! Iterators over exports that panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use paged_kv::export::{CsrBuffers, Gaps, TableShape, block_tables, csr, slot_mapping};
use paged_kv::{BlockPool, Sequence};

use crate::panic_quietly;

/// An iterator that panics at the n-th step, counted over itself and all its clones.
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
