//! Which sequences does a running batch need in place? A counted claim on them that keeps them
//! from being freed, trimmed or evicted, and lets a batch grow without the map.
//!
//! A lease holds the sequences' own slots: taking it looks each id up once, and no later
//! operation of the lease touches the map. It does not stop other threads from appending to,
//! forking or truncating a leased sequence.

use super::PagedKvCache;
use super::slot::{Live, SharedSlot};
use crate::batch::{AppendBatch, BatchRow, Fitted, append_batch, append_batch_fitting, emptied};
use crate::clock::RecencyClock;
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::sequence::Sequence;
use crate::sync::{Arc, Later, RwLockWriteGuard};

/// A counted claim on some sequences: while it lives they cannot be freed, trimmed or evicted.
///
/// Made by [`PagedKvCache::lease`]; ends when dropped, on any thread, without the map. Its rows
/// are the sequences in the order of the ids given.
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
    /// Empty: the memory of the rows between calls, as elements of their layout that may be sent
    /// to other threads, which lock guards may not.
    rows: Vec<(usize, usize, usize)>,
    clock: Arc<RecencyClock>,
}

struct Leased {
    id: SeqId,
    slot: Arc<SharedSlot>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.slot.end_lease();
    }
}

impl PagedKvCache {
    /// A lease on all of `ids`, or on none. Takes one shard lock an id, one after the other.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) with the first id that is not there;
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when an id is listed twice.
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
        let leased = ids.iter().map(|&id| self.lease_one(id, None)).collect::<Result<Vec<_>>>()?;
        let lease = Lease { leased, rows: Vec::new(), clock: Arc::clone(&self.clock) };
        match lease.first_repetition() {
            None => Ok(lease),
            Some(id) => Err(PagedKvError::InvalidConfig {
                parameter: "ids",
                reason: format!("{id} is listed twice"),
            }),
        }
    }

    /// Grows every sequence by its number of tokens, or none. Leases them for the time of the
    /// call; a scheduler that grows the same batch again keeps a [`Lease`], whose
    /// [`append_batch`](Lease::append_batch) needs neither look-ups nor memory.
    ///
    /// # Errors
    /// As [`lease`](Self::lease) and [`Lease::append_batch`]; nothing has changed.
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
        let (ids, num_new_tokens): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        self.lease(&ids)?.append_batch(&num_new_tokens, batch)
    }

    /// Adds the sequence of that epoch to a lease, and returns its row.
    pub(super) fn lease_more(
        &self,
        lease: &mut Lease,
        id: SeqId,
        epoch: AdmissionEpoch,
    ) -> Result<usize> {
        lease.leased.push(self.lease_one(id, Some(epoch))?);
        Ok(lease.leased.len() - 1)
    }

    /// A lease on a sequence, of that epoch if one is given.
    fn lease_one(&self, id: SeqId, epoch: Option<AdmissionEpoch>) -> Result<Leased> {
        let slot = self.sequences.get_mut(&id);
        let mut slot = slot.ok_or_else(self.missing(id))?;
        if epoch.is_some_and(|epoch| slot.epoch() != epoch) {
            return Err(PagedKvError::SequenceNotFound(id));
        }
        let shared = slot.share();
        shared.begin_lease();
        Ok(Leased { id, slot: shared })
    }
}

