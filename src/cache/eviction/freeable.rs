//! `Freeable`: finds sequences some of whose blocks would be free if every unleased sequence were evicted.
//! Any other sequence is not worth evicting: leased sequences or handles use all its blocks too.
//!
//! It counts how many of each block's owners belong to the shown sequences or to open steps, and compares
//! the count with the block's word. A run counts as one owner of its blocks. The count is needed only if a
//! victim would free no block by itself, because it shares all its blocks.

use std::collections::HashSet;

use crate::id::{AdmissionEpoch, BlockId, SeqId};
use crate::pool::PoolHandle;
use crate::pool::in_flight::coming::OwnedByRuns;
use crate::pool::in_flight::holdings::{Holdings, PATIENCE};
use crate::pool::shared_run::held_only_by;
use crate::sync::{Arc, into_last};
use crate::table::{BlockTable, SharedRun};

/// A sequence that was shown, identified among all of its id.
type Shown = (SeqId, AdmissionEpoch);

/// The sequences worth evicting, among those added.
#[derive(Default)]
pub(in crate::cache) struct Freeable {
    tables: Vec<Assets>,
    worth: HashSet<Shown>,
}

/// Blocks of runs whose other holders left during the assessment. Dropping this releases them, which may
/// run a caller's waker: drop it with no lock held.
#[must_use = "it is dropped outside of the lock under which it was made"]
pub(in crate::cache) struct Leftover {
    ids: Vec<Box<[BlockId]>>,
    pool: Option<PoolHandle>,
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let pool = self.pool.iter();
        pool.for_each(|pool| self.ids.iter().for_each(|ids| pool.give(ids)));
    }
}

impl Leftover {
    /// Ends the holds of the tables on their runs.
    fn of(tables: Vec<Assets>) -> Self {
        let (pool, mut ids) = (tables.first().map(|table| table.pool.clone()), Vec::new());
        for table in tables {
            let mut next = table.newest_run;
            while let Some(run) = next.and_then(into_last) {
                let (own, parent) = run.thaw();
                ids.push(own);
                next = parent;
            }
        }
        Self { ids, pool }
    }
}

/// The blocks and runs that a sequence owns.
struct Assets {
    of: Shown,
    private: Vec<BlockId>,
    newest_run: Option<Arc<SharedRun>>,
    pool: PoolHandle,
}

impl Freeable {
    pub(in crate::cache) fn add(&mut self, id: SeqId, epoch: AdmissionEpoch, table: &BlockTable) {
        self.tables.push(Assets {
            of: (id, epoch),
            private: table.private().to_vec(),
            newest_run: table.newest_run().cloned(),
            pool: table.pool().clone(),
        });
    }

    /// Decides which sequences are worth evicting, once all have been added.
    pub(in crate::cache) fn judge(&mut self) -> Leftover {
        let tables = std::mem::take(&mut self.tables);
        if let Some(pool) = tables.first().map(|table| &table.pool) {
            self.judge_tables(&tables, pool);
        }
        Leftover::of(tables)
    }

    fn judge_tables(&mut self, tables: &[Assets], pool: &PoolHandle) {
        // Blocks that steps hold are free when the steps end. No step ends before the count is complete.
        let holdings = pool.holdings(&mut { PATIENCE });
        let owned = known_owners(tables, holdings.as_ref());
        for table in tables {
            let would_free = |&id: &BlockId| owned.has_no_others(pool, id);
            let mut runs = std::iter::successors(table.newest_run.as_ref(), |run| run.parent());
            if table.private.iter().any(would_free)
                || runs.any(|run| run.ids().iter().any(would_free))
            {
                self.worth.insert(table.of);
            }
        }
    }

    pub(in crate::cache) fn is_worth_evicting(&self, id: SeqId, epoch: AdmissionEpoch) -> bool {
        self.worth.contains(&(id, epoch))
    }
}

/// Returns the owners that are added tables or open steps, of all blocks that have any.
fn known_owners(tables: &[Assets], holdings: Option<&Holdings<'_>>) -> OwnedByRuns {
    let mut owned = OwnedByRuns::default();
    tables.iter().flat_map(|table| &table.private).for_each(|&id| owned.add(id));
    // Two holders each: the sequence's own table, and the clone in `tables`.
    let shown = tables.iter().filter_map(|table| Some((table.newest_run.as_ref()?, 2)));
    let held = holdings.into_iter().flat_map(Holdings::runs).map(|run| (run, 1));
    let runs = held_only_by(shown.chain(held));
    runs.iter().flat_map(|run| run.ids()).for_each(|&id| owned.add(id));
    holdings.into_iter().flat_map(Holdings::ids).for_each(|id| owned.add(id));
    owned
}
