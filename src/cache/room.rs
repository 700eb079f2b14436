//! May a new sequence come in? Not past those who wait for room, and not below the watermark, which
//! keeps room for those that are in to grow.
//!
//! The watermark is looked at before blocks are taken, so that a refusal reclaims no contents, and
//! again once they are, so that of several that come in at once none leaves less. It does not know
//! appends: they pass.

use crate::error::{PagedKvError, Result};
use crate::pool::Blocks;
use crate::sync::{Ordering, fence};

/// What new sequences must leave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gate {
    /// Blocks of room.
    pub(super) watermark: usize,
}

/// How a new sequence asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// Without waiting: not while others wait, unless it takes no block.
    AtOnce,
    /// It has waited, and it is its turn.
    #[cfg(feature = "async")]
    InTurn,
}

impl Gate {
    /// Room that a new sequence may take.
    pub(crate) fn room(self, blocks: &Blocks) -> usize {
        blocks.room().saturating_sub(self.watermark)
    }

    /// The most that a new sequence can ever take.
    #[cfg(feature = "async")]
    pub(crate) fn most(self, blocks: &Blocks) -> usize {
        blocks.total() - self.watermark
    }

    /// Room of the pool with which a new sequence of so many blocks may come in.
    #[cfg(feature = "async")]
    pub(crate) fn threshold(self, requested: usize) -> usize {
        if requested == 0 { 0 } else { requested.saturating_add(self.watermark) }
    }

    /// Refuses a new sequence that others come before, or that surely would leave too little.
    #[inline]
    pub(crate) fn refuse(self, blocks: &Blocks, requested: usize, asking: Asking) -> Result<()> {
        if requested == 0 {
            return Ok(());
        }
        if asking == Asking::AtOnce && blocks.is_waited_for() {
            return Err(PagedKvError::OutOfMemory { requested, available: 0 });
        }
        if self.watermark == 0 {
            return Ok(());
        }
        match self.room(blocks) {
            available if available < requested => {
                Err(PagedKvError::OutOfMemory { requested, available })
            }
            _ => Ok(()),
        }
    }

    /// True if what a new sequence has taken leaves enough. Else it is to give it back.
    #[inline]
    pub(crate) fn leaves_enough(self, blocks: &Blocks) -> bool {
        if self.watermark == 0 {
            return true;
        }
        // SeqCst: of two that come in at once, whoever is here second counts what both took.
        // Loom: of_two_that_come_in_at_once_none_leaves_too_little.
        fence(Ordering::SeqCst);
        blocks.room() >= self.watermark
    }

    /// The refusal of one that took `requested` blocks and had to give them back.
    pub(crate) fn lost(self, blocks: &Blocks, requested: usize) -> PagedKvError {
        let available = self.room(blocks).min(requested.saturating_sub(1));
        PagedKvError::OutOfMemory { requested, available }
    }
}

#[cfg(all(test, not(any(paged_kv_loom, paged_kv_shuttle))))]
mod tests {
    use super::*;
    use crate::pool::BlockPool;

    #[test]
    fn what_came_in_leaves_the_watermark_or_goes_again() {
        for watermark in 0..=4 {
            let (pool, gate) = (BlockPool::new(8), Gate { watermark });
            for taken in 0..=8 {
                let _taken = pool.allocate(taken).expect("there is room");
                let leaves_enough = gate.leaves_enough(pool.blocks());
                assert_eq!(leaves_enough, 8 - taken >= watermark, "{taken} taken, {watermark}");
            }
        }
    }

    #[test]
    fn a_lost_race_is_refused_with_less_room_than_was_asked() {
        let (pool, gate) = (BlockPool::new(8), Gate { watermark: 3 });
        let _taken = pool.allocate(2).expect("there is room");
        for (requested, available) in [(4, 3), (3, 2), (2, 1), (1, 0)] {
            let refusal = PagedKvError::OutOfMemory { requested, available };
            assert_eq!(gate.lost(pool.blocks(), requested), refusal);
        }
    }
}
