//! Truncation of all groups, and the lengths that windows and states rule out.
//!
//! A check of all groups comes before any change.

use super::{GroupCopy, SequenceGroups, Tables};
use crate::error::{PagedKvError, Result};
use crate::groups::LayerGroup;
use crate::id::GroupId;
use crate::sequence::Sequence;

impl Sequence {
    /// Truncates every group, or none. `undoes` says that the tokens after `num_tokens` were never written, so that
    /// the newest state is the one at `num_tokens`.
    pub(in crate::sequence) fn truncate_groups(
        &mut self,
        num_tokens: usize,
        undoes: bool,
    ) -> Result<()> {
        self.check_truncate_groups(num_tokens, undoes)?;
        self.change_tables(|tables| tables.truncate(num_tokens));
        Ok(())
    }

    /// Returns the refusal of a truncation of a sequence with groups, if there is one now.
    pub(crate) fn check_cut(&self, num_tokens: usize) -> Result<()> {
        self.check_truncate_groups(num_tokens, false)
    }

    /// Returns the refusal of a truncation of all groups, if there is one now.
    pub(in crate::sequence) fn check_truncate_groups(
        &self,
        num_tokens: usize,
        undoes: bool,
    ) -> Result<()> {
        let groups = self.groups.as_ref().expect("only a sequence with groups comes here");
        for (table, (id, kind)) in self.group_tables().zip(groups.kinds()) {
            match kind.is_state() {
                true if undoes => {}
                true => groups.check_state(table, id, num_tokens)?,
                false => table.check_window(id, kind, num_tokens)?,
            }
            table.check_own_truncate(num_tokens)?;
        }
        Ok(())
    }

    /// Refuses a length that needs blocks that a window has left.
    fn check_window(&self, group: GroupId, kind: LayerGroup, num_tokens: usize) -> Result<()> {
        if kind.is_full() {
            return Ok(());
        }
        let end = num_tokens.div_ceil(kind.block_size());
        let first = kind.first_needed(num_tokens) / kind.block_size();
        let resident = self.first_resident(kind.sink_blocks().min(end));
        if first.max(kind.sink_blocks()) >= resident.min(end) {
            return Ok(());
        }
        let shortest = kind.length_beyond(resident);
        Err(PagedKvError::WindowReleased { group, requested: num_tokens, shortest })
    }

    /// Returns true if a group of states has the state after exactly `num_tokens` tokens, at the end of a block.
    pub(crate) fn has_state_at(&self, group: GroupId, num_tokens: usize) -> bool {
        let (Some(groups), Ok(table)) = (&self.groups, self.of_group(group)) else {
            return false;
        };
        let ends = [self.num_tokens, groups.states_before[group.index()]];
        num_tokens > 0 && num_tokens.is_multiple_of(table.block_size) && ends.contains(&num_tokens)
    }

    /// Trims the full groups; see [`apply_streaming_llm`](Self::apply_streaming_llm). Returns the tokens of group 0, or
    /// of the first full group.
    pub(in crate::sequence) fn trim_groups(
        &mut self,
        sink_tokens: usize,
        window_tokens: usize,
    ) -> Result<usize> {
        self.change_tables(|tables| {
            let mut trimmed = None;
            for (_, _, table) in tables.each().filter(|(_, kind, _)| kind.is_full()) {
                let tokens = table.apply_streaming_llm(sink_tokens, window_tokens)?;
                trimmed.get_or_insert(tokens);
            }
            tables.forget_needless_copies();
            Ok(trimmed.unwrap_or(0))
        })
    }
}

impl SequenceGroups {
    /// Refuses a length at which there is no state.
    fn check_state(&self, table: &Sequence, group: GroupId, num_tokens: usize) -> Result<()> {
        let length = table.num_tokens;
        let before = self.states_before[group.index()];
        let is_in_last = num_tokens.div_ceil(table.block_size) == length.div_ceil(table.block_size);
        let rewinds = is_in_last && length - num_tokens <= self.layout.max_rewind();
        if num_tokens == 0 || num_tokens == length || rewinds {
            return Ok(());
        }
        let shortest = if before > 0 { before } else { length };
        if before > 0 && num_tokens == before {
            return Ok(());
        }
        Err(PagedKvError::WindowReleased { group, requested: num_tokens, shortest })
    }
}

impl Tables<'_> {
    /// Forgets pending copies to blocks that are not in the table any more: other sequences may own these next. A
    /// block that is not in the table may be the source of a later copy. Then the copy to it is needed, too.
    pub(super) fn forget_needless_copies(&mut self) {
        let mut later = std::mem::take(&mut self.groups.pending);
        let mut needed: Vec<GroupCopy> = Vec::with_capacity(later.len());
        while let Some(copy) = later.pop() {
            let is_source = needed.iter().any(|later| later.src == copy.dst);
            if is_source || self.table_mut(copy.group).block_ids().contains(&copy.dst) {
                needed.push(copy);
            }
        }
        needed.reverse();
        self.groups.pending = needed;
    }

    fn truncate(&mut self, num_tokens: usize) {
        for (_, _, table) in self.each() {
            let truncated = table.truncate(num_tokens);
            truncated.expect("each group was checked before the first was changed");
        }
        for before in self.groups.states_before.iter_mut().filter(|before| **before >= num_tokens) {
            *before = 0;
        }
        self.forget_needless_copies();
        let Tables { first, groups } = self;
        groups.note_releases(first);
        self.refill_reserve();
    }
}
