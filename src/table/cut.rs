//! Removing blocks from a table, and the owners of the blocks that stay.
//!
//! Private blocks are released by their words. If only this table holds a run, the blocks of it that stay
//! become private. If others hold the run too, each block that stays first gets this table as an owner by its
//! own word. Only *then* is the run released, so counts are exact in every interleaving.
//!
//! Invariant: a cut that can be refused is refused before anything changes.

use std::ops::Range;

use super::{BlockTable, SharedRun};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::pool::PoolHandle;
use crate::sync::{Arc, into_last};

impl BlockTable {
    /// Drops the blocks from `len` on. Those without another owner become free. Lock-free but for the shards'
    /// claims. Costs `O(blocks dropped)` and, inside a run that others share, one atomic operation for each
    /// block kept of that run.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `len` is more than the table has, and
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) if a block that stays has 2^20 - 1 owners and needs one
    /// more; nothing has changed.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let mut table = pool.allocate(4)?;
    /// let fork = table.fork(4)?;
    /// table.truncate(1)?;
    /// assert_eq!(table.len(), 1);
    /// assert!(table.truncate(2).is_err());
    /// assert_eq!(pool.used_block_count(), 4);
    /// drop(fork);
    /// assert_eq!(pool.used_block_count(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.shared_len && len <= self.ids.len() {
            self.give_tail(len);
            return Ok(());
        }
        if len > self.len() {
            let reason = format!("{len} blocks of {}", self.len());
            return Err(PagedKvError::InvalidConfig { parameter: "len", reason });
        }
        self.remove(len..self.len())
    }

    /// Drops the blocks of `range`; those after it move up. Cost as [`truncate`](Self::truncate).
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `range` is not within the table; otherwise as
    /// [`truncate`](Self::truncate).
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let mut table = pool.allocate(4)?;
    /// let (first, last) = (table.as_slice()[0], table.as_slice()[3]);
    /// table.remove(1..3)?;
    /// assert_eq!(table.as_slice(), [first, last]);
    /// assert_eq!(pool.free_block_count(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn remove(&mut self, range: Range<usize>) -> Result<()> {
        let len = self.len();
        if range.start > range.end || range.end > len {
            let reason = format!("blocks {range:?} of {len}");
            return Err(PagedKvError::InvalidConfig { parameter: "range", reason });
        }
        if range.is_empty() { Ok(()) } else { self.cut(range.start, range) }
    }

    /// Drops the blocks of `removed`, and makes the table itself an owner of the blocks it keeps from `keep`
    /// on. So it can write them once they have no other owner. Cost as [`truncate`](Self::truncate).
    ///
    /// # Errors
    /// [`TooManyOwners`](crate::PagedKvError::TooManyOwners); the table is as it was.
    #[inline]
    pub(crate) fn cut(&mut self, keep: usize, removed: Range<usize>) -> Result<()> {
        if keep.min(removed.start) >= self.shared_len && removed.end == self.ids.len() {
            self.give_tail(removed.start);
            return Ok(());
        }
        self.cut_out(keep, removed)
    }

    /// Releases the private blocks from `len` on. They leave the table even if the release panics.
    #[inline]
    pub(crate) fn give_tail(&mut self, len: usize) {
        struct Truncated<'a>(&'a mut Vec<BlockId>, usize);
        impl Drop for Truncated<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.truncate(self.1);
            }
        }
        if len < self.ids.len() {
            let truncated = Truncated(&mut self.ids, len);
            self.pool.release_after(self.step, &truncated.0[len..]);
        }
    }

    /// Does the work of [`cut`](Self::cut) in the general case.
    #[inline(never)]
    fn cut_out(&mut self, keep: usize, removed: Range<usize>) -> Result<()> {
        let private = removed.start.max(self.shared_len)..removed.end;
        let left =
            if keep < self.shared_len { self.leave_runs(keep, &removed)? } else { Vec::new() };
        // They leave the table before they can have another owner.
        let start = removed.start;
        let dropped = self.ids.drain(removed);
        for run in left {
            match run {
                LeftRun::Thawed(ids, part) => self.pool.release_after(self.step, &ids[part]),
                LeftRun::Shared(run) => self.pool.release_run_after(self.step, run),
            }
        }
        if !private.is_empty() {
            let private = private.start - start..private.end - start;
            self.pool.release_after(self.step, &dropped.as_slice()[private]);
        }
        Ok(())
    }

    /// Takes all blocks out of the table. From now on they are counted by id: each takes a
    /// [`BlockPool::release`](crate::BlockPool::release) to become free. For a scheduler across an FFI.
    ///
    /// # Errors
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) as [`truncate`](Self::truncate); the table is as it was.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// let ids = pool.allocate(2)?.take_ids()?;
    /// assert_eq!(pool.used_block_count(), 2);
    /// for id in ids {
    ///     pool.release(id)?;
    /// }
    /// assert_eq!(pool.used_block_count(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn take_ids(&mut self) -> Result<Vec<BlockId>> {
        self.cut(0, self.len()..self.len())?;
        self.pool.count_by_id(&self.ids);
        Ok(std::mem::take(&mut self.ids))
    }

    /// Leaves every run that reaches beyond `keep`, so that the blocks from `keep` on are private, except
    /// those in `removed`. Returns the blocks and runs that the caller has to release, the last run first.
    fn leave_runs(&mut self, keep: usize, removed: &Range<usize>) -> Result<Vec<LeftRun>> {
        let mut left = Vec::new();
        let mut sole = self.retain_shared(keep, removed)?;
        while let Some(run) = self.shared.take_if(|run| run.end() > keep) {
            self.shared_len = run.start();
            if sole > 0 {
                sole -= 1;
                let part = part_of(&run, removed);
                let run = into_last(run).expect("the only holder of a run stays the only one");
                let (ids, parent) = run.thaw();
                self.shared = parent;
                left.push(LeftRun::Thawed(ids, part));
            } else {
                self.shared = run.parent().cloned();
                left.push(LeftRun::Shared(run));
            }
        }
        Ok(left)
    }

    /// Handles the runs that reach beyond `keep`. Where others hold a run too, makes the table an owner of
    /// its blocks outside `removed` by their own words. Returns how many runs only this table holds. Those
    /// come first, because a holder of a run holds its ancestors.
    fn retain_shared(&self, keep: usize, removed: &Range<usize>) -> Result<usize> {
        let (sole, kept) = self.kept_of_shared(keep, removed);
        // All or none, and before any run is released: until then the runs own the blocks too.
        retain_all(&self.pool, &kept)?;
        Ok(sole)
    }

    /// Returns the error that [`cut`](Self::cut) would return now.
    pub(crate) fn check_cut(&self, keep: usize, removed: Range<usize>) -> Result<()> {
        if keep >= self.shared_len {
            return Ok(());
        }
        let (_, kept) = self.kept_of_shared(keep, &removed);
        kept.iter().try_for_each(|&id| self.pool.check_retain(id))
    }

    /// Returns how many of the runs beyond `keep` only this table holds, and the blocks outside `removed` of
    /// the other runs.
    fn kept_of_shared(&self, keep: usize, removed: &Range<usize>) -> (usize, Vec<BlockId>) {
        let (mut sole, mut kept) = (0, Vec::new());
        let mut next = self.shared.as_ref();
        while let Some(run) = next.filter(|run| run.end() > keep) {
            if kept.is_empty() && Arc::strong_count(run) == 1 {
                sole += 1;
            } else {
                let (ids, part) = (run.ids(), part_of(run, removed));
                kept.push([&ids[..part.start], &ids[part.end..]]);
            }
            next = run.parent();
        }
        (sole, kept.concat().concat())
    }
}

