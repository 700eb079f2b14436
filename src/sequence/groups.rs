//! `SequenceGroups`: the tables of a sequence in a cache with several groups of layers.
//!
//! Each group has a table of its own: group 0's is the sequence itself, and the others are sequences without groups.
//! All have the same number of tokens. A change of the whole takes the groups out of the sequence for its time, so that
//! group 0 is a sequence without groups too; then one piece of code serves all.
//!
//! Invariants: an operation that fails has changed no table, except that a growth may have released the blocks that a
//! window left.
//! In a sequence with groups, `tail_is_sole` is false, so that no append passes the other groups by.

mod cut;
mod grow;
mod view;
mod window;

use std::fmt;

use crate::error::{PagedKvError, Result};
use crate::groups::{GroupLayout, GroupRetention, LayerGroup};
use crate::id::{BlockId, GroupId};
use crate::pool::PoolHandle;
use crate::pool::in_flight::InFlightStep;
use crate::sync::Arc;
use crate::table::{BlockPin, BlockTable};

use super::Sequence;
use super::gaps::TrimmedBlocks;

/// The groups of a sequence, apart from the table of group 0.
pub(crate) struct SequenceGroups {
    layout: Arc<GroupLayout>,
    /// The tables of groups 1, 2, ..
    others: Box<[Sequence]>,
    /// `tail_is_sole` of group 0.
    first_is_sole: bool,
    /// The tokens by which the other groups can grow in place: their last blocks are known to have one owner each.
    room_in_place: usize,
    /// No window leaves a block before the sequence has this many tokens.
    release_at: usize,
    /// For each group of states: the length at the state before the newest, 0 if there is none.
    states_before: Box<[usize]>,
    /// Copies that no step has listed yet.
    pending: Vec<GroupCopy>,
    /// Blocks that the sequence holds for its later growth.
    reserve: Option<window::Reserve>,
}

/// A copy of one block that a sequence in a cache with groups asks for: of a state, or on write in a group other than
/// group 0. All blocks of a cache have the same bytes, so that the copy does not depend on the group.
///
/// [`Sequence::take_copies`] returns it. The source stays alive until this is dropped; a state's source stays alive
/// until the sequence grows into its next block after that.
///
/// ```
/// use paged_kv::{GroupId, LayerGroup, PagedKvCache};
///
/// let groups = [LayerGroup::Full { block_size: 4 }, LayerGroup::State { block_size: 4 }];
/// let cache = PagedKvCache::builder().num_blocks(8).groups(&groups).build()?;
/// let mut sequence = cache.allocate_sequence(4)?;
/// sequence.append(4)?; // the state goes on in a new block
/// let copies = sequence.take_copies();
/// assert_eq!((copies.len(), copies[0].group), (1, GroupId(1)));
/// assert_eq!(sequence.blocks_in(GroupId(1)).last().flatten(), Some(copies[0].dst));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug)]
#[must_use = "the copy has to be made before the destination is read"]
pub struct GroupCopy {
    /// The group whose table has the destination.
    pub group: GroupId,
    /// The block to copy from.
    pub src: BlockId,
    /// The block to copy to.
    pub dst: BlockId,
    /// The owner of the source, if it is not in the table any more.
    source: Option<BlockPin>,
    /// The length of the sequence before the growth that needs the copy.
    start_tokens: usize,
    /// True if the destination takes the place of the source.
    on_write: bool,
}

impl GroupCopy {
    /// Lets the source be held until `step` ends.
    pub(crate) fn join_step(&mut self, step: InFlightStep) {
        if let Some(source) = &mut self.source {
            source.join_step(step);
        }
    }

    /// Returns true if a growth from `start_tokens` tokens on made it.
    pub(crate) fn is_of_growth_from(&self, start_tokens: usize) -> bool {
        self.start_tokens >= start_tokens
    }

    /// Returns true if the destination took the place of the source.
    pub(crate) fn is_on_write(&self) -> bool {
        self.on_write
    }
}

/// The groups of a sequence, taken out for the time of a change.
struct TakenOut<'a> {
    sequence: &'a mut Sequence,
    groups: Option<Box<SequenceGroups>>,
}

impl<'a> TakenOut<'a> {
    fn of(sequence: &'a mut Sequence) -> Self {
        let groups = sequence.groups.take();
        if let Some(groups) = &groups {
            sequence.tail_is_sole = groups.first_is_sole;
        }
        Self { sequence, groups }
    }
}

impl Drop for TakenOut<'_> {
    fn drop(&mut self) {
        if let Some(groups) = &mut self.groups {
            groups.first_is_sole = std::mem::take(&mut self.sequence.tail_is_sole);
            groups.note_room_in_place();
        }
        self.sequence.groups = self.groups.take();
    }
}

/// The tables of all groups of a sequence, each a sequence without groups.
struct Tables<'a> {
    first: &'a mut Sequence,
    groups: &'a mut SequenceGroups,
}

