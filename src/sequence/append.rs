//! Appends: the blocks that an append needs, and the change itself. Tokens fill the slots of the last block,
//! then new blocks; a shared last block is copied.
//!
//! Planning changes no state. Committing a plan cannot fail once its blocks are there. So an append, or a
//! batch of them, succeeds or fails as a whole.

use super::{Append, BlockCopy, Sequence};
use crate::error::{PagedKvError, Result};
use crate::id::GroupId;
use crate::table::BlockTable;

/// The blocks that an append needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AppendPlan {
    start_tokens: usize,
    num_tokens: usize,
    /// In a cache with groups: the blocks of all groups, destinations of copies included.
    new_blocks: usize,
    /// 1 if the last block of this table is copied. In a cache with groups, a bit for each group instead, from bit 1 on.
    copies: u32,
}

impl AppendPlan {
    /// Returns the number of blocks to allocate, the destination of a copy included.
    pub(crate) fn blocks(self) -> usize {
        self.new_blocks + (self.copies & 1) as usize
    }

    pub(super) fn copies(self) -> bool {
        self.copies & 1 == 1
    }

    pub(super) fn new_blocks(self) -> usize {
        self.new_blocks
    }

    pub(super) fn num_new_tokens(self) -> usize {
        self.num_tokens - self.start_tokens
    }

    pub(super) fn start_tokens(self) -> usize {
        self.start_tokens
    }

    /// Returns the plan of the same growth in all groups.
    pub(super) fn in_groups(
        self,
        new_blocks: usize,
        copied: impl Iterator<Item = GroupId>,
    ) -> Self {
        let copies = copied.fold(0, |copies, group| copies | 2 << group.index());
        Self { new_blocks, copies, ..self }
    }

    pub(super) fn copies_in(self, group: GroupId) -> bool {
        self.copies & 2 << group.index() != 0
    }

    /// Returns the same append with a copy, or without.
    pub(super) fn copying(self, copy: bool) -> Self {
        Self { copies: u32::from(copy), ..self }
    }

    /// Returns the same append without a copy: it writes the last block in place. When it is carried out, no
    /// other table that may write the block owns it.
    pub(super) fn in_place(self) -> Self {
        self.copying(false)
    }
}

impl Sequence {
    /// Makes room for `num_new_tokens` more tokens.
    ///
    /// If they begin in a partly filled block that others own too, a private block replaces that block. The
    /// returned [`Append`] then names the copy to make. The last of the sharers does not copy. Inside a block
    /// that only this sequence owns, the append makes no atomic write and no allocation.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory) (`requested` includes the copy's destination) and
    /// [`TooManyTokens`](PagedKvError::TooManyTokens); nothing has changed.
    ///
    /// ```
    /// use paged_kv::PagedKvError;
    ///
    /// let pool = paged_kv::BlockPool::new(2);
    /// let mut sequence = pool.allocate_sequence(3, 4)?;
    /// assert!(sequence.append(1)?.new_blocks.is_empty());
    /// assert_eq!(sequence.append(1)?.new_blocks, 1..2);
    /// let refused = sequence.append(4).unwrap_err();
    /// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 1, available: 0 });
    /// # Ok::<(), PagedKvError>(())
    /// ```
    #[inline]
    pub fn append(&mut self, num_new_tokens: usize) -> Result<Append> {
        let len = self.table.len();
        let mut copy = None;
        if !self.append_in_place(num_new_tokens) {
            if self.groups.is_some() {
                return self.append_in_groups(num_new_tokens);
            }
            copy = self.append_blocks(num_new_tokens)?;
        }
        Ok(Append { new_blocks: len..self.table.len(), copy })
    }

    /// Does the work of [`append`](Self::append) if that needs no copy, no search for blocks, and no wait for
    /// another thread. Otherwise returns `None` and leaves the sequence as it was. Returns the start and end
    /// of the new blocks, as numbers that fit registers.
    #[inline]
    pub(crate) fn try_append_fast(&mut self, num_new_tokens: usize) -> Option<(u32, u32)> {
        // A pool has fewer than 2^32 blocks, and a table has each once at most.
        let start = self.table.len() as u32;
        if !self.append_in_place(num_new_tokens) && !self.try_append_blocks_fast(num_new_tokens) {
            return None;
        }
        Some((start, self.table.len() as u32))
    }

    /// Carries out an append that only moves the end within the last block, if only this sequence owns that
    /// block. Otherwise returns false.
    #[inline]
    pub(crate) fn append_in_place(&mut self, num_new_tokens: usize) -> bool {
        if num_new_tokens > self.tail_room {
            return false;
        }
        if num_new_tokens > 0 && !self.knows_tail_is_sole() && !self.may_write(num_new_tokens) {
            return false;
        }
        // No overflow: the last block's slots have been counted in `num_logical_blocks`.
        self.num_tokens += num_new_tokens;
        self.tail_room -= num_new_tokens;
        true
    }

    /// Returns true if the last block may be written. In a cache with groups, appends to the other groups then.
    #[inline(never)]
    fn may_write(&mut self, num_new_tokens: usize) -> bool {
        if self.groups.is_some() {
            return self.append_in_other_groups(num_new_tokens);
        }
        self.tail_is_sole = self.table.is_exclusive(self.table.len() - 1);
        self.tail_is_sole
    }

    /// Undoes an append in place, right after it.
    pub(crate) fn undo_in_place(&mut self, num_new_tokens: usize) {
        self.num_tokens -= num_new_tokens;
        self.tail_room += num_new_tokens;
        if let Some(groups) = &mut self.groups {
            groups.undo_in_place(num_new_tokens);
        }
    }

