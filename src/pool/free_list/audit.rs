//! Is every block where its word says? A look at the whole free list, with all shards claimed.
//!
//! Exact whatever runs beside it, because a block becomes free, or stops being free, under a
//! claim. Everybody who needs a claim waits meanwhile: for tests and audits, not for a hot path.

use super::{Claim, FreeList};
use crate::id::BlockId;
use crate::pool::capacity::totals;
use crate::pool::state::{BlockState, BlockWords, IdleBlock};
use crate::sync::Ordering;

impl FreeList {
    /// Holds each claim once, one after the other. Who held one before has been seen, and who holds
    /// one later sees what this thread did.
    #[cfg(feature = "async")]
    pub(crate) fn meet_all_claims(&self) {
        self.shards.iter().for_each(|shard| drop(shard.claim()));
    }

    /// What is wrong, or nothing.
    pub(crate) fn audit(&self, first: u32, words: &BlockWords) -> Result<(), String> {
        let (free, idle) = (vec![false; self.total], vec![false; self.total]);
        let mut census = Census { first, free, idle, words };
        let _sole_collector = self.shortage.lock();
        let claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        for claim in &claims {
            for slot in &claim.shard.ids[..claim.len()] {
                census.note(BlockId(slot.load(Ordering::Relaxed)))?;
            }
            claim.shard.idle.inspect(|entry| census.note_idle(entry));
        }
        self.idle.inspect(|entry| census.note_idle(entry));
        // With every shard claimed nobody else is at the depot: one turn of the queue.
        for _ in 0..self.depot.len() {
            let batch = self.depot.pop().expect("only a claim's holder takes from the depot");
            let noted = batch.0.iter().try_for_each(|&id| census.note(id));
            let pushed = self.depot.push(batch);
            assert!(pushed.is_ok(), "the depot has room for what came out of it");
            noted?;
        }
        let (num_free, num_idle) = census.finish()?;
        let (used, idle) = (totals(self.ledgers()).used(), self.idle_totals().idle);
        if used + num_free + num_idle == self.total && idle == num_idle {
            return Ok(());
        }
        let total = self.total;
        Err(format!(
            "the ledgers say {used} of {total} blocks are used and {idle} are idle; \
             {num_free} are free and {num_idle} idle"
        ))
    }
}

/// The free and idle ids seen so far.
struct Census<'a> {
    first: u32,
    free: Vec<bool>,
    idle: Vec<bool>,
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

    /// An entry that the block has moved on from says nothing.
    fn note_idle(&mut self, entry: IdleBlock) {
        if self.words.view().is_idle_since(entry) {
            self.idle[(entry.id.0 - self.first) as usize] = true;
        }
    }

    /// The numbers of free and of idle blocks, once every block without an owner was seen.
    fn finish(self) -> Result<(usize, usize), String> {
        for (id, (&free, &idle)) in
            (self.first..).map(BlockId).zip(self.free.iter().zip(&self.idle))
        {
            let state = self.words.state(id);
            if !free && state == BlockState::FREE {
                return Err(format!("{id} has no owner and is not in the free list"));
            }
            if !idle && state.is_idle() {
                return Err(format!("{id} is idle and nothing leads to it"));
            }
        }
        let count = |seen: &[bool]| seen.iter().filter(|&&seen| seen).count();
        Ok((count(&self.free), count(&self.idle)))
    }
}
