//! Growth of all groups at once: the plan is the sum over the groups, and it is carried out as a whole.

use super::{GroupCopy, SequenceGroups, Tables};
use crate::error::Result;
use crate::groups::LayerGroup;
use crate::id::GroupId;
use crate::sequence::append::AppendPlan;
use crate::sequence::{Append, BlockCopy, Sequence};
use crate::table::BlockTable;

/// The need of one group for a growth.
struct Part {
    new_blocks: usize,
    copy: bool,
}

impl Sequence {
    /// Does the work of [`append_in_place`](Self::append_in_place) in the other groups, if no group needs a block or a
    /// copy and no window leaves one. Otherwise returns false, and nothing has changed.
    pub(in crate::sequence) fn append_in_other_groups(&mut self, num_new_tokens: usize) -> bool {
        let is_counted_by_id = self.table.pool().is_counted_by_id();
        let Some(groups) = &mut self.groups else {
            return true;
        };
        let is_due = self.num_tokens >= groups.release_at;
        let fits = num_new_tokens <= groups.room_in_place && groups.first_is_sole;
        if is_due || is_counted_by_id || !fits {
            return false;
        }
        groups.room_in_place -= num_new_tokens;
        for table in &mut groups.others {
            table.num_tokens += num_new_tokens;
            table.tail_room -= num_new_tokens;
        }
        true
    }

    /// Appends in all groups, or in none. The result is group 0's; the copies of other groups are pending.
    #[cold]
    pub(in crate::sequence) fn append_in_groups(
        &mut self,
        num_new_tokens: usize,
    ) -> Result<Append> {
        self.release_windows();
        let mut stock = self.table.new_sibling();
        let mut plan = self.plan_append(num_new_tokens)?;
        while let Err(refusal) = stock.grow(plan.blocks()) {
            // Sharers may have left since, and then fewer copies are needed.
            let again = self.plan_append(num_new_tokens)?;
            if again == plan {
                return Err(refusal);
            }
            plan = again;
        }
        Ok(self.grow_groups(plan, &mut stock))
    }

    /// Returns the plan of an append in all groups.
    pub(in crate::sequence) fn plan_in_groups(
        &self,
        groups: &SequenceGroups,
        num_new_tokens: usize,
    ) -> Result<AppendPlan> {
        let (mut blocks, mut copied) = (0_usize, Vec::new());
        let mut whole = None;
        for (table, (id, kind)) in self.group_tables().zip(groups.kinds()) {
            let plan = table.plan_own_append(num_new_tokens)?;
            let part = table.part(kind, plan);
            blocks = blocks.saturating_add(part.new_blocks + usize::from(part.copy));
            copied.extend(part.copy.then_some(id));
            whole.get_or_insert(plan);
        }
        let whole = whole.expect("a layout has a group");
        let missing = blocks.saturating_sub(groups.num_reserved());
        Ok(whole.in_groups(missing, copied.into_iter()))
    }

    fn part(&self, kind: LayerGroup, plan: AppendPlan) -> Part {
        let goes_on = kind.is_state() && plan.new_blocks() > 0;
        match goes_on {
            // The state goes on in a new block; the old one is not written.
            true => Part { new_blocks: 1, copy: false },
            false => Part { new_blocks: plan.new_blocks(), copy: plan.copies() },
        }
    }

    /// Returns the blocks that a growth needs even if all other owners of the last blocks leave.
    #[cfg(feature = "async")]
    pub(in crate::sequence) fn least_blocks_in_groups(
        &self,
        groups: &SequenceGroups,
        num_new_tokens: usize,
    ) -> usize {
        let tables = self.group_tables().zip(groups.kinds());
        let least = tables.map(|(table, (_, kind))| {
            let Ok(plan) = table.plan_own_append(num_new_tokens) else {
                return 0;
            };
            let part = table.part(kind, plan);
            let tail = table.table.as_slice().last().filter(|_| part.copy);
            let stays_shared = tail.is_some_and(|&tail| table.table.pool().is_cached(tail));
            part.new_blocks + usize::from(stays_shared)
        });
        let least = least.fold(0_usize, usize::saturating_add);
        least.saturating_sub(groups.num_reserved())
    }

    /// Carries out a plan of all groups with `plan.blocks()` blocks of `stock`. The result is group 0's.
    pub(in crate::sequence) fn grow_groups(
        &mut self,
        plan: AppendPlan,
        stock: &mut BlockTable,
    ) -> Append {
        let start = self.num_tokens;
        self.change_tables(|tables| {
            let copy = tables.grow(plan, stock);
            let kind = tables.groups.layout.groups()[0];
            let len = tables.first.table.len();
            Append { new_blocks: len - kind.new_blocks(start, tables.first.num_tokens)..len, copy }
        })
    }
}

