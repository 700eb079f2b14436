//! `NotedEvents`: copies of the events that wait for the sink.
//!
//! The event order notes an event under its lock, and a thread emits it outside. The hashes and tokens of all
//! events are in two vectors, so that noting allocates memory only to grow them.
//!
//! Invariant: the emitted events are the noted ones, in the same order.

use std::mem;

use crate::groups::LayerGroup;
use crate::id::{GroupId, Medium};
use crate::prefix::kv_event::{EventSink, KvEvent};
use crate::prefix::{BlockHash, ExtraKeys};
use crate::sync::PlainArc;
use crate::trace::TraceEvent;

/// Bytes of memory that are kept for the next events.
const KEPT_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct NotedEvents {
    entries: Vec<NotedEvent>,
    hashes: Vec<BlockHash>,
    tokens: Vec<u32>,
    /// Events at the beginning that were emitted already.
    emitted: usize,
    /// Dropped events that the first of these, which clears the view of the sink, makes up for.
    pub(crate) dropped_before: u64,
}

/// An event, and the number of its elements in the vectors.
enum NotedEvent {
    Stored {
        group: GroupId,
        parent: Option<BlockHash>,
        hashes: usize,
        tokens: usize,
        extra: Option<PlainArc<ExtraKeys>>,
        index: usize,
        medium: Medium,
    },
    Removed {
        group: GroupId,
        hashes: usize,
        medium: Medium,
    },
    Cleared,
}

/// Blocks that can be matched from now on: a [`KvEvent::BlockStored`], with its keys to keep.
pub(crate) struct StoredBlocks<'a> {
    pub(crate) group: GroupId,
    pub(crate) hashes: &'a [BlockHash],
    pub(crate) parent: Option<BlockHash>,
    pub(crate) tokens: &'a [u32],
    pub(crate) extra: Option<&'a PlainArc<ExtraKeys>>,
    pub(crate) index: usize,
    pub(crate) medium: Medium,
}

impl NotedEvents {
    pub(crate) fn push_stored(&mut self, stored: &StoredBlocks<'_>) {
        let StoredBlocks { group, hashes, parent, tokens, extra, index, medium } = *stored;
        self.hashes.extend_from_slice(hashes);
        self.tokens.extend_from_slice(tokens);
        let (hashes, tokens, extra) = (hashes.len(), tokens.len(), extra.cloned());
        let stored = NotedEvent::Stored { group, parent, hashes, tokens, extra, index, medium };
        self.entries.push(stored);
    }

    pub(crate) fn push_removed(&mut self, group: GroupId, medium: Medium, hashes: &[BlockHash]) {
        self.hashes.extend_from_slice(hashes);
        self.entries.push(NotedEvent::Removed { group, hashes: hashes.len(), medium });
    }

    pub(crate) fn push_cleared(&mut self) {
        self.entries.push(NotedEvent::Cleared);
    }

