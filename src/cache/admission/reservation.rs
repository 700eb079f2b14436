//! `Reservation`: blocks that one request takes in advance and uses later.
//!
//! Invariant: the reservation alone owns its blocks, and they count as used. It does not depend on the
//! request that will use them.

use super::Admission;
use super::options::AdmitOptions;
use super::prompt::Prompt;
use crate::cache::PagedKvCache;
use crate::cache::entry::TrackedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::pool::PoolHandle;
use crate::pool::watermark::{Admit, BlockWatermark};
use crate::sequence::{Append, Sequence};
use crate::sync::Later;
use crate::table::BlockTable;

/// Blocks held for one request, for its admission and its growth. A request made through the reservation is
/// served from its blocks only. Dropping the reservation releases the blocks that are left.
///
/// The blocks are taken when the reservation is made, idle cached contents among them. They count as used,
/// and as allocated. A reservation may go to another thread and outlive a call, but it belongs to the cache
/// that made it.
///
/// ```
/// use paged_kv::{PagedKvCache, PagedKvError, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let mut room = cache.reserve(3)?; // a prompt of 8 tokens, and 4 to come
/// cache.allocate(SeqId(9), 20)?; // another request takes the rest
/// room.allocate(&cache, SeqId(1), 8)?;
/// assert_eq!(room.append(&cache, SeqId(1), 4)?.new_blocks, 2..3);
/// let refused = room.append(&cache, SeqId(1), 1).unwrap_err();
/// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 1, available: 0 });
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
#[must_use = "the blocks go back when the reservation is dropped"]
pub struct Reservation {
    stock: BlockTable,
    block_size: usize,
}

/// # Sequences: reservations
impl PagedKvCache {
    /// Takes `num_blocks` blocks for a request that is to be admitted, all or none. Refused as a new
    /// sequence is: below the watermark, and while other requests wait. Costs as
    /// [`BlockPool::allocate`](crate::BlockPool::allocate).
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory), with the blocks that are available to a new sequence.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, PagedKvError};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let room = cache.reserve(6)?;
    /// assert_eq!((room.num_blocks(), cache.used_block_count()), (6, 6));
    /// let refused = cache.reserve(3).unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 3, available: 2 });
    /// drop(room);
    /// assert_eq!(cache.used_block_count(), 0);
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn reserve(&self, num_blocks: usize) -> Result<Reservation> {
        let (handle, admit) = (self.pool.handle(), Admit::Now);
        Reservation::take(handle, self.watermark, num_blocks, self.block_size, admit)
    }
}

impl PagedKvCache {
    /// Runs `change` with a stock of as many blocks as it needs. `change` may take locks; the blocks are taken
    /// outside of them and of their scope, so that the observer of overwritten contents is called without a lock
    /// and wakes waiters immediately. Blocks that are left over count as not taken.
    #[cold]
    pub(in crate::cache) fn grow_outside_locks<T>(
        &self,
        mut change: impl FnMut(&mut Reservation) -> Result<T>,
    ) -> Result<T> {
        struct UndoneReservation(Reservation);
        impl Drop for UndoneReservation {
            fn drop(&mut self) {
                self.0.stock.undo_tail(0);
            }
        }
        let stock = BlockTable::new(self.pool.handle());
        let mut stock = UndoneReservation(Reservation { stock, block_size: self.block_size });
        loop {
            let later = Later::begin();
            let changed = change(&mut stock.0);
            drop(later);
            match changed {
                // It took nothing: `requested` is its need now.
                Err(PagedKvError::OutOfMemory { requested, .. })
                    if requested > stock.0.num_blocks() =>
                {
                    stock.0.add(requested)?;
                }
                done => return done,
            }
        }
    }
}

impl Reservation {
    /// Takes blocks until there are `num_blocks`.
    fn add(&mut self, num_blocks: usize) -> Result<()> {
        let held = self.num_blocks();
        let added = self.stock.grow(num_blocks - held).map(drop);
        added.map_err(|refusal| match refusal {
            PagedKvError::OutOfMemory { available, .. } => {
                PagedKvError::OutOfMemory { requested: num_blocks, available: available + held }
            }
            refusal => refusal,
        })
    }

    /// Takes the blocks as a new sequence does.
    pub(crate) fn take(
        pool: PoolHandle,
        watermark: BlockWatermark,
        num_blocks: usize,
        block_size: usize,
        admit: Admit,
    ) -> Result<Self> {
        let stock = watermark.take(&pool, num_blocks, admit, || {
            let mut stock = BlockTable::new(pool.clone());
            stock.grow(num_blocks)?;
            Ok(stock)
        })?;
        Ok(Self { stock, block_size })
    }

