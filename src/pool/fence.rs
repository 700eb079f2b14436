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
//! Numbers order steps, and may be equal for steps that were opened at once. It does not know what a
//! step does.

use super::Blocks;
use super::run::Run;
use crate::id::BlockId;
use crate::sync::{Arc, AtomicU64, CachePadded, Mutex, Ordering, thread_ordinal};

/// Steps that can be open at once.
pub(crate) const MOST_STEPS: usize = if cfg!(paged_kv_loom) { 2 } else { 64 };

/// In a slot's word: the step is open.
const OPEN: u64 = 1;

/// In a slot's word: something is held for the step, and who ends it has to look.
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

/// The open steps of a pool.
pub(crate) struct Fences {
    words: Box<[AtomicU64]>,
    held: Box<[CachePadded<Mutex<Held>>]>,
}

/// References that wait.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) ids: Vec<BlockId>,
    pub(crate) runs: Vec<Arc<Run>>,
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

    /// Takes what `other` holds.
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

    /// A new step. `None` if too many are open.
    pub(crate) fn open_step(&self) -> Option<Fence> {
        self.fences.open()
    }

    /// Ends a step, and gives back what was held for it.
    pub(crate) fn close_step(&self, fence: Fence) {
        self.fences.close(fence, |held| {
            self.give(&held.ids);
            held.ids.clear();
            held.runs.clear();
        });
    }
}

impl Fences {
    pub(super) fn new() -> Self {
        Self {
            words: (0..MOST_STEPS).map(|_| AtomicU64::new(0)).collect(),
            held: (0..MOST_STEPS).map(|_| CachePadded::new(Mutex::new(Held::default()))).collect(),
        }
    }

