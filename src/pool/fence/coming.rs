//! Which blocks will be room when the steps that are open end? Those that only steps own: [`Coming`].
//!
//! A block has as many owners as its word says; a run is one owner of its blocks, and is a step's if
//! steps hold it and nothing else does. Blocks all of whose owners are steps' come back with the last of
//! these. An eviction counts them as given up, because no further eviction would bring them sooner.
//!
//! It does not know sequences.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::holdings::{Holdings, PATIENCE};
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::run::{Run, held_only_by};
use crate::sync::Arc;

/// How many blocks are coming, for a thread that asks again and again while it evicts: of what steps
/// hold it reads again only what was not the last reference of its block.
pub(crate) struct Coming {
    /// By slot: the number of its step, and how many of the ids that it holds and owns have been read.
    read: BTreeMap<u32, (u64, [usize; 2])>,
    /// Ids among these that had no other owner.
    sole: usize,
    /// The others.
    shared: Owned,
    /// True if an earlier look counted some that this one did not look at.
    is_continued: bool,
    patience: usize,
}

impl Coming {
    pub(crate) fn new() -> Self {
        let (read, shared) = (BTreeMap::new(), Owned::default());
        Self { read, sole: 0, shared, is_continued: false, patience: PATIENCE }
    }

    /// Blocks in use that are not coming. `O(steps + references read anew)`.
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
        // While the steps cannot end: a block that came back meanwhile would be subtracted twice.
        blocks.free.used().saturating_sub(coming)
    }

    /// The same of a closer look, where the last one was not: others may own by now what had no other owner.
    pub(crate) fn in_use_anew(&mut self, blocks: &Blocks) -> Option<usize> {
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

    /// True if what was read is held still, by the same steps.
    fn goes_on_with(&self, holdings: &Holdings<'_>) -> bool {
        let mut held = holdings.steps();
        !self.read.is_empty()
            && self.read.iter().all(|(&slot, &(number, read))| {
                let step = held.find(|(fence, _)| fence.slot == slot);
                step.is_some_and(|(fence, held)| {
                    let lens = [held.ids.len(), held.own.len()];
                    fence.number == number && (0..2).all(|at| lens[at] >= read[at])
                })
            })
    }

    fn read_on(&mut self, blocks: &Blocks, holdings: &Holdings<'_>) {
        for (fence, held) in holdings.steps() {
            let (_, read) = self.read.entry(fence.slot).or_insert((fence.number, [0; 2]));
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

    /// Blocks of runs, and those that had several owners, that only steps own.
    fn sole_of_shared(&self, blocks: &Blocks, holdings: &Holdings<'_>) -> usize {
        let (mut sole, mut in_runs) = (0, Owned::default());
        let runs = held_only_by(holdings.runs().map(|run| (run, 1)));
        for &id in runs.iter().flat_map(|run| run.ids()) {
            // Mostly this one, and there is nothing to add up.
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

/// Blocks that would be room, once the steps that are open have ended, if a table with these blocks and
/// runs were dropped and nothing else happened. `None` if no step holds anything: then they are those
/// that the table alone owns. `O(blocks)`, and of what steps hold if it shares any.
pub(crate) fn num_blocks_given_up(
    blocks: &Blocks,
    private: &[BlockId],
    run: Option<&Arc<Run>>,
) -> Option<usize> {
    let holdings = blocks.holdings(&mut { PATIENCE })?;
    let only = held_only_by(run.into_iter().chain(holdings.runs()).map(|run| (run, 1)));
    let own: HashSet<*const Run> =
        std::iter::successors(run, |run| run.parent()).map(Arc::as_ptr).collect();
    let (own, steps): (Vec<_>, Vec<_>) =
        only.into_iter().partition(|run| own.contains(&Arc::as_ptr(run)));
    let mut owned = Owned::default();
    let own = own.into_iter().flat_map(|run| run.ids());
    own.chain(private).for_each(|&id| owned.add(id));
    if owned.num_blocks_of_no_others(blocks) < owned.len() {
        let steps = steps.into_iter().flat_map(|run| run.ids().iter().copied());
        steps.chain(holdings.ids()).for_each(|id| owned.add_if_there(id));
    }
    Some(owned.num_blocks_of_no_others(blocks))
}

/// How many of the owners of some blocks are known.
#[derive(Default)]
pub(crate) struct Owned(HashMap<BlockId, u32>);

impl Owned {
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

    /// True if all owners of a block are known, and there is one.
    pub(crate) fn has_no_others(&self, blocks: &Blocks, id: BlockId) -> bool {
        self.0.get(&id).is_some_and(|&known| known >= blocks.owners(id))
    }

    fn num_blocks_of_no_others(&self, blocks: &Blocks) -> usize {
        self.0.keys().filter(|&&id| self.has_no_others(blocks, id)).count()
    }
}
