//! Which blocks may the device still touch? What was let go of during a step is held until it ends.
//!
//! An open step has a slot here. A table that took part in a step knows the newest such, its *fence*,
//! and lets go of nothing while that is open: it hands its own references (of blocks, of runs) to the
//! slot, and who ends the step lets go of them. So a block that several tables own stays put until
//! the last of the steps that read it through any of them is over.
//!
//! ```text
//!   table, fence 7 ──lets go──> is 7 open? held there ──7 ends──> is an older one open? held there
//!                                  │ no                               │ no
//!                                  └─> the newest open one older      └─> given back
//!                                      than 7, else given back
//! ```
//!
//! Steps may end in any order. A table does not know in which older steps it took part, so an older
//! one that is open is taken to be one of them; a newer one never is.
//!
//! Numbers order steps, and may be equal for steps that were opened at once: then each counts as older
//! than the other. A slot's word says what becomes of it:
//!
//! ```text
//!   over ──open──> open ──hold──> open, holds ──close──> gives back ──────> over
//!                    └────────────close, nothing held────────────────────────^
//! ```
//!
//! A slot that gives back opens no step, so that a thread that finds the slot over finds room again.
//! It does not know what a step does.

pub(crate) mod coming;
pub(crate) mod holdings;
mod slots;
#[cfg(test)]
mod tests;

use self::slots::Slots;
use super::Blocks;
use super::run::Run;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{Arc, AtomicU64, Ordering, thread_ordinal};

/// In a slot's word: the step is open.
const OPEN: u64 = 1;

/// In a slot's word: something is held for the step, and the thread that ends it has to look. Without
/// [`OPEN`]: that thread gives it back.
const HOLDS: u64 = 2;

/// Where the number of the step begins in a slot's word.
const NUMBER: u32 = 2;

/// The newest step that a table took part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    /// 0 for none.
    number: u64,
    slot: u32,
}

/// Says of a slot, also after a panic, that its step is over and has given back.
struct SetOnDrop<'a> {
    word: &'a AtomicU64,
    value: u64,
}

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        // Release: pairs with `Fences::holdings`; a thread that finds the slot over counts the room.
        // Loom: what_a_step_gives_back_is_never_taken_for_in_use.
        self.word.store(self.value, Ordering::Release);
    }
}

/// The open steps of a pool.
pub(crate) struct Fences {
    slots: Slots,
}

/// References that wait.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) ids: Vec<BlockId>,
    pub(crate) runs: Vec<Arc<Run>>,
    /// Those of the step itself, which end with it whatever other steps are open.
    own: Vec<BlockId>,
}

impl Fence {
    pub(crate) fn is_none(self) -> bool {
        self.number == 0
    }

    fn slot(self) -> usize {
        self.slot as usize
    }

    /// The later of two.
    pub(crate) fn max(self, other: Fence) -> Fence {
        if other.number > self.number { other } else { self }
    }
}

impl Held {
    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.runs.is_empty()
    }

    /// Takes what `other` holds for tables.
    fn append(&mut self, other: &mut Held) {
        self.ids.append(&mut other.ids);
        self.runs.append(&mut other.runs);
    }
}

impl Blocks {
    /// As [`give`](Self::give), but not before the steps are over that `fence` speaks of.
    #[inline]
    pub(crate) fn give_after(&self, fence: Fence, ids: &[BlockId]) {
        if fence.is_none() || !self.hold_ids(fence, ids) {
            self.give(ids);
        }
    }

    /// Lets a run go, but not before the steps are over that `fence` speaks of.
    pub(crate) fn let_go_after(&self, fence: Fence, run: Arc<Run>) {
        if !fence.is_none() {
            let mut run = Some(run);
            self.fences.hold(fence, |held| held.runs.extend(run.take()));
        }
    }

    #[cold]
    fn hold_ids(&self, fence: Fence, ids: &[BlockId]) -> bool {
        ids.is_empty() || self.fences.hold(fence, |held| held.ids.extend_from_slice(ids))
    }

    /// Opens a step.
    pub(crate) fn open_step(&self) -> Fence {
        self.fences.open()
    }

    /// Makes an open step one more owner of each of `ids`, or of none. Takes the slot's lock.
    pub(crate) fn retain_in_step(&self, step: Fence, ids: &[BlockId]) -> Result<()> {
        let mut held = self.fences.slots.held(step.slot()).lock();
        assert!(self.fences.mark(step), "a step that is open owns blocks");
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

    /// Ends what an open step owns, but for the first `keep`. Takes the slot's lock, so that who counts
    /// what steps own finds a block among that, or released.
    pub(crate) fn release_in_step(&self, step: Fence, keep: usize) {
        let mut held = self.fences.slots.held(step.slot()).lock();
        self.free.give(&held.own[keep..], &self.words);
        held.own.truncate(keep);
        drop(held);
        self.announce_room();
    }

    /// Ends a step, and gives back what was held for it.
    pub(crate) fn close_step(&self, fence: Fence) {
        self.fences.close(fence, |held| {
            self.give(&held.ids);
            held.ids.clear();
            held.runs.clear();
        });
        // Also if nothing was held: the step may have been aborted, and then a sequence may have no block
        // any more, so that all that have blocks wait.
        self.announce_room();
    }
}

impl Fences {
    pub(super) fn new() -> Self {
        Self { slots: Slots::new() }
    }

