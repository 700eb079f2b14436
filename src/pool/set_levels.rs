//! The levels of contents, as the pool's callers set and end them. Without effect in pools without levels.

use super::free_list::NewLevel;
use super::{Blocks, LevelNote, Levels};
use crate::id::BlockId;

impl Blocks {
    /// Returns the levels of contents, if the pool has them.
    #[inline]
    pub(crate) fn levels(&self) -> Option<&Levels> {
        self.free.levels()
    }

    /// Notes the levels of those of the caller's blocks that are cached, unless the contents were dropped after reset number
    /// `resets`. They hold from the next release on.
    pub(crate) fn note_levels(
        &self,
        notes: impl Iterator<Item = (BlockId, LevelNote)>,
        resets: u64,
    ) {
        if let Some(levels) = self.levels() {
            levels.set(notes, resets, &self.words);
        }
    }

    /// Gives cached contents levels, which were found after reset number `resets`. Returns how many were still cached.
    pub(crate) fn set_levels(&self, found: &[NewLevel], resets: u64) -> usize {
        let (set, has_released) = self.free.set_levels(found, resets, &self.words);
        if has_released {
            self.announce_room();
        }
        set
    }

    /// Gives the content of `to`, a block of the caller, the level that it has in `from`.
    pub(crate) fn copy_level(&self, from: BlockId, to: BlockId) {
        if let Some(levels) = self.levels() {
            levels.copy(from, to, &self.words);
        }
    }

    /// Begins a new generation with `advance`, which returns the number of resets, and removes the levels of all contents
    /// before any content of the new generation can get one. Those of idle blocks are reclaimed first from then on.
    pub(crate) fn reset_levels(&self, advance: impl FnOnce() -> u64) -> u64 {
        match self.levels() {
            Some(levels) => levels.reset(advance, &self.words),
            None => advance(),
        }
    }

    /// Removes the levels of blocks whose contents their owner has ended.
    pub(crate) fn clear_levels(&self, ids: &[BlockId]) {
        if let Some(levels) = self.levels() {
            levels.clear(ids);
        }
    }
}
