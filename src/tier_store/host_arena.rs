//! [`HostArena`]: the slots of a tier in memory of the host.

use std::fmt;

use super::memory::zeroed;
use crate::array::array_of;
use crate::error::{PagedKvError, Result};
use crate::sync::outside::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Memory of one slot.
trait SlotMemory: Send + Sync {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl<M: AsRef<[u8]> + AsMut<[u8]> + Send + Sync> SlotMemory for M {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_mut()
    }
}

/// The slots of a tier in memory of the host, a block each.
///
/// ```
/// use paged_kv::tier_store::HostArena;
///
/// let arena = HostArena::new(16, 4_096)?;
/// assert_eq!((arena.slots(), arena.block_bytes()), (16, 4_096));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub struct HostArena {
    slots: Box<[RwLock<Box<dyn SlotMemory>>]>,
    block_bytes: usize,
}

/// A slot that is read.
pub(super) struct SlotRead<'a>(RwLockReadGuard<'a, Box<dyn SlotMemory>>);

/// A slot that is written.
pub(super) struct SlotToWrite<'a>(RwLockWriteGuard<'a, Box<dyn SlotMemory>>);

impl SlotRead<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl SlotToWrite<'_> {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl HostArena {
    /// Creates an arena in memory of the global allocator. All of it is written once, so that the operating system has
    /// given it before the first store.
    ///
    /// # Errors
    /// [`OutOfHostMemory`](PagedKvError::OutOfHostMemory);
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for no slot or no bytes.
    ///
    /// ```
    /// use paged_kv::tier_store::HostArena;
    ///
    /// assert!(HostArena::new(16, 4_096).is_ok());
    /// assert!(HostArena::new(0, 4_096).is_err());
    /// ```
    pub fn new(slots: usize, block_bytes: usize) -> Result<Self> {
        let memory: Result<Vec<_>> = (0..slots).map(|_| zeroed(block_bytes)).collect();
        Self::from_slots(memory?)
    }

    /// Creates an arena in memory of the caller, for example pinned memory: a buffer for each slot, all of one length.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for no slot, no bytes, or buffers of several lengths, also of
    /// another one as `AsMut` than as `AsRef`.
    ///
    /// ```
    /// use paged_kv::tier_store::HostArena;
    ///
    /// let arena = HostArena::from_slots((0..16).map(|_| vec![0; 4_096]))?;
    /// assert_eq!(arena.slots(), 16);
    /// assert!(HostArena::from_slots([vec![0; 4], vec![0; 5]]).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn from_slots<M>(slots: impl IntoIterator<Item = M>) -> Result<Self>
    where
        M: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static,
    {
        let mut slots: Vec<Box<dyn SlotMemory>> =
            slots.into_iter().map(|slot| Box::new(slot) as _).collect();
        let block_bytes = slots.first().map_or(0, |slot| slot.bytes().len());
        let is_bad = |slot: &mut Box<dyn SlotMemory>| {
            slot.bytes().len() != block_bytes || slot.bytes_mut().len() != block_bytes
        };
        if block_bytes == 0 || slots.iter_mut().any(is_bad) {
            let reason = "at least 1 slot needed, and all of one length above 0".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "host arena", reason });
        }
        let (len, mut slots) = (slots.len(), slots.into_iter());
        let slots = array_of(len, || RwLock::new(slots.next().expect("as many as counted")))?;
        Ok(Self { slots, block_bytes })
    }

    /// Returns the number of slots.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::HostArena::new(3, 8)?.slots(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Returns the bytes of a slot.
    ///
    /// ```
    /// assert_eq!(paged_kv::tier_store::HostArena::new(3, 8)?.block_bytes(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Returns the slot for reading. `None` if there is no such slot, or its memory has changed its length, or it is
    /// written now, which a ticket for the slot excludes.
    pub(super) fn read(&self, slot: u32) -> Option<SlotRead<'_>> {
        let slot = self.slots.get(slot as usize)?.try_read().map(SlotRead);
        slot.filter(|slot| slot.bytes().len() == self.block_bytes)
    }

    /// Returns the slot for writing. `None` if there is no such slot, or its memory has changed its length, or it is in
    /// use now, which a ticket for the slot excludes.
    pub(super) fn write(&self, slot: u32) -> Option<SlotToWrite<'_>> {
        let mut slot = self.slots.get(slot as usize)?.try_write().map(SlotToWrite)?;
        (slot.bytes_mut().len() == self.block_bytes).then_some(slot)
    }
}

impl fmt::Debug for HostArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostArena")
            .field("slots", &self.slots.len())
            .field("block_bytes", &self.block_bytes)
            .finish_non_exhaustive()
    }
}