    /// Opens a step, newer than all that were opened before. One exchange; it reads a word for each step
    /// that was ever open at once.
    pub(crate) fn open(&self) -> Fence {
        let place = thread_ordinal();
        loop {
            let len = self.slots.len();
            // Relaxed: a number has to be above those that the caller can know of, by whatever told
            // it of them.
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
                // Acquire: the end of this slot's last step is passed on by the end of this one.
                // Loom: who_finds_the_next_step_of_a_slot_over_sees_what_the_one_before_did.
                if word.compare_exchange(seen, open, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Fence { number, slot: slot as u32 };
                }
                lost = true;
            }
            if !lost {
                self.slots.grow(len);
            }
        }
    }

    /// Has `keep` hand references over to the step of `fence`, or to an older one that is open. False
    /// if none is: then nothing was handed over.
    ///
    /// A build with `--cfg paged_kv_unfenced` holds nothing: in it the tests of steps have to fail.
    pub(crate) fn hold(&self, fence: Fence, keep: impl FnOnce(&mut Held)) -> bool {
        if cfg!(paged_kv_unfenced) {
            return false;
        }
        let mut next = self.is_open(fence).then_some(fence);
        loop {
            let Some(at) = next.or_else(|| self.newest_open(fence.number)) else {
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

    /// Ends the step. What it held goes to an older step that is open, or to `give`. One exchange if
    /// it held nothing.
    pub(crate) fn close(&self, fence: Fence, give: impl FnOnce(&mut Held)) {
        let word = self.slots.word(fence.slot());
        let (open, over) = (fence.number << NUMBER | OPEN, fence.number << NUMBER);
        // Release: who finds the step over lets go of its blocks, whose next owners see all that the
        // device did. Loom: who_finds_a_step_over_sees_what_it_did.
        if word.compare_exchange(open, over, Ordering::Release, Ordering::Relaxed).is_ok() {
            return;
        }
        let held = self.slots.held(fence.slot());
        let mut waiting = {
            let mut held = held.lock();
            // Release: as above. Loom: who_finds_a_step_over_that_held_something_sees_what_it_did.
            word.store(over | HOLDS, Ordering::Release);
            std::mem::take(&mut *held)
        };
        let _over = SetOnDrop { word, value: over };
        assert!(waiting.own.is_empty(), "a step releases what it owns before it ends");
        if !waiting.is_empty() {
            let older = self.newest_open(fence.number);
            if !older.is_some_and(|older| self.hold(older, |held| held.append(&mut waiting))) {
                // Outside of the lock: who waits for room is woken by it.
                give(&mut waiting);
            }
        }
        // The memory is for the next step here.
        *held.lock() = waiting;
    }

    fn is_open(&self, fence: Fence) -> bool {
        // Relaxed: that the step is open is looked at again under the lock, and that it is over, in
        // `newest_open`.
        let word = self.slots.word(fence.slot()).load(Ordering::Relaxed);
        word & !HOLDS == fence.number << NUMBER | OPEN
    }

    /// The newest open step of at most that number.
    fn newest_open(&self, number: u64) -> Option<Fence> {
        let words = self.slots.words(self.slots.len()).enumerate();
        let open = words.filter_map(|(slot, word)| {
            // Acquire: pairs with `close`. Whoever finds a step over has read its slot here.
            // Loom: who_finds_a_step_over_sees_what_it_did.
            let word = word.load(Ordering::Acquire);
            let fence = Fence { number: word >> NUMBER, slot: slot as u32 };
            (word & OPEN != 0 && fence.number <= number).then_some(fence)
        });
        open.max_by_key(|fence| fence.number)
    }

    /// Says, for the holder of its lock, that the step holds something. False if it has ended.
    fn mark(&self, fence: Fence) -> bool {
        let word = self.slots.word(fence.slot());
        let open = fence.number << NUMBER | OPEN;
        // Relaxed: the lock orders it; only a holder of the lock changes a word that says so.
        if word.load(Ordering::Relaxed) == open | HOLDS {
            return true;
        }
        // Relaxed: who ends the step finds the mark by the atomicity, and the rest under the lock; who
        // finds it over looks again in `newest_open`.
        match word.compare_exchange(open, open | HOLDS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(seen) => seen == open | HOLDS,
        }
    }
}