    /// A new step, newer than all that were opened before. `None` if too many are open. One exchange.
    pub(crate) fn open(&self) -> Option<Fence> {
        let first = thread_ordinal();
        loop {
            // Relaxed: a number has to be above those that the caller can know of, by whatever told
            // it of them.
            let newest = self.words.iter().map(|word| word.load(Ordering::Relaxed) >> NUMBER).max();
            let number = newest.unwrap_or(0) + 1;
            let mut lost = false;
            for step in 0..MOST_STEPS {
                let slot = first.wrapping_add(step) % MOST_STEPS;
                let word = &self.words[slot];
                let seen = word.load(Ordering::Relaxed);
                if seen & OPEN != 0 {
                    continue;
                }
                let open = number << NUMBER | OPEN;
                // Acquire: the end of this slot's last step is passed on by the end of this one.
                // Loom: who_finds_the_next_step_of_a_slot_over_sees_what_the_one_before_did.
                if word.compare_exchange(seen, open, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Some(Fence { number, slot: slot as u32 });
                }
                lost = true;
            }
            if !lost {
                return None;
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
            let mut held = self.held[at.slot()].lock();
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
        let word = &self.words[fence.slot()];
        let (open, closed) = (fence.number << NUMBER | OPEN, fence.number << NUMBER);
        // Release: who finds the step over lets go of its blocks, whose next owners see all that the
        // device did. Loom: who_finds_a_step_over_sees_what_it_did.
        if word.compare_exchange(open, closed, Ordering::Release, Ordering::Relaxed).is_ok() {
            return;
        }
        let mut waiting = {
            let mut held = self.held[fence.slot()].lock();
            // Release: as above. Loom: who_finds_a_step_over_that_held_something_sees_what_it_did.
            word.store(closed, Ordering::Release);
            std::mem::take(&mut *held)
        };
        let older = self.newest_open(fence.number);
        let is_held = older.is_some_and(|older| self.hold(older, |held| held.append(&mut waiting)));
        if !is_held {
            // Outside of the lock: who waits for room is woken by it.
            give(&mut waiting);
        }
        // The memory is for the next step here.
        let mut held = self.held[fence.slot()].lock();
        if held.ids.capacity() < waiting.ids.capacity() && held.is_empty() {
            *held = waiting;
        }
    }

    fn is_open(&self, fence: Fence) -> bool {
        // Relaxed: that the step is open is looked at again under the lock, and that it is over, in
        // `newest_open`.
        let word = self.words[fence.slot()].load(Ordering::Relaxed);
        word & !HOLDS == fence.number << NUMBER | OPEN
    }

    /// The newest open step of at most that number.
    fn newest_open(&self, number: u64) -> Option<Fence> {
        let open = self.words.iter().enumerate().filter_map(|(slot, word)| {
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
        let word = &self.words[fence.slot()];
        let open = fence.number << NUMBER | OPEN;
        // Relaxed: who ends the step finds the mark by the atomicity, and the rest under the lock; who
        // finds it over looks again in `newest_open`.
        match word.compare_exchange(open, open | HOLDS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(seen) => seen == open | HOLDS,
        }
    }
}

#[cfg(all(test, not(any(paged_kv_loom, paged_kv_shuttle))))]
mod tests {
    use super::*;

    /// Has the step, or an older open one, hold a block. False if none is open.
    fn hold(fences: &Fences, step: Fence, id: u32) -> bool {
        fences.hold(step, |held| held.ids.push(BlockId(id)))
    }

    /// Ends a step. Gives what it gave back.
    fn close(fences: &Fences, step: Fence) -> Vec<BlockId> {
        let mut given = Vec::new();
        fences.close(step, |held| given.append(&mut held.ids));
        given
    }

    #[test]
    fn what_a_step_holds_comes_back_with_its_end_and_nothing_after_it() {
        let fences = Fences::new();
        for id in 0..3 {
            let step = fences.open().unwrap();
            assert!(hold(&fences, step, id) && hold(&fences, step, 7));
            assert_eq!(close(&fences, step), [BlockId(id), BlockId(7)]);
            assert!(!hold(&fences, step, id), "it is over");
        }
        let idle = fences.open().unwrap();
        assert_eq!(close(&fences, idle), []);
    }

    #[test]
    fn what_an_older_step_may_have_seen_waits_for_it_too() {
        let fences = Fences::new();
        let [first, second, third] = std::array::from_fn(|_| fences.open().unwrap());
        assert!(hold(&fences, second, 2));
        assert_eq!(close(&fences, second), [], "the first is open");
        assert!(hold(&fences, second, 3), "by the first");
        assert_eq!(close(&fences, first), [BlockId(2), BlockId(3)]);
        assert!(!hold(&fences, second, 4), "a newer one holds nothing of an older one");
        assert_eq!(close(&fences, third), []);
    }

    #[test]
    fn as_many_steps_are_open_as_there_are_slots() {
        let fences = Fences::new();
        let steps: Vec<Fence> = (0..MOST_STEPS).map(|_| fences.open().unwrap()).collect();
        assert_eq!(fences.open(), None);
        assert!(steps.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert_eq!(close(&fences, steps[7]), []);
        let next = fences.open().unwrap();
        assert_eq!((next.slot, next.number), (steps[7].slot, steps[MOST_STEPS - 1].number + 1));
        assert_eq!(next.max(steps[0]), next);
        assert_eq!(steps[0].max(next), next);
    }

    #[test]
    fn what_the_next_step_of_a_slot_holds_is_left_alone() {
        let fences = Fences::new();
        let first = fences.open().unwrap();
        assert!(fences.hold(first, |held| held.ids.extend([BlockId(1); 64])));
        let mut next = None;
        fences.close(first, |given| {
            given.ids.clear();
            // Another thread may be as quick.
            let step = fences.open().unwrap();
            assert_eq!(step.slot, first.slot);
            assert!(hold(&fences, step, 2));
            next = Some(step);
        });
        assert_eq!(close(&fences, next.unwrap()), [BlockId(2)]);
    }
}
