//! `SharedRun`: frozen full blocks that the tables of forks share, with a reference to the run before them.
//!
//! A table that holds a run uses every block of the run and of its ancestors. The run itself is one
//! owner of each of its own blocks. So a fork changes one count, however long the prefix is.
//!
//! ```text
//!   table A ──> run 2 [B5 B6] ──> run 1 [B0 B1 B2] ──> nothing
//!   table B ──────────────────────┘
//! ```
//!
//! Invariants: a run is never written, grown or reordered. When its last holder releases it, the run
//! releases its blocks, tail first, and then its parent, without recursion.
//!
//! A run counts its holders and does not list them.

use std::collections::BTreeMap;

use super::PoolHandle;
use crate::id::BlockId;
use crate::sync::{Arc, into_last};

/// Frozen full blocks, owned in common by all holders of the run's `Arc`.
pub(crate) struct SharedRun {
    /// Number of blocks of all ancestors together. This run begins there in a table that holds it.
    start: usize,
    ids: Box<[BlockId]>,
    parent: Option<Arc<SharedRun>>,
    pool: PoolHandle,
}

impl SharedRun {
    /// Creates a run that takes over one owner of each of `ids`.
    pub(crate) fn new(
        ids: Box<[BlockId]>,
        parent: Option<Arc<SharedRun>>,
        pool: PoolHandle,
    ) -> Self {
        let start = parent.as_ref().map_or(0, |parent| parent.end());
        Self { start, ids, parent, pool }
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    pub(crate) fn end(&self) -> usize {
        self.start + self.ids.len()
    }

    pub(crate) fn parent(&self) -> Option<&Arc<SharedRun>> {
        self.parent.as_ref()
    }

    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// Returns the run's blocks and its reference to the parent. The caller was the last holder, and
    /// now owns both.
    pub(crate) fn thaw(mut self) -> (Box<[BlockId]>, Option<Arc<SharedRun>>) {
        (std::mem::take(&mut self.ids), self.parent.take())
    }
}

/// Returns the runs all of whose holders are among `holders`, or are such runs themselves. Each entry
/// of `holders` counts some holders of its run. Children come before their parents. (If a holder leaves
/// during the call, the entry may count more holders than are left.)
pub(crate) fn held_only_by<'a>(
    holders: impl Iterator<Item = (&'a Arc<SharedRun>, usize)>,
) -> Vec<&'a Arc<SharedRun>> {
    // Ordered by start, the highest first, so that a run comes before its parent.
    let mut seen: BTreeMap<(usize, *const SharedRun), (&Arc<SharedRun>, usize)> = BTreeMap::new();
    let place = |run: &Arc<SharedRun>| (run.start(), Arc::as_ptr(run));
    for (run, holders) in holders {
        seen.entry(place(run)).or_insert((run, 0)).1 += holders;
    }
    let mut only = Vec::new();
    while let Some((_, (run, holders))) = seen.pop_last() {
        if Arc::strong_count(run) > holders {
            continue;
        }
        if let Some(parent) = run.parent() {
            seen.entry(place(parent)).or_insert((parent, 0)).1 += 1;
        }
        only.push(run);
    }
    only
}

impl Drop for SharedRun {
    fn drop(&mut self) {
        // A thawed run has no blocks, and wakes no waiter.
        if !self.ids.is_empty() {
            self.pool.give(&self.ids);
        }
        // A loop, because dropping `parent` would recurse, and chains can be long.
        let mut parent = self.parent.take();
        while let Some(mut run) = parent.and_then(into_last) {
            parent = run.parent.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::pool::BlockPool;

    /// Few under an interpreter: each fork copies the ids.
    const RUNS: usize = if cfg!(miri) { 500 } else { 100_000 };

    #[test]
    fn a_chain_of_many_runs_is_let_go_without_recursion() {
        let pool = BlockPool::new(RUNS);
        let mut table = pool.allocate(0).unwrap();
        for len in 1..=RUNS {
            table.grow(1).unwrap();
            drop(table.fork(len).unwrap());
        }
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        thread.spawn(move || drop(table)).unwrap().join().unwrap();
        assert_eq!(pool.free_block_count(), RUNS);
        pool.validate().unwrap();
    }
}
