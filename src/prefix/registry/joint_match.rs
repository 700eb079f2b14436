//! The match of a prompt in all groups of layers: the longest length at which every group has its blocks, acquired.
//!
//! 1. Look up without writing: full groups along the chain, sparse groups from the end of the candidate.
//! 2. Acquire the blocks that the joint length needs: sparse groups first, at most 128 blocks a claim.
//! 3. If a block is lost by then, count it as missing: the joint length gets shorter. Keep the blocks that it needs,
//!    and give the others back after the claim. Acquire those that it needs besides, and so on: at most one round for
//!    each length.
//!
//! Invariant: at the end all blocks that the length needs are owned by the caller at the same moment. A block that is
//! owned and cached keeps its key, so the hit is true. (It is the longest one only if no block was reclaimed during the
//! call.) No thread waits for another while it holds a claim.

use std::borrow::Cow;

use super::{Generation, PublishedBlocks};
use crate::groups::joint::{JointHit, joint};
use crate::groups::{GroupLayout, LayerGroup};
use crate::id::{BlockId, GroupId};
use crate::pool::Blocks;
use crate::pool::content_key::KeyedView;
use crate::pool::free_list::Matching;
use crate::prefix::hash::BlockHash;

/// Contents that are not on the device, and can be loaded there. A match counts them as there.
pub(crate) trait Below {
    /// Returns true if there may be such contents.
    fn is_open(&self) -> bool;
    /// Returns true if a content can be loaded now.
    fn has(&mut self, group: GroupId, hash: BlockHash) -> bool;
    /// Returns true if so many may be loaded. If not, there are none from then on.
    fn allows(&mut self, blocks: usize) -> bool;
    /// Acquires a content for the load. The caller holds no claim.
    fn pin(&mut self, group: GroupId, hash: BlockHash) -> bool;
}

/// No such contents.
pub(crate) struct NothingBelow;

impl Below for NothingBelow {
    fn is_open(&self) -> bool {
        false
    }

    fn has(&mut self, _: GroupId, _: BlockHash) -> bool {
        false
    }

    fn allows(&mut self, _: usize) -> bool {
        true
    }

    fn pin(&mut self, _: GroupId, _: BlockHash) -> bool {
        false
    }
}

/// The blocks of one group that a match looks for.
struct GroupSearch<'a> {
    id: GroupId,
    kind: LayerGroup,
    /// The hash of each block.
    hashes: Cow<'a, [BlockHash]>,
    generation: Generation,
    cells: Vec<Cell>,
}

/// The knowledge of a match about one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Unknown,
    Missing,
    /// It was found, and may be gone.
    Seen(BlockId),
    /// The caller owns it.
    Held(BlockId),
    /// It is not on the device, and can be loaded.
    Below,
    /// It is to be loaded.
    Pinned,
}

/// The place of a block in the table of a sequence that has nothing there yet.
pub(crate) const TO_LOAD: BlockId = BlockId(u32::MAX);

/// The contents that a match looks for: the hashes of a prompt, and the longest hit that is allowed.
#[derive(Clone, Copy)]
pub(crate) struct Sought<'a> {
    pub(crate) layout: &'a GroupLayout,
    /// A hash for each unit.
    pub(crate) hashes: &'a [BlockHash],
    /// In tokens.
    pub(crate) most: usize,
}

/// The hits of all groups, for each group in the order of its blocks.
pub(crate) struct GroupHits {
    pub(crate) hit: JointHit,
    /// [`TO_LOAD`] for blocks that are to be loaded.
    pub(crate) ids: Vec<Vec<BlockId>>,
    /// The hashes of these blocks, in the same order.
    pub(crate) loads: Vec<(GroupId, BlockHash)>,
}

