//! `IdleList`: the entries of idle blocks of one rank in one shard, the oldest first.
//!
//! The entries lie in slots of the slab. Only the holder of the shard's claim uses the list.

use super::kept_slot::KeptSlot;
use super::slab::{BATCH, IdleSlab, NO_SLOT};
use crate::id::BlockId;
use crate::pool::word::{BlockWords, IdleBlock};
use crate::sync::{AtomicU32, Ordering};

/// Slots from `head` to `tail`. Once it has had an entry, a list keeps at least one slot.
pub(super) struct IdleList {
    head: AtomicU32,
    tail: AtomicU32,
    /// The place of the first entry, in the first slot.
    start: AtomicU32,
    /// The place after the last entry, in the last slot.
    end: AtomicU32,
}

// All accesses are Relaxed: they are made under the claim only, whose hand-over orders them. Without a claim, a
// guess suffices.
impl IdleList {
    pub(super) fn new() -> Self {
        Self {
            head: AtomicU32::new(NO_SLOT),
            tail: AtomicU32::new(NO_SLOT),
            start: AtomicU32::new(0),
            // As of a full slot, so that the first entry takes one.
            end: AtomicU32::new(BATCH as u32),
        }
    }

    fn head(&self) -> u32 {
        self.head.load(Ordering::Relaxed)
    }

    #[inline]
    fn tail(&self) -> u32 {
        self.tail.load(Ordering::Relaxed)
    }

    fn start(&self) -> usize {
        self.start.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn end(&self) -> usize {
        self.end.load(Ordering::Relaxed) as usize
    }

    /// Returns the place after the last entry of the first slot.
    fn end_of_head(&self) -> usize {
        if self.head() == self.tail() { self.end() } else { BATCH }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head() == NO_SLOT || self.start() == self.end_of_head()
    }

    /// Returns true if the next entry is the first one, or the first of a slot.
    #[inline]
    pub(super) fn is_at_border(&self) -> bool {
        // An empty list begins at the start of a slot, or has none.
        self.end().wrapping_sub(1) >= BATCH - 1
    }

    /// Returns true if the list has more than one slot, for any thread.
    pub(super) fn has_slots_to_spare(&self) -> bool {
        self.head() != self.tail()
    }

    /// Returns true if the next entry needs a slot.
    pub(super) fn needs_slot(&self) -> bool {
        self.end() == BATCH
    }

    /// Appends an entry that was added at `time`, in a slot that has room.
    #[inline]
    pub(super) fn append(&self, idle: IdleBlock, time: u64, slab: &IdleSlab) {
        let (slot, end) = (slab.slot(self.tail()), self.end());
        slot.set(end, idle);
        slot.stamp(end, time);
        self.end.store(end as u32 + 1, Ordering::Relaxed);
    }

    /// Appends an entry that was added at `time`.
    pub(super) fn push(&self, idle: IdleBlock, time: u64, slab: &IdleSlab, kept: &KeptSlot) {
        if self.needs_slot() {
            self.extend(slab, kept);
        }
        self.append(idle, time, slab);
    }

    /// Puts an entry that was added at `time` before all others.
    pub(super) fn push_front(&self, idle: IdleBlock, time: u64, slab: &IdleSlab, kept: &KeptSlot) {
        if self.is_empty() {
            return self.push(idle, time, slab, kept);
        }
        if self.start() == 0 {
            let new = kept.take(slab);
            slab.slot(new).set_next(self.head());
            self.head.store(new, Ordering::Relaxed);
            self.start.store(BATCH as u32, Ordering::Relaxed);
        }
        let (slot, start) = (slab.slot(self.head()), self.start() - 1);
        slot.set(start, idle);
        slot.stamp_first(start, time);
        self.start.store(start as u32, Ordering::Relaxed);
    }

    fn extend(&self, slab: &IdleSlab, kept: &KeptSlot) {
        let (new, tail) = (kept.take(slab), self.tail());
        if tail == NO_SLOT {
            self.head.store(new, Ordering::Relaxed);
        } else {
            slab.slot(tail).set_next(new);
        }
        self.tail.store(new, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
    }

    /// Removes the first entry.
    #[inline(always)]
    pub(super) fn pop(&self, slab: &IdleSlab, kept: &KeptSlot) -> Option<IdleBlock> {
        if self.is_empty() {
            return None;
        }
        let (head, start) = (self.head(), self.start());
        let idle = slab.slot(head).get(start);
        self.start.store(start as u32 + 1, Ordering::Relaxed);
        if start + 1 == self.end_of_head() {
            self.leave_head(slab, kept);
        }
        Some(idle)
    }

    /// Goes on to the next slot, or begins again in the only one.
    fn leave_head(&self, slab: &IdleSlab, kept: &KeptSlot) {
        let head = self.head();
        self.start.store(0, Ordering::Relaxed);
        if head == self.tail() {
            self.end.store(0, Ordering::Relaxed);
        } else {
            self.head.store(slab.slot(head).next(), Ordering::Relaxed);
            kept.give(head, slab);
        }
    }

    /// Returns the ids of up to `n` first entries, all of the first slot.
    pub(super) fn first<'s>(
        &self,
        n: usize,
        slab: &'s IdleSlab,
    ) -> impl Iterator<Item = BlockId> + use<'s> {
        let (start, end) = (self.start(), self.end_of_head());
        let slot = (!self.is_empty()).then(|| slab.slot(self.head()));
        slot.into_iter().flat_map(move |slot| slot.ids(start, end.min(start + n)))
    }

