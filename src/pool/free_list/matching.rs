//! How does a thread get hold of cached blocks? By their names, under a claim of a shard.
//!
//! The claim is not for the blocks, which many threads may match at once, but for the counts: a block
//! stops being idle, like it stops being free, under a claim, so that whoever holds all claims finds
//! words and ledgers in agreement. It does not know where names are looked up.

use super::shard::Claim;
use super::{BATCH, FreeList};
use crate::id::BlockId;
use crate::pool::name::Name;
use crate::pool::state::{BlockWords, Left, WasIdle};

/// A few cached blocks being acquired. Hold it briefly: other threads of this home shard go to the
/// next one meanwhile.
pub(crate) struct Matching<'a> {
    home: Claim<'a>,
    list: &'a FreeList,
    words: &'a BlockWords,
    revived: u64,
}

impl FreeList {
    pub(crate) fn matching<'a>(&'a self, words: &'a BlockWords) -> Matching<'a> {
        Matching { home: self.claim(), list: self, words, revived: 0 }
    }
}

impl Matching<'_> {
    /// Blocks to acquire before the claim should be let go.
    pub(crate) const AT_MOST: usize = BATCH;

    /// Makes the caller an owner of `id` if the block is cached under `name`, whose content is asked
    /// for again.
    #[inline]
    pub(crate) fn acquire(&mut self, id: BlockId, name: Name) -> bool {
        let named = self.words.named();
        // A look first: a block of another name is not to be touched.
        if named.name(id) != name {
            return false;
        }
        let Some(was_idle) = named.words().acquire(id, true) else {
            return false;
        };
        if named.name(id) == name {
            self.revived += u64::from(was_idle.0);
            return true;
        }
        // It was reclaimed and named anew since it was looked up.
        self.leave(id, was_idle);
        false
    }

    /// Lets an idle block be the last used, for who has the content called `name` elsewhere. It stays
    /// idle all the while, and counts as asked for no more than before.
    pub(crate) fn touch(&mut self, id: BlockId, name: Name) {
        let named = self.words.named();
        if named.name(id) == name
            && let Some(idle) = named.words().renew_idle(id)
        {
            self.home.push_idle(idle, &self.list.idle, self.words);
        }
    }

    /// Lets go of a block that is not the one that was meant.
    #[cold]
    pub(super) fn leave(&mut self, id: BlockId, was_idle: WasIdle) {
        let ledger = &self.home.shard.ledger;
        // Counted first: who has matched it since may let go of it last, and counts it as given then.
        if was_idle.0 {
            ledger.revived(1);
            ledger.took(1);
        }
        ledger.giving(1);
        if let Left::Idle(block) = self.words.view().release_shared(id) {
            self.home.push_idle(block, &self.list.idle, self.words);
            self.home.shard.ledger.idled(1);
            self.home.shard.ledger.gave(1);
        }
        self.home.shard.ledger.giving(0);
    }
}

impl Drop for Matching<'_> {
    fn drop(&mut self) {
        if self.revived > 0 {
            self.home.shard.ledger.revived(self.revived);
            self.home.shard.ledger.took(self.revived);
            self.list.peak.note(self.list.used_at_least());
        }
    }
}
