//! `TierSlots`: the contents of the tiers below the device as consumers see them, by medium.
//!
//! A content is announced in a medium when the first slot of that medium holds it, and removed with the last one. It
//! needs no tokens and no parent.
//!
//! ```text
//!   ticket settled ──> lock { key slots, note them here, note the event } ──> sink
//!   slot taken, or its content forgotten ──> lock { remove it here, note the event } ──> sink
//!   reset ──> lock { next generation of the device, no slot noted, note one event for all media } ──> sink
//! ```
//!
//! The lock is that of the device's events, because a sink gets all events in one order. So the order is right for each
//! content: a slot is noted while a ticket owns it, and its next taker waits for the lock before it can key the slot again.
//!
//! A tier and the device begin a generation one after the other. A content is published only in the generation that the
//! device's events have, so no content from before a clearing is announced after it.
//!
//! Invariant: at rest, the announced contents of a medium are those that its tiers have ready or pinned.

use std::collections::HashMap;

use super::noted::StoredBlocks;
use super::{EventOrder, MOST_BLOCKS, State};
use crate::array::array_of;
use crate::error::Result;
use crate::id::{BlockId, GroupId, Medium};
use crate::pool::TakeObserver;
use crate::prefix::{BlockHash, Generation};
use crate::sync::{AtomicBool, MutexGuard, Ordering, PlainArc};

/// A flag for each slot of a tier, written under the lock and read without it.
pub(super) type SlotFlags = Box<[AtomicBool]>;

/// The announced contents of all tiers.
pub(super) struct TierSlots {
    tiers: Box<[SlotsOfTier]>,
    /// How many slots of a medium hold each content: of the host's memory, and of files.
    holders: [HashMap<(GroupId, BlockHash), u32>; 2],
    /// The number of the generation of the announced contents.
    generation: u64,
    /// Increases when all contents end together. Slots of an earlier era hold nothing.
    era: u32,
    /// By group. Empty between calls, kept for its memory.
    changed: Box<[Vec<BlockHash>]>,
}

struct SlotsOfTier {
    medium: Medium,
    slots: Box<[NotedSlot]>,
}

#[derive(Clone, Copy)]
struct NotedSlot {
    hash: BlockHash,
    era: u32,
    group: GroupId,
}

/// The era of a slot that holds no content.
const NO_ERA: u32 = 0;

const EMPTY: NotedSlot = NotedSlot { hash: BlockHash::NONE, era: NO_ERA, group: GroupId(0) };

/// Creates the flags of the slots of each tier.
pub(super) fn flags_of(tiers: &[(Medium, usize)]) -> Result<Box<[SlotFlags]>> {
    tiers.iter().map(|&(_, slots)| array_of(slots, || AtomicBool::new(false))).collect()
}

/// Returns the place of a medium among the holders.
fn place_of(medium: Medium) -> usize {
    usize::from(medium == Medium::Disk)
}

impl TierSlots {
    /// Creates the slots of tiers, which hold nothing, for the contents of so many groups.
    pub(super) fn new(tiers: &[(Medium, usize)], num_groups: usize) -> Result<Self> {
        let of_tier = |&(medium, slots): &(Medium, usize)| {
            Ok(SlotsOfTier { medium, slots: array_of(slots, || EMPTY)? })
        };
        let tiers: Result<Box<[_]>> = tiers.iter().map(of_tier).collect();
        let holders = [HashMap::new(), HashMap::new()];
        let changed = (0..num_groups).map(|_| Vec::new()).collect();
        Ok(Self { tiers: tiers?, holders, generation: 0, era: NO_ERA + 1, changed })
    }

    /// Notes that a slot holds a content. Returns true if no other slot of the medium does.
    fn insert(&mut self, tier: usize, slot: BlockId, (group, hash): (GroupId, BlockHash)) -> bool {
        let SlotsOfTier { medium, slots } = &mut self.tiers[tier];
        let slot = &mut slots[slot.index()];
        if slot.era == self.era {
            return false;
        }
        *slot = NotedSlot { hash, era: self.era, group };
        let holders = self.holders[place_of(*medium)].entry((group, hash)).or_default();
        *holders += 1;
        *holders == 1
    }

