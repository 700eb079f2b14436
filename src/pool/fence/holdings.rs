//! What do open steps hold, all of them at one moment? [`Holdings`]: the references of all slots, of what
//! tables released and of what a step owns itself, because it will be published.
//!
//! Invariant: while a thread has the holdings, no step ends that holds something, and what one holds
//! only becomes more by slots that are not among them. So a block is among the holdings, or a table
//! owned it during the call, or it is room. Holdings do not know tables.
//!
//! Locks: slot by slot, in order; every other thread takes the lock of one slot at a time, and none
//! behind it.

use super::{Fence, Fences, HOLDS, Held, NUMBER, OPEN};
use crate::id::BlockId;
use crate::pool::Blocks;
use crate::pool::run::Run;
use crate::sync::{Arc, Backoff, MutexGuard, Ordering};

/// Looks at steps that give back, all calls of an eviction together, before it goes on without: a
/// few milliseconds, for the threads that give back may run a caller's waker.
pub(crate) const PATIENCE: usize = 200;

/// What open steps hold.
pub(crate) struct Holdings<'a> {
    steps: Vec<(Fence, MutexGuard<'a, Held>)>,
}

/// A step gives back what it held, or has begun to hold something.
struct Changing;

impl Holdings<'_> {
    /// Each step that holds something, in the order of the slots.
    pub(super) fn steps(&self) -> impl Iterator<Item = (Fence, &Held)> {
        self.steps.iter().map(|(fence, held)| (*fence, &**held))
    }

    /// The blocks that are held or owned by their words, once a reference.
    pub(crate) fn ids(&self) -> impl Iterator<Item = BlockId> {
        self.steps().flat_map(|(_, held)| held.ids.iter().chain(&held.own).copied())
    }

    /// The runs that are held, once a reference.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.steps().flat_map(|(_, held)| &held.runs)
    }
}

impl Blocks {
    /// What open steps hold, or `None` if nothing. `O(steps)`; waits for steps that give back, as long
    /// as there is patience left.
    pub(crate) fn holdings(&self, patience: &mut usize) -> Option<Holdings<'_>> {
        self.fences.holdings(patience)
    }
}

impl Fences {
    pub(super) fn holdings(&self, patience: &mut usize) -> Option<Holdings<'_>> {
        let mut backoff = Backoff::new();
        loop {
            let holdings = match self.try_holdings() {
                (holdings, Ok(())) => holdings,
                (holdings, Err(Changing)) if *patience == 0 => holdings,
                (holdings, Err(Changing)) => {
                    drop(holdings);
                    *patience -= 1;
                    backoff.wait();
                    continue;
                }
            };
            return (!holdings.steps.is_empty()).then_some(holdings);
        }
    }

    /// The locks of all slots that hold something, and whether that is all there is.
    fn try_holdings(&self) -> (Holdings<'_>, Result<(), Changing>) {
        let mut steps: Vec<(Fence, MutexGuard<'_, Held>)> = Vec::new();
        let mut is_all = Ok(());
        let len = self.slots.len();
        for (slot, word) in self.slots.words(len).enumerate() {
            // Acquire: pairs with `SetOnDrop`; of a step that is found over, what it gave back is
            // counted as room. Loom: what_a_step_gives_back_is_never_taken_for_in_use.
            if word.load(Ordering::Acquire) & HOLDS == 0 {
                continue;
            }
            let held = self.slots.held(slot).lock();
            // Relaxed: a thread that ends a step has this lock before it says that the step is over.
            let seen = word.load(Ordering::Relaxed);
            let fence = Fence { number: seen >> NUMBER, slot: slot as u32 };
            match (seen & OPEN != 0, seen & HOLDS != 0) {
                (true, true) => steps.push((fence, held)),
                (false, true) => is_all = Err(Changing),
                (_, false) => {}
            }
        }
        // A step that ended since handed what it held to one that had been passed by. Relaxed: it did so
        // before it was found over.
        let holding = self.slots.words(self.slots.len());
        let holding = holding.filter(|word| word.load(Ordering::Relaxed) & HOLDS != 0).count();
        if holding != steps.len() {
            is_all = Err(Changing);
        }
        (Holdings { steps }, is_all)
    }
}