impl Tables<'_> {
    /// Returns each table with its group.
    fn each(&mut self) -> impl Iterator<Item = (GroupId, LayerGroup, &mut Sequence)> {
        let SequenceGroups { layout, others, .. } = &mut *self.groups;
        let tables = std::iter::once(&mut *self.first).chain(others.iter_mut());
        let kinds = layout.ids().zip(layout.groups().iter().copied());
        tables.zip(kinds).map(|(table, (id, kind))| (id, kind, table))
    }
}

impl Sequence {
    /// Creates a sequence without tokens, with a table for each group.
    pub(crate) fn empty_in_groups(table: BlockTable, layout: &Arc<GroupLayout>) -> Self {
        let pool = table.pool().clone();
        let tables = layout.groups().iter().map(|_| (BlockTable::new(pool.clone()), 0));
        let mut tables: Vec<_> = tables.collect();
        tables[0].0 = table;
        let tables = tables.into_iter().map(|(table, _)| (table, TrimmedBlocks::default()));
        Self::of_tables(tables, 0, layout)
    }

    /// Creates a sequence of `num_tokens` tokens whose blocks the caller owns by their words: for each group the
    /// resident blocks, all full, in the order of `layout`. `num_tokens` is a multiple of the alignment.
    pub(crate) fn of_hits(
        pool: &PoolHandle,
        hits: Vec<Vec<BlockId>>,
        num_tokens: usize,
        layout: &Arc<GroupLayout>,
    ) -> Self {
        let kinds = layout.groups().iter();
        let tables = hits.into_iter().zip(kinds).map(|(ids, kind)| {
            let [sink, window] = kind.needed_blocks(num_tokens);
            let mut gaps = TrimmedBlocks::default();
            if sink.end < window.start {
                gaps.insert(sink.end..window.start);
            }
            (BlockTable::of_owned(ids, pool.clone()), gaps)
        });
        Self::of_tables(tables, num_tokens, layout)
    }

    fn of_tables(
        tables: impl Iterator<Item = (BlockTable, TrimmedBlocks)>,
        num_tokens: usize,
        layout: &Arc<GroupLayout>,
    ) -> Self {
        let sizes = layout.groups().iter().map(|kind| kind.block_size());
        let mut tables = tables.zip(sizes).map(|((table, gaps), block_size)| Sequence {
            table,
            num_tokens,
            tail_room: 0,
            block_size,
            tail_is_sole: false,
            gaps,
            groups: None,
            uses: None,
        });
        let mut first = tables.next().expect("a layout has a group");
        let mut groups = SequenceGroups {
            layout: Arc::clone(layout),
            others: tables.collect(),
            first_is_sole: false,
            room_in_place: 0,
            release_at: 0,
            states_before: vec![0; layout.len()].into(),
            pending: Vec::new(),
            reserve: None,
        };
        groups.note_releases(&first);
        first.groups = Some(Box::new(groups));
        first
    }

    /// Makes a sequence of a cache without groups one of a single full group, so that it can hold blocks.
    pub(crate) fn enter_group(&mut self) -> Result<()> {
        let kind = LayerGroup::Full { block_size: self.block_size };
        let layout = GroupLayout::new(&[kind], 0, GroupRetention::Dense)?;
        let mut groups = SequenceGroups {
            layout: Arc::new(layout),
            others: Box::default(),
            first_is_sole: std::mem::take(&mut self.tail_is_sole),
            room_in_place: 0,
            release_at: 0,
            states_before: Box::new([0]),
            pending: Vec::new(),
            reserve: None,
        };
        groups.note_releases(self);
        self.groups = Some(Box::new(groups));
        Ok(())
    }

    /// Calls `change` with the tables of all groups. Only for a sequence with groups.
    fn change_tables<T>(&mut self, change: impl FnOnce(&mut Tables<'_>) -> T) -> T {
        let mut taken = TakenOut::of(self);
        let TakenOut { sequence, groups } = &mut taken;
        let groups = groups.as_mut().expect("only a sequence with groups comes here");
        change(&mut Tables { first: sequence, groups })
    }

    /// Forks all groups, or none.
    #[cold]
    pub(super) fn fork_groups(&mut self) -> Result<Sequence> {
        self.change_tables(|tables| {
            tables.groups.refuse_pending()?;
            let mut first = tables.first.fork_alone()?;
            first.groups = Some(Box::new(tables.groups.fork()?));
            Ok(first)
        })
    }

    /// Returns the layout of the groups, if the cache has any.
    pub(crate) fn layout(&self) -> Option<&Arc<GroupLayout>> {
        self.groups.as_ref().map(|groups| &groups.layout)
    }

    /// Returns the table of a group, as a sequence without other groups (group 0's has them, too).
    #[inline]
    pub(crate) fn of_group(&self, group: GroupId) -> Result<&Sequence> {
        match (group.index(), &self.groups) {
            (0, _) => Ok(self),
            (number, Some(groups)) if number <= groups.others.len() => {
                Ok(&groups.others[number - 1])
            }
            _ => Err(self.refusal_of(group)),
        }
    }

    #[cold]
    #[inline(never)]
    fn refusal_of(&self, group: GroupId) -> PagedKvError {
        let groups = self.groups.as_ref().map_or(1, |groups| groups.layout.len());
        let reason = format!("{group} of {groups}");
        PagedKvError::InvalidConfig { parameter: "group", reason }
    }

    /// Returns the tables of all groups and the blocks that are held for growth: all blocks that the sequence owns.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        let groups = self.groups.as_ref();
        let others = groups.into_iter().flat_map(|groups| groups.others.iter());
        let reserve = groups.and_then(|groups| groups.reserve.as_ref());
        let own = std::iter::once(&self.table).chain(others.map(|other| &other.table));
        own.chain(reserve.map(window::Reserve::table))
    }

