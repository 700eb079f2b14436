//! Is there room, and who hears of it when there is more? What a pool says of its room as a whole.
//!
//! Where nobody waits, that blocks came back costs one load of a word that nobody writes meanwhile;
//! without the feature `async`, nothing.

use super::Blocks;
#[cfg(feature = "async")]
use super::waiters::Waiters;

impl Blocks {
    /// Wakes who waits for room, if there is room for them. Called behind every claim under which
    /// blocks came back to room, outside of it.
    #[inline]
    pub(crate) fn announce_room(&self) {
        #[cfg(feature = "async")]
        if self.waiters.demand() != 0 {
            self.wake_next();
        }
    }

    /// True if somebody waits for room.
    #[inline]
    pub(crate) fn is_waited_for(&self) -> bool {
        #[cfg(feature = "async")]
        return self.waiters.demand() != 0;
        #[cfg(not(feature = "async"))]
        false
    }

    #[cfg(feature = "async")]
    pub(crate) fn waiters(&self) -> &Waiters {
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
