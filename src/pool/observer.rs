//! Who has to know that blocks went to a new owner? An observer, before the owner has them.
//!
//! A block that is taken holds nothing of what it held before: here a content ends. It is told when no
//! claim is held, and before the new owner can give the block another name.
//!
//! The pool does not know what an observer makes of it.

use super::Blocks;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;

/// Is told of every block that is taken. It must not call the pool.
pub(crate) trait TakeObserver: Send + Sync {
    /// `ids` have a new owner each.
    fn taken(&self, ids: &[BlockId]);
}

impl Blocks {
    /// Appends `n` blocks to `out`, all or none. Returns how many of them, the last ones, were cached.
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

    /// Appends `n` blocks to `out` if that takes no search and no waiting. The caller may hold a lock, and
    /// announces the contents that may be lost by it, with [`announce_loss`](Self::announce_loss), once it
    /// has released that.
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
