//! [`Holdings`]: the references that all open steps hold at one moment. They are the references that
//! tables released, and those of the steps themselves to blocks that they will publish.
//!
//! Invariant: while a thread has the holdings, no step among them ends or gets another reference. Only
//! slots that are not among them can begin to hold references. So each block is among the holdings, or
//! a table owned it during the call, or it is room.
//!
//! Locks: the thread takes the locks of slots in their order. Every other thread takes the lock of one
//! slot at a time, and no further lock under it.

use super::{Deferred, HOLDS, InFlightStep, InFlightSteps, NUMBER, OPEN};
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::shared_run::SharedRun;
use crate::sync::{Arc, Backoff, MutexGuard, Ordering};

/// How often all calls of one eviction together wait for steps that give back, before the eviction goes
/// on without them. That is a few milliseconds. The threads that give back may run a caller's waker.
pub(crate) const PATIENCE: usize = 200;

/// The locks of the slots whose open steps hold references.
pub(crate) struct Holdings<'a> {
    steps: Vec<(InFlightStep, MutexGuard<'a, Deferred>)>,
}

/// A step is giving back its references, or has begun to hold some.
struct StepsChanging;

impl Holdings<'_> {
    /// Returns each step that holds references, in the order of the slots.
    pub(super) fn steps(&self) -> impl Iterator<Item = (InFlightStep, &Deferred)> {
        self.steps.iter().map(|(step, held)| (*step, &**held))
    }

    /// Returns the blocks that steps hold for tables or own themselves, once for each reference. Blocks
    /// of runs are not among them.
    pub(crate) fn ids(&self) -> impl Iterator<Item = BlockId> {
        self.steps().flat_map(|(_, held)| held.ids.iter().chain(&held.own).copied())
    }

    /// Returns the runs that steps hold, once for each reference.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Arc<SharedRun>> {
        self.steps().flat_map(|(_, held)| &held.runs)
    }
}

impl Blocks {
    /// Returns the references that open steps hold, or `None` if they hold none. `O(steps)`. Waits for
    /// steps that give back, and takes 1 off `patience` for each wait, until it is 0.
    pub(crate) fn holdings(&self, patience: &mut usize) -> Option<Holdings<'_>> {
        self.in_flight.holdings(patience)
    }
}

impl InFlightSteps {
    pub(super) fn holdings(&self, patience: &mut usize) -> Option<Holdings<'_>> {
        let mut backoff = Backoff::new();
        loop {
            let holdings = match self.try_holdings() {
                (holdings, Ok(())) => holdings,
                (holdings, Err(StepsChanging)) if *patience == 0 => holdings,
                (holdings, Err(StepsChanging)) => {
                    drop(holdings);
                    *patience -= 1;
                    backoff.wait();
                    continue;
                }
            };
            return (!holdings.steps.is_empty()).then_some(holdings);
        }
    }

    /// Takes the locks of all slots that hold references. The result is `Err` if others may hold some
    /// too.
    fn try_holdings(&self) -> (Holdings<'_>, Result<(), StepsChanging>) {
        let mut steps: Vec<(InFlightStep, MutexGuard<'_, Deferred>)> = Vec::new();
        let mut is_all = Ok(());
        let len = self.slots.len();
        for (slot, word) in self.slots.words(len).enumerate() {
            // Acquire: pairs with `MarkOverOnDrop`; if a step is found over, the blocks that it gave back
            // count as room.
            // Loom: a_block_returned_by_a_step_never_counts_as_used.
            if word.load(Ordering::Acquire) & HOLDS == 0 {
                continue;
            }
            let held = self.slots.held(slot).lock();
            // Relaxed: a thread that ends a step takes this lock before it marks the step as over.
            let seen = word.load(Ordering::Relaxed);
            let step = InFlightStep { number: seen >> NUMBER, slot: slot as u32 };
            match (seen & OPEN != 0, seen & HOLDS != 0) {
                (true, true) => steps.push((step, held)),
                (false, true) => is_all = Err(StepsChanging),
                (_, false) => {}
            }
        }
        // A step that ended during the loop may have handed its references to a slot that the loop had
        // passed. Relaxed: the step did so before it was found over.
        let holding = self.slots.words(self.slots.len());
        let holding = holding.filter(|word| word.load(Ordering::Relaxed) & HOLDS != 0).count();
        if holding != steps.len() {
            is_all = Err(StepsChanging);
        }
        (Holdings { steps }, is_all)
    }
}