/// A run that a table has left.
enum LeftRun {
    /// Only the table held it. The blocks of the range are released.
    Thawed(Box<[BlockId]>, Range<usize>),
    /// Others hold it too.
    Shared(Arc<SharedRun>),
}

/// Returns the blocks of `run` that are in `range` of a table, as indices of the run.
fn part_of(run: &SharedRun, range: &Range<usize>) -> Range<usize> {
    let (start, end) = (run.start(), run.end());
    range.start.clamp(start, end) - start..range.end.clamp(start, end) - start
}

/// Adds an owner to each of `ids`, or to none. The caller owns the blocks, so none becomes room again.
pub(super) fn retain_all(pool: &PoolHandle, ids: &[BlockId]) -> Result<()> {
    for (done, &id) in ids.iter().enumerate() {
        if let Err(refusal) = pool.retain(id) {
            pool.release_extra(&ids[..done]);
            return Err(refusal);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::BlockPool;

    /// Under test a block can have 64 owners.
    #[test]
    fn a_cut_that_would_overflow_a_count_changes_nothing() {
        let pool = BlockPool::new(8);
        let mut table = pool.allocate(3).unwrap();
        let fork = table.fork(2).unwrap();
        drop(table.fork(3).unwrap());
        let (first, before) = (table.as_slice()[0], table.as_slice().to_vec());
        let retained = (0..).take_while(|_| pool.retain(first).is_ok()).count();
        let cut = |table: &mut BlockTable| table.truncate(1).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cut(&mut table)));
        assert!(panicked.is_err());
        assert_eq!(table.as_slice(), before);
        assert_eq!(pool.used_block_count(), 3);
        (0..retained).for_each(|_| pool.release(first).unwrap());
        cut(&mut table);
        assert_eq!((table.len(), pool.owners(first).unwrap()), (1, 2)); // the run, and the table
        drop((table, fork));
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    }
}
