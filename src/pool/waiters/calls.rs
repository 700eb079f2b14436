//! Which change wakes a waiter? The slow half of every announcement that a pool makes; the fast half is
//! in [`room`](crate::pool) and loads `demand` once.
//!
//! Each function counts the room after a fence, and has the queue decide.

use crate::id::SeqId;
use crate::pool::Blocks;
use crate::sync::{Ordering, fence};

impl Blocks {
    /// The room, with everything that came back under a claim before this thread held it.
    pub(super) fn room_after_all_claims(&self) -> usize {
        self.see_all_changes();
        self.free.room()
    }

    /// Sees every change that was made under a claim before this thread held that, or before a fence that
    /// did not see this thread's demand.
    pub(super) fn see_all_changes(&self) {
        self.free.meet_all_claims();
        // SeqCst: pairs with the fence in `wake_next`, and with that of a publication. Of this thread and
        // one whose claim came after one of this one's, one at least counts all that either saw.
        // Loom: a_release_wakes_who_goes_to_sleep_beside_it, a_publication_wakes_a_prompt_that_goes_to_sleep.
        fence(Ordering::SeqCst);
    }

    /// Wakes the waiter in turn, if there is room for it. If there is not, and it is a sequence that
    /// grows, it has to look: it may need no copy any more, and what came back may have been the last that
    /// others held.
    #[cold]
    pub(in crate::pool) fn wake_next(&self) {
        // SeqCst: two threads that each gave back a part of what is needed; whoever is here second
        // counts both. Loom: two_releases_that_suffice_together_wake_the_waiter.
        fence(Ordering::SeqCst);
        self.waiters.call_after_release(self.free.room());
    }

    /// Wakes the waiter in turn, if it is a prompt or has room: other contents can be matched now.
    #[cold]
    pub(in crate::pool) fn wake_for_contents(&self) {
        // SeqCst: as in `wake_next`; blocks came back too where a match failed.
        fence(Ordering::SeqCst);
        self.waiters.call_after_contents(self.free.room());
    }

    /// The same, if fewer contents can be matched and a waiter needs less then.
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
