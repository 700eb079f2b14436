//! Is there room, and which waiter is woken when there is more? What a pool says of its room as a whole.
//!
//! A change that may serve a waiter is announced here. While no request waits, an announcement costs one
//! load of a word that no thread writes; without the feature `async`, nothing.

use super::Blocks;
#[cfg(feature = "async")]
use super::waiters::Waiters;
use crate::id::SeqId;
#[cfg(feature = "async")]
use crate::sync::PlainArc;

impl Blocks {
    /// Wakes the waiter in turn, if there is room for it. Called after every claim under which
    /// blocks came back to room, outside of it.
    #[inline]
    pub(crate) fn announce_room(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_next();
        }
    }

    /// Has the waiters look again that match contents, after a change of what can be matched.
    #[inline]
    pub(crate) fn announce_publication(&self) {
        // SeqCst: of this thread and a prompt that goes to sleep one sees the other: pairs with the fence
        // in `see_all_changes`. Loom: a_publication_wakes_a_prompt_that_goes_to_sleep.
        #[cfg(feature = "async")]
        crate::sync::fence(crate::sync::Ordering::SeqCst);
        self.announce_contents();
    }

    /// Has the waiters look again that match contents. Called after a claim under which contents were
    /// matched.
    #[inline]
    pub(crate) fn announce_contents(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_contents();
        }
    }

    /// The same, after a claim under which contents were reclaimed.
    #[inline]
    pub(crate) fn announce_loss(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_loss();
        }
    }

    /// Has the sequence of that id look again, if it waits to grow. Called after its lock was released.
    #[inline]
    #[cfg_attr(not(feature = "async"), expect(unused_variables))]
    pub(crate) fn announce_change_of(&self, id: SeqId) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_change_of(id);
        }
    }

    /// True if a request waits for room.
    #[inline]
    pub(crate) fn is_waited_for(&self) -> bool {
        #[cfg(feature = "async")]
        return self.waiters.demand() != 0;
        #[cfg(not(feature = "async"))]
        false
    }

    #[cfg(feature = "async")]
    pub(crate) fn waiters(&self) -> &PlainArc<Waiters> {
        &self.waiters
    }

    /// Blocks that can be taken now, at some moment near the call.
    pub(crate) fn room(&self) -> usize {
        self.free.room()
    }

    /// Blocks that can be handed out.
    #[cfg(feature = "async")]
    pub(crate) fn total(&self) -> usize {
        self.free.total()
    }
}
