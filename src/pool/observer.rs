//! `TakeObserver`: is informed of blocks that get a new owner, before that owner has them.
//!
//! The contents of a block end when the block is taken. The taking thread calls the observer while it
//! holds no claim, and before the new owner can give the block another name.
//!
//! The pool takes no answer from an observer.

use super::Blocks;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;

/// Is informed of every block that is taken. It must not call the pool.
pub(crate) trait TakeObserver: Send + Sync {
    /// Notes that each of `ids` has a new owner.
    fn taken(&self, ids: &[BlockId]);
}

impl Blocks {
    /// Appends `n` blocks to `out`, all or none. Returns how many of them were cached; these are the
    /// last ones.
    #[inline]
    pub(crate) fn take(&self, n: usize, out: &mut Vec<BlockId>) -> Result<usize> {
        let refused = |available| PagedKvError::OutOfMemory { requested: n, available };
        let start = out.len();
        let reclaimed = self.free.take(n, &self.words, out).map_err(refused)?;
        self.observe(&out[start..]);
        if reclaimed > 0 {
            self.announce_loss();
        }
        Ok(reclaimed)
    }

    /// Appends `n` blocks to `out` if that takes no search and no waiting. Returns false otherwise. The
    /// caller may hold a lock. It calls [`announce_loss`](Self::announce_loss) after it has released
    /// the lock, because contents may have been reclaimed.
    #[inline]
    pub(crate) fn try_take_near(&self, n: usize, out: &mut Vec<BlockId>) -> bool {
        let start = out.len();
        let taken = self.free.try_take_near(n, &self.words, out).is_some();
        if taken {
            self.observe(&out[start..]);
        }
        taken
    }

    #[inline]
    fn observe(&self, taken: &[BlockId]) {
        if let Some(observer) = &self.observer {
            observer.taken(taken);
        }
    }
}