    /// Returns about the time at which the first entry was added.
    pub(super) fn oldest(&self, slab: &IdleSlab) -> Option<u64> {
        (!self.is_empty()).then(|| slab.slot(self.head()).time(self.start()))
    }

    /// Removes all stale entries before the first one that is not, and returns the block of that one.
    #[cold]
    #[inline(never)]
    pub(super) fn first_idle(
        &self,
        slab: &IdleSlab,
        kept: &KeptSlot,
        words: &BlockWords,
    ) -> Option<BlockId> {
        let (view, keyed) = (words.view(), words.keyed());
        loop {
            let first = self.first_entry(slab)?;
            if view.keeps_entry(keyed.mark_epoch(first)) {
                return Some(first.id);
            }
            self.pop(slab, kept);
        }
    }

    /// Returns the first entry, which may be stale.
    #[inline]
    pub(super) fn first_entry(&self, slab: &IdleSlab) -> Option<IdleBlock> {
        (!self.is_empty()).then(|| slab.slot(self.head()).get(self.start()))
    }

    /// Removes stale entries before the first one that is not, at most a batch.
    pub(super) fn trim(&self, slab: &IdleSlab, kept: &KeptSlot, words: &BlockWords) {
        let (view, keyed) = (words.view(), words.keyed());
        for _ in 0..BATCH {
            if self.is_empty() {
                return;
            }
            let first = slab.slot(self.head()).get(self.start());
            if view.keeps_entry(keyed.mark_epoch(first)) {
                return;
            }
            self.pop(slab, kept);
        }
    }

    /// Passes entries to `look`, the oldest first and each with the time at which it was added, until it returns false.
    pub(super) fn look_while(&self, slab: &IdleSlab, mut look: impl FnMut(IdleBlock, u64) -> bool) {
        let (mut slot, mut at, tail) = (self.head(), self.start(), self.tail());
        while slot != NO_SLOT {
            let end = if slot == tail { self.end() } else { BATCH };
            let entries = slab.slot(slot);
            if !(at..end).all(|at| look(entries.get(at), entries.time(at))) {
                return;
            }
            (slot, at) = (if slot == tail { NO_SLOT } else { entries.next() }, 0);
        }
    }

    /// Passes every entry to `look`, with its slot and place.
    fn visit(&self, slab: &IdleSlab, mut look: impl FnMut(IdleBlock, u32, usize)) {
        let (mut slot, mut at, tail, end) = (self.head(), self.start(), self.tail(), self.end());
        while slot != NO_SLOT {
            let end = if slot == tail { end } else { BATCH };
            let next = if slot == tail { NO_SLOT } else { slab.slot(slot).next() };
            (at..end).for_each(|at| look(slab.slot(slot).get(at), slot, at));
            (slot, at) = (next, 0);
        }
    }

