//! Releases by the free list: blocks that become free go to the home shard's magazine, and those that stay cached get
//! entries among its idle blocks.

use super::FreeList;
use super::home_shard::{BATCH, Claim};
use crate::id::BlockId;
use crate::pool::idle::levels::LevelledRun;
use crate::pool::word::{BlockWords, Released, ReleasedIdle};
use crate::sync::Ordering;

impl FreeList {
    /// Removes an owner from each of `ids`, the last id first. Blocks without owners come back to room.
    #[inline]
    pub(crate) fn give(&self, ids: &[BlockId], words: &BlockWords) {
        if ids.is_empty() {
            return;
        }
        if ids.len() <= BATCH
            && let Some(mut home) = self.home().try_claim()
            && !(words.have_keys() && home.is_due())
        {
            self.give_batch(&mut home, ids, words);
        } else {
            self.give_batches(ids, words);
        }
    }

    /// Releases at most `BATCH` blocks.
    #[inline]
    pub(super) fn give_batch(&self, home: &mut Claim<'_>, ids: &[BlockId], words: &BlockWords) {
        // Room for all ids first, and counts in registers: a check or store per block would cost more than
        // its word.
        let len = home.make_room(ids.len(), &self.depot);
        let slots = &home.shard.ids[len..len + ids.len()];
        let mut given = 0;
        if !words.is_counted_by_id() {
            let words = words.view();
            for (slot, &id) in slots.iter().zip(ids.iter().rev()) {
                if !words.release_sole(id) {
                    break;
                }
                slot.store(id.0, Ordering::Relaxed);
                given += 1;
            }
        }
        let mut idle = 0;
        let may_idle = given < ids.len() && words.have_keys();
        if given < ids.len() {
            let rest = &ids[..ids.len() - given];
            if may_idle {
                home.ledger().giving(rest.len() as u64);
            }
            (given, idle) = self.give_shared(home, rest, words, given);
        }
        home.set_len(len + given);
        if idle > 0 {
            home.ledger().idled(idle as u64);
        }
        home.ledger().gave((given + idle) as u64);
        if may_idle {
            home.ledger().giving(0);
        }
    }

    /// Removes an owner from each of `ids`, which other threads may own or match too. Blocks that become free
    /// go to the magazine after its `given` new ids; idle ones go to the newest idle entries. Returns both
    /// counts. Not inlined: a call in the caller's loop would keep its counts in memory.
    #[inline(never)]
    fn give_shared(
        &self,
        home: &mut Claim<'_>,
        ids: &[BlockId],
        words: &BlockWords,
        given: usize,
    ) -> (usize, usize) {
        let idle = &home.shard.idle;
        match self.levels() {
            None => {
                self.give_each(home, ids, words, given, |left| idle.push(left, &self.idle, words))
            }
            Some(levels) => {
                let mut run = LevelledRun::new(levels);
                let push = |left| idle.push_in_run(left, &mut run, &self.idle, words);
                self.give_each(home, ids, words, given, push)
            }
        }
    }

    /// Does as [`give_shared`](Self::give_shared), with an entry by `push` for each block that becomes idle.
    #[inline(always)]
    fn give_each(
        &self,
        home: &Claim<'_>,
        ids: &[BlockId],
        words: &BlockWords,
        mut given: usize,
        mut push: impl FnMut(ReleasedIdle),
    ) -> (usize, usize) {
        let (view, len) = (words.view(), home.len());
        view.prefetch(ids.iter().copied());
        if words.have_keys() {
            home.shard.idle.read_clock(&self.idle);
        }
        let mut idle = 0;
        for &id in ids.iter().rev() {
            match view.release_shared(id) {
                Released::Owned => {}
                Released::Free => {
                    home.shard.ids[len + given].store(id.0, Ordering::Relaxed);
                    given += 1;
                }
                Released::Idle(block) => {
                    push(block);
                    idle += 1;
                }
            }
        }
        if idle > 0 {
            home.shard.idle.count(idle, &self.idle);
        }
        (given, idle)
    }

    #[inline(never)]
    fn give_batches(&self, ids: &[BlockId], words: &BlockWords) {
        for batch in ids.rchunks(BATCH) {
            self.give_batch(&mut self.claim_for_idle(words), batch, words);
        }
    }
}