    /// Returns the number of blocks that are left.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut room = cache.reserve(3)?;
    /// let sequence = room.allocate_sequence(5)?;
    /// assert_eq!((sequence.num_blocks(), room.num_blocks()), (2, 1));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn num_blocks(&self) -> usize {
        self.stock.len()
    }

    /// Releases all but `num_blocks` blocks, if there are more.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut room = cache.reserve(6)?;
    /// room.shrink_to(2);
    /// assert_eq!(cache.used_block_count(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn shrink_to(&mut self, num_blocks: usize) {
        self.stock.give_tail(num_blocks.min(self.stock.len()));
    }

    /// Does as [`PagedKvCache::allocate`], from this reservation.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) if fewer blocks are left than requested, otherwise as
    /// [`PagedKvCache::allocate`]; and [`WrongCache`](PagedKvError::WrongCache) if the reservation is of
    /// another cache. Nothing has changed then.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let mut room = cache.reserve(3)?;
    /// room.allocate(&cache, SeqId(1), 12)?;
    /// assert!(room.allocate(&cache, SeqId(2), 1).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate(&mut self, cache: &PagedKvCache, id: SeqId, num_tokens: usize) -> Result<()> {
        self.refuse_other(cache)?;
        if cache.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
        let sequence = self.allocate_sequence(num_tokens)?;
        let num_blocks = sequence.num_owned_blocks();
        self.insert(cache, id, TrackedSequence::new(sequence, 0, cache.stamp()), num_blocks)
    }

    /// Does as [`PagedKvCache::allocate_sequence`], from this reservation.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut room = cache.reserve(3)?;
    /// assert_eq!(room.allocate_sequence(12)?.num_blocks(), 3);
    /// assert!(room.allocate_sequence(1).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate_sequence(&mut self, num_tokens: usize) -> Result<Sequence> {
        let table = self.stock.new_sibling();
        let mut sequence = match self.stock.pool().layout() {
            None => Sequence::empty(table, self.block_size),
            Some(layout) => Sequence::empty_in_groups(table, layout),
        };
        let _ = self.grow(&mut sequence, num_tokens)?;
        Ok(sequence)
    }

    /// Does as [`PagedKvCache::admit_with`], from this reservation. Each block that hits leaves one of the
    /// reservation's blocks for later tokens. Idle hits take room of the pool in addition, also below the
    /// watermark and before requests that wait.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`PagedKvCache::admit_with`]. Nothing has changed then.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let mut room = cache.reserve(3)?;
    /// let prompt = cache.prompt(&[7; 9]);
    /// room.admit(&cache, SeqId(1), &prompt, &AdmitOptions::default())?;
    /// assert_eq!(room.num_blocks(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit(
        &mut self,
        cache: &PagedKvCache,
        id: SeqId,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<Admission> {
        self.refuse_other(cache)?;
        cache.refuse_known(id)?;
        let left = self.stock.len();
        let admitted =
            cache.match_and_grow_from(prompt, options, left, |sequence, num_tokens| {
                self.grow(sequence, num_tokens).map(drop)
            })?;
        let (tracked, admission) = cache.admitted(admitted, options);
        self.insert(cache, id, tracked, left - self.stock.len())?;
        cache.note_prompt(prompt, options, &admission);
        Ok(admission)
    }

    /// Does as [`PagedKvCache::append`], from this reservation.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`PagedKvCache::append`]. Nothing has changed then.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 4)?;
    /// let mut room = cache.reserve(1)?;
    /// let append = room.append(&cache, SeqId(1), 1)?;
    /// assert_eq!((append.new_blocks, room.num_blocks()), (1..2, 0));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append(
        &mut self,
        cache: &PagedKvCache,
        id: SeqId,
        num_new_tokens: usize,
    ) -> Result<Append> {
        self.refuse_other(cache)?;
        let append = |tracked: &mut TrackedSequence| {
            let append = self.grow(tracked.sequence_mut(), num_new_tokens)?;
            tracked.note_use(cache.stamp());
            Ok(append)
        };
        cache.update_if(id, |_| false, append)?
    }

    /// Grows a sequence of this pool by as many of the blocks as that takes, or not at all.
    pub(in crate::cache) fn grow(
        &mut self,
        sequence: &mut Sequence,
        num_tokens: usize,
    ) -> Result<Append> {
        sequence.release_windows();
        let plan = sequence.plan_append(num_tokens)?;
        let (requested, available) = (plan.blocks(), self.stock.len());
        if requested > available {
            return Err(PagedKvError::OutOfMemory { requested, available });
        }
        Ok(sequence.append_from(plan, &mut self.stock))
    }

    /// Puts a new sequence in the map, or takes its last `num_blocks` blocks back.
    fn insert(
        &mut self,
        cache: &PagedKvCache,
        id: SeqId,
        tracked: TrackedSequence,
        num_blocks: usize,
    ) -> Result<()> {
        match cache.try_insert(id, tracked) {
            None => Ok(()),
            Some(late) => {
                let mut sequence = late.into_sequence();
                sequence.give_new_blocks(num_blocks, &mut self.stock);
                self.stock.pool().undo(sequence); // the blocks that it matched
                Err(PagedKvError::SequenceExists(id))
            }
        }
    }

    fn refuse_other(&self, cache: &PagedKvCache) -> Result<()> {
        self.refuse_other_pool(&cache.pool.handle())
    }

    pub(in crate::cache) fn refuse_other_pool(&self, pool: &PoolHandle) -> Result<()> {
        if pool.is_of_same_pool(self.stock.pool()) {
            return Ok(());
        }
        Err(PagedKvError::WrongCache { value: "reservation" })
    }
}
