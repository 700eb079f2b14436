//! `RankedLists`: the idle blocks of a shard in a pool with a learned order, a list for each class.
//!
//! Each list has the order of the releases. A reclaim compares the first blocks of all lists: the *oldest*, and the
//! *cheapest* by the price of its class and age. The cheapest goes if it is clearly worth less than the oldest, and
//! the oldest otherwise. One comparison holds for all blocks of a list that the same release left there, until
//! the next step of time.
//!
//! Only the holder of the shard's claim uses the lists. It shows other threads the block that it will reclaim next, so
//! that these compare shards without a claim. Since then it may have been used.

use super::first::{First, ShownFirst};
use super::hit_density::{CLASSES, HitDensity};
use super::list::IdleList;
use super::policy::{ReclaimPolicy, Retention};
use super::slab::IdleSlab;
use super::{COLD, IdleLists, IdleShard, Oldest};
use crate::id::BlockId;
use crate::pool::release_note::{ReleaseMark, ReleaseNote};
use crate::pool::word::{BlockWords, IdleBlock};
use crate::sync::{AtomicU64, CachePadded, Ordering};

/// The ranks of a shard with a learned order: spare blocks, and the classes.
pub(super) const RANKS: usize = COLD + CLASSES;

/// The bits of no run.
const NO_RUN: u64 = u64::MAX;

/// The idle blocks of a shard by class. Empty in pools with another order.
pub(super) struct RankedLists {
    lists: Box<[IdleList]>,
    /// The bits of the [`Run`] that was reclaimed last, or [`NO_RUN`].
    run: AtomicU64,
    shown: CachePadded<ShownFirst>,
}

/// Blocks of a class that one release left there, chosen at a time.
struct Run {
    class: usize,
    mark: ReleaseMark,
    now: u32,
}

impl Run {
    fn bits(self) -> u64 {
        let Self { class, mark, now } = self;
        u64::from(mark.bits()) | u64::from(now & 0xff_ffff) << 32 | (class as u64) << 56
    }

    fn class_of(bits: u64) -> usize {
        (bits >> 56) as usize
    }
}

// All accesses are Relaxed: they are made under the claim only.
impl RankedLists {
    pub(super) fn new(keep: Retention) -> Self {
        let is_learned = keep.policy() == Some(ReclaimPolicy::HitDensity);
        let num_lists = if is_learned { CLASSES } else { 0 };
        Self {
            lists: (0..num_lists).map(|_| IdleList::new()).collect(),
            run: AtomicU64::new(NO_RUN),
            shown: CachePadded::new(ShownFirst::new()),
        }
    }

    pub(super) fn is_present(&self) -> bool {
        !self.lists.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &IdleList> {
        self.lists.iter()
    }

    /// Returns the list of the class of a note.
    pub(super) fn list_of(&self, note: ReleaseNote) -> &IdleList {
        &self.lists[First::class_of(note)]
    }

    /// Shows other threads a block whose entry is the first of its list, unless the block that is shown goes before it.
    pub(super) fn show_if_first(&self, note: ReleaseNote, time: u64, density: &HitDensity) {
        let now = density.now();
        self.shown.show_if_before(First::new(note, time, density, now), density, now);
    }

    /// Returns the time of the first entry of all lists.
    pub(super) fn oldest(&self, slab: &IdleSlab) -> u64 {
        self.lists.iter().filter_map(|list| list.oldest(slab)).min().unwrap_or(Oldest::NEVER)
    }
}

impl IdleShard {
    /// Returns the block that goes first, if the shard has one. The caller holds the claim.
    pub(in crate::pool) fn first_by_price(
        &self,
        density: &HitDensity,
        now: u32,
        lists: &IdleLists,
        words: &BlockWords,
    ) -> Option<First> {
        self.first_ranked(density, now, lists, words)
    }

    /// Returns the block that went first when a holder of the claim showed it.
    pub(in crate::pool) fn shown_first(&self, density: &HitDensity, now: u32) -> Option<First> {
        self.ranked.shown.read(density, now)
    }

    /// Adds an entry for a block that became idle, in the list of its class.
    #[cold]
    #[inline(never)]
    pub(super) fn push_ranked(&self, idle: IdleBlock, lists: &IdleLists, words: &BlockWords) {
        let density = lists.density().expect("only a pool with a learned order has ranks");
        let (keyed, mut note) = (words.keyed(), words.keyed().note(idle.id));
        if !note.is_released() {
            note = density.note_unknown();
            keyed.set_note(idle.id, note);
        }
        let (list, entry) = (self.ranked.list_of(note), keyed.mark_epoch(idle));
        let time = self.now() + 1;
        self.time.store(time, Ordering::Relaxed);
        if list.is_at_border() {
            return self.push_ranked_at_border(entry, (note, time), density, lists);
        }
        list.append(entry, time, &lists.slab);
    }

