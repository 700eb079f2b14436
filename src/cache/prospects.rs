//! Would any of a sequence's blocks be free if every unleased sequence went? Who answers no is
//! not worth evicting: leased sequences or handles use all its blocks too.
//!
//! Counts how many of each block's owners belong to the sequences shown, a run as one owner of its
//! blocks, and compares with the block's word. Asked only when a victim would free nothing by
//! itself, which takes sequences that share all they have.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::id::{BlockId, SeqId};
use crate::pool::PoolHandle;
use crate::sync::Arc;
use crate::table::{BlockTable, Run};

/// The sequences worth evicting, among those added.
#[derive(Default)]
pub(super) struct Prospects {
    tables: Vec<Shown>,
    worth: HashSet<SeqId>,
}

/// What a sequence owns.
struct Shown {
    id: SeqId,
    private: Vec<BlockId>,
    newest_run: Option<Arc<Run>>,
    pool: PoolHandle,
}

impl Prospects {
    pub(super) fn add(&mut self, id: SeqId, table: &BlockTable) {
        self.tables.push(Shown {
            id,
            private: table.private().to_vec(),
            newest_run: table.newest_run().cloned(),
            pool: table.pool().clone(),
        });
    }

    /// Decides, once all have been added.
    pub(super) fn judge(&mut self) {
        let mut owned: HashMap<BlockId, u32> = HashMap::new();
        for &id in self.tables.iter().flat_map(|table| &table.private) {
            *owned.entry(id).or_default() += 1;
        }
        for run in self.runs_held_by_nobody_else() {
            for &id in run.ids() {
                *owned.entry(id).or_default() += 1;
            }
        }
        for table in std::mem::take(&mut self.tables) {
            let would_free =
                |id: &BlockId| owned.get(id).is_some_and(|&own| own == table.pool.owners(*id));
            let mut run = table.newest_run.as_ref();
            let mut in_runs = false;
            while let Some(held) = run.filter(|_| !in_runs) {
                in_runs = held.ids().iter().any(would_free);
                run = held.parent();
            }
            if in_runs || table.private.iter().any(would_free) {
                self.worth.insert(table.id);
            }
        }
    }

    pub(super) fn is_worth_evicting(&self, id: SeqId) -> bool {
        self.worth.contains(&id)
    }

    /// The runs all of whose holders are tables added here, or such runs themselves.
    fn runs_held_by_nobody_else(&self) -> Vec<Arc<Run>> {
        // By where they start, the last first: a run comes before its parent.
        let mut seen: BTreeMap<(usize, *const Run), (Arc<Run>, usize)> = BTreeMap::new();
        let place = |run: &Arc<Run>| (run.start(), Arc::as_ptr(run));
        for run in self.tables.iter().filter_map(|table| table.newest_run.as_ref()) {
            // Two holders each: the sequence's own table, and the clone in `tables`.
            seen.entry(place(run)).or_insert_with(|| (Arc::clone(run), 1)).1 += 2;
        }
        let mut free = Vec::new();
        while let Some((_, (run, holders))) = seen.pop_last() {
            if Arc::strong_count(&run) != holders {
                continue;
            }
            if let Some(parent) = run.parent() {
                seen.entry(place(parent)).or_insert_with(|| (Arc::clone(parent), 1)).1 += 1;
            }
            free.push(run);
        }
        free
    }
}
