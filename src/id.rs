//! `BlockId`, `SeqId`, `Worker` and `GroupId`: newtypes for ids, which cannot be confused.
//!
//! A block id is a number below the pool's number of blocks, and is the row of the engine's KV tensor. The
//! caller chooses sequence ids; this module assigns none.

use std::fmt;

/// One KV-cache block: the index of its row in the engine's KV tensor.
///
/// It has the layout of a `u32`. An engine may read ids in place as `u32` by a cast of its own, for example with
/// bytemuck's `TransparentWrapper`. This crate has no `unsafe` and so no such cast. It writes ids into slices of
/// `i32`, `u32` or `i64`: see [`export`](crate::export).
///
/// ```
/// use paged_kv::BlockId;
///
/// assert_eq!(BlockId(7).to_string(), "B7");
/// assert!(BlockId(7) < BlockId(8));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
#[repr(transparent)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Returns the id as an index into an array with one element a block.
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "B{}", self.0)
    }
}

/// One sequence (request), named by the caller. It has the layout of a `u64`.
///
/// ```
/// use paged_kv::SeqId;
///
/// assert_eq!(SeqId(7).to_string(), "S7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
#[repr(transparent)]
pub struct SeqId(pub u64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{}", self.0)
    }
}

/// A part of the caller, for example a scheduler thread. It evicts only its own sequences, and is informed of
/// their evictions. The caller numbers its workers.
///
/// ```
/// use paged_kv::Worker;
///
/// assert_eq!(Worker(7).to_string(), "worker 7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
#[repr(transparent)]
pub struct Worker(pub u32);

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

/// The number of a group of layers: its place in the groups that
/// [`PagedKvCacheBuilder::groups`](crate::PagedKvCacheBuilder::groups) was given. A cache without groups has group 0
/// alone, of full attention.
///
/// ```
/// assert_eq!(paged_kv::GroupId(1).to_string(), "group 1");
/// assert_eq!(paged_kv::GroupId::default(), paged_kv::GroupId(0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
#[repr(transparent)]
pub struct GroupId(pub u8);

impl GroupId {
    #[inline]
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// The memory that holds a content.
///
/// ```
/// use paged_kv::Medium;
///
/// assert_eq!([Medium::Device, Medium::Host, Medium::Disk].map(|m| m.to_string()), ["device", "host", "disk"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Medium {
    /// Memory of the device: the blocks of the cache.
    Device,
    /// Memory of the host.
    Host,
    /// A file.
    Disk,
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
        })
    }
}

/// The number of a tier, in the order in which the builder was given them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TierId(pub u8);

/// A slot of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TierSlot {
    /// The tier.
    pub tier: TierId,
    /// The number of the slot, below the tier's number of slots.
    pub slot: u32,
}

/// The number of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketNumber(pub u64);

/// Distinguishes a sequence from every other that was or will be under its id.
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let first = cache.admit(SeqId(1), &[1, 2, 3])?.epoch;
/// cache.free(SeqId(1))?;
/// assert_ne!(cache.admit(SeqId(1), &[1, 2, 3])?.epoch, first);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
#[repr(transparent)]
pub struct AdmissionEpoch(pub(crate) u64);

/// Identifies a sequence of the cache's map among all that had or will have its id.
pub(crate) type Identity = (SeqId, AdmissionEpoch);
