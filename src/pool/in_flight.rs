//! `InFlightSteps`: the open steps of a pool. Each holds the references that tables release during the step,
//! until the step ends, because the device may still touch their blocks.
//!
//! An open step has a slot here. A table knows the newest step that it joined, as an [`InFlightStep`]. While that
//! step is open, the table releases nothing itself: it hands its references (to blocks and to runs) to
//! the slot. The thread that ends the step releases them. So a block that several tables own is not
//! reused until the last step is over that read it through any of them.
//!
//! ```text
//!   table in step 7 ──releases──> is 7 open? held there ──7 ends──> is an older one open? held there
//!                                  │ no                               │ no
//!                                  └─> the newest open one older      └─> given back
//!                                      than 7, else given back
//! ```
//!
//! Steps may end in any order. A table does not know which older steps it joined. So every older step
//! that is open counts as one of them; a newer step never does.
//!
//! Steps are ordered by their numbers. Steps that threads opened at the same time may have one number;
//! then each may hold the other's references. A slot's word has these states:
//!
//! ```text
//!   over ──open──> open ──hold──> open, holds ──close──> gives back ──────> over
//!                    └────────────close, nothing held────────────────────────^
//! ```
//!
//! No step opens in a slot that gives back. So a thread that finds the slot over also finds the blocks
//! that came back.

pub(crate) mod coming;
pub(crate) mod holdings;
mod slots;
#[cfg(test)]
mod tests;

use self::slots::Slots;
use super::Blocks;
use super::shared_run::SharedRun;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{Arc, AtomicU64, Ordering, thread_ordinal};

/// In a slot's word: the step is open.
const OPEN: u64 = 1;

/// In a slot's word: the step holds references, and the thread that ends it must take them out. With [`OPEN`]
/// cleared, that thread is giving them back.
const HOLDS: u64 = 2;

/// The lowest bit of the step's number in a slot's word.
const NUMBER: u32 = 2;

/// The newest step that a table joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InFlightStep {
    /// 0 for none.
    number: u64,
    slot: u32,
}

/// Marks a slot's step as over when dropped, also after a panic: it has given back its references.
struct MarkOverOnDrop<'a> {
    word: &'a AtomicU64,
    value: u64,
}

impl Drop for MarkOverOnDrop<'_> {
    fn drop(&mut self) {
        // Release: pairs with `InFlightSteps::holdings`; a thread that finds the slot over counts the blocks
        // that came back.
        // Loom: a_block_returned_by_a_step_never_counts_as_used.
        self.word.store(self.value, Ordering::Release);
    }
}

/// The open steps of a pool.
pub(crate) struct InFlightSteps {
    slots: Slots,
}

/// References that wait for the end of a step.
#[derive(Default)]
pub(crate) struct Deferred {
    pub(crate) ids: Vec<BlockId>,
    pub(crate) runs: Vec<Arc<SharedRun>>,
    /// References of the step itself. They end with it, also while other steps are open.
    own: Vec<BlockId>,
}

impl InFlightStep {
    pub(crate) fn is_none(self) -> bool {
        self.number == 0
    }

    fn slot(self) -> usize {
        self.slot as usize
    }

    /// Returns the later of two steps; `self` if their numbers are equal.
    pub(crate) fn max(self, other: InFlightStep) -> InFlightStep {
        if other.number > self.number { other } else { self }
    }
}

impl Deferred {
    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.runs.is_empty()
    }

    /// Takes over the references that `other` holds for tables.
    fn append(&mut self, other: &mut Deferred) {
        self.ids.append(&mut other.ids);
        self.runs.append(&mut other.runs);
    }
}

impl Blocks {
    /// Releases `ids` as [`give`](Self::give) does, but only when `step`, and every older open step, is
    /// over.
    #[inline]
    pub(crate) fn release_after(&self, step: InFlightStep, ids: &[BlockId]) {
        if step.is_none() || !self.hold_ids(step, ids) {
            self.give(ids);
        }
    }

