//! Room of the whole pool: how much there is, and the announcements of [`Blocks`] that wake a waiter
//! after a change of the room or of the cached contents.
//!
//! While no request waits, an announcement costs one load of a word that no thread writes. Without the
//! feature `async` it costs nothing.

use super::Blocks;
#[cfg(feature = "async")]
use super::wait_queue::{Class, Waiters};
use crate::id::SeqId;
#[cfg(feature = "async")]
use crate::sync::PlainArc;

impl Blocks {
    /// Wakes the waiter in turn, if there is room for it. A thread calls it after every claim under
    /// which blocks came back to room, and outside of the claim.
    #[inline]
    pub(crate) fn announce_room(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_next();
        }
    }

    /// Makes the waiters that match contents ask again, after a change of the matchable blocks.
    #[inline]
    pub(crate) fn announce_publication(&self) {
        // SeqCst: pairs with the fence in `see_all_changes`. Of this thread and a prompt that is about
        // to sleep, one sees the other.
        // Loom: a_publication_wakes_a_prompt_that_goes_to_sleep.
        #[cfg(feature = "async")]
        crate::sync::fence(crate::sync::Ordering::SeqCst);
        self.announce_contents();
    }

    /// Makes the waiters that match contents ask again. A thread calls it after a claim under which
    /// contents were matched.
    #[inline]
    pub(crate) fn announce_contents(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_contents();
        }
    }

    /// Makes the waiters ask again that may need less when contents are lost. A thread calls it after a
    /// claim under which contents were reclaimed.
    #[inline]
    pub(crate) fn announce_loss(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_loss();
        }
    }

    /// Makes the sequence of that id ask again, if it waits to grow. A thread calls it after it has
    /// released the sequence's lock.
    #[inline]
    #[cfg_attr(not(feature = "async"), expect(unused_variables))]
    pub(crate) fn announce_change_of(&self, id: SeqId) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_for_change_of(id);
        }
    }

    /// Returns true if a request waits for room.
    #[inline]
    pub(crate) fn is_waited_for(&self) -> bool {
        #[cfg(feature = "async")]
        return self.waiters.demand() != 0;
        #[cfg(not(feature = "async"))]
        false
    }

    /// Returns the numbers of waiting requests: of sequences that grow, and new ones.
    pub(crate) fn num_waiting(&self) -> (usize, usize) {
        #[cfg(feature = "async")]
        return (self.waiters.len(Class::Growing), self.waiters.len(Class::New));
        #[cfg(not(feature = "async"))]
        (0, 0)
    }

    #[cfg(feature = "async")]
    pub(crate) fn waiters(&self) -> &PlainArc<Waiters> {
        &self.waiters
    }

    /// Returns the blocks that an allocation can take, free or idle, at some moment near the call.
    pub(crate) fn room(&self) -> usize {
        self.free.room()
    }

    /// Returns the blocks that have owners, at some moment near the call. Ends no pin.
    pub(crate) fn used(&self) -> usize {
        self.free.used()
    }

    /// Returns true if at least `n` blocks can be taken, free or idle, at some moment near the call. Mostly
    /// without a count.
    #[inline]
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.free.has_room(n)
    }

    /// Returns the total number of blocks that can be allocated.
    #[cfg(feature = "async")]
    pub(crate) fn total(&self) -> usize {
        self.free.total()
    }
}
