//! `Matching`: acquires cached blocks by their keys, under a claim of a shard.
//!
//! The claim does not guard the blocks: many threads may match a block at the same time. It guards the
//! counts. A block stops being idle, as it stops being free, under a claim. So a thread that holds all claims
//! finds words and ledgers in agreement.

use super::home_shard::Claim;
use super::{BATCH, FreeList};
use crate::id::BlockId;
use crate::pool::content_key::ContentKey;
use crate::pool::word::{BlockWords, Released, WasIdle};

/// A claim under which cached blocks are acquired. Hold it briefly: other threads of this home shard use the
/// next shard while it is held.
pub(crate) struct Matching<'a> {
    pub(super) home: Claim<'a>,
    pub(super) list: &'a FreeList,
    pub(super) words: &'a BlockWords,
    revived: u64,
    has_released: bool,
}

impl FreeList {
    pub(crate) fn matching<'a>(&'a self, words: &'a BlockWords) -> Matching<'a> {
        let home = self.claim_for_idle(words);
        Matching { home, list: self, words, revived: 0, has_released: false }
    }
}

impl Matching<'_> {
    /// The most blocks to acquire under one claim.
    pub(crate) const AT_MOST: usize = BATCH;

    /// Makes the caller an owner of `id` if the block is cached under `key`. The content then counts as
    /// asked for again.
    #[inline]
    pub(crate) fn acquire(&mut self, id: BlockId, key: ContentKey) -> bool {
        let keyed = self.words.keyed();
        // Read first: the word of a block with another key must not be written.
        if keyed.key(id) != key {
            return false;
        }
        let Some(was_idle) = keyed.words().acquire(id, true) else {
            return false;
        };
        if keyed.key(id) == key {
            self.revived += u64::from(was_idle.0);
            return true;
        }
        // After the look-up the block was reclaimed and got another key.
        self.leave(id, was_idle);
        false
    }

    /// Makes the caller an owner of `id` if the block is cached under any key. The content does not count as
    /// asked for.
    pub(crate) fn acquire_any(&mut self, id: BlockId) -> bool {
        let acquired = self.words.view().acquire(id, false);
        self.revived += u64::from(acquired.is_some_and(|was_idle| was_idle.0));
        acquired.is_some()
    }

    /// Makes the caller an owner of `id` if the block is cached under any key, without a use of its content.
    pub(in crate::pool) fn hold(&mut self, id: BlockId) -> bool {
        let held = self.words.view().hold(id);
        self.revived += u64::from(held.is_some_and(|was_idle| was_idle.0));
        held.is_some()
    }

    /// Makes an idle block the most recently used, for a caller that has the content with this `key` in
    /// another block. The block stays idle, and does not become hot.
    pub(crate) fn touch(&mut self, id: BlockId, key: ContentKey) {
        let keyed = self.words.keyed();
        if keyed.key(id) == key
            && let Some(idle) = keyed.words().renew_idle(id)
        {
            self.home.push_idle(idle, &self.list.idle, self.words);
        }
    }

    /// Makes an idle block a spare copy, for a caller that has the content with this `key` in another block. In
    /// a learned order that block then takes this one's place, with its own class. Returns false in
    /// other orders, or if the block is not idle; nothing has changed then.
    pub(crate) fn replace_idle(&mut self, id: BlockId, key: ContentKey) -> bool {
        let keyed = self.words.keyed();
        if self.list.density().is_none() || keyed.key(id) != key {
            return false;
        }
        let Some(spare) = keyed.words().renew_as_spare(id) else { return false };
        self.home.push_idle(spare, &self.list.idle, self.words);
        true
    }

    /// Returns the number of acquired blocks that were idle.
    pub(crate) fn num_revived(&self) -> usize {
        self.revived as usize
    }

    /// Returns true if a block was acquired and released again, so that blocks may have come back to room. The
    /// caller announces that after the claim.
    pub(crate) fn has_released(&self) -> bool {
        self.has_released
    }

    /// Releases a block that turned out to have another key.
    #[cold]
    pub(super) fn leave(&mut self, id: BlockId, was_idle: WasIdle) {
        self.has_released = true;
        let ledger = self.home.ledger();
        // Count the acquisition first: a thread that has matched the block since may release it last, and
        // then counts it as given.
        if was_idle.0 {
            ledger.revived(1);
            self.list.took(&self.home, 1);
        }
        ledger.giving(1);
        let has_left = match self.words.view().release_shared(id) {
            Released::Owned => false,
            // Its content was ended since, by another thread.
            Released::Free => {
                self.home.push(id, &self.list.depot);
                true
            }
            Released::Idle(block) => {
                self.home.push_idle(block, &self.list.idle, self.words);
                self.home.ledger().idled(1);
                true
            }
        };
        self.home.ledger().gave(u64::from(has_left));
        self.home.ledger().giving(0);
    }
}

impl Drop for Matching<'_> {
    fn drop(&mut self) {
        if self.revived > 0 {
            self.home.ledger().revived(self.revived);
            self.list.took(&self.home, self.revived as usize);
            self.list.note_peak(&self.home, self.revived as usize);
        }
    }
}