    /// Notes that a slot holds no content any more. Returns its content if no other slot of the medium holds it.
    fn remove(&mut self, tier: usize, slot: BlockId) -> Option<(GroupId, BlockHash)> {
        let SlotsOfTier { medium, slots } = &mut self.tiers[tier];
        let slot = std::mem::replace(&mut slots[slot.index()], EMPTY);
        if slot.era != self.era {
            return None;
        }
        let holders = &mut self.holders[place_of(*medium)];
        let content = (slot.group, slot.hash);
        let left = holders.get_mut(&content).expect("a content that a slot holds is counted");
        *left -= 1;
        if *left > 0 {
            return None;
        }
        holders.remove(&content);
        Some(content)
    }

    /// Calls `note` with the changed contents of each group, in parts of the size of an event.
    fn take_changed(&mut self, mut note: impl FnMut(GroupId, &[BlockHash])) {
        for (group, changed) in (0..).zip(&mut self.changed) {
            changed.chunks(MOST_BLOCKS).for_each(|hashes| note(GroupId(group), hashes));
            changed.clear();
        }
    }

    /// Ends all contents together. The next ones are of this generation.
    pub(super) fn clear(&mut self, generation: u64) {
        self.era = self.era.checked_add(1).expect("fewer than 2^32 resets");
        self.generation = generation;
        self.holders.iter_mut().for_each(HashMap::clear);
    }
}

impl State {
    /// Notes an event for the changed contents of a tier that are in `in_tiers.changed`.
    fn note_changed(&mut self, tier: usize, is_stored: bool) {
        let Self { in_tiers, delivery, .. } = self;
        let medium = in_tiers.tiers[tier].medium;
        in_tiers.take_changed(|group, hashes| match is_stored {
            true => delivery.note_stored(&stored(medium, group, hashes)),
            false => delivery.note_removed(group, medium, hashes),
        });
    }

    /// Notes every announced content of the tiers.
    pub(super) fn note_tiers(&mut self) {
        let Self { in_tiers, delivery, .. } = self;
        for medium in [Medium::Host, Medium::Disk] {
            for &(group, hash) in in_tiers.holders[place_of(medium)].keys() {
                in_tiers.changed[group.index()].push(hash);
            }
            in_tiers.take_changed(|group, hashes| {
                delivery.note_stored(&stored(medium, group, hashes));
            });
        }
    }
}

/// Returns the event of contents that a tier has ready.
fn stored(medium: Medium, group: GroupId, hashes: &[BlockHash]) -> StoredBlocks<'_> {
    let (parent, extra) = (None, None);
    StoredBlocks { group, hashes, parent, tokens: &[], extra, index: 0, medium }
}

/// The events of one tier. It informs the pool of the tier, too.
#[derive(Clone)]
pub(crate) struct TierEvents {
    event_order: PlainArc<EventOrder>,
    /// The number of the tier.
    tier: usize,
}

impl TierEvents {
    pub(crate) fn new(event_order: PlainArc<EventOrder>, tier: usize) -> Self {
        Self { event_order, tier }
    }

    /// Calls `publish`, which publishes contents of a group and generation and returns those that are published, each with
    /// its slot. The caller owns the slots. Calls nothing after a reset: its contents cannot be matched. Contents of a group
    /// that the cache does not have are not announced: no admission asks for them.
    pub(crate) fn publish(
        &self,
        group: GroupId,
        generation: Generation,
        publish: impl FnOnce() -> Vec<(BlockId, BlockHash)>,
    ) {
        let Self { event_order, tier } = self;
        event_order.announce(|events| {
            let state = &mut *events.state;
            if state.in_tiers.generation != generation.number() {
                return;
            }
            let contents = publish();
            if group.index() >= state.in_tiers.changed.len() {
                return;
            }
            for (slot, hash) in contents {
                // Relaxed: a thread takes the slot only after its owners have left, and the caller is an owner.
                event_order.in_tiers[*tier][slot.index()].store(true, Ordering::Relaxed);
                if state.in_tiers.insert(*tier, slot, (group, hash)) {
                    state.in_tiers.changed[group.index()].push(hash);
                }
            }
            state.note_changed(*tier, true);
        });
    }

