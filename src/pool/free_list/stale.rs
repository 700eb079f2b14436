//! Stale entries of idle blocks: threads drop those of one shard at a time while they take too many slots.
//!
//! A content that is matched and released again leaves a stale entry in the shard of its earlier release. A reclaim
//! drops the entries that it meets. The others lie between younger entries, or in a shard from which no thread
//! reclaims. While they crowd the slab, each thread that takes a slot drops those of its home, or if it did so a
//! short while ago, of the next shard in turn. If another thread has claimed that shard, its next claim drops them.
//!
//! If the slab fills all the same, because a thread lost its core while it held a claim, the next thread claims one
//! shard after the other and waits for each holder. No thread holds all claims for it.

use super::FreeList;
use super::home_shard::Claim;
use crate::pool::word::BlockWords;

/// Shards that a thread looks at in its turn, for one that may have stale entries.
const LOOKED_AT: usize = 8;

impl FreeList {
    /// Claims a shard for a thread that may add idle entries. If the slab is crowded, drops stale entries first.
    pub(super) fn claim_for_idle(&self, words: &BlockWords) -> Claim<'_> {
        loop {
            let claim = self.claim();
            if !claim.is_due() {
                return claim;
            }
            self.drop_in_turn(&claim, words);
            if !self.idle.is_full() {
                return claim;
            }
            // The next holder must not add entries either: the slab has slots for one more batch of each shard.
            claim.shard.idle.set_due(true);
            drop(claim);
            self.drop_until_not_full(words);
        }
    }

    /// Drops the stale entries of the home, or of the next shard that may drop them, if the slab is crowded still.
    #[cold]
    pub(super) fn drop_in_turn(&self, home: &Claim<'_>, words: &BlockWords) {
        home.shard.idle.set_due(false);
        if !self.idle.is_crowded() {
            return;
        }
        if home.shard.idle.may_drop(&self.idle) {
            return home.shard.idle.drop_stale(&self.idle, words);
        }
        for _ in 0..LOOKED_AT.min(self.shards.len()) {
            let shard = self.shard_of(self.idle.next_turn());
            if !shard.idle.may_drop(&self.idle) {
                continue;
            }
            if let Some(other) = shard.try_claim() {
                return other.shard.idle.drop_stale(&self.idle, words);
            }
            shard.idle.set_due(true);
        }
    }

    /// Drops the stale entries of one shard after the other until the slab is not full: first of the shards that no
    /// other thread has claimed. Holds one claim at a time.
    #[cold]
    pub(super) fn drop_until_not_full(&self, words: &BlockWords) {
        let _sole_collector = self.shortage.lock();
        for shard in &self.shards {
            if !self.idle.is_full() {
                return;
            }
            if let Some(claim) = shard.try_claim() {
                claim.shard.idle.drop_stale(&self.idle, words);
            }
        }
        for shard in &self.shards {
            if !self.idle.is_full() {
                return;
            }
            shard.claim().shard.idle.drop_stale(&self.idle, words);
        }
    }
}

impl Claim<'_> {
    /// Returns true if the holder of the claim should drop stale entries before it adds entries.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.shard.idle.is_due()
    }
}
