//! The audit of the levels: the notes, the queues and the values that other threads read agree.

use std::ops::Range;

use super::{Levels, NEVER, Side};
use crate::id::BlockId;
use crate::pool::word::BlockWords;
use crate::sync::Ordering;

impl Levels {
    /// Returns the first fault found. `ids` are those of all blocks. The caller holds all claims.
    pub(in crate::pool) fn audit(
        &self,
        ids: Range<u32>,
        words: &BlockWords,
    ) -> std::result::Result<(), String> {
        let queues = self.queues.lock();
        queues.audit()?;
        let shown = self.shown.entries.each_ref().map(|entries| entries.load(Ordering::Relaxed));
        let count = |side: Side| side.queues().map(|queue| queues.len(queue) as u64).sum::<u64>();
        if shown != Side::BOTH.map(count) {
            return Err(format!("the levels show {shown:?} entries, and have others"));
        }
        let earliest = queues.deadlines.first().map_or(NEVER, |(time, _)| time);
        if self.shown.earliest.load(Ordering::Relaxed) != earliest {
            return Err(format!("the levels do not show their first deadline, {earliest}"));
        }
        let is_left_over = |&id: &BlockId| {
            let state = words.state(id);
            self.note(id).is_some() && !state.is_cached() && state.owners() == 0
        };
        if let Some(id) = ids.map(BlockId).find(is_left_over) {
            return Err(format!("{id} has a level and no content"));
        }
        Ok(())
    }
}