impl Lease {
    /// The sequences leased, in order.
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
        self.leased.iter().map(|leased| leased.id)
    }

    /// Number of sequences leased: the rows of the batch.
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

    /// True when every sequence has left the lease.
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

    /// Lets one sequence leave the lease; the rows behind it move up. `O(rows)`, no map.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) when the lease does not have it.
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
        let row = self.leased.iter().position(|leased| leased.id == id);
        self.leased.remove(row.ok_or(PagedKvError::SequenceNotFound(id))?);
        Ok(())
    }

    /// Grows row `i` by `num_new_tokens[i]` tokens, every row or none, and counts a use of each.
    /// One allocation for all rows; takes each sequence's own lock, no map; allocates no memory
    /// once lease, `batch` and tables have grown.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) when there is not one number a row; otherwise as
    /// [`append_batch`](crate::append_batch()). Nothing has changed.
    ///
    /// ```
    /// use paged_kv::{AppendBatch, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.fork(SeqId(1), SeqId(2))?;
    /// let mut lease = cache.lease(&[SeqId(1), SeqId(2)])?;
    /// let mut batch = AppendBatch::default();
    /// lease.append_batch(&[4, 8], &mut batch)?;
    /// let refused = lease.append_batch(&[4, 4], &mut batch);
    /// assert_eq!(refused, Err(PagedKvError::OutOfMemory { requested: 2, available: 0 }));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn append_batch(
        &mut self,
        num_new_tokens: &[usize],
        batch: &mut AppendBatch,
    ) -> Result<()> {
        self.with_locked_rows(num_new_tokens, |rows, clock| {
            append_batch(rows, batch)?;
            rows.iter_mut().for_each(|row| row.live().note_use(clock.stamp()));
            Ok(())
        })
    }

    /// As [`append_batch`](Self::append_batch), but grows as many of the first rows as there is
    /// room for, and says by how many blocks the next one was short.
    ///
    /// # Errors
    /// As [`append_batch`](Self::append_batch), but for want of room.
    ///
    /// ```
    /// use paged_kv::{AppendBatch, Fitted, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(3, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// cache.allocate(SeqId(2), 4)?;
    /// let mut lease = cache.lease(&[SeqId(1), SeqId(2)])?;
    /// let fitted = lease.append_batch_fitting(&[1, 1], &mut AppendBatch::default())?;
    /// assert_eq!(fitted, Fitted { done: 1, short_by: 1 });
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append_batch_fitting(
        &mut self,
        num_new_tokens: &[usize],
        batch: &mut AppendBatch,
    ) -> Result<Fitted> {
        self.with_locked_rows(num_new_tokens, |rows, clock| {
            let fitted = append_batch_fitting(rows, batch)?;
            let grown = rows.iter_mut().take(fitted.done);
            grown.for_each(|row| row.live().note_use(clock.stamp()));
            Ok(fitted)
        })
    }

    /// Shows each row, in order, one lock at a time.
    pub(super) fn for_each(
        &self,
        mut look: impl FnMut(usize, &Sequence) -> Result<()>,
    ) -> Result<()> {
        self.leased.iter().enumerate().try_for_each(|(row, leased)| {
            let live = leased.slot.read();
            look(row, live.as_ref().expect(STAYS).sequence())
        })
    }

    pub(super) fn check_rows(&self, buffer: &'static str, values: &[usize]) -> Result<()> {
        let (required, actual) = (self.leased.len(), values.len());
        if required == actual {
            return Ok(());
        }
        Err(PagedKvError::BufferSize { buffer, required, actual })
    }

    /// Locks every row for the time of `change`. Afterwards the waiters learn of the change.
    pub(super) fn with_locked_rows<R>(
        &mut self,
        num_new_tokens: &[usize],
        change: impl FnOnce(&mut [LockedRow<'_>], &RecencyClock) -> Result<R>,
    ) -> Result<R> {
        self.check_rows("num_new_tokens", num_new_tokens)?;
        let _later = Later::begin();
        let mut rows: Vec<LockedRow<'_>> = emptied(std::mem::take(&mut self.rows));
        let ids = self.leased.iter().map(|leased| leased.id);
        let unlocked = ids.zip(num_new_tokens);
        rows.extend(unlocked.map(|(id, &n)| LockedRow { live: None, id, num_new_tokens: n }));
        self.lock_all(&mut rows);
        let changed = change(&mut rows, &self.clock);
        let pool = rows.first().map(|row| row.look().sequence().table().pool());
        let waited_for = pool.filter(|pool| pool.is_waited_for()).cloned();
        self.rows = emptied(rows);
        if let Some(pool) = waited_for {
            self.ids().for_each(|id| pool.announce_change_of(id));
        }
        changed
    }

    /// Waits for one row at a time, and holds none meanwhile: whoever is at a row may be waiting for
    /// another, be it a batch with these rows in another order, or a reader that looks further.
    fn lock_all<'a>(&'a self, rows: &mut [LockedRow<'a>]) {
        let mut awaited = 0;
        while awaited < rows.len() {
            rows[awaited].live = Some(self.leased[awaited].slot.write());
            let unlocked = rows.iter_mut().zip(&self.leased).filter(|(row, _)| row.live.is_none());
            for (row, leased) in unlocked {
                row.live = leased.slot.try_write();
                if row.live.is_none() {
                    break;
                }
            }
            match rows.iter().position(|row| row.live.is_none()) {
                None => return,
                Some(busy) => awaited = busy,
            }
            rows.iter_mut().for_each(|row| row.live = None);
        }
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

/// A row of a batch with its sequence's lock held.
pub(super) struct LockedRow<'a> {
    live: Option<RwLockWriteGuard<'a, Option<Live>>>,
    id: SeqId,
    num_new_tokens: usize,
}

const STAYS: &str = "a leased sequence stays where it is";

impl LockedRow<'_> {
    pub(super) fn id(&self) -> SeqId {
        self.id
    }

    pub(super) fn look(&self) -> &Live {
        self.live.as_ref().and_then(|guard| guard.as_ref()).expect(STAYS)
    }

    pub(super) fn live(&mut self) -> &mut Live {
        self.live.as_mut().and_then(|guard| guard.as_mut()).expect(STAYS)
    }
}

impl BatchRow for LockedRow<'_> {
    fn sequence(&mut self) -> &mut Sequence {
        self.live().sequence_mut()
    }
    fn num_new_tokens(&self) -> usize {
        self.num_new_tokens
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
        is_send_and_sync::<AppendBatch>();
    }
}