    pub(super) fn inspect(&self, slab: &IdleSlab, mut look: impl FnMut(IdleBlock)) {
        self.visit(slab, |idle, _, _| look(idle));
    }

    /// Drops the stale entries and gives back the slots that are no longer needed.
    pub(super) fn compact(&self, slab: &IdleSlab, words: &BlockWords) {
        if self.head() == NO_SLOT {
            return;
        }
        // An entry is written at its old place or before it.
        let (mut to, mut end) = (self.head(), 0);
        let (view, keyed) = (words.view(), words.keyed());
        self.visit(slab, |idle, slot, at| {
            if !view.keeps_entry(keyed.mark_epoch(idle)) {
                return;
            }
            if end == BATCH {
                (to, end) = (slab.slot(to).next(), 0);
            }
            let (target, time) = (slab.slot(to), slab.slot(slot).time(at));
            target.set(end, idle);
            target.stamp(end, time);
            end += 1;
        });
        self.start.store(0, Ordering::Relaxed);
        self.end.store(end as u32, Ordering::Relaxed);
        let old_tail = self.tail.load(Ordering::Relaxed);
        self.tail.store(to, Ordering::Relaxed);
        while to != old_tail {
            to = slab.slot(to).next();
            slab.give(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::STAMPED;
    use super::*;
    use crate::pool::content_key::{ContentKey, NewKey};
    use crate::pool::word::Released;

    /// A list of one shard, and the words of blocks that are all idle.
    struct Lists {
        list: IdleList,
        kept: KeptSlot,
        slab: IdleSlab,
        words: BlockWords,
        entries: Vec<IdleBlock>,
        time: u64,
    }

    impl Lists {
        fn new(total: usize) -> Self {
            let words = BlockWords::with_keys(total).unwrap();
            let make_idle = |id: BlockId| {
                words.view().occupy(id);
                assert!(words.set_key(id, NewKey::only(ContentKey::new(7)), true, |_| {}));
                match words.view().release_shared(id) {
                    Released::Idle(left) => words.keyed().mark_epoch(left.block),
                    left => panic!("a cached block that nobody owns is idle, not {left:?}"),
                }
            };
            let entries = (0..total as u32).map(BlockId).map(make_idle).collect();
            let slab = IdleSlab::new(total, 1, 1).unwrap();
            Self { list: IdleList::new(), kept: KeptSlot::new(), slab, words, entries, time: 1 }
        }

        fn push(&mut self, idle: IdleBlock) {
            self.time += 1;
            self.list.push(idle, self.time, &self.slab, &self.kept);
        }

        fn pop(&self) -> Option<IdleBlock> {
            self.list.pop(&self.slab, &self.kept)
        }

        fn seen(&self) -> Vec<IdleBlock> {
            let mut seen = Vec::new();
            self.list.inspect(&self.slab, |idle| seen.push(idle));
            seen
        }
    }

    /// Returns a stale entry of the block.
    fn stale(idle: IdleBlock) -> IdleBlock {
        IdleBlock { epoch: idle.epoch.wrapping_add(100), ..idle }
    }

    #[test]
    fn entries_leave_in_the_order_in_which_they_came() {
        let mut lists = Lists::new(3 * BATCH);
        let entries = lists.entries.clone();
        for part in [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH] {
            entries[..part].iter().for_each(|&idle| lists.push(idle));
            assert_eq!(lists.seen(), entries[..part]);
            let ids: Vec<BlockId> = lists.list.first(5, &lists.slab).collect();
            assert_eq!(ids[0], entries[0].id);
            let left: Vec<IdleBlock> = std::iter::from_fn(|| lists.pop()).collect();
            assert_eq!(left, entries[..part]);
            assert!(lists.list.is_empty() && lists.list.oldest(&lists.slab).is_none());
        }
    }

    #[test]
    fn entries_that_are_put_back_leave_first_and_keep_their_times() {
        for (left, put_back) in [(1, 1), (BATCH / 2, BATCH / 2), (BATCH, BATCH), (0, BATCH + 1)] {
            let mut lists = Lists::new(3 * BATCH);
            let (entries, now) = (lists.entries.clone(), BATCH as u64 * 10);
            lists.time = now;
            entries[put_back..].iter().for_each(|&idle| lists.push(idle));
            (0..left).for_each(|_| _ = lists.pop());
            let Lists { list, slab, kept, .. } = &lists;
            for (at, &idle) in entries[..put_back].iter().enumerate().rev() {
                list.push_front(idle, 100 + at as u64, slab, kept);
            }
            let mut seen = Vec::new();
            list.look_while(slab, |idle, time| {
                seen.push((idle, time));
                true
            });
            let expected = entries[..put_back].iter().chain(&entries[put_back + left..]);
            assert!(seen.iter().map(|(idle, _)| idle).eq(expected));
            let off = |(at, time): (u64, u64)| (100 + at).abs_diff(time) > STAMPED as u64;
            let times = seen[..put_back].iter().map(|&(_, time)| time);
            // The entries that share a stamp with others of their slot are about as old as these.
            assert!((0..).zip(times).filter(|&pair| off(pair)).count() < STAMPED);
            assert_eq!(list.oldest(slab), Some(100));
            let popped: Vec<IdleBlock> = std::iter::from_fn(|| lists.pop()).collect();
            assert!(seen.iter().map(|&(idle, _)| idle).eq(popped));
        }
    }

    #[test]
    fn a_list_that_grows_as_it_shrinks_needs_no_more_slots() {
        let mut lists = Lists::new(2 * BATCH);
        let entries = lists.entries.clone();
        entries.iter().for_each(|&idle| lists.push(idle));
        for _ in 0..5 {
            for &idle in &entries {
                assert_eq!(lists.pop(), Some(idle));
                lists.push(idle);
            }
        }
        assert_eq!(lists.seen(), entries);
        assert!(!lists.slab.is_crowded());
    }

    #[test]
    fn the_first_entry_is_as_old_as_its_place_says() {
        let mut lists = Lists::new(2 * BATCH);
        let entries = lists.entries.clone();
        entries.iter().for_each(|&idle| lists.push(idle));
        for at in 0..2 * BATCH as u64 {
            assert_eq!(lists.list.oldest(&lists.slab), Some(2 + at));
            lists.pop();
        }
    }

    #[test]
    fn stale_entries_that_crowd_the_slab_are_dropped_and_the_others_keep_order_and_age() {
        for start in [0, 1, BATCH - 1, BATCH] {
            let mut lists = Lists::new(2 * BATCH);
            let entries = lists.entries.clone();
            let mut rounds = 0;
            while !lists.slab.is_crowded() {
                entries.iter().for_each(|&idle| lists.push(stale(idle)));
                rounds += 1;
            }
            assert!(rounds > 1, "a slab has room for stale entries");
            (0..start).for_each(|_| _ = lists.pop());
            entries.iter().for_each(|&idle| lists.push(idle));
            let oldest = lists.time - entries.len() as u64 + 1;
            lists.list.compact(&lists.slab, &lists.words);
            assert_eq!(lists.seen(), entries);
            assert_eq!(lists.list.oldest(&lists.slab), Some(oldest));
            assert!(!lists.slab.is_crowded());
            let left: Vec<IdleBlock> = std::iter::from_fn(|| lists.pop()).collect();
            assert_eq!(left, entries);
        }
    }

    #[test]
    fn a_list_of_stale_entries_is_empty_once_they_are_dropped() {
        let mut lists = Lists::new(BATCH);
        let entries = lists.entries.clone();
        lists.list.compact(&lists.slab, &lists.words);
        (0..3).for_each(|_| entries.iter().for_each(|&idle| lists.push(stale(idle))));
        lists.list.compact(&lists.slab, &lists.words);
        assert!(lists.list.is_empty());
        lists.push(entries[0]);
        assert_eq!(lists.pop(), Some(entries[0]));
        assert_eq!(lists.pop(), None);
    }
}
