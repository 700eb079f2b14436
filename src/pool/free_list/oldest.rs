//! The oldest idle blocks, for copies that are made of their contents before these end. Such a copy is no use: the
//! blocks are held while they are copied, and come back to their old places.

#[cfg(test)]
pub(super) mod tests;

use super::FreeList;
use super::home_shard::BATCH;
use crate::id::BlockId;
use crate::pool::idle::AgedBlock;
use crate::pool::idle::levels::Side;
use crate::pool::word::{BlockWords, Released, Unheld};

impl FreeList {
    /// Returns up to `n` idle blocks in about the reclaim order. Costs a claim of each shard, one after the other, and
    /// a look at up to `n` idle blocks of each, and at the stale entries between them.
    pub(crate) fn list_oldest(&self, n: usize, words: &BlockWords) -> Vec<AgedBlock> {
        let (mut oldest, n) = (Vec::new(), n.min(self.total));
        self.list_levelled(Side::Below, n, words, &mut oldest);
        for shard in &self.shards {
            if shard.idle.oldest().age(self.idle.now()).is_some() {
                shard.claim().shard.idle.list_oldest(n, &self.idle, words, &mut oldest);
            }
        }
        self.list_levelled(Side::Above, n, words, &mut oldest);
        // Stable: of equal age, in the order of their entries.
        oldest.sort_by_key(|block| std::cmp::Reverse(block.age));
        oldest.truncate(n);
        oldest
    }

    /// Removes an owner from each of `blocks`, which were held, the oldest first. A block that no match has used since is
    /// idle as before, in its old place. If a reclaim has passed that place, the block is the first of the home shard.
    pub(crate) fn give_as_old(&self, blocks: &[(BlockId, u64)], words: &BlockWords) {
        let view = words.view();
        for batch in blocks.rchunks(BATCH) {
            let mut home = self.claim_for_idle(words);
            home.ledger().giving(batch.len() as u64);
            let (mut given, mut idle, mut passed) = (0, 0, 0);
            for &(id, time) in batch.iter().rev() {
                match view.release_held(id) {
                    Unheld::InPlace => idle += 1,
                    Unheld::Passed(left) => {
                        home.shard.idle.push_front(left, time, &self.idle, words);
                        (idle, passed) = (idle + 1, passed + 1);
                    }
                    Unheld::Used(Released::Owned) => {}
                    // Its content was ended since, by another thread.
                    Unheld::Used(Released::Free) => {
                        home.push(id, &self.depot);
                        given += 1;
                    }
                    Unheld::Used(Released::Idle(left)) => {
                        home.push_idle(left, &self.idle, words);
                        idle += 1;
                    }
                }
            }
            if passed > 0 {
                home.shard.idle.count(passed, &self.idle);
            }
            if idle > 0 {
                home.ledger().idled(idle as u64);
            }
            home.ledger().gave(given + idle as u64);
            home.ledger().giving(0);
        }
    }
}