impl Tables<'_> {
    fn grow(&mut self, whole: AppendPlan, stock: &mut BlockTable) -> Option<BlockCopy> {
        let num_new_tokens = whole.num_new_tokens();
        let kinds: Vec<(GroupId, LayerGroup)> = self.groups.kinds().collect();
        let mut copy_of_first = None;
        for (id, kind) in kinds {
            let Tables { first, groups } = self;
            let table = match id.index() {
                0 => first,
                number => &groups.others[number - 1],
            };
            let plan = table.plan_own_append(num_new_tokens);
            let plan = plan.expect("the whole was planned").copying(whole.copies_in(id));
            let part = table.part(kind, plan);
            let num_blocks = part.new_blocks + usize::from(part.copy);
            self.supply(id, num_blocks, stock);
            let goes_on = kind.is_state() && plan.new_blocks() > 0;
            let copy = match goes_on {
                true => {
                    self.go_on(id, plan);
                    None
                }
                false => self.table_mut(id).commit_append(plan),
            };
            match copy {
                Some(copy) if id.index() == 0 => copy_of_first = Some(copy),
                Some(copy) => {
                    let (src, dst, source) = copy.into_parts();
                    let (group, source, on_write) = (id, Some(source), true);
                    let start_tokens = whole.start_tokens();
                    let copy = GroupCopy { group, src, dst, source, start_tokens, on_write };
                    self.groups.pending.push(copy);
                }
                None => {}
            }
        }
        copy_of_first
    }

    pub(super) fn table_mut(&mut self, id: GroupId) -> &mut Sequence {
        match id.index() {
            0 => self.first,
            number => &mut self.groups.others[number - 1],
        }
    }

    /// Moves `n` blocks to the end of the table of a group: those that are held for growth first.
    fn supply(&mut self, id: GroupId, n: usize, stock: &mut BlockTable) {
        if n == 0 {
            return;
        }
        let empty = self.first.table.new_sibling();
        let mut table = std::mem::replace(&mut self.table_mut(id).table, empty);
        let held = self.groups.take_from_reserve(n, &mut table);
        table.grow_from(stock, n - held);
        self.table_mut(id).table = table;
    }

    /// Continues a state in the new block at the end of its table. The state before stays as the source of the copy,
    /// and an older one is released.
    fn go_on(&mut self, id: GroupId, plan: AppendPlan) {
        let number = id.index();
        let table = match number {
            0 => &mut *self.first,
            number => &mut self.groups.others[number - 1],
        };
        let pending = &mut self.groups.pending;
        let (start, length) = (table.num_tokens, table.num_tokens + plan.num_new_tokens());
        let [before, end] = [start, length].map(|tokens| tokens.div_ceil(table.block_size));
        let ids = table.table.as_slice();
        if let [older @ .., src, dst] = ids {
            let (older, src, dst) = (older.len(), *src, *dst);
            // A copy from an older state that no step has listed yet keeps its source.
            let all_held = (0..older).all(|at| hold_source(&table.table, at, pending));
            let (group, source, start_tokens, on_write) = (id, None, start, false);
            pending.push(GroupCopy { group, src, dst, source, start_tokens, on_write });
            if all_held {
                table.release_blocks(0..before - 1);
            }
        }
        if before + 1 < end {
            table.gaps.insert(before..end - 1);
        }
        table.num_tokens = length;
        table.tail_room = end * table.block_size - length;
        table.tail_is_sole = true;
        self.groups.states_before[number] = start;
    }
}

/// Makes pending copies from the block at `at` owners of it. Returns false if it has too many owners.
fn hold_source(table: &BlockTable, at: usize, pending: &mut [GroupCopy]) -> bool {
    let id = table.as_slice()[at];
    let mut unheld = pending.iter_mut().filter(|copy| copy.src == id && copy.source.is_none());
    unheld.all(|copy| {
        copy.source = table.pin(at).ok();
        copy.source.is_some()
    })
}

impl SequenceGroups {
    pub(super) fn kinds(&self) -> impl Iterator<Item = (GroupId, LayerGroup)> + '_ {
        self.layout.ids().zip(self.layout.groups().iter().copied())
    }

    /// Undoes an append in place, right after it.
    pub(in crate::sequence) fn undo_in_place(&mut self, num_new_tokens: usize) {
        self.room_in_place += num_new_tokens;
        self.others.iter_mut().for_each(|table| table.undo_in_place(num_new_tokens));
    }
}
