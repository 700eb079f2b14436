//! A sequence in an open step: it joins the step, leaves it again, and is restored if the step is aborted.

use super::Sequence;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::in_flight::InFlightStep;

impl Sequence {
    /// Restores the state before an append and the copy on write that it made, if any. `copy` is the copy's
    /// source and its destination. The source has an owner for this sequence again; the destination is
    /// released.
    pub(crate) fn restore(
        &mut self,
        num_tokens: usize,
        copy: Option<(BlockId, BlockId)>,
    ) -> Result<()> {
        match self.groups {
            None => self.truncate(num_tokens)?,
            Some(_) => self.truncate_groups(num_tokens, true)?,
        }
        if let Some((src, dst)) = copy {
            self.table.put_back(dst, src);
        }
        // Rows that are restored later may own the last block too.
        self.tail_is_sole = false;
        if let Some(groups) = &mut self.groups {
            groups.share_first();
        }
        Ok(())
    }

    /// Joins a step: from now on blocks that this sequence releases wait for the end of that step, too.
    /// Returns the newest step before.
    #[inline]
    pub(crate) fn join_step(&mut self, step: InFlightStep) -> InFlightStep {
        let before = self.table.join_step(step);
        // The other tables have joined the same steps.
        if let Some(groups) = &mut self.groups
            && before != step
        {
            groups.set_step(before.max(step));
        }
        before
    }

    /// Undoes a [`join_step`](Self::join_step) that returned `before`. The sequence released no block since.
    /// Does as [`join_step`](Self::join_step) in a cache without groups.
    #[inline]
    pub(crate) fn join_step_alone(&mut self, step: InFlightStep) -> InFlightStep {
        self.table.join_step(step)
    }

    pub(crate) fn leave_step(&mut self, before: InFlightStep) {
        if let Some(groups) = &mut self.groups {
            groups.set_step(before);
        }
        self.table.leave_step(before);
    }
}
