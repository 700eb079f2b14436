//! `LeaseRow`: one sequence of a [`Lease`](crate::Lease), as a row of batches and steps.

use crate::cache::entry::{SharedEntry, TrackedSequence};
use crate::error::{PagedKvError, Result};
use crate::id::{Identity, SeqId};
use crate::sync::Arc;

/// One sequence of a [`Lease`](crate::Lease), as a row of batches and steps.
///
/// A row names the sequence, not its id. After the sequence was freed or evicted, every operation on the
/// row is refused with [`SequenceNotFound`](PagedKvError::SequenceNotFound), even if another sequence has
/// the id by then. A row does not keep its sequence in the cache; the lease does. So a caller may keep rows
/// longer than the lease, and a request may be cancelled or evicted while a step with its row is open.
///
/// ```
/// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// cache.admit(SeqId(1), &[7; 4])?;
/// let mut rows: Vec<_> = cache.lease(&[SeqId(1)])?.rows().map(|row| (row, 1)).collect();
/// let mut step = cache.step(Default::default());
/// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
/// cache.free(SeqId(1))?; // the client left
/// assert_eq!(cache.used_block_count(), 2); // the device still uses its blocks
/// assert_eq!(step.commit(&mut rows[0].0, 4), Err(PagedKvError::SequenceNotFound(SeqId(1))));
/// step.complete();
/// assert_eq!(cache.used_block_count(), 0);
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Clone)]
pub struct LeaseRow {
    id: SeqId,
    entry: Arc<SharedEntry>,
}

impl LeaseRow {
    pub(in crate::cache) fn new(id: SeqId, entry: Arc<SharedEntry>) -> Self {
        Self { id, entry }
    }

    /// Returns the id of the sequence.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let row = cache.lease(&[SeqId(1)])?.rows().next().expect("one is leased");
    /// assert_eq!(row.id(), SeqId(1));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn id(&self) -> SeqId {
        self.id
    }

    pub(in crate::cache) fn entry(&self) -> &SharedEntry {
        &self.entry
    }

    pub(in crate::cache) fn is_same_sequence(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entry, &other.entry)
    }

    /// Returns the id and the epoch of the sequence, also after it has left the map.
    pub(in crate::cache) fn identity(&self) -> Identity {
        (self.id, self.entry.epoch())
    }

    /// Changes the sequence under its own lock. The waiters learn of the change afterwards.
    pub(in crate::cache) fn update<T>(
        &self,
        change: impl FnOnce(&mut TrackedSequence) -> T,
    ) -> Result<T> {
        let (changed, waited_for) = {
            let mut tracked = self.entry.write();
            let tracked = tracked.as_mut().ok_or_else(|| self.refusal_of_gone())?;
            let changed = change(tracked);
            let pool = tracked.sequence().table().pool();
            (changed, pool.is_waited_for().then(|| pool.clone()))
        };
        if let Some(pool) = waited_for {
            pool.announce_change_of(self.id);
        }
        Ok(changed)
    }

    /// Reads the sequence under its own lock.
    pub(in crate::cache) fn look<T>(
        &self,
        read: impl FnOnce(&TrackedSequence) -> Result<T>,
    ) -> Result<T> {
        match &*self.entry.read() {
            Some(tracked) => read(tracked),
            None => Err(self.refusal_of_gone()),
        }
    }

    pub(in crate::cache) fn refusal_of_gone(&self) -> PagedKvError {
        PagedKvError::SequenceNotFound(self.id)
    }
}

impl std::fmt::Debug for LeaseRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LeaseRow").field(&self.id).finish()
    }
}
