//! The tables of groups as a caller sees them, and the copies that are pending.

use super::GroupCopy;
use crate::id::{BlockId, GroupId};
use crate::sequence::Sequence;

/// # Groups
impl Sequence {
    /// Returns the logical blocks of a group, in order; `None` where a window has released a block or a state skipped
    /// it. Empty for a group that the cache does not have. `O(gaps)` a block.
    ///
    /// ```
    /// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::SlidingWindow { block_size: 4, window: 4 }];
    /// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
    /// let mut sequence = cache.allocate_sequence(12)?;
    /// sequence.append(1)?;
    /// let blocks: Vec<_> = sequence.blocks_in(GroupId(0)).collect();
    /// assert_eq!((blocks.len(), blocks[0], blocks[1]), (4, None, None));
    /// assert_eq!(sequence.blocks_in(GroupId(1)).len(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn blocks_in(&self, group: GroupId) -> impl ExactSizeIterator<Item = Option<BlockId>> {
        let table = self.of_group(group).ok();
        let blocks = table.map_or(0, Sequence::num_logical_blocks);
        (0..blocks).map(move |block| table.and_then(|table| table.block_at(block)))
    }

    /// Returns the first position from which on every token has a slot in the group: where the table of a window
    /// begins, in tokens. The length of the sequence if no token has one, and for a group that the cache does not have.
    ///
    /// ```
    /// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::SlidingWindow { block_size: 4, window: 4 }];
    /// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
    /// let mut sequence = cache.allocate_sequence(12)?;
    /// sequence.append(1)?;
    /// assert_eq!(sequence.window_start(GroupId(0)), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn window_start(&self, group: GroupId) -> usize {
        let Ok(table) = self.of_group(group) else {
            return self.num_tokens;
        };
        let start = table.gaps.as_slice().last().map_or(0, |gap| gap.end * table.block_size);
        start.min(self.num_tokens)
    }

    /// Returns the copies that no step has listed yet, and forgets them: the copies of states, and the copies on write
    /// of groups other than 0. Make them before the sequence's blocks are read, in this order. A step that the sequence
    /// grows in, also by 0 tokens, takes them and lists them in [`Step::copies`](crate::Step::copies). Always empty in a
    /// cache without groups.
    ///
    /// ```
    /// use paged_kv::{LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::State { block_size: 4 }];
    /// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
    /// let mut sequence = cache.allocate_sequence(4)?;
    /// sequence.append(1)?;
    /// assert_eq!(sequence.take_copies().len(), 1);
    /// assert_eq!(sequence.take_copies().len(), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn take_copies(&mut self) -> Vec<GroupCopy> {
        self.groups.as_mut().map_or_else(Vec::new, |groups| std::mem::take(&mut groups.pending))
    }

    /// Does as [`take_copies`](Self::take_copies), for a step: each copy owns its source. The sequence may grow again in
    /// the step, and if that is aborted, the copy is still to be made.
    pub(crate) fn take_held_copies(&mut self) -> Vec<GroupCopy> {
        let mut copies = self.take_copies();
        for copy in copies.iter_mut().filter(|copy| copy.source.is_none()) {
            let table = self.of_group(copy.group).expect("a group of the sequence made it");
            let at = table.block_ids().iter().position(|&id| id == copy.src);
            // A block with 2^20 - 1 owners stays for the others.
            copy.source = at.and_then(|at| table.table.pin(at).ok());
        }
        copies
    }

    /// Returns true if a copy is pending.
    #[inline]
    pub(crate) fn has_pending_copies(&self) -> bool {
        self.groups.as_ref().is_some_and(|groups| !groups.pending.is_empty())
    }

    /// Returns true if a block is in the table of a group.
    pub(crate) fn has_block(&self, group: GroupId, block: BlockId) -> bool {
        self.of_group(group).is_ok_and(|table| table.block_ids().contains(&block))
    }

    /// Undoes a copy of a step that is aborted, after the sequence was restored to `start_tokens` tokens: a copy that
    /// was pending before is pending again, and one on write is undone. The caller hands over an owner of its source.
    pub(crate) fn take_copy_back(&mut self, copy: GroupCopy, start_tokens: usize) {
        match copy.is_of_growth_from(start_tokens) {
            false => {
                let groups = self.groups.as_mut();
                groups.expect("a group of the sequence made it").pending.insert(0, copy);
            }
            true if copy.on_write => self.change_tables(|tables| {
                let table = tables.table_mut(copy.group);
                table.table.put_back(copy.dst, copy.src);
                table.tail_is_sole = false;
            }),
            true => {}
        }
    }
}
