//! `LevelledRun`: the release of several blocks, some of which have levels, under one lock.

use super::super::{IdleLists, IdleShard};
use super::{LevelQueues, Levels};
use crate::pool::word::{BlockWords, IdleBlock, ReleasedIdle};
use crate::sync::MutexGuard;

/// Adds entries for blocks that become idle one after the other. It takes the lock with the first of them, and gives it back
/// at the end of the run.
pub(crate) struct LevelledRun<'a> {
    levels: &'a Levels,
    /// The queues, and the time at which they were locked.
    locked: Option<(MutexGuard<'a, LevelQueues>, u64)>,
}

impl<'a> LevelledRun<'a> {
    pub(in crate::pool) fn new(levels: &'a Levels) -> Self {
        Self { levels, locked: None }
    }

    /// Adds an entry for a block that became idle, unless the block was used since: then its entry may be that of a later
    /// release by another thread. Returns false if its content has the default level.
    #[inline]
    pub(super) fn push(&mut self, idle: IdleBlock, words: &BlockWords) -> bool {
        self.levels.note(idle.id).is_some() && self.push_levelled(idle, words)
    }

    #[inline(never)]
    fn push_levelled(&mut self, idle: IdleBlock, words: &BlockWords) -> bool {
        let levels = self.levels;
        let lock = || (levels.queues.lock(), levels.now());
        let (queues, now) = self.locked.get_or_insert_with(lock);
        // A reset may have removed the level since.
        let Some((note, queue)) = levels.queued(idle.id) else { return false };
        // Loom: two_releases_of_a_content_with_a_level_leave_an_entry.
        if !words.view().keeps_entry(idle) {
            return true;
        }
        queues.push(words.keyed().mark_epoch(idle), queue);
        if let Some(nanos) = note.nanos() {
            let moment = queues.next_moment(*now);
            queues.deadlines.set(idle.id, moment.saturating_add(nanos));
        }
        true
    }
}

impl Drop for LevelledRun<'_> {
    fn drop(&mut self) {
        if let Some((queues, _)) = &self.locked {
            self.levels.show(queues);
        }
    }
}

impl IdleShard {
    /// Adds an entry for a block that became idle in a pool with levels.
    #[inline]
    pub(in crate::pool) fn push_in_run(
        &self,
        left: ReleasedIdle,
        run: &mut LevelledRun<'_>,
        lists: &IdleLists,
        words: &BlockWords,
    ) {
        if left.spare || !run.push(left.block, words) {
            self.push(left, lists, words);
        }
    }
}
