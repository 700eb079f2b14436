//! What do forks share? A counted, frozen run of blocks, and the run before it.
//!
//! Holding a run means using every block in it and in its ancestors; the run itself is one owner
//! of each of its own blocks. So a fork costs one count however long the prefix is.
//!
//! ```text
//!   table A ──> run 2 [B5 B6] ──> run 1 [B0 B1 B2] ──> nothing
//!   table B ──────────────────────┘
//! ```
//!
//! Invariants: a run is never written, grown or reordered; when its last holder lets go, its
//! blocks go back tail first and then its parent is let go, iteratively.
//!
//! A run does not know who holds it.

use std::collections::BTreeMap;

use super::PoolHandle;
use crate::id::BlockId;
use crate::sync::{Arc, into_last};

/// Frozen full blocks, owned in common by all who hold the `Arc` of it.
pub(crate) struct Run {
    /// Blocks of all ancestors together: where this run begins in a table that holds it.
    start: usize,
    ids: Box<[BlockId]>,
    parent: Option<Arc<Run>>,
    pool: PoolHandle,
}

impl Run {
    /// A run that takes over one owner of each of `ids`.
    pub(crate) fn new(ids: Box<[BlockId]>, parent: Option<Arc<Run>>, pool: PoolHandle) -> Self {
        let start = parent.as_ref().map_or(0, |parent| parent.end());
        Self { start, ids, parent, pool }
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    pub(crate) fn end(&self) -> usize {
        self.start + self.ids.len()
    }

    pub(crate) fn parent(&self) -> Option<&Arc<Run>> {
        self.parent.as_ref()
    }

    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// Hands the run's blocks and its hold on the parent to the caller, who held it last.
    pub(crate) fn thaw(mut self) -> (Box<[BlockId]>, Option<Arc<Run>>) {
        (std::mem::take(&mut self.ids), self.parent.take())
    }
}

/// The runs all of whose holders are among these or are such runs themselves, each run with how many
/// holders it stands for. Children come before their parents. (Of holders that leave meanwhile too many
/// may be known.)
pub(crate) fn held_only_by<'a>(
    holders: impl Iterator<Item = (&'a Arc<Run>, usize)>,
) -> Vec<&'a Arc<Run>> {
    // By where they start, the last first: a run comes before its parent.
    let mut seen: BTreeMap<(usize, *const Run), (&Arc<Run>, usize)> = BTreeMap::new();
    let place = |run: &Arc<Run>| (run.start(), Arc::as_ptr(run));
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

impl Drop for Run {
    fn drop(&mut self) {
        // A run that was thawed has none, and wakes no one.
        if !self.ids.is_empty() {
            self.pool.give(&self.ids);
        }
        // A loop, not the recursion that dropping `parent` would be: chains can be long.
        let mut parent = self.parent.take();
        while let Some(mut run) = parent.and_then(into_last) {
            parent = run.parent.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::pool::BlockPool;

    /// Few for an interpreter: each fork copies the ids.
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
