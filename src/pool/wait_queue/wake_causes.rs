//! The changes of a pool that wake a waiter: the slow path of each. The fast path is in
//! [`announce`](crate::pool::announce) and loads `demand` once.
//!
//! Each function reads the room, after a fence if blocks came back to it, and the queue decides.

use crate::id::SeqId;
use crate::pool::Blocks;
use crate::sync::{Ordering, fence};

impl Blocks {
    /// Returns the room, counting every block that was released under a claim before this thread took that
    /// claim.
    pub(super) fn room_after_all_claims(&self) -> usize {
        self.see_all_changes();
        self.free.room()
    }

    /// Makes visible the changes made under a claim before this thread took it, and changes of a thread that
    /// passed its fence before it could see this thread's demand.
    pub(super) fn see_all_changes(&self) {
        self.free.meet_all_claims();
        // SeqCst: pairs with the fence in `wake_next`, and with that of a publication. Of two threads that
        // pass one of these fences, the second counts all changes that both have seen.
        // Loom: a_release_wakes_a_waiter_that_concurrently_falls_asleep, a_publication_wakes_a_prompt_that_goes_to_sleep.
        fence(Ordering::SeqCst);
    }

    /// Wakes the waiter in turn, if there is room for it. Without room, it wakes a growing sequence to ask
    /// again: the released block may have been the last that others shared, so that no copy is needed.
    #[cold]
    pub(in crate::pool) fn wake_next(&self) {
        // SeqCst: two threads that each released a part of the need; the second to arrive here counts both.
        // Loom: two_releases_that_suffice_together_wake_the_waiter.
        fence(Ordering::SeqCst);
        self.waiters.call_after_release(self.free.room());
    }

    /// Wakes the waiter in turn, if it is a prompt or has room: the matchable contents have changed. No fence,
    /// because no block has come back to room.
    #[cold]
    pub(in crate::pool) fn wake_for_contents(&self) {
        self.waiters.call_after_contents(self.free.room());
    }

    /// Does the same, if fewer contents can be matched and a waiter needs less then.
    #[cold]
    pub(in crate::pool) fn wake_for_loss(&self) {
        if self.waiters.may_gain_by_loss() {
            self.wake_for_contents();
        }
    }

    /// Wakes the waiter in turn, if it is the sequence of that id or has room.
    #[cold]
    pub(in crate::pool) fn wake_for_change_of(&self, id: SeqId) {
        self.waiters.call_after_change_of(id, self.free.room());
    }
}
