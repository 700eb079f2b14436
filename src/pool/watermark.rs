//! `BlockWatermark`: the blocks that new sequences leave to running ones, and how a new sequence takes its own.
//!
//! [`BlockWatermark::take`] is how a new sequence or a reservation gets blocks from a pool:
//!
//! 1. It refuses early while other requests wait, or if too little would be left. So a refusal reclaims no
//!    contents.
//! 2. It takes the blocks.
//! 3. It checks again. So of several new sequences that are admitted at the same time, none leaves too
//!    little.
//! 4. If too little is left, it gives the blocks back, and the statistics are as if it had not taken them.
//!
//! Appends do not come here: the watermark is kept for them. Idle blocks that an admission from a
//! reservation matches do not come here either.

use super::{Blocks, refusal};
use crate::error::{PagedKvError, Result};
use crate::sync::{Later, Ordering, fence};

/// Blocks of room that new sequences leave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockWatermark {
    blocks: usize,
}

/// How a new sequence is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// It has not waited: it is refused while other requests wait, unless it takes no block.
    Now,
    /// It has waited, and it is its turn.
    #[cfg(feature = "async")]
    FromQueue,
}

/// The room that a new sequence needs.
pub(crate) trait Need {
    /// Returns an upper bound, without a search.
    fn at_most(&self) -> usize;

    /// Returns the need itself, which may cost a search.
    fn exactly(&self) -> usize;

    /// Returns true if a need above the room must be refused before any block is taken, also without a
    /// watermark.
    fn refuses_early(&self) -> bool;
}

/// Blocks that were taken for a new sequence; dropping them gives them back.
pub(crate) trait NewBlocks {
    /// Returns the number of blocks that no other table owns. They become free, or idle, when this is
    /// dropped.
    fn num_blocks_freed(&self) -> usize;

    /// Forgets the facts that a release would note for the reclaim order: the request is refused.
    fn forget_uses(&mut self) {}
}

/// A need of new blocks only. The pool itself refuses them, before it takes any.
impl Need for usize {
    fn at_most(&self) -> usize {
        *self
    }

    fn exactly(&self) -> usize {
        *self
    }

    fn refuses_early(&self) -> bool {
        false
    }
}

impl BlockWatermark {
    /// Creates a watermark of `blocks` blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        Self { blocks }
    }

    /// Returns the larger of this watermark and one of `blocks` blocks.
    #[inline]
    pub(crate) fn at_least(self, blocks: usize) -> Self {
        Self { blocks: self.blocks.max(blocks) }
    }

    /// Takes blocks for a new sequence by `take`, or refuses it and leaves everything as it was.
    ///
    /// # Errors
    /// Those of `take`, and `OutOfMemory` with the room that a new sequence may take.
    #[inline]
    pub(crate) fn take<T: NewBlocks>(
        self,
        blocks: &Blocks,
        need: impl Need,
        admit: Admit,
        take: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.refuse_early(blocks, need, admit)?;
        let taken = take()?;
        if self.is_kept(blocks) || taken.num_blocks_freed() == 0 {
            return Ok(taken);
        }
        blocks.expire_pins();
        if self.is_kept(blocks) {
            return Ok(taken);
        }
        Err(self.give_back(blocks, taken))
    }

    /// Refuses `requested` blocks that would leave too little room. Computes their number only if there is a
    /// watermark.
    pub(crate) fn refuse_below(
        self,
        blocks: &Blocks,
        requested: impl FnOnce() -> usize,
    ) -> Result<()> {
        if self.blocks == 0 {
            return Ok(());
        }
        let requested = requested();
        if requested <= self.available(blocks) {
            return Ok(());
        }
        blocks.expire_pins();
        match self.available(blocks) {
            available if requested > available => Err(refusal(requested, available)),
            _ => Ok(()),
        }
    }

    /// Returns the room of the pool that a new sequence may take.
    pub(crate) fn available(self, blocks: &Blocks) -> usize {
        blocks.room().saturating_sub(self.blocks)
    }

    /// Returns the most blocks that a new sequence can ever take.
    #[cfg(feature = "async")]
    pub(crate) fn most(self, blocks: &Blocks) -> usize {
        blocks.total().saturating_sub(self.blocks)
    }

    /// Returns the room that the pool must have before a new sequence of `requested` blocks is
    /// admitted.
    #[cfg(feature = "async")]
    pub(crate) fn threshold(self, requested: usize) -> usize {
        if requested == 0 { 0 } else { requested.saturating_add(self.blocks) }
    }

    #[inline]
    fn refuse_early(self, blocks: &Blocks, need: impl Need, admit: Admit) -> Result<()> {
        let at_most = need.at_most();
        let is_short = need.refuses_early() && !blocks.has_room(at_most);
        if !is_short && self.too_little(blocks, at_most, admit).is_none() {
            return Ok(());
        }
        self.refuse_exactly(blocks, need, admit)
    }

    /// Refuses a request that may be too large, if it is, now that its exact need has to be known.
    #[cold]
    #[inline(never)]
    fn refuse_exactly(self, blocks: &Blocks, need: impl Need, admit: Admit) -> Result<()> {
        blocks.expire_pins();
        let (requested, available) = (need.exactly(), self.available(blocks));
        if need.refuses_early() && requested > available {
            return Err(refusal(requested, available));
        }
        match self.too_little(blocks, requested, admit) {
            Some(available) => Err(refusal(requested, available)),
            None => Ok(()),
        }
    }

    /// Returns the room that a new sequence may take, if that is too little.
    #[inline]
    fn too_little(self, blocks: &Blocks, requested: usize, admit: Admit) -> Option<usize> {
        if requested == 0 {
            return None;
        }
        if admit == Admit::Now && blocks.is_waited_for() {
            return Some(0);
        }
        if self.blocks == 0 {
            return None;
        }
        if blocks.has_room(requested.saturating_add(self.blocks)) {
            return None;
        }
        Some(self.available(blocks)).filter(|&available| available < requested)
    }

    /// Returns true if enough room is left after a new sequence has taken its blocks.
    #[inline]
    fn is_kept(self, blocks: &Blocks) -> bool {
        if self.blocks == 0 {
            return true;
        }
        // SeqCst: of two threads that admit at the same time, the second to pass this fence counts the
        // blocks of both.
        // Loom: of_two_that_come_in_at_once_none_leaves_too_little.
        fence(Ordering::SeqCst);
        blocks.has_room(self.blocks)
    }

    /// Gives back blocks that left too little room; returns the refusal.
    #[cold]
    fn give_back<T: NewBlocks>(self, blocks: &Blocks, taken: T) -> PagedKvError {
        // Blocks that it matched while other tables owned them took no room.
        let requested = taken.num_blocks_freed().max(1);
        blocks.undo(taken);
        let available = self.available(blocks).min(requested - 1);
        refusal(requested, available)
    }
}

