//! Lists of the idle blocks of a shard, for audits and for copies of the oldest ones ahead of their reclaim, and the way back
//! of a block that such a copy held.

use super::age::{AgedBlock, Oldest};
use super::{BY_CLASS, COLD, IdleLists, IdleShard};
use crate::pool::word::{BlockWords, IdleBlock, ReleasedIdle};

impl IdleShard {
    /// Passes the block of every entry to `look`, with its epoch if it has the same key still. The caller holds
    /// the claim.
    pub(crate) fn inspect(
        &self,
        lists: &IdleLists,
        words: &BlockWords,
        mut look: impl FnMut(IdleBlock),
    ) {
        let keyed = words.keyed();
        let mut look = |entry| look(keyed.mark_epoch(entry));
        self.all_lists().for_each(|list| list.inspect(&lists.slab, &mut look));
    }

    /// Appends up to `n` idle blocks of each rank to `out`, the oldest first. Spare blocks are left out: another block
    /// has their content. The caller holds the claim.
    pub(in crate::pool) fn list_oldest(
        &self,
        n: usize,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<AgedBlock>,
    ) {
        let (view, keyed, now) = (words.view(), words.keyed(), lists.now());
        let plain = self.lists.iter().enumerate().skip(COLD);
        for (rank, list) in plain.chain(self.ranked.all().map(|list| (COLD, list))) {
            let (end, mut least) = (out.len() + n, u64::MAX);
            list.look_while(&lists.slab, |entry, time| {
                let mut times = [Oldest::NEVER; 2];
                times[rank - COLD] = time;
                if view.is_idle_since(keyed.mark_epoch(entry)) {
                    // No block is reclaimed before those in front of it.
                    let age = Oldest { times }.age(now).expect("it has a time").min(least);
                    least = age;
                    out.push(AgedBlock { age, time, id: entry.id });
                }
                out.len() < end
            });
        }
    }

    /// Adds an entry for a block that became idle, as if it had been so since `time`: before all others of its rank.
    pub(in crate::pool) fn push_front(
        &self,
        left: ReleasedIdle,
        time: u64,
        lists: &IdleLists,
        words: &BlockWords,
    ) {
        if !left.spare && lists.levels().is_some_and(|levels| levels.put_back(left.block, words)) {
            return;
        }
        let (rank, note) = (lists.rank_of(left), words.keyed().note(left.block.id));
        let list = match rank {
            BY_CLASS => self.ranked.list_of(note),
            rank => &self.lists[rank],
        };
        if self.kept.is_empty() && lists.is_crowded() {
            self.set_due(true);
        }
        list.push_front(words.keyed().mark_epoch(left.block), time, &lists.slab, &self.kept);
        self.show_oldest(lists);
        if let Some(density) = lists.density().filter(|_| rank == BY_CLASS) {
            self.ranked.show_if_first(note, time, density);
        }
    }
}