    /// Releases a reference to a run, but only when `step`, and every older open step, is over.
    pub(crate) fn release_run_after(&self, step: InFlightStep, run: Arc<SharedRun>) {
        if !step.is_none() {
            let mut run = Some(run);
            // If no step holds it, dropping `run` here releases it.
            self.in_flight.hold(step, |held| held.runs.extend(run.take()));
        }
    }

    #[cold]
    fn hold_ids(&self, step: InFlightStep, ids: &[BlockId]) -> bool {
        ids.is_empty() || self.in_flight.hold(step, |held| held.ids.extend_from_slice(ids))
    }

    /// Opens a step. See [`InFlightSteps::open`].
    pub(crate) fn open_step(&self) -> InFlightStep {
        self.in_flight.open()
    }

    /// Returns the number of open steps. Under load each slot is read at a moment of its own.
    pub(crate) fn num_open_steps(&self) -> usize {
        self.in_flight.num_open()
    }

    /// Makes an open step one more owner of each of `ids`, or of none of them. Takes the slot's lock.
    pub(crate) fn retain_in_step(&self, step: InFlightStep, ids: &[BlockId]) -> Result<()> {
        let mut held = self.in_flight.slots.held(step.slot()).lock();
        assert!(self.in_flight.mark(step), "a step that is open owns blocks");
        for (done, &id) in ids.iter().enumerate() {
            if let Err(refusal) = self.retain(id) {
                drop(held);
                self.give(&ids[..done]);
                return Err(refusal);
            }
        }
        held.own.extend_from_slice(ids);
        Ok(())
    }

    /// Releases the blocks that an open step owns itself, except the first `keep`. Takes the slot's
    /// lock. So a thread that counts the blocks of steps finds each block either owned by the step or
    /// released.
    pub(crate) fn release_in_step(&self, step: InFlightStep, keep: usize) {
        let mut held = self.in_flight.slots.held(step.slot()).lock();
        self.free.give(&held.own[keep..], &self.words);
        held.own.truncate(keep);
        drop(held);
        self.announce_room();
        self.keep_max_cached();
    }

    /// Ends a step, and releases the references that it held for tables.
    pub(crate) fn close_step(&self, step: InFlightStep) {
        self.in_flight.close(step, |held| {
            self.give(&held.ids);
            held.ids.clear();
            held.runs.clear();
        });
        // Also if the step held nothing: it may have been aborted, which can leave a sequence without
        // blocks. Then every sequence that still has blocks may be waiting (deadlock).
        self.announce_room();
    }
}

impl InFlightSteps {
    pub(super) fn new() -> Self {
        Self { slots: Slots::new() }
    }

    /// Opens a step that is newer than all steps opened before. Costs one exchange, and reads the words
    /// of all slots, as many as were ever needed for simultaneous steps.
    pub(crate) fn open(&self) -> InFlightStep {
        let place = thread_ordinal();
        loop {
            let len = self.slots.len();
            // Relaxed: the number must be above those that the caller can know, and the caller learned
            // of these through another ordering.
            let numbers = self.slots.words(len).map(|word| word.load(Ordering::Relaxed) >> NUMBER);
            let number = numbers.max().unwrap_or(0) + 1;
            let mut lost = false;
            for slot in self.slots.order_for(len, place) {
                let word = self.slots.word(slot);
                let seen = word.load(Ordering::Relaxed);
                if seen & (OPEN | HOLDS) != 0 {
                    continue;
                }
                let open = number << NUMBER | OPEN;
                // Acquire: the end of this step passes on the end of this slot's previous step.
                // Loom: the_end_of_a_slots_next_step_shows_earlier_accesses.
                if word.compare_exchange(seen, open, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return InFlightStep { number, slot: slot as u32 };
                }
                lost = true;
            }
            if !lost {
                self.slots.grow(len);
            }
        }
    }