    /// Adds the first entry of the list of a class, or of a slot.
    #[cold]
    #[inline(never)]
    fn push_ranked_at_border(
        &self,
        entry: IdleBlock,
        (note, time): (ReleaseNote, u64),
        density: &HitDensity,
        lists: &IdleLists,
    ) {
        let list = self.ranked.list_of(note);
        if list.needs_slot() && self.kept.is_empty() && lists.is_crowded() {
            self.set_due(true);
        }
        let is_first = list.is_empty();
        list.push(entry, time, &lists.slab, &self.kept);
        if is_first {
            self.show_oldest(lists);
            self.ranked.show_if_first(note, time, density);
        }
    }

    /// Reclaims blocks by the learned order, until `out` has `end` ids, the shard has no more, or `rival` goes before
    /// them by far.
    #[cold]
    #[inline(never)]
    pub(super) fn reclaim_ranked(
        &self,
        end: usize,
        rival: Option<First>,
        density: &HitDensity,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let now = density.now();
        let mut first = self.first_ranked(density, now, lists, words);
        while out.len() < end
            && let Some(next) = first
            && !rival.is_some_and(|rival| rival.goes_far_before(next))
        {
            self.reclaim_run(end, next, lists, words, out);
            first = self.first_ranked(density, now, lists, words);
        }
        self.show_oldest(lists);
        self.ranked.shown.show(first);
    }

    /// Reclaims the blocks at the beginning of a list that one release left there.
    fn reclaim_run(
        &self,
        end: usize,
        First { class, note, .. }: First,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let (list, view, keyed) = (&self.ranked.lists[class], words.view(), words.keyed());
        view.prefetch(list.first(end - out.len(), &lists.slab));
        while out.len() < end
            && let Some(entry) = list.first_entry(&lists.slab)
            && keyed.note(entry.id).mark() == note.mark()
        {
            let idle = list.pop(&lists.slab, &self.kept).expect("it has a first entry");
            if view.reclaim(keyed.mark_epoch(idle)) {
                out.push(idle.id);
            }
        }
    }

    /// Returns the block to reclaim next: of the last run, if it has more.
    fn first_ranked(
        &self,
        density: &HitDensity,
        now: u32,
        lists: &IdleLists,
        words: &BlockWords,
    ) -> Option<First> {
        let first = |class| self.first_of(class, density, now, lists, words);
        let run = |first: First| Run { class: first.class, mark: first.note.mark(), now }.bits();
        let last = self.ranked.run.load(Ordering::Relaxed);
        if last != NO_RUN
            && let Some(next) = first(Run::class_of(last))
            && run(next) == last
        {
            return Some(next);
        }
        let next = self.choose_ranked((0..CLASSES).filter_map(first));
        self.ranked.run.store(next.map_or(NO_RUN, run), Ordering::Relaxed);
        next
    }

    /// Returns the cheapest of the first blocks, if it is worth clearly less than the oldest, or else that one.
    fn choose_ranked(&self, firsts: impl Iterator<Item = First>) -> Option<First> {
        let (mut oldest, mut cheapest): (Option<First>, Option<First>) = (None, None);
        for first in firsts {
            if oldest.is_none_or(|oldest| first.is_older(oldest)) {
                oldest = Some(first);
            }
            let is_cheaper = |other: First| {
                first.price < other.price || (first.price == other.price && first.is_older(other))
            };
            if cheapest.is_none_or(is_cheaper) {
                cheapest = Some(first);
            }
        }
        let (oldest, cheapest) = oldest.zip(cheapest)?;
        let is_less = HitDensity::is_clearly_less(cheapest.price, oldest.price);
        Some(if is_less { cheapest } else { oldest })
    }

    /// Returns the first block of a list that is idle still.
    fn first_of(
        &self,
        class: usize,
        density: &HitDensity,
        now: u32,
        lists: &IdleLists,
        words: &BlockWords,
    ) -> Option<First> {
        let list = &self.ranked.lists[class];
        if list.is_empty() {
            return None;
        }
        let id = list.first_idle(&lists.slab, &self.kept, words)?;
        let (note, time) = (words.keyed().note(id), list.oldest(&lists.slab)?);
        let mut first = First::new(note, time, density, now);
        // An old entry that passes for the block's last one may be in the list of another class.
        first.class = class;
        Some(first)
    }
}
