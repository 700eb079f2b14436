//! `Lease`: a counted claim on some sequences of the cache, which keeps them from being freed, trimmed or
//! evicted.
//!
//! A lease and its rows hold the sequences' [`SharedEntry`](super::entry::SharedEntry)s. So taking a lease
//! looks each id up once, and no later operation uses the map. A lease does not stop other threads from
//! appending to, forking or truncating a leased sequence.

use super::PagedKvCache;
use super::rows::batch::{AppendBatch, append_leased};
use super::rows::lease_row::LeaseRow;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::sequence::Sequence;

/// A counted claim on some sequences: while it lives they cannot be freed, trimmed or evicted.
///
/// [`PagedKvCache::lease`] creates it. It ends when it is dropped, on any thread, without the map. Its rows
/// are the sequences in the order of the given ids.
///
/// ```
/// use paged_kv::{AppendBatch, PagedKvCache, PagedKvError, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// cache.allocate(SeqId(1), 4)?;
/// cache.allocate(SeqId(2), 6)?;
/// let mut lease = cache.lease(&[SeqId(1), SeqId(2)])?;
/// assert_eq!(cache.evict(), Err(PagedKvError::NothingToEvict));
///
/// let mut batch = AppendBatch::default();
/// lease.append_batch(&[1, 1], &mut batch)?; // one token each
/// assert_eq!(batch.as_slice()[0].new_blocks, 1..2);
/// lease.release(SeqId(1))?; // it has ended
/// cache.free(SeqId(1))?;
/// # Ok::<(), PagedKvError>(())
/// ```
#[must_use = "a lease ends when it is dropped"]
pub struct Lease {
    leased: Vec<Leased>,
}

struct Leased(LeaseRow);

impl Drop for Leased {
    fn drop(&mut self) {
        self.0.entry().end_lease();
    }
}

impl PagedKvCache {
    /// Creates a lease on all of `ids`, or on none. Takes one shard lock an id, one after the other.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) with the first id that is not in the map;
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if an id is listed twice.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let refused = cache.lease(&[SeqId(1), SeqId(2)]).err();
    /// assert_eq!(refused, Some(PagedKvError::SequenceNotFound(SeqId(2))));
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// assert_eq!(cache.free(SeqId(1)), Err(PagedKvError::SequenceLeased(SeqId(1))));
    /// drop(lease);
    /// cache.free(SeqId(1))?;
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn lease(&self, ids: &[SeqId]) -> Result<Lease> {
        // Collecting stops at the first refusal and drops the leases taken so far.
        let leased = ids.iter().map(|&id| self.lease_one(id)).collect::<Result<Vec<_>>>()?;
        let lease = Lease { leased };
        match lease.first_repetition() {
            None => Ok(lease),
            Some(id) => Err(PagedKvError::InvalidConfig {
                parameter: "ids",
                reason: format!("{id} is listed twice"),
            }),
        }
    }

    /// Grows every sequence by its number of tokens, or none. Leases the sequences for the time of the
    /// call. A scheduler that grows the same batch again keeps a [`Lease`], whose
    /// [`append_batch`](Lease::append_batch) needs neither look-ups nor memory.
    ///
    /// # Errors
    /// As [`lease`](Self::lease) and [`Lease::append_batch`]. No row has changed then, and `batch` is empty.
    ///
    /// ```
    /// use paged_kv::{AppendBatch, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(3, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.allocate(SeqId(2), 4)?;
    /// let mut batch = AppendBatch::default();
    /// assert!(cache.append_batch(&[(SeqId(1), 1), (SeqId(2), 1)], &mut batch).is_err());
    /// cache.append_batch(&[(SeqId(1), 1), (SeqId(2), 0)], &mut batch)?;
    /// assert_eq!(cache.used_block_count(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append_batch(&self, rows: &[(SeqId, usize)], batch: &mut AppendBatch) -> Result<()> {
        batch.clear();
        let (ids, num_new_tokens): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        self.lease(&ids)?.append_batch(&num_new_tokens, batch)
    }

    fn lease_one(&self, id: SeqId) -> Result<Leased> {
        let mut entry = self.sequences.get_mut(&id).ok_or_else(self.missing(id))?;
        let shared = entry.share();
        shared.begin_lease(); // still under the map's lock
        Ok(Leased(LeaseRow::new(id, shared)))
    }
}

