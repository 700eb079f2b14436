//! Is every block where its word says? A look at the whole free list, with all shards claimed.
//!
//! Exact whatever runs beside it, because a block becomes free, or stops being free, under a
//! claim. Everybody who needs a claim waits meanwhile: for tests and audits, not for a hot path.

use super::{Claim, FreeList};
use crate::id::BlockId;
use crate::pool::capacity::totals;
use crate::pool::state::{BlockState, BlockWords};
use crate::sync::Ordering;

impl FreeList {
    /// What is wrong, or nothing.
    pub(crate) fn audit(&self, first: u32, words: &BlockWords) -> Result<(), String> {
        let mut census = Census { first, free: vec![false; self.total], words };
        let _sole_collector = self.shortage.lock();
        let claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        for claim in &claims {
            for slot in &claim.shard.ids[..claim.len()] {
                census.note(BlockId(slot.load(Ordering::Relaxed)))?;
            }
        }
        // With every shard claimed nobody else is at the depot: one turn of the queue.
        for _ in 0..self.depot.len() {
            let batch = self.depot.pop().expect("only a claim's holder takes from the depot");
            let noted = batch.0.iter().try_for_each(|&id| census.note(id));
            let pushed = self.depot.push(batch);
            assert!(pushed.is_ok(), "the depot has room for what came out of it");
            noted?;
        }
        let num_free = census.finish()?;
        let used = totals(self.ledgers()).used();
        if used + num_free == self.total {
            return Ok(());
        }
        let total = self.total;
        Err(format!("the ledgers say {used} of {total} blocks are used, {num_free} are free"))
    }
}

/// The free ids seen so far.
struct Census<'a> {
    first: u32,
    free: Vec<bool>,
    words: &'a BlockWords,
}

impl Census<'_> {
    fn note(&mut self, id: BlockId) -> Result<(), String> {
        let index = id.0.wrapping_sub(self.first) as usize;
        let Some(seen) = self.free.get_mut(index) else {
            return Err(format!("{id} is in the free list, but not of this pool"));
        };
        if std::mem::replace(seen, true) {
            return Err(format!("{id} is in the free list twice"));
        }
        if self.words.state(id) != BlockState::FREE {
            return Err(format!("{id} is in the free list and has an owner"));
        }
        Ok(())
    }

    /// The number of free blocks, once every block without an owner was seen.
    fn finish(self) -> Result<usize, String> {
        for (id, &seen) in (self.first..).map(BlockId).zip(&self.free) {
            if !seen && self.words.state(id) == BlockState::FREE {
                return Err(format!("{id} has no owner and is not in the free list"));
            }
        }
        Ok(self.free.iter().filter(|&&seen| seen).count())
    }
}
