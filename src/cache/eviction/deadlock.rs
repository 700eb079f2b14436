//! Deadlock detection: finds that all sequences wait for each other, and ends waits whose sequence is gone.
//!
//! Sequences that wait to grow keep their blocks. If all sequences that have blocks wait, no sequence is
//! left to release any. Then one of them fails with `Stalled`.
//!
//! A check runs whenever
//!
//! - a sequence begins to wait for room to grow, is refused again, or stops waiting;
//! - a sequence is freed, evicted, or loses its last block;
//! - released blocks do not suffice for the first sequence that waits to grow; that waiter runs the check.
//!
//! Blocks without an owner in the map (a handle's, a reservation's, a step's, the source of a copy) may be
//! released. While there are such blocks, no sequence fails. No sequence fails either while such an owner
//! shares a partly filled last block of a waiting sequence. When that owner leaves, the sequence needs no
//! copy.
//!
//! A check itself releases no blocks.

#[cfg(feature = "async")]
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::cache::PagedKvCache;
#[cfg(feature = "async")]
use crate::cache::entry::{Looking, MapEntry, TrackedSequence};
#[cfg(feature = "async")]
use crate::error::PagedKvError;
#[cfg(feature = "async")]
use crate::id::{BlockId, SeqId};
#[cfg(feature = "async")]
use crate::pool::wait_queue::Grower;
#[cfg(feature = "async")]
use crate::sequence::Sequence;
#[cfg(feature = "async")]
use crate::sync::Arc;
#[cfg(feature = "async")]
use crate::table::SharedRun;

/// The blocks that sequences of the map own.
#[cfg(feature = "async")]
#[derive(Default)]
struct Owned {
    /// Owners of each block among the sequences and their runs.
    owners: HashMap<BlockId, u32>,
    runs: HashSet<*const SharedRun>,
    /// Last blocks that are partly filled.
    tails: Vec<BlockId>,
}

#[cfg(feature = "async")]
impl PagedKvCache {
    /// Ends the waits of sequences that are gone. If all sequences wait for each other, fails the one among
    /// them that the strategy would evict. One load if no request waits; else `O(sequences)`, and
    /// `O(blocks)` if all wait.
    #[inline]
    pub(crate) fn tell_if_stalled(&self) {
        if self.pool.blocks().is_waited_for() {
            self.tell_growing();
        }
    }

    #[cold]
    fn tell_growing(&self) {
        // Reads before waiting writers: the closure that they wait for may itself wait for a waiter that
        // this thread has yet to wake.
        let _looking = Looking::begin();
        let waiters = self.pool.blocks().waiters();
        for grower in waiters.growing() {
            if let Some(refusal) = self.refusal_of_gone(grower) {
                waiters.mark_gone(grower, &refusal);
            }
        }
        let growing = waiters.growing();
        let Some(ids) = self.ids_if_all_wait(&growing) else {
            return;
        };
        if self.others_may_release(&ids) {
            return;
        }
        let grower_of = |id| growing.iter().find(|grower| grower.id == id);
        let victim = self.select_eviction_target().and_then(grower_of);
        // If all are leased, the strategy would evict none.
        let victim = victim.or_else(|| grower_of(*ids.iter().max()?));
        if let Some(&victim) = victim {
            waiters.stall(victim, &growing, self.pool.blocks().room());
        }
    }

    /// Returns the refusal of a waiting sequence that is no longer in the map.
    fn refusal_of_gone(&self, grower: Grower) -> Option<PagedKvError> {
        let epoch = self.sequences.get(&grower.id).map(|entry| entry.epoch());
        match epoch {
            None => Some(self.missing(grower.id)()),
            Some(epoch) if epoch != grower.epoch => Some(PagedKvError::SequenceNotFound(grower.id)),
            Some(_) => None,
        }
    }

    /// Returns the sequences that have blocks, if some sequences wait to grow and all that have blocks do.
    fn ids_if_all_wait(&self, growing: &BTreeSet<Grower>) -> Option<Vec<SeqId>> {
        if growing.is_empty() {
            return None;
        }
        let (mut ids, mut in_use) = (Vec::new(), Vec::new());
        let mut waits = |id: SeqId, tracked: &TrackedSequence| {
            let has_blocks = tracked.has_blocks();
            if has_blocks {
                ids.push(id);
            }
            !has_blocks || growing.contains(&Grower { id, epoch: tracked.epoch })
        };
        for entry in &self.sequences {
            match entry.value() {
                MapEntry::Owned(tracked) if waits(*entry.key(), tracked) => {}
                MapEntry::Owned(_) => return None,
                // Not under the shard's lock: a thread that changes it may wait for blocks.
                MapEntry::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        for (id, shared) in in_use {
            if shared.read().as_ref().is_some_and(|tracked| !waits(id, tracked)) {
                return None;
            }
        }
        Some(ids)
    }

    /// Returns true if an owner that is no sequence of the map has blocks, or shares one that a sequence
    /// would have to copy.
    fn others_may_release(&self, ids: &[SeqId]) -> bool {
        let mut owned = Owned::default();
        for &id in ids {
            // A sequence that is gone by now has released its blocks, and another check follows that.
            let _ = self.look(id, |sequence| {
                owned.add(sequence);
                Ok(())
            });
        }
        let blocks = self.pool.blocks();
        let is_shared = |id: &BlockId| blocks.owners(*id) > owned.owners[id];
        blocks.used() > owned.owners.len()
            || owned.tails.iter().any(|id| !blocks.is_cached(*id) && is_shared(id))
    }
}

#[cfg(feature = "async")]
impl Owned {
    fn add(&mut self, sequence: &Sequence) {
        for table in sequence.tables() {
            let mut add = |id: BlockId| *self.owners.entry(id).or_default() += 1;
            table.private().iter().copied().for_each(&mut add);
            let mut next = table.newest_run();
            while let Some(run) = next.filter(|run| self.runs.insert(Arc::as_ptr(run))) {
                run.ids().iter().copied().for_each(&mut add);
                next = run.parent();
            }
        }
        for table in sequence.group_tables() {
            if !table.num_tokens().is_multiple_of(table.block_size()) {
                self.tails.extend(table.table().as_slice().last());
            }
        }
    }
}

#[cfg(not(feature = "async"))]
impl PagedKvCache {
    /// Does nothing: no request waits in a build without waiting.
    #[inline]
    pub(crate) fn tell_if_stalled(&self) {}
}
