//! [`Coming`]: counts the blocks that come back when the open steps end, because only steps own them.
//!
//! A block has as many owners as its word says. A run is one owner of its blocks. The run belongs to
//! steps if every holder of it is a step. A block comes back with the last of its steps if all its
//! owners are steps or runs of steps. An eviction counts such blocks as already released, because no
//! further eviction would bring them back sooner.
//!
//! It counts references of steps, and reads no sequence.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::holdings::{Holdings, PATIENCE};
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::shared_run::{SharedRun, held_only_by};
use crate::sync::Arc;

/// Counts the blocks that are coming back, for a thread that asks repeatedly while it evicts. Of the
/// references that steps hold, each call reads only the new ones and those to blocks that had several
/// owners.
pub(crate) struct Coming {
    /// By slot: the number of its step, and how many of the ids that the step holds and owns have been
    /// read.
    read: BTreeMap<u32, (u64, [usize; 2])>,
    /// Ids among these whose blocks had no other owner.
    sole: usize,
    /// The other ids, and how often each was read.
    shared: OwnedByRuns,
    /// True if an earlier call counted some ids that the last call did not read again.
    is_continued: bool,
    patience: usize,
}

impl Coming {
    pub(crate) fn new() -> Self {
        let (read, shared) = (BTreeMap::new(), OwnedByRuns::default());
        Self { read, sole: 0, shared, is_continued: false, patience: PATIENCE }
    }

    /// Returns the blocks in use that are not coming back. `O(steps + references read)`.
    pub(crate) fn in_use(&mut self, blocks: &Blocks) -> usize {
        let mut patience = self.patience;
        let holdings = blocks.holdings(&mut patience);
        self.patience = patience;
        let Some(holdings) = holdings else {
            self.forget();
            return blocks.free.used();
        };
        self.is_continued = self.goes_on_with(&holdings);
        if !self.is_continued {
            self.forget();
        }
        self.read_on(blocks, &holdings);
        let coming = self.sole + self.sole_of_shared(blocks, &holdings);
        // While the thread has the locks, so that no step ends: a block that came back before this read
        // would be subtracted twice.
        blocks.free.used().saturating_sub(coming)
    }

    /// Returns the same after reading all references again, because blocks that had no other owner may
    /// have one by now. `None` if the last call of [`in_use`](Self::in_use) read all of them.
    pub(crate) fn reread_in_use(&mut self, blocks: &Blocks) -> Option<usize> {
        self.is_continued.then(|| {
            self.forget();
            self.in_use(blocks)
        })
    }

    fn forget(&mut self) {
        self.read.clear();
        self.shared.0.clear();
        (self.sole, self.is_continued) = (0, false);
    }

    /// Returns true if the same steps still hold all references that were read.
    fn goes_on_with(&self, holdings: &Holdings<'_>) -> bool {
        let mut held = holdings.steps();
        !self.read.is_empty()
            && self.read.iter().all(|(&slot, &(number, read))| {
                let step = held.find(|(step, _)| step.slot == slot);
                step.is_some_and(|(step, held)| {
                    let lens = [held.ids.len(), held.own.len()];
                    step.number == number && (0..2).all(|at| lens[at] >= read[at])
                })
            })
    }

    fn read_on(&mut self, blocks: &Blocks, holdings: &Holdings<'_>) {
        for (step, held) in holdings.steps() {
            let (_, read) = self.read.entry(step.slot).or_insert((step.number, [0; 2]));
            for (read, ids) in read.iter_mut().zip([&held.ids, &held.own]) {
                for &id in &ids[*read..] {
                    match blocks.owners(id) {
                        1 => self.sole += 1,
                        _ => self.shared.add(id),
                    }
                }
                *read = ids.len();
            }
        }
    }

    /// Counts the blocks that only steps own, among blocks of runs and blocks that had several owners.
    fn sole_of_shared(&self, blocks: &Blocks, holdings: &Holdings<'_>) -> usize {
        let (mut sole, mut in_runs) = (0, OwnedByRuns::default());
        let runs = held_only_by(holdings.runs().map(|run| (run, 1)));
        for &id in runs.iter().flat_map(|run| run.ids()) {
            // Mostly 1: then no owners must be added up.
            match blocks.owners(id) {
                1 => sole += 1,
                _ => in_runs.add(id),
            }
        }
        for (&id, &known) in &self.shared.0 {
            match in_runs.0.get_mut(&id) {
                Some(in_runs) => *in_runs += known,
                None => sole += usize::from(known >= blocks.owners(id)),
            }
        }
        sole + in_runs.num_blocks_of_no_others(blocks)
    }
}

/// Returns the number of blocks that come back by the end of all open steps if a table is dropped and
/// nothing else happens. `private` and `run` are the table's blocks and newest run. `None` if no step
/// holds anything: then these are the blocks that the table alone owns. `O(blocks)`, plus `O(references
/// of steps)` if the table shares a block.
pub(crate) fn num_blocks_given_up(
    blocks: &Blocks,
    private: &[BlockId],
    run: Option<&Arc<SharedRun>>,
) -> Option<usize> {
    let holdings = blocks.holdings(&mut { PATIENCE })?;
    let only = held_only_by(run.into_iter().chain(holdings.runs()).map(|run| (run, 1)));
    let own: HashSet<*const SharedRun> =
        std::iter::successors(run, |run| run.parent()).map(Arc::as_ptr).collect();
    let (own, steps): (Vec<_>, Vec<_>) =
        only.into_iter().partition(|run| own.contains(&Arc::as_ptr(run)));
    let mut owned = OwnedByRuns::default();
    let own = own.into_iter().flat_map(|run| run.ids());
    own.chain(private).for_each(|&id| owned.add(id));
    if owned.num_blocks_of_no_others(blocks) < owned.len() {
        let steps = steps.into_iter().flat_map(|run| run.ids().iter().copied());
        steps.chain(holdings.ids()).for_each(|id| owned.add_if_there(id));
    }
    Some(owned.num_blocks_of_no_others(blocks))
}

/// For each block in it, the number of its owners that are known.
#[derive(Default)]
pub(crate) struct OwnedByRuns(HashMap<BlockId, u32>);

impl OwnedByRuns {
    pub(crate) fn add(&mut self, id: BlockId) {
        *self.0.entry(id).or_default() += 1;
    }

    fn add_if_there(&mut self, id: BlockId) {
        if let Some(owners) = self.0.get_mut(&id) {
            *owners += 1;
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if the block is in here and all its owners are known.
    pub(crate) fn has_no_others(&self, blocks: &Blocks, id: BlockId) -> bool {
        self.0.get(&id).is_some_and(|&known| known >= blocks.owners(id))
    }

    fn num_blocks_of_no_others(&self, blocks: &Blocks) -> usize {
        self.0.keys().filter(|&&id| self.has_no_others(blocks, id)).count()
    }
}
