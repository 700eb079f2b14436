//! `KvEvent` and `EventSink`: the events of the cached contents, and the trait that takes them.
//!
//! An event borrows its hashes and tokens.

use super::{BlockHash, ExtraKeys};
use crate::groups::LayerGroup;
use crate::id::{GroupId, Medium};

/// A change of the contents that an admission would find cached.
///
/// ```
/// use paged_kv::{BlockHash, GroupId, KvEvent, LayerGroup, Medium};
///
/// let (hashes, kind) = ([BlockHash::from_u128(7)], LayerGroup::Full { block_size: 16 });
/// let (group, medium) = (GroupId(0), Medium::Device);
/// let event = KvEvent::BlockRemoved { hashes: &hashes, group, kind, medium };
/// assert_eq!(event.hashes(), hashes);
/// assert!(KvEvent::AllBlocksCleared.hashes().is_empty());
/// ```
///
/// A content is a hash and a group: equal tokens have equal hashes in all [groups](crate::LayerGroup) of layers, so a
/// consumer keeps the contents of each group apart. A block of several units of a hash has the hash of the last one.
/// A cache without groups has group 0 alone, of full attention.
///
/// A content is in one or several [media](Medium): on the device, and in [tiers](crate::Tier) below it. Each event is of
/// one medium, and **a consumer keeps the contents of each medium apart**: a content that leaves a tier may still be on the
/// device. Two tiers of one medium count as one: a content in both is stored once, and removed when the last of them
/// loses it. Events of tiers have hashes only: no tokens, no parent, no extra keys, and index 0. A content in a tier
/// depends on no other one there.
///
/// With the feature `serde` it can be written, with its kind as `type`. The tokens and extra keys are in it, the salt
/// included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "type"))]
#[non_exhaustive]
pub enum KvEvent<'a> {
    /// Contents became matchable: consecutive blocks of one prompt.
    BlockStored {
        /// Their hashes, in order.
        hashes: &'a [BlockHash],
        /// The content before the first of them, which was announced earlier in the same group. `None` at the
        /// beginning of a prompt, and in groups of windows, chunks and states: no content there needs another one.
        parent: Option<BlockHash>,
        /// Their tokens, `block_size` for each; none in a tier. A content on the device of which the cache knows only the hash is not
        /// announced, nor are those that follow it. A later request that knows their tokens announces them.
        tokens: &'a [u32],
        /// Tokens a block.
        block_size: usize,
        /// The other things that they depend on: adapter, media, salt.
        extra: Option<&'a ExtraKeys>,
        /// Blocks of the prompt before the first of them.
        index: usize,
        /// Their group.
        group: GroupId,
        /// The kind of the group.
        kind: LayerGroup,
        /// The memory that holds them.
        medium: Medium,
    },
    /// Contents of a medium cannot be matched there any more. On the device, the contents that followed one of them were
    /// removed before it, or are in the same event.
    BlockRemoved {
        /// Their hashes, children before parents.
        hashes: &'a [BlockHash],
        /// Their group.
        group: GroupId,
        /// The kind of the group.
        kind: LayerGroup,
        /// The memory that held them.
        medium: Medium,
    },
    /// No content that was announced can be matched any more, in no medium.
    AllBlocksCleared,
}

impl<'a> KvEvent<'a> {
    /// Returns the hashes of the event's contents.
    ///
    /// ```
    /// assert!(paged_kv::KvEvent::AllBlocksCleared.hashes().is_empty());
    /// ```
    pub fn hashes(&self) -> &'a [BlockHash] {
        match *self {
            Self::BlockStored { hashes, .. } | Self::BlockRemoved { hashes, .. } => hashes,
            Self::AllBlocksCleared => &[],
        }
    }

    /// Returns the group of the event's contents, and its kind. `None` for an event of all groups.
    ///
    /// ```
    /// assert_eq!(paged_kv::KvEvent::AllBlocksCleared.group(), None);
    /// ```
    pub fn group(&self) -> Option<(GroupId, LayerGroup)> {
        match *self {
            Self::BlockStored { group, kind, .. } | Self::BlockRemoved { group, kind, .. } => {
                Some((group, kind))
            }
            Self::AllBlocksCleared => None,
        }
    }

    /// Returns the memory of the event's contents. `None` for an event of all media.
    ///
    /// ```
    /// assert_eq!(paged_kv::KvEvent::AllBlocksCleared.medium(), None);
    /// ```
    pub fn medium(&self) -> Option<Medium> {
        match *self {
            Self::BlockStored { medium, .. } | Self::BlockRemoved { medium, .. } => Some(medium),
            Self::AllBlocksCleared => None,
        }
    }
}

/// Takes the events of a cache, in an order that is correct for every content.
///
/// The threads that commit, allocate and reset call the sink, one thread at a time, with no lock of the cache
/// held. Mostly they do so before their operation returns. A thread that finds another one in the sink leaves
/// its event to that thread and continues. So a sink should be brief: it delays one thread, and later events.
///
/// A sink may call the cache. The events of that call are emitted after the present one.
///
/// A panic of the sink fails no operation. The panic is caught, after the panic hook has reported it. The
/// remaining events are dropped. The sink immediately gets [`AllBlocksCleared`](KvEvent::AllBlocksCleared) and
/// then every content that can be matched. If it panics again, it is called again after 4, 8, .. and at most
/// 1,024 further changes. The same happens if a sink is so slow that more events wait for it than there are
/// contents to match. [`CacheStats::events_dropped`](crate::CacheStats::events_dropped) counts both losses.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use std::sync::Arc;
///
/// use paged_kv::{EventSink, KvEvent, PagedKvCache, SeqId};
///
/// #[derive(Default)]
/// struct Stored(AtomicUsize);
///
/// impl EventSink for Stored {
///     fn on_event(&self, event: &KvEvent<'_>) {
///         if let KvEvent::BlockStored { hashes, .. } = event {
///             self.0.fetch_add(hashes.len(), Ordering::Relaxed);
///         }
///     }
/// }
///
/// let sink = Arc::new(Stored::default());
/// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
/// let cache = builder.event_sink(sink.clone()).build()?;
/// cache.admit(SeqId(1), &[7; 9])?;
/// cache.commit(SeqId(1), 9)?;
/// assert_eq!(sink.0.load(Ordering::Relaxed), 2);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub trait EventSink: Send + Sync {
    /// Takes one event.
    ///
    /// ```
    /// use paged_kv::{EventSink, KvEvent};
    ///
    /// struct Deaf;
    ///
    /// impl EventSink for Deaf {
    ///     fn on_event(&self, _: &KvEvent<'_>) {}
    /// }
    ///
    /// Deaf.on_event(&KvEvent::AllBlocksCleared);
    /// ```
    fn on_event(&self, event: &KvEvent<'_>);
}