    /// Returns the table of each group, as a sequence.
    pub(crate) fn group_tables(&self) -> impl Iterator<Item = &Sequence> {
        let others = self.groups.iter().flat_map(|groups| groups.others.iter());
        std::iter::once(self).chain(others)
    }

    /// Returns the number of blocks that the sequence owns, in all groups.
    pub(crate) fn num_owned_blocks(&self) -> usize {
        self.tables().map(BlockTable::len).sum()
    }

    /// Returns true if the sequence owns a block.
    pub(crate) fn owns_blocks(&self) -> bool {
        self.tables().any(|table| !table.is_empty())
    }

    /// Returns true if dropping the sequence alone surely frees a block.
    pub(crate) fn frees_a_block(&self) -> bool {
        self.tables().any(BlockTable::frees_a_block)
    }

    /// Returns how many blocks become free if the sequence is dropped and all open steps end.
    pub(crate) fn num_blocks_given_up(&self) -> usize {
        self.tables().map(BlockTable::num_blocks_given_up).sum()
    }

    /// Returns the place of a logical block of this table among the resident ones.
    pub(crate) fn resident_index(&self, logical_block: usize) -> Option<usize> {
        let index = self.gaps.resident(logical_block);
        index.filter(|&index| index < self.table.len())
    }

    /// Moves the last `n` blocks that the sequence took to `stock`: the sequence is new, and has no copies.
    pub(crate) fn give_new_blocks(&mut self, n: usize, stock: &mut BlockTable) {
        let Some(_) = &self.groups else {
            return stock.grow_from(&mut self.table, n);
        };
        self.change_tables(|tables| {
            let mut left = n;
            for (_, _, table) in tables.each() {
                // Blocks that it matched are cached.
                let new = table.table.num_sole_at_end().min(left);
                stock.grow_from(&mut table.table, new);
                left -= new;
            }
        });
    }

    /// Returns how many tokens one hash covers.
    pub(crate) fn hash_unit(&self) -> usize {
        self.groups.as_ref().map_or(self.block_size, |groups| groups.layout.unit())
    }

    /// Returns the length up to which no trim of a full group left a gap. Keys and values after such a gap do not
    /// depend on all tokens before them.
    pub(crate) fn whole_tokens(&self) -> usize {
        let Some(groups) = &self.groups else {
            return self.whole_blocks() * self.block_size;
        };
        let tables = self.group_tables().zip(groups.layout.groups());
        let full = tables.filter(|(_, kind)| kind.is_full());
        let gap = |table: &Sequence| table.gaps().first().map(|gap| gap.start * table.block_size);
        full.filter_map(|(table, _)| gap(table)).min().unwrap_or(usize::MAX)
    }
}

impl SequenceGroups {
    /// Returns a copy for a fork of `sequence`: the same blocks in all groups, and nothing held for growth.
    pub(super) fn fork(&mut self) -> Result<Self> {
        let others: Result<Box<[Sequence]>> =
            self.others.iter_mut().map(Sequence::fork_uncounted).collect();
        self.first_is_sole = false;
        self.room_in_place = 0;
        Ok(Self {
            layout: Arc::clone(&self.layout),
            others: others?,
            first_is_sole: false,
            room_in_place: 0,
            release_at: self.release_at,
            states_before: self.states_before.clone(),
            pending: Vec::new(),
            reserve: None,
        })
    }

    /// Notes that the last block of group 0 may have other owners.
    pub(super) fn share_first(&mut self) {
        self.first_is_sole = false;
    }

    fn note_room_in_place(&mut self) {
        let rooms = self.others.iter().map(|table| match table.tail_is_sole {
            true => table.tail_room,
            false => 0,
        });
        self.room_in_place = rooms.min().unwrap_or(usize::MAX);
    }

    /// Sets the newest step of each table: that of group 0's.
    pub(super) fn set_step(&mut self, step: InFlightStep) {
        self.others.iter_mut().for_each(|table| table.table.leave_step(step));
    }

    /// Refuses a fork while a copy is pending: a fork would not know whether its blocks have been written.
    pub(super) fn refuse_pending(&self) -> Result<()> {
        match self.pending.len() {
            0 => Ok(()),
            copies => Err(PagedKvError::CopiesPending { copies }),
        }
    }
}

impl fmt::Debug for SequenceGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.others).finish()
    }
}