impl Blocks {
    /// Gives the blocks of a new sequence back as if they had not been taken. Blocks that it matched
    /// while other tables owned them neither left room nor come back.
    #[cold]
    pub(crate) fn undo<T: NewBlocks>(&self, mut taken: T) {
        let _later = Later::begin();
        taken.forget_uses();
        let num_blocks = taken.num_blocks_freed();
        drop(taken);
        self.undone.add(num_blocks as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::BlockPool;
    use crate::table::BlockTable;

    fn take(pool: &BlockPool, watermark: usize, num_blocks: usize) -> Result<BlockTable> {
        let take = || pool.allocate(num_blocks);
        BlockWatermark::new(watermark).take(pool.blocks(), num_blocks, Admit::Now, take)
    }

    #[test]
    fn a_new_sequence_leaves_the_watermark_or_is_refused() {
        for watermark in 0..=4 {
            for requested in 0..=8 {
                let pool = BlockPool::new(8);
                let taken = take(&pool, watermark, requested);
                let fits = requested == 0 || 8 - requested >= watermark;
                assert_eq!(taken.is_ok(), fits, "{requested} taken, {watermark}");
                if let Err(refusal) = taken {
                    let available = 8 - watermark;
                    assert_eq!(refusal, PagedKvError::OutOfMemory { requested, available });
                    assert_eq!(pool.totals().taken, 0, "refused before a block was taken");
                }
            }
        }
    }

    #[test]
    fn a_refused_match_requests_only_the_blocks_that_take_room() {
        /// A table whose first blocks other tables own too.
        struct Matched(BlockTable);
        impl NewBlocks for Matched {
            fn num_blocks_freed(&self) -> usize {
                self.0.num_blocks_freed()
            }
        }
        let pool = BlockPool::new(8);
        let mut source = pool.allocate(3).expect("there is room");
        let mut beside = None;
        let refusal = BlockWatermark::new(3).take(pool.blocks(), 2, Admit::Now, || {
            let mut matched = source.fork(0)?;
            matched.grow(2)?;
            // Another thread takes blocks between the two checks.
            beside = Some(pool.allocate(1)?);
            Ok(Matched(matched))
        });
        match refusal {
            Err(PagedKvError::OutOfMemory { requested: 2, available: 1 }) => {}
            refusal => panic!("{:?}", refusal.map(|matched| matched.0)),
        }
        drop((source, beside));
        assert_eq!((pool.used_block_count(), pool.totals().taken), (0, 4));
    }

    #[test]
    fn a_sequence_that_leaves_too_little_gives_back_and_is_not_counted() {
        for (requested, available) in [(4, 3), (3, 2), (2, 1), (1, 0)] {
            let pool = BlockPool::new(8);
            let _used = pool.allocate(2).expect("there is room");
            let mut beside = None;
            let refusal =
                BlockWatermark::new(3).take(pool.blocks(), requested.min(3), Admit::Now, || {
                    let taken = pool.allocate(requested)?;
                    // Another thread takes blocks between the two checks.
                    beside = Some(pool.allocate(6 - requested)?);
                    Ok(taken)
                });
            let _ = beside.take().map(drop);
            let requested_blocks = requested;
            match refusal {
                Err(PagedKvError::OutOfMemory { requested, available: said }) => {
                    assert_eq!(requested, requested_blocks);
                    assert!(said <= available, "{said} of {available}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(pool.totals().taken, 2 + 6 - requested as u64, "{requested}");
            assert_eq!(pool.used_block_count(), 2);
        }
    }
}