impl Lease {
    /// Returns the leased sequences, in order, as rows of batches and steps.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// let mut rows: Vec<_> = lease.rows().map(|row| (row, 2)).collect();
    /// assert_eq!(cache.step(Default::default()).grow(&mut rows)?.grown_rows, 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn rows(&self) -> impl ExactSizeIterator<Item = LeaseRow> {
        self.leased.iter().map(|leased| leased.0.clone())
    }

    /// Returns the ids of the leased sequences, in order.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let lease = cache.lease(&[SeqId(1)])?;
    /// assert!(lease.ids().eq([SeqId(1)]));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn ids(&self) -> impl Iterator<Item = SeqId> {
        self.leased.iter().map(|leased| leased.0.id())
    }

    /// Returns the number of leased sequences: the rows of the batch.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// assert_eq!(cache.lease(&[SeqId(1)])?.len(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn len(&self) -> usize {
        self.leased.len()
    }

    /// Returns true if every sequence has left the lease.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// let mut lease = cache.lease(&[SeqId(1)])?;
    /// lease.release(SeqId(1))?;
    /// assert!(lease.is_empty());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.leased.is_empty()
    }

    /// Removes one sequence from the lease; the rows after it move up. `O(rows)`, no map lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) if the lease does not have it.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 5)?;
    /// let mut lease = cache.lease(&[SeqId(1)])?;
    /// assert!(cache.free(SeqId(1)).is_err());
    /// lease.release(SeqId(1))?;
    /// cache.free(SeqId(1))?;
    /// assert!(lease.release(SeqId(1)).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn release(&mut self, id: SeqId) -> Result<()> {
        let row = self.leased.iter().position(|leased| leased.0.id() == id);
        self.leased.remove(row.ok_or(PagedKvError::SequenceNotFound(id))?);
        Ok(())
    }

    /// Grows row `i` by `num_new_tokens[i]` tokens, every row or none, and counts a use of each. Takes one
    /// allocation for all rows, and each sequence's own lock, but no map lock. Allocates no memory once
    /// `batch` and the tables have grown.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one number a row; otherwise as
    /// [`append_batch`](crate::append_batch()). No row has changed then, and `batch` is empty.
    ///
    /// ```
    /// use paged_kv::{AppendBatch, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.fork(SeqId(1), SeqId(2))?;
    /// let lease = cache.lease(&[SeqId(1), SeqId(2)])?;
    /// let mut batch = AppendBatch::default();
    /// lease.append_batch(&[4, 8], &mut batch)?;
    /// let refused = lease.append_batch(&[4, 4], &mut batch);
    /// assert_eq!(refused, Err(PagedKvError::OutOfMemory { requested: 2, available: 0 }));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn append_batch(&self, num_new_tokens: &[usize], batch: &mut AppendBatch) -> Result<()> {
        batch.clear();
        self.check_rows("num_new_tokens", num_new_tokens.len())?;
        let rows = self.leased.iter().map(|leased| &leased.0);
        append_leased(rows.zip(num_new_tokens.iter().copied()), batch)
    }

    /// Shows each row, in order, under one lock at a time.
    pub(super) fn for_each(
        &self,
        mut look: impl FnMut(usize, &Sequence) -> Result<()>,
    ) -> Result<()> {
        self.leased
            .iter()
            .enumerate()
            .try_for_each(|(row, leased)| leased.0.look(|tracked| look(row, tracked.sequence())))
    }

    pub(super) fn check_rows(&self, buffer: &'static str, actual: usize) -> Result<()> {
        let required = self.leased.len();
        if required == actual {
            return Ok(());
        }
        Err(PagedKvError::BufferSize { buffer, required, actual })
    }

    fn first_repetition(&self) -> Option<SeqId> {
        let mut ids: Vec<SeqId> = self.ids().collect();
        ids.sort_unstable();
        ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_handles_and_leases_go_from_thread_to_thread() {
        fn is_send_and_sync<T: Send + Sync + 'static>() {}
        is_send_and_sync::<PagedKvCache>();
        is_send_and_sync::<Sequence>();
        is_send_and_sync::<Lease>();
        is_send_and_sync::<LeaseRow>();
        is_send_and_sync::<AppendBatch>();
    }
}
