//! `Taken`: ends the announced contents of blocks that an allocation takes, or that are uncached.

use super::{EventOrder, MOST_BLOCKS, State};
use crate::id::{BlockId, GroupId, Medium};
use crate::pool::TakeObserver;
use crate::sync::{MutexGuard, Ordering, PlainArc};

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
            event_order.end(event_order.state.lock(), &ids[first..]);
        }
    }

    fn ending(&self, end: &mut dyn FnMut() -> Vec<BlockId>) {
        let state = self.0.state.lock();
        let ids = end();
        self.0.end(state, &ids);
    }
}

impl EventOrder {
    /// Ends the contents of `ids`, blocks that have a new owner or are uncached.
    fn end(self: &PlainArc<Self>, mut state: MutexGuard<'_, State>, ids: &[BlockId]) {
        let State { tree, removed, delivery, .. } = &mut *state;
        for &id in ids {
            // Relaxed: see `Announcing::store`.
            if self.primaries[id.index()].load(Ordering::Relaxed) {
                self.primaries[id.index()].store(false, Ordering::Relaxed);
                tree.remove(id, &mut removed[tree.group(id).index()]);
            }
        }
        self.set_tokenless(tree.num_tokenless());
        for (group, removed) in (0..).zip(removed) {
            for part in removed.chunks(MOST_BLOCKS) {
                delivery.note_removed(GroupId(group), Medium::Device, part);
            }
            removed.clear();
        }
        let due = self.due(&mut state);
        drop(state);
        self.deliver(due);
    }
}
