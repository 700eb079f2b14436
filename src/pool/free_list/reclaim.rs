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

    /// Ends the contents of up to `n` idle blocks, in reclaim order, and returns the blocks, which are free then.
    /// They stay room throughout: each is reclaimed and freed under one claim.
    pub(crate) fn forget_idle(&self, n: usize, words: &BlockWords) -> Vec<BlockId> {
        let (mut ids, end) = (Vec::new(), n.min(self.total));
        self.forget_in(&mut self.claim(), end, words, &mut ids);
        // One shard after the other, each with a claim that it may have to wait for.
        for shard in &self.shards {
            if ids.len() == end {
                break;
            }
            self.forget_in(&mut shard.claim(), end, words, &mut ids);
        }
        ids
    }

    /// Frees idle blocks in reach of one shard, until `ids` has `end` of them.
    fn forget_in(
        &self,
        home: &mut Claim<'_>,
        end: usize,
        words: &BlockWords,
        ids: &mut Vec<BlockId>,
    ) {
        let start = ids.len();
        home.reclaim(end, &self.idle, words, ids);
        self.idle.finish_reclaim(&ids[start..], words);
        for &id in &ids[start..] {
            let is_sole = words.view().release_sole(id);
            assert!(is_sole, "a thread that reclaims a block is its only owner");
            home.push(id, &self.depot);
        }
        home.shard.ledger.revived((ids.len() - start) as u64);
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
