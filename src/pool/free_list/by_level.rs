//! Reclaim by level: idle blocks of lower levels than the default one go before the order of the policy, and those of higher
//! levels after it.
//!
//! A thread takes blocks of higher levels once it has found no other one at its home and in the shards that it could claim.
//! A shard that another thread has claimed at that moment may still have some.

#[cfg(test)]
pub(super) mod tests;

use std::iter;

use super::home_shard::{BATCH, Claim};
use super::{FreeList, Matching};
use crate::id::BlockId;
use crate::pool::content_key::ContentKey;
use crate::pool::idle::AgedBlock;
use crate::pool::idle::levels::{Levels, Side};
use crate::pool::level::LevelNote;
use crate::pool::word::BlockWords;

impl FreeList {
    /// Returns the levels of contents, if the pool has them.
    #[inline]
    pub(crate) fn levels(&self) -> Option<&Levels> {
        self.idle.levels()
    }

    /// Moves contents whose levels have ended by now to the end of the default order, a batch under each claim: so many
    /// entries as a release may add. Each content is moved once after a release. Returns false if there was none.
    #[inline]
    pub(super) fn expire_levels(&self, words: &BlockWords) -> bool {
        let Some(levels) = self.levels() else { return false };
        let ended = levels.ended_by();
        if let Some(now) = ended {
            self.expire_until(now, levels, words);
        }
        ended.is_some()
    }

    #[cold]
    fn expire_until(&self, now: u64, levels: &Levels, words: &BlockWords) {
        while levels.has_ended(now) {
            let mut home = self.claim_for_idle(words);
            levels.expire(now, words, |left| {
                // It counts as just released.
                self.idle.renew_note(left.block.id, words);
                home.push_idle(left, &self.idle, words);
            });
        }
    }

    /// Reclaims blocks of higher levels until `out` has `end` ids, for the holder of a claim.
    pub(super) fn reclaim_above(&self, end: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        if let Some(levels) = self.levels() {
            levels.reclaim(Side::Above, end, words, out);
        }
    }

    /// Puts back those of the reclaimed blocks after `free_end` whose contents have a level, and removes them from `out`.
    pub(super) fn put_back_levelled(
        &self,
        home: &mut Claim<'_>,
        free_end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let Some(levels) = self.levels() else { return };
        let is_levelled = |id: &mut BlockId| self.idle.is_levelled(*id);
        let put_back: Vec<BlockId> = out.extract_if(free_end.., is_levelled).collect();
        for &id in put_back.iter().rev() {
            let left = words.view().undo_reclaim(id);
            // A spare copy has a level for the time when a match asks for it. A reset may have removed others' levels.
            if left.spare || !levels.put_back(left.block, words) {
                home.push_idle(left, &self.idle, words);
            }
        }
    }

    /// Frees idle blocks of one side, until `ids` has `end` of them.
    pub(super) fn forget_levelled(
        &self,
        side: Side,
        end: usize,
        words: &BlockWords,
        ids: &mut Vec<BlockId>,
    ) {
        let Some(levels) = self.levels() else { return };
        self.expire_levels(words);
        loop {
            let mut home = self.claim_for_idle(words);
            let start = ids.len();
            levels.reclaim(side, end.min(start + BATCH), words, ids);
            self.free_reclaimed(&mut home, &ids[start..], words);
            if ids.len() < end.min(start + BATCH) || ids.len() == end {
                return;
            }
        }
    }

    /// Appends up to `n` idle blocks of one side to `out`, in reclaim order.
    pub(super) fn list_levelled(
        &self,
        side: Side,
        n: usize,
        words: &BlockWords,
        out: &mut Vec<AgedBlock>,
    ) {
        if let Some(levels) = self.levels() {
            self.expire_levels(words);
            let _home = self.claim_for_idle(words);
            levels.list_oldest(side, n, self.idle.age_of_side(side), words, out);
        }
    }

    /// Frees spare blocks of a pool with levels, until `ids` has `end` of them.
    pub(super) fn forget_spare(&self, end: usize, words: &BlockWords, ids: &mut Vec<BlockId>) {
        if self.levels().is_none() {
            return;
        }
        for shard in &self.shards {
            let (mut claim, start) = (shard.claim(), ids.len());
            claim.shard.idle.reclaim_spare(end, &self.idle, words, ids);
            self.free_reclaimed(&mut claim, &ids[start..], words);
        }
    }

    /// Gives contents levels, which were found after reset number `resets`. Idle ones are the most recently released of
    /// their level then. Returns how many were still cached, and whether blocks may have come back to room: the caller
    /// announces that.
    pub(crate) fn set_levels(
        &self,
        found: &[NewLevel],
        resets: u64,
        words: &BlockWords,
    ) -> (usize, bool) {
        let (mut set, mut has_released) = (0, false);
        for part in found.chunks(Matching::AT_MOST) {
            let mut matching = self.matching(words);
            set += part.iter().filter(|&&new| matching.set_level(new, resets)).count();
            has_released |= matching.has_released();
        }
        (set, has_released)
    }
}

/// A content that gets a level, and the block that was found for its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewLevel {
    pub(crate) id: BlockId,
    pub(crate) key: ContentKey,
    pub(crate) note: LevelNote,
}

impl Matching<'_> {
    /// Gives a content a level, if its block still has it. A spare copy is none any more then.
    fn set_level(&mut self, NewLevel { id, key, note }: NewLevel, resets: u64) -> bool {
        let (list, words) = (self.list, self.words);
        let (keyed, Some(levels)) = (words.keyed(), list.levels()) else { return false };
        if keyed.key(id) != key {
            return false;
        }
        let set = || {
            let is_meant = keyed.key(id) == key;
            if is_meant {
                levels.set(iter::once((id, note)), resets, words);
                list.idle.renew_note(id, words);
            }
            is_meant
        };
        if let Some(idle) = keyed.words().renew_idle(id) {
            // No thread reclaims it before it has an entry of this epoch, so its content stays.
            let is_meant = set();
            self.home.push_idle(idle, &list.idle, words);
            return is_meant;
        }
        let Some(was_idle) = keyed.words().acquire(id, false) else { return false };
        let is_meant = set();
        self.leave(id, was_idle);
        is_meant
    }
}
