//! `Taken`: ends the announced contents of blocks that an allocation takes, or that are uncached.

use super::{EventOrder, MOST_BLOCKS, State};
use crate::id::BlockId;
use crate::pool::TakeObserver;
use crate::sync::{Ordering, PlainArc};

/// An event order as an observer of the pool.
pub(crate) struct Taken(pub(crate) PlainArc<EventOrder>);

impl TakeObserver for Taken {
    #[inline]
    fn taken(&self, ids: &[BlockId]) {
        let Self(event_order) = self;
        // Relaxed: see `Announcing::store`.
        let may_be_primary =
            |id: &BlockId| event_order.primaries[id.index()].load(Ordering::Relaxed);
        if let Some(first) = ids.iter().position(may_be_primary) {
            event_order.end(&ids[first..], &mut || ());
        }
    }

    fn ending(&self, ids: &[BlockId], end: &mut dyn FnMut()) {
        self.0.end(ids, end);
    }
}

impl EventOrder {
    /// Ends the contents of `ids`, blocks that have a new owner or are uncached by `change`.
    fn end(self: &PlainArc<Self>, ids: &[BlockId], change: &mut dyn FnMut()) {
        let mut state = self.state.lock();
        change();
        let State { tree, removed, delivery, .. } = &mut *state;
        for &id in ids {
            // Relaxed: see `Announcing::store`.
            if self.primaries[id.index()].load(Ordering::Relaxed) {
                self.primaries[id.index()].store(false, Ordering::Relaxed);
                tree.remove(id, removed);
            }
        }
        self.set_tokenless(tree.num_tokenless());
        for part in removed.chunks(MOST_BLOCKS) {
            delivery.note_removed(part);
        }
        removed.clear();
        let due = self.due(&mut state);
        drop(state);
        self.deliver(due);
    }
}