    #[inline]
    fn knows_tail_is_sole(&self) -> bool {
        self.tail_is_sole && !self.table.pool().is_counted_by_id()
    }

    /// Returns true if only this sequence owns the last block, so that it may be written.
    #[inline]
    fn owns_tail(&self) -> bool {
        self.knows_tail_is_sole() || self.table.is_exclusive(self.table.len() - 1)
    }

    /// Does the work of [`append`](Self::append) under the limits of [`try_append_fast`](Self::try_append_fast),
    /// except that it may copy.
    pub(crate) fn append_or_copy_near(&mut self, num_new_tokens: usize) -> Option<Append> {
        if self.groups.is_some() {
            return None;
        }
        let plan = self.plan_own_append(num_new_tokens).ok()?;
        let len = self.table.len();
        if !self.table.try_grow_near(plan.blocks()) {
            return None;
        }
        let copy = self.commit_append(plan);
        Some(Append { new_blocks: len..len + plan.new_blocks, copy })
    }

    #[inline(never)]
    fn try_append_blocks_fast(&mut self, num_new_tokens: usize) -> bool {
        if self.groups.is_some() {
            return false;
        }
        let plan = self.plan_own_append(num_new_tokens);
        let Some(plan) = plan.ok().filter(|plan| !plan.copies()) else {
            return false;
        };
        let grown = self.table.try_grow_near(plan.blocks());
        if grown {
            self.commit_append(plan);
        }
        grown
    }

    #[inline(never)]
    fn append_blocks(&mut self, num_new_tokens: usize) -> Result<Option<BlockCopy>> {
        let mut plan = self.plan_own_append(num_new_tokens)?;
        while let Err(refusal) = self.table.grow(plan.blocks()) {
            // The other sharers may have left since, and then no copy is needed.
            let again = self.plan_own_append(num_new_tokens)?;
            if again == plan {
                return Err(refusal);
            }
            plan = again;
        }
        Ok(self.commit_append(plan))
    }

    /// Returns the plan of an append of `num_new_tokens` in the present state.
    #[inline]
    pub(crate) fn plan_append(&self, num_new_tokens: usize) -> Result<AppendPlan> {
        match &self.groups {
            None => self.plan_own_append(num_new_tokens),
            Some(groups) => self.plan_in_groups(groups, num_new_tokens),
        }
    }

    /// Returns the plan of an append to this table, without other groups.
    #[inline]
    pub(super) fn plan_own_append(&self, num_new_tokens: usize) -> Result<AppendPlan> {
        let num_tokens = self.num_tokens.checked_add(num_new_tokens);
        // The slots of the last block must be countable too.
        let num_tokens = num_tokens.filter(|sum| sum.checked_add(self.block_size).is_some());
        let Some(num_tokens) = num_tokens else {
            let additional = num_new_tokens;
            return Err(PagedKvError::TooManyTokens { num_tokens: self.num_tokens, additional });
        };
        let new_blocks = match num_new_tokens.saturating_sub(self.tail_room) {
            // The usual cases, without a division.
            0 => 0,
            beyond if beyond <= self.block_size => 1,
            beyond => beyond.div_ceil(self.block_size),
        };
        let writes_tail = num_new_tokens > 0 && self.tail_room > 0;
        let copies = u32::from(writes_tail && !self.owns_tail());
        Ok(AppendPlan { start_tokens: self.num_tokens, num_tokens, new_blocks, copies })
    }

    /// Returns the blocks that an append of `num_new_tokens` needs even if all other owners of the last block
    /// leave.
    #[cfg(feature = "async")]
    pub(crate) fn blocks_at_least(&self, num_new_tokens: usize) -> usize {
        if let Some(groups) = &self.groups {
            return self.least_blocks_in_groups(groups, num_new_tokens);
        }
        let Ok(plan) = self.plan_append(num_new_tokens) else {
            return 0;
        };
        let tail = self.table.as_slice().last().filter(|_| plan.copies());
        // A cached block is never written, however few own it.
        let stays_shared = tail.is_some_and(|&tail| self.table.pool().is_cached(tail));
        plan.new_blocks + usize::from(stays_shared)
    }

    /// Carries out `plan` with `plan.blocks()` blocks of `stock`.
    #[inline]
    pub(crate) fn append_from(&mut self, plan: AppendPlan, stock: &mut BlockTable) -> Append {
        let planned_here = plan.start_tokens == self.num_tokens;
        assert!(planned_here, "a sequence does not change between its plan and its append");
        let len = self.table.len();
        if self.groups.is_some() {
            return self.grow_groups(plan, stock);
        }
        if plan.blocks() > 0 {
            self.table.grow_from(stock, plan.blocks());
        }
        let copy = self.commit_append(plan);
        Append { new_blocks: len..self.table.len(), copy }
    }

    /// Carries out `plan` with the last `plan.blocks()` blocks of the table.
    #[inline]
    pub(super) fn commit_append(&mut self, plan: AppendPlan) -> Option<BlockCopy> {
        let slots = self.num_tokens + self.tail_room + plan.new_blocks * self.block_size;
        self.tail_room = slots - plan.num_tokens;
        self.num_tokens = plan.num_tokens;
        // The last block was written in place, or is new, or is the destination of the copy.
        self.tail_is_sole |= plan.num_tokens > plan.start_tokens;
        if plan.copies() { Some(self.copy_tail(plan.blocks())) } else { None }
    }

    /// Replaces the block before the last `new` blocks of the table with the first of them.
    #[cold]
    fn copy_tail(&mut self, new: usize) -> BlockCopy {
        let grown = self.table.len() - new;
        let source = self.table.replace(grown - 1, grown);
        BlockCopy::new(source, self.table.as_slice()[grown - 1])
    }
}
