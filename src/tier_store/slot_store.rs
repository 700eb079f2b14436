//! [`SlotStore`]: slots that keep contents, with a check of each content that is read.
//!
//! The trait is the one door for other media than a file. A store does not know which of its slots are in use: the cache
//! does, and names in each ticket the slots that the mover may read and write. A slot that a ticket writes is read by no
//! other ticket.

use std::io;
use std::ops::Range;

use crate::id::GroupId;
use crate::prefix::BlockHash;

/// The name of a content: the hash of its block, and the group of layers that it belongs to.
///
/// ```
/// use paged_kv::tier_store::SlotKey;
/// use paged_kv::{BlockHash, GroupId};
///
/// let key = SlotKey::from(BlockHash::from_u128(7));
/// assert_eq!(key.group, GroupId(0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// The hash of the content.
    pub hash: BlockHash,
    /// The group of layers. A cache without groups has group 0 alone.
    pub group: GroupId,
}

impl From<BlockHash> for SlotKey {
    fn from(hash: BlockHash) -> Self {
        Self { hash, group: GroupId(0) }
    }
}

/// One content to write to a slot.
///
/// ```
/// use paged_kv::BlockHash;
/// use paged_kv::tier_store::SlotWrite;
///
/// let key = BlockHash::from_u128(7).into();
/// let write = SlotWrite { slot: 3, key, epoch: 1, bytes: &[0; 64] };
/// assert_eq!(write.bytes.len(), 64);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SlotWrite<'a> {
    /// The slot, below [`SlotStore::slots`].
    pub slot: u32,
    /// The name of the content.
    pub key: SlotKey,
    /// The epoch in which the content was computed: see [`SlotStore::epoch`].
    pub epoch: u64,
    /// The content, of [`SlotStore::block_bytes`] bytes.
    pub bytes: &'a [u8],
}

/// A content that a store has kept from an earlier process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundSlot {
    /// The slot.
    pub slot: u32,
    /// The name of the content.
    pub key: SlotKey,
    /// The order of writes: of two contents, the one with the larger stamp was written later.
    pub stamp: u64,
}

/// The reason why a slot was not read or not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The slot has no content of that name in the present epoch.
    #[error("the slot does not hold that content")]
    Missing,
    /// The slot should have the content, and its bytes differ from those that were written.
    #[error("the bytes of the slot differ from those that were written")]
    Corrupt,
    /// The content is from before a reset, or the reset before it is not yet in the store. Nothing was written.
    #[error("a content of epoch {of_content} in a store of epoch {of_store}")]
    OtherEpoch {
        /// The epoch of the content.
        of_content: u64,
        /// The epoch of the store.
        of_store: u64,
    },
    /// The arguments are no slot or no block of this store.
    #[error("no slot {slot} of {bytes} bytes in this store")]
    NoSuchSlot {
        /// The slot.
        slot: u32,
        /// The length of the buffer.
        bytes: usize,
    },
    /// The medium failed. A slot that was to be written has no content.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Slots that keep contents by their names.
///
/// An implementation may block and may fail at any time, and a panic counts as a failure. It must never return bytes as a
/// content that were not written as that content: [`read`](Self::read) checks them.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
///
/// use paged_kv::BlockHash;
/// use paged_kv::tier_store::{SlotError, SlotKey, SlotStore, SlotWrite};
///
/// #[derive(Default)]
/// struct Remote(Mutex<HashMap<u32, (SlotKey, Vec<u8>)>>);
///
/// impl SlotStore for Remote {
///     fn slots(&self) -> usize {
///         8
///     }
///     fn block_bytes(&self) -> usize {
///         64
///     }
///     fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
///         self.0.lock().unwrap().insert(write.slot, (write.key, write.bytes.to_vec()));
///         Ok(())
///     }
///     fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError> {
///         match self.0.lock().unwrap().get(&slot) {
///             Some((of, bytes)) if *of == key => into.copy_from_slice(bytes),
///             _ => return Err(SlotError::Missing),
///         }
///         Ok(())
///     }
/// }
///
/// let (store, key) = (Remote::default(), BlockHash::from_u128(7).into());
/// store.write(&SlotWrite { slot: 3, key, epoch: store.epoch(), bytes: &[5; 64] })?;
/// let mut bytes = [0; 64];
/// store.read(3, key, &mut bytes)?;
/// assert_eq!(bytes, [5; 64]);
/// assert!(matches!(store.read(2, key, &mut bytes), Err(SlotError::Missing)));
/// # Ok::<(), SlotError>(())
/// ```
pub trait SlotStore: Send + Sync {
    /// Returns the number of slots.
    fn slots(&self) -> usize;

    /// Returns the bytes of a content.
    fn block_bytes(&self) -> usize;

    /// Writes a content over the slot's earlier one.
    ///
    /// # Errors
    /// Any: the slot has no content then.
    fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError>;

    /// Writes several contents to different slots. Returns the outcome of each, in order. The default writes them one
    /// after the other.
    fn write_all(&self, writes: &[SlotWrite<'_>]) -> Vec<Result<(), SlotError>> {
        writes.iter().map(|write| self.write(write)).collect()
    }

    /// Reads a content and checks it.
    ///
    /// # Errors
    /// [`Missing`](SlotError::Missing) or [`Corrupt`](SlotError::Corrupt) if the slot does not hold the content as it was
    /// written; [`Io`](SlotError::Io). The buffer has any bytes then.
    fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError>;

    /// Appends the contents that the slots of a range have kept from an earlier process. The default has none.
    ///
    /// # Errors
    /// [`Io`](SlotError::Io).
    fn find(&self, slots: Range<u32>, found: &mut Vec<FoundSlot>) -> Result<(), SlotError> {
        let _ = (slots, found);
        Ok(())
    }

    /// Returns the present epoch: the number of resets, with those of earlier processes if contents outlive a process.
    /// Contents of other epochs are neither written nor read. The default is for a store whose contents do not outlive it.
    fn epoch(&self) -> u64 {
        0
    }

    /// Begins an epoch, unless the store is in it or in a later one. It is called again for the same epoch after an error,
    /// and may be called by several threads at once. Returns when that epoch or a later one is on the medium: contents of earlier epochs are missing, in later
    /// processes too, also if they are written from now on. The default is for a store whose contents do not outlive the
    /// process: the cache itself asks for no content from before a reset.
    ///
    /// # Errors
    /// [`Io`](SlotError::Io): this process reads no earlier content, and nothing is written until the reset is on the
    /// medium; a later process may find earlier contents unless that happens.
    fn reset(&self, epoch: u64) -> Result<(), SlotError> {
        let _ = epoch;
        Ok(())
    }
}
