//! What is told of the cached contents, and to whom? Events, and the sink that takes them.
//!
//! An event borrows what it tells of. It does not know batches, formats or sockets.

use crate::prefix::{BlockHash, ExtraKeys};

/// A change of what an admission would find cached.
///
/// ```
/// use paged_kv::{BlockHash, KvEvent};
///
/// let hashes = [BlockHash::from_u128(7)];
/// let event = KvEvent::BlockRemoved { hashes: &hashes };
/// assert_eq!(event.hashes(), hashes);
/// assert!(KvEvent::AllBlocksCleared.hashes().is_empty());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvEvent<'a> {
    /// Contents can be matched that could not before: consecutive blocks of one prompt.
    BlockStored {
        /// Their names, in order.
        hashes: &'a [BlockHash],
        /// What comes before the first of them, which was announced earlier. `None` at the beginning
        /// of a prompt.
        parent: Option<BlockHash>,
        /// Their tokens, `block_size` for each. Contents of which a cache knows only hashes are not told,
        /// nor is what follows them, until a request comes that knows their tokens.
        tokens: &'a [u32],
        /// Tokens a block.
        block_size: usize,
        /// What else they depend on: adapter, media, salt.
        extra: Option<&'a ExtraKeys>,
        /// Blocks of the prompt before the first of them.
        index: usize,
    },
    /// Contents cannot be matched any more; what followed one of them has been removed before it, or is
    /// in the same event.
    BlockRemoved {
        /// Their names, those behind before those in front.
        hashes: &'a [BlockHash],
    },
    /// Nothing that was announced can be matched any more.
    AllBlocksCleared,
}

impl<'a> KvEvent<'a> {
    /// The contents it tells of by name.
    ///
    /// ```
    /// assert!(paged_kv::KvEvent::AllBlocksCleared.hashes().is_empty());
    /// ```
    pub fn hashes(&self) -> &'a [BlockHash] {
        match *self {
            Self::BlockStored { hashes, .. } | Self::BlockRemoved { hashes } => hashes,
            Self::AllBlocksCleared => &[],
        }
    }
}

/// Takes the events of a cache, in one order that is true for every content.
///
/// The threads that commit, allocate and reset call it, one at a time and with no lock of the cache held:
/// before their operation returns, mostly. A thread that finds another one in the sink leaves its event
/// to that one, and goes on. So a sink should be brief: it holds up one thread, and later events.
///
/// A sink may call the cache. Events of what it does come after the one that it is told.
///
/// A sink that panics costs no operation anything: the panic is caught (the panic hook has reported it),
/// what is still to be told is dropped, and the sink is told
/// [`AllBlocksCleared`](KvEvent::AllBlocksCleared) and then everything that can be matched, at once. If it
/// panics again, it is tried again after 4, 8, .. and at most 1,024 further changes. The same, where a
/// sink is so slow that more waits for it than there is to be matched. Both are counted in
/// [`CacheStats::events_dropped`](crate::CacheStats::events_dropped).
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
    /// Something changed.
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