    /// Calls `keep` to hand references to `step`, or to an older step that is open.
    /// Returns false if none is open; then it has not called `keep`.
    ///
    /// A build with `--cfg paged_kv_unfenced` holds nothing. The tests of steps must fail in it.
    pub(crate) fn hold(&self, step: InFlightStep, keep: impl FnOnce(&mut Deferred)) -> bool {
        if cfg!(paged_kv_unfenced) {
            return false;
        }
        let mut next = self.is_open(step).then_some(step);
        loop {
            let Some(at) = next.or_else(|| self.newest_open(step.number)) else {
                return false;
            };
            let mut held = self.slots.held(at.slot()).lock();
            if self.mark(at) {
                keep(&mut held);
                return true;
            }
            next = None;
        }
    }

    /// Ends the step. The references that it held go to an older step that is open, or else to `give`.
    /// Costs one exchange if it held nothing.
    pub(crate) fn close(&self, step: InFlightStep, give: impl FnOnce(&mut Deferred)) {
        let word = self.slots.word(step.slot());
        let (open, over) = (step.number << NUMBER | OPEN, step.number << NUMBER);
        // Release: a thread that finds the step over releases its blocks itself. Their next owners see
        // all writes of the device.
        // Loom: a_thread_that_finds_a_step_over_sees_its_accesses.
        if word.compare_exchange(open, over, Ordering::Release, Ordering::Relaxed).is_ok() {
            return;
        }
        let held = self.slots.held(step.slot());
        let mut waiting = {
            let mut held = held.lock();
            // Release: as above. Loom: a_thread_that_finds_a_holding_step_over_sees_its_accesses.
            word.store(over | HOLDS, Ordering::Release);
            std::mem::take(&mut *held)
        };
        let _over = MarkOverOnDrop { word, value: over };
        assert!(waiting.own.is_empty(), "a step releases what it owns before it ends");
        if !waiting.is_empty() {
            let older = self.newest_open(step.number);
            if !older.is_some_and(|older| self.hold(older, |held| held.append(&mut waiting))) {
                // Outside of the lock, because `give` wakes waiters.
                give(&mut waiting);
            }
        }
        // The next step in this slot reuses the memory.
        *held.lock() = waiting;
    }

    fn num_open(&self) -> usize {
        // Relaxed: a statistic.
        let words = self.slots.words(self.slots.len()).map(|word| word.load(Ordering::Relaxed));
        words.filter(|word| word & OPEN != 0).count()
    }

    fn is_open(&self, step: InFlightStep) -> bool {
        // Relaxed: a step that is read as open is checked again under the lock, and one that is read as
        // over in `newest_open`.
        let word = self.slots.word(step.slot()).load(Ordering::Relaxed);
        word & !HOLDS == step.number << NUMBER | OPEN
    }

    /// Returns the newest open step whose number is at most `number`.
    fn newest_open(&self, number: u64) -> Option<InFlightStep> {
        let words = self.slots.words(self.slots.len()).enumerate();
        let open = words.filter_map(|(slot, word)| {
            // Acquire: pairs with `close`. A thread that finds a step over has read its slot here.
            // Loom: a_thread_that_finds_a_step_over_sees_its_accesses.
            let word = word.load(Ordering::Acquire);
            let step = InFlightStep { number: word >> NUMBER, slot: slot as u32 };
            (word & OPEN != 0 && step.number <= number).then_some(step)
        });
        open.max_by_key(|step| step.number)
    }

    /// Marks the step as holding references, for the holder of its lock. Returns false if the step has
    /// ended.
    fn mark(&self, step: InFlightStep) -> bool {
        let word = self.slots.word(step.slot());
        let open = step.number << NUMBER | OPEN;
        // Relaxed: the lock orders it; only a holder of the lock changes a word with this mark.
        if word.load(Ordering::Relaxed) == open | HOLDS {
            return true;
        }
        // Relaxed: the thread that ends the step finds the mark by atomicity, and the references under
        // the lock. A thread that finds the step over reads it again in `newest_open`.
        match word.compare_exchange(open, open | HOLDS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(seen) => seen == open | HOLDS,
        }
    }
}
