//! Does everybody wait for everybody? Sequences that wait to grow keep what they have meanwhile; if all
//! that have blocks wait, nobody is left to give any.
//!
//! Looked at whenever a sequence begins to wait for room to grow, when one leaves while others wait, and
//! by the first that waits to grow when something came back that does not suffice for it. Blocks that
//! no sequence of the map has (a handle's, a reservation's, a step's, the source of a copy) may come
//! back: while there are some, nothing is said. It does not give anything up itself.

use super::PagedKvCache;

#[cfg(feature = "async")]
impl PagedKvCache {
    /// Tells one of those that wait to grow, the one that the strategy would evict, if they all wait
    /// for each other. One load if nobody waits; else `O(sequences)`, and `O(blocks)` when all wait.
    pub(crate) fn tell_if_stalled(&self) {
        if !self.pool.blocks().is_waited_for() {
            return;
        }
        let waiters = self.pool.blocks().waiters();
        let growing = waiters.growing();
        if growing.is_empty() {
            return;
        }
        let mut blocks = std::collections::HashSet::new();
        for id in self.sequence_ids() {
            let ids = self.look(id, |sequence| Ok(sequence.block_ids().to_vec()));
            let ids = ids.unwrap_or_default();
            if !ids.is_empty() && !growing.contains(&id) {
                return;
            }
            blocks.extend(ids);
        }
        if self.pool.used_block_count() > blocks.len() {
            return;
        }
        let victim = self.select_eviction_target().filter(|id| growing.contains(id));
        // If all are leased, the strategy would evict none.
        if let Some(victim) = victim.or_else(|| growing.last().copied()) {
            waiters.stall(victim, &growing, self.pool.blocks().room());
        }
    }
}

#[cfg(not(feature = "async"))]
impl PagedKvCache {
    /// Nobody waits in a build without waiting.
    #[inline]
    pub(crate) fn tell_if_stalled(&self) {}
}
