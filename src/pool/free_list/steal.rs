//! Free ids in the magazines of other shards, for a thread whose home and depot have too few.

use super::FreeList;
use super::home_shard::{BATCH, Claim, Shard};
use crate::id::BlockId;
use crate::sync::thread_ordinal;

impl FreeList {
    /// Fills `out` up to `end` with free ids of all other shards.
    pub(super) fn steal(&self, home: &mut Claim<'_>, end: usize, out: &mut Vec<BlockId>) {
        let ordinal = thread_ordinal();
        for step in 1..=self.shards.len() {
            self.steal_from(self.shard_of(ordinal.wrapping_add(step)), home, end, out);
        }
    }

    /// Fills `out` up to `end` with free ids of another shard, and moves up to half of them to `home`: a
    /// thread that searched once is likely to need more.
    pub(super) fn steal_from(
        &self,
        shard: &Shard,
        home: &mut Claim<'_>,
        end: usize,
        out: &mut Vec<BlockId>,
    ) {
        if out.len() == end {
            return;
        }
        // Checked before it is claimed: in a warm prefix cache it is mostly empty.
        let Some(mut other) = shard.try_claim_unless_empty() else {
            return;
        };
        let surplus = other.len() / 2;
        other.pop(end - out.len(), out);
        while other.len() > surplus && home.len() < BATCH {
            home.push(other.pop_one(), &self.depot);
        }
    }
}
