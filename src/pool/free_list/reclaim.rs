//! Reclaim by the free list: a thread takes idle blocks of its own shard first, then of the others.

use super::FreeList;
use super::home_shard::Claim;
use crate::id::BlockId;
use crate::pool::idle::IdleLists;
use crate::pool::word::{BlockWords, ReleasedIdle};
use crate::sync::thread_ordinal;

impl FreeList {
    /// Puts back blocks that were too few: the free ids before `free_end`, and after it the reclaimed
    /// blocks. These were all that the thread could reach, in reclaim order.
    pub(super) fn put_back(
        &self,
        home: &mut Claim<'_>,
        start: usize,
        free_end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let view = words.view();
        for &id in &out[free_end..] {
            home.push_idle(view.undo_reclaim(id), &self.idle, words);
        }
        out.truncate(free_end);
        out.drain(start..).for_each(|id| home.push(id, &self.depot));
    }

    /// Moves up to `n` idle blocks to the end of `out`, in reclaim order, and ends their contents. They leave room
    /// until they are given back. Unlike an allocation they count as no reclaim, and as no peak.
    pub(crate) fn take_idle(&self, n: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        let (start, end) = (out.len(), out.len() + n.min(self.total));
        let own = |home: &Claim<'_>, from: usize, out: &[BlockId]| {
            let taken = &out[from..];
            self.idle.finish_reclaim(taken, words);
            home.shard.ledger.revived(taken.len() as u64);
            home.shard.ledger.took(taken.len() as u64);
        };
        let mut home = self.claim();
        home.reclaim(end, &self.idle, words, out);
        own(&home, start, out);
        drop(home);
        // One shard after the other, each with a claim that it may have to wait for.
        for shard in &self.shards {
            let from = out.len();
            if from == end {
                return;
            }
            let mut claim = shard.claim();
            claim.reclaim(end, &self.idle, words, out);
            own(&claim, from, out);
        }
    }

    /// Reclaims idle blocks from other shards until `out` has `end` ids.
    pub(super) fn reclaim_elsewhere(&self, end: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        let ordinal = thread_ordinal();
        for step in 1..=self.shards.len() {
            if out.len() == end {
                return;
            }
            if let Some(mut other) = self.shard_of(ordinal.wrapping_add(step)).try_claim() {
                other.reclaim(end, &self.idle, words, out);
            }
        }
    }
}

impl Claim<'_> {
    /// Adds an entry for a block that became idle.
    #[inline]
    pub(super) fn push_idle(&mut self, left: ReleasedIdle, lists: &IdleLists, words: &BlockWords) {
        self.shard.idle.push(left, lists, words);
    }

    /// Moves idle blocks to the end of `out` and reclaims each; see [`IdleShard::reclaim`].
    ///
    /// [`IdleShard::reclaim`]: crate::pool::idle::IdleShard::reclaim
    pub(super) fn reclaim(
        &mut self,
        end: usize,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        self.shard.idle.reclaim(end, lists, words, out);
    }
}