impl PublishedBlocks {
    /// Returns the hash of block `block` of a group: that of its last unit. The key has the group, too, so that blocks
    /// of several groups with one hash are kept apart.
    fn search<'a>(&self, sought: Sought<'a>, generation: Generation) -> Vec<GroupSearch<'a>> {
        let Sought { layout, hashes, most } = sought;
        let groups = layout.ids().zip(layout.groups());
        let search = groups.map(|(id, &kind)| {
            let units = layout.units_a_block(id);
            let blocks = (most / kind.block_size()).min(hashes.len() / units);
            let hashes = match units {
                1 => Cow::Borrowed(&hashes[..blocks]),
                _ => (1..=blocks).map(|block| hashes[block * units - 1]).collect(),
            };
            let generation = self.of_group(generation, id);
            GroupSearch { id, kind, hashes, generation, cells: vec![Cell::Unknown; blocks] }
        });
        search.collect()
    }

    /// Makes the contents of a prompt unmatchable in all groups. Returns the number of blocks that were cached.
    pub(crate) fn forget_in_groups(
        &self,
        blocks: &Blocks,
        layout: &GroupLayout,
        hashes: &[BlockHash],
    ) -> usize {
        let most = hashes.len().saturating_mul(layout.unit());
        let search = self.search(Sought { layout, hashes, most }, self.generation());
        search.iter().map(|group| self.forget(blocks, &group.hashes, group.generation)).sum()
    }

    /// Returns the joint hit. Acquires and writes nothing. Costs a look-up for each block that it needs, and for each
    /// that is missing.
    pub(crate) fn probe_groups(&self, blocks: &Blocks, sought: Sought<'_>) -> GroupHits {
        self.probe_groups_with(blocks, sought, &mut NothingBelow)
    }

    /// Does as [`probe_groups`](Self::probe_groups), over contents on the device or below.
    pub(crate) fn probe_groups_with(
        &self,
        blocks: &Blocks,
        sought: Sought<'_>,
        below: &mut impl Below,
    ) -> GroupHits {
        let mut search = self.search(sought, self.generation());
        let hit = self.joint(blocks, sought, &mut search, below);
        GroupHits::new(hit, &search, below)
    }

    /// Makes the caller an owner of the blocks that the joint hit needs.
    pub(crate) fn acquire_groups(
        &self,
        blocks: &Blocks,
        sought: Sought<'_>,
        generation: Generation,
    ) -> GroupHits {
        self.acquire_groups_with(blocks, sought, generation, &mut NothingBelow)
    }

    /// Does as [`acquire_groups`](Self::acquire_groups), over contents on the device or below. Pins the latter.
    pub(crate) fn acquire_groups_with(
        &self,
        blocks: &Blocks,
        sought: Sought<'_>,
        generation: Generation,
        below: &mut impl Below,
    ) -> GroupHits {
        let mut search = self.search(sought, generation);
        let mut hit = self.joint(blocks, sought, &mut search, below);
        if below.is_open() {
            let to_load = search.iter().map(|group| group.num_below(hit.length)).sum();
            if !below.allows(to_load) {
                search.iter_mut().for_each(GroupSearch::forget_below);
                hit = self.joint(blocks, sought, &mut search, below);
            }
        }
        let longest = hit.longest;
        while !self.acquire_needed(blocks, &mut search, hit.length, below) {
            // A block that was seen is gone: the next length is shorter.
            let sought = Sought { most: hit.length, ..sought };
            let shorter = self.joint(blocks, sought, &mut search, below);
            assert!(shorter.length < hit.length, "a block that is missing shortens the hit");
            hit = shorter;
            search.iter_mut().for_each(|group| group.give_back(blocks, hit.length));
        }
        hit.longest = longest.max(hit.longest);
        GroupHits::new(hit, &search, below)
    }

    fn joint(
        &self,
        blocks: &Blocks,
        sought: Sought<'_>,
        search: &mut [GroupSearch<'_>],
        below: &mut impl Below,
    ) -> JointHit {
        if self.index.is_empty() {
            return JointHit::default();
        }
        let keyed = blocks.keyed();
        // Below the first block that is missing there may be others.
        for group in search.iter_mut().filter(|group| group.kind.is_full() && !below.is_open()) {
            self.look_along(blocks, group);
        }
        joint(sought.layout, sought.most, |id, block| {
            self.is_there(keyed, &mut search[id.index()], block, below)
        })
    }

    /// Looks up the chain of a full group, unless that was done.
    fn look_along(&self, blocks: &Blocks, group: &mut GroupSearch<'_>) {
        if group.cells.first().is_none_or(|cell| *cell != Cell::Unknown) {
            return;
        }
        let keyed = blocks.keyed();
        let fits = move |id, key| keyed.seems_cached_as(id, key);
        let (cells, mut found) = (&mut group.cells, 0);
        self.trail(blocks, group.generation).follow(&group.hashes, fits, |id, _| {
            cells[found] = Cell::Seen(id);
            found += 1;
        });
        if let Some(cell) = cells.get_mut(found) {
            *cell = Cell::Missing;
        }
    }

    fn is_there(
        &self,
        keyed: KeyedView<'_>,
        group: &mut GroupSearch<'_>,
        block: usize,
        below: &mut impl Below,
    ) -> bool {
        let Some(&cell) = group.cells.get(block) else {
            return false;
        };
        if cell != Cell::Unknown {
            return cell != Cell::Missing;
        }
        let key = group.generation.key_of(group.hashes[block]);
        let place = self.index.place(key);
        let found = self.index.find(place, |id| keyed.seems_cached_as(id, key).is_some());
        group.cells[block] = match found {
            Some(id) => Cell::Seen(id),
            None if below.has(group.id, group.hashes[block]) => Cell::Below,
            None => Cell::Missing,
        };
        group.cells[block] != Cell::Missing
    }

    /// Acquires the blocks that `length` needs: those of sparse groups first, because these are rarely there without
    /// the others. Returns false at the first that is not cached any more.
    fn acquire_needed(
        &self,
        blocks: &Blocks,
        search: &mut [GroupSearch<'_>],
        length: usize,
        below: &mut impl Below,
    ) -> bool {
        let (sparse, full): (Vec<_>, Vec<_>) =
            search.iter_mut().partition(|group| !group.kind.is_full());
        sparse.into_iter().chain(full).all(|group| {
            self.acquire_group(blocks, group, length)
                && (!below.is_open() || group.pin(length, below))
        })
    }

    fn acquire_group(&self, blocks: &Blocks, group: &mut GroupSearch<'_>, length: usize) -> bool {
        let seen: Vec<usize> = group.seen(length).collect();
        for part in seen.chunks(Matching::AT_MOST) {
            let mut matching = blocks.matching();
            let lost = part.iter().find(|&&at| !self.acquire_block(&mut matching, group, at));
            let has_released = matching.has_released();
            drop(matching);
            if has_released {
                blocks.announce_room();
            }
            if lost.is_some() {
                return false;
            }
        }
        true
    }

    fn acquire_block(
        &self,
        matching: &mut Matching<'_>,
        group: &mut GroupSearch<'_>,
        at: usize,
    ) -> bool {
        let Cell::Seen(seen) = group.cells[at] else {
            return true;
        };
        let key = group.generation.key_of(group.hashes[at]);
        let found = match matching.acquire(seen, key) {
            true => Some(seen),
            false => self.index.find(self.index.place(key), |id| matching.acquire(id, key)),
        };
        group.cells[at] = found.map_or(Cell::Missing, Cell::Held);
        found.is_some()
    }
}

impl GroupSearch<'_> {
    /// Returns the blocks that the group needs at a length, in order.
    fn needed_at(&self, length: usize) -> impl Iterator<Item = usize> + use<> {
        self.kind.needed_blocks(length).into_iter().flatten()
    }

    fn needed(&self, length: usize) -> impl Iterator<Item = BlockId> {
        self.needed_at(length).filter_map(|at| match self.cells[at] {
            Cell::Seen(id) | Cell::Held(id) => Some(id),
            Cell::Below | Cell::Pinned => Some(TO_LOAD),
            Cell::Unknown | Cell::Missing => None,
        })
    }

    fn below(&self, length: usize) -> impl Iterator<Item = usize> {
        let is_below = |&at: &usize| matches!(self.cells[at], Cell::Below | Cell::Pinned);
        self.needed_at(length).filter(is_below)
    }

    fn num_below(&self, length: usize) -> usize {
        self.below(length).count()
    }

    /// Counts contents below as missing.
    fn forget_below(&mut self) {
        let cells = self.cells.iter_mut();
        cells.filter(|cell| **cell == Cell::Below).for_each(|cell| *cell = Cell::Missing);
    }

    /// Pins the contents below that `length` needs. Returns false at the first that is gone.
    fn pin(&mut self, length: usize, below: &mut impl Below) -> bool {
        let to_pin: Vec<usize> = self.below(length).collect();
        to_pin.into_iter().all(|at| {
            if self.cells[at] == Cell::Pinned {
                return true;
            }
            let is_pinned = below.pin(self.id, self.hashes[at]);
            self.cells[at] = if is_pinned { Cell::Pinned } else { Cell::Missing };
            is_pinned
        })
    }

    fn seen(&self, length: usize) -> impl Iterator<Item = usize> {
        self.needed_at(length).filter(|&at| matches!(self.cells[at], Cell::Seen(_)))
    }

    /// Gives the blocks back that `length` does not need. The caller holds no claim.
    fn give_back(&mut self, blocks: &Blocks, length: usize) {
        let [sink, window] = self.kind.needed_blocks(length);
        let mut ids = Vec::new();
        for (at, cell) in self.cells.iter_mut().enumerate() {
            if let Cell::Held(id) = *cell
                && !sink.contains(&at)
                && !window.contains(&at)
            {
                ids.push(id);
                *cell = Cell::Seen(id);
            }
        }
        if !ids.is_empty() {
            blocks.give(&ids);
        }
    }
}

impl GroupHits {
    fn new(hit: JointHit, search: &[GroupSearch<'_>], below: &impl Below) -> Self {
        let ids = search.iter().map(|group| group.needed(hit.length).collect()).collect();
        let mut loads = Vec::new();
        for group in search.iter().filter(|_| below.is_open()) {
            loads.extend(group.below(hit.length).map(|at| (group.id, group.hashes[at])));
        }
        Self { hit, ids, loads }
    }

    /// Returns the number of different blocks that are idle.
    pub(crate) fn num_idle(&self, blocks: &Blocks) -> usize {
        let ids = self.ids.iter().flatten().copied().filter(|&id| id != TO_LOAD);
        let mut idle: Vec<BlockId> = ids.filter(|&id| blocks.is_idle(id)).collect();
        idle.sort_unstable();
        idle.dedup();
        idle.len()
    }
}