    /// Emits each event to the sink of a cache with these groups. A panic of the sink ends the call;
    /// [`pending`](Self::pending) then counts that event and all after it.
    pub(crate) fn emit(&mut self, sink: &dyn EventSink, groups: &[LayerGroup]) {
        let Self { entries, hashes, tokens, emitted, dropped_before } = self;
        let (mut hashes, mut tokens) = (&hashes[..], &tokens[..]);
        for entry in entries {
            let event = match entry {
                NotedEvent::Stored {
                    group,
                    parent,
                    hashes: blocks,
                    tokens: of_blocks,
                    extra,
                    index,
                    medium,
                } => KvEvent::BlockStored {
                    hashes: next(&mut hashes, *blocks),
                    parent: *parent,
                    tokens: next(&mut tokens, *of_blocks),
                    block_size: groups[group.index()].block_size(),
                    extra: extra.as_deref(),
                    index: *index,
                    group: *group,
                    kind: groups[group.index()],
                    medium: *medium,
                },
                NotedEvent::Removed { group, hashes: blocks, medium } => KvEvent::BlockRemoved {
                    hashes: next(&mut hashes, *blocks),
                    group: *group,
                    kind: groups[group.index()],
                    medium: *medium,
                },
                NotedEvent::Cleared => {
                    trace_loss(mem::take(dropped_before));
                    KvEvent::AllBlocksCleared
                }
            };
            sink.on_event(&event);
            *emitted += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of events that were noted and not emitted.
    pub(crate) fn pending(&self) -> usize {
        self.entries.len() - self.emitted
    }

    /// Returns the number of noted events plus the number of their blocks.
    #[inline]
    pub(crate) fn weight(&self) -> usize {
        self.entries.len() + self.hashes.len()
    }

    /// Removes all events. Keeps the memory unless it is large.
    pub(crate) fn clear(&mut self) {
        let held = self.entries.capacity() * size_of::<NotedEvent>()
            + self.hashes.capacity() * size_of::<BlockHash>()
            + self.tokens.capacity() * size_of::<u32>();
        if held > KEPT_BYTES {
            *self = Self::default();
            return;
        }
        self.dropped_before = 0;
        self.entries.clear();
        self.hashes.clear();
        self.tokens.clear();
        self.emitted = 0;
    }
}

/// Emits the trace event of a loss, if events were dropped. The caller holds no lock.
#[cold]
fn trace_loss(events: u64) {
    if events > 0 {
        TraceEvent::EventsDropped { events }.emit();
    }
}

/// Splits the first `len` elements off `rest`.
fn next<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
    rest.split_off(..len).expect("what an entry reports is noted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::sync::Mutex;

    /// Records each event, and panics at the event of that number.
    struct Notebook(Mutex<Vec<String>>, usize);

    impl EventSink for Notebook {
        fn on_event(&self, event: &KvEvent<'_>) {
            assert!(self.0.lock().len() != self.1, "on purpose");
            self.0.lock().push(format!("{event:?}"));
        }
    }

    const GROUPS: [LayerGroup; 2] = [
        LayerGroup::Full { block_size: 4 },
        LayerGroup::SlidingWindow { block_size: 2, window: 9 },
    ];

    fn push_all(noted: &mut NotedEvents) -> Vec<String> {
        let hashes: Vec<_> = (1..=3).map(BlockHash::from_u128).collect();
        let extra = PlainArc::new(ExtraKeys::default().salt("tenant"));
        let stored = StoredBlocks {
            group: GroupId(1),
            hashes: &hashes[..2],
            parent: Some(hashes[2]),
            tokens: &[1, 2, 3, 4],
            extra: Some(&extra),
            index: 7,
            medium: Medium::Device,
        };
        noted.push_stored(&stored);
        noted.push_cleared();
        noted.push_removed(GroupId(0), Medium::Device, &hashes);
        let in_tier = StoredBlocks { parent: None, tokens: &[], medium: Medium::Disk, ..stored };
        noted.push_stored(&StoredBlocks { extra: None, ..in_tier });
        let StoredBlocks { group, hashes: two, parent, tokens, index, .. } = stored;
        let [full, kind] = GROUPS;
        let of = |parent, tokens, extra, medium| KvEvent::BlockStored {
            hashes: two,
            parent,
            tokens,
            block_size: 2,
            extra,
            index,
            group,
            kind,
            medium,
        };
        let (group, medium) = (GroupId(0), Medium::Device);
        let removed = KvEvent::BlockRemoved { hashes: &hashes, group, kind: full, medium };
        let first = of(parent, tokens, Some(&*extra), medium);
        let last = of(None, &[], None, Medium::Disk);
        [first, KvEvent::AllBlocksCleared, removed, last].map(|event| format!("{event:?}")).into()
    }

    #[test]
    fn noted_events_are_emitted_in_order_and_memory_is_reused() {
        let mut noted = NotedEvents::default();
        for _ in 0..2 {
            let expected = push_all(&mut noted);
            assert_eq!((noted.pending(), noted.weight()), (4, 4 + 7));
            let sink = Notebook(Mutex::new(Vec::new()), usize::MAX);
            noted.emit(&sink, &GROUPS);
            assert_eq!(*sink.0.lock(), expected);
            assert_eq!(noted.pending(), 0);
            noted.clear();
            assert!(noted.is_empty() && noted.entries.capacity() > 0);
        }
    }

    #[test]
    fn events_from_the_one_that_panicked_on_are_pending() {
        for panics_at in 0..4 {
            let mut noted = NotedEvents::default();
            push_all(&mut noted);
            let sink = Notebook(Mutex::new(Vec::new()), panics_at);
            let emitted = catch_unwind(AssertUnwindSafe(|| noted.emit(&sink, &GROUPS)));
            assert!(emitted.is_err());
            assert_eq!(noted.pending(), 4 - panics_at);
        }
    }
}