    /// Ends the contents of `slots`, which have a new owner or are uncached.
    fn end(&self, mut state: MutexGuard<'_, State>, slots: &[BlockId]) {
        let Self { event_order, tier } = self;
        for &slot in slots {
            // Relaxed: as in `publish`.
            if event_order.in_tiers[*tier][slot.index()].load(Ordering::Relaxed) {
                event_order.in_tiers[*tier][slot.index()].store(false, Ordering::Relaxed);
                if let Some((group, hash)) = state.in_tiers.remove(*tier, slot) {
                    state.in_tiers.changed[group.index()].push(hash);
                }
            }
        }
        state.note_changed(*tier, false);
        let due = event_order.due(&mut state);
        drop(state);
        event_order.deliver(due);
    }
}

impl TakeObserver for TierEvents {
    fn taken(&self, ids: &[BlockId]) {
        // Relaxed: as in `publish`.
        let flags = &self.event_order.in_tiers[self.tier];
        let may_be_announced = |id: &BlockId| flags[id.index()].load(Ordering::Relaxed);
        if let Some(first) = ids.iter().position(may_be_announced) {
            self.end(self.event_order.state.lock(), &ids[first..]);
        }
    }

    fn ending(&self, end: &mut dyn FnMut() -> Vec<BlockId>) {
        let state = self.event_order.state.lock();
        let ids = end();
        self.end(state, &ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIERS: [(Medium, usize); 3] = [(Medium::Host, 4), (Medium::Disk, 4), (Medium::Host, 4)];

    fn hash(n: u128) -> (GroupId, BlockHash) {
        (GroupId(0), BlockHash::from_u128(n))
    }

    #[test]
    fn a_content_is_announced_once_in_a_medium_and_removed_with_its_last_slot() {
        let mut slots = TierSlots::new(&TIERS, 2).unwrap();
        assert!(slots.insert(0, BlockId(0), hash(7)));
        assert!(!slots.insert(0, BlockId(1), hash(7)), "a copy in the same tier");
        assert!(!slots.insert(2, BlockId(1), hash(7)), "a copy in another tier of the medium");
        assert!(slots.insert(1, BlockId(0), hash(7)), "another medium");
        assert!(!slots.insert(1, BlockId(0), hash(7)), "the same slot again");
        let in_group = (GroupId(1), hash(7).1);
        assert!(slots.insert(0, BlockId(3), in_group), "another group");
        assert_eq!(slots.remove(0, BlockId(3)), Some(in_group));
        assert_eq!(slots.remove(0, BlockId(0)), None);
        assert_eq!(slots.remove(0, BlockId(1)), None);
        assert_eq!(slots.remove(1, BlockId(0)), Some(hash(7)));
        assert_eq!(slots.remove(2, BlockId(1)), Some(hash(7)));
        assert_eq!(slots.remove(2, BlockId(1)), None, "it holds nothing");
    }

    #[test]
    fn contents_from_before_a_clearing_end_without_an_event() {
        let mut slots = TierSlots::new(&TIERS, 2).unwrap();
        assert!(slots.insert(0, BlockId(0), hash(7)) && slots.insert(0, BlockId(1), hash(8)));
        slots.clear(1);
        assert_eq!(slots.remove(0, BlockId(0)), None);
        assert!(slots.insert(2, BlockId(0), hash(8)), "of the new weights");
        assert_eq!(slots.remove(0, BlockId(1)), None, "of the old ones");
        assert_eq!(slots.remove(2, BlockId(0)), Some(hash(8)));
    }
}
