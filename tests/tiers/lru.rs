//! `TierModel`: the slots of one tier, and the order in which its idle contents are given up.

use std::collections::{BTreeMap, BTreeSet};

use paged_kv::{BlockHash, Tier, TierStats};

use crate::BLOCK_SIZE;
use crate::reference::Content;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    content: Option<Content>,
    owners: usize,
    held: Held,
}

/// Whether a slot is read by a store ahead of need, and was not used since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    No,
    /// It keeps its place in the order.
    InPlace,
    /// The place is gone: contents that followed it were given up.
    Passed,
}

/// Blocks that were copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub stored: u64,
    pub loaded: u64,
    pub failed: u64,
    pub dropped: u64,
}

#[derive(Debug)]
pub struct TierModel {
    pub tier: Tier,
    pub is_exclusive: bool,
    pub counts: Counts,
    slots: Vec<Slot>,
    ready: BTreeMap<Content, u32>,
    /// Idle contents and held ones, the one that is given up first in front.
    order: Vec<u32>,
}

impl TierModel {
    pub fn new(slots: usize, is_disk: bool, is_exclusive: bool) -> Self {
        let tier = if is_disk { Tier::disk(slots) } else { Tier::host(slots) };
        let tier = if is_exclusive { tier.exclusive() } else { tier };
        let slots = vec![Slot::default(); slots];
        let (counts, ready, order) = (Counts::default(), BTreeMap::new(), Vec::new());
        Self { tier, is_exclusive, counts, slots, ready, order }
    }

    pub fn find(&self, content: Content) -> Option<u32> {
        self.ready.get(&content).copied()
    }

    /// Returns the contents of a generation that are ready, pinned or not.
    pub fn contents(&self, generation: u64) -> impl Iterator<Item = BlockHash> {
        self.ready.keys().filter(move |(_, of)| *of == generation).map(|(hash, _)| *hash)
    }

    /// Pins contents that are ready. Returns their slots.
    pub fn pin(&mut self, contents: &[Content]) -> Vec<u32> {
        let slots: Vec<u32> = contents.iter().map(|content| self.ready[content]).collect();
        for &slot in &slots {
            self.slots[slot as usize].owners += 1;
            self.leave_order(slot);
        }
        slots
    }

    fn leave_order(&mut self, slot: u32) {
        self.slots[slot as usize].held = Held::No;
        self.order.retain(|&idle| idle != slot);
    }

    fn is_idle(&self, slot: u32) -> bool {
        self.slots[slot as usize].owners == 0
    }

    /// Returns the slots that the next `ahead` of this tier's slots would take from contents.
    pub fn oldest(&self, ahead: usize) -> Vec<(u32, Content)> {
        let contents = ahead.saturating_sub(self.free().len());
        let idle = self.order.iter().copied().filter(|&slot| self.is_idle(slot));
        let content = |slot: u32| (slot, self.slots[slot as usize].content.expect("it is idle"));
        idle.take(contents).map(content).collect()
    }

    /// Makes a ticket an owner of an idle slot, which keeps its place.
    pub fn hold(&mut self, slot: u32) {
        let slot = &mut self.slots[slot as usize];
        (slot.owners, slot.held) = (slot.owners + 1, Held::InPlace);
    }

    /// Releases slots that were held, the last one first.
    pub fn release_held(&mut self, slots: &[u32]) {
        for &at in slots.iter().rev() {
            let slot = &mut self.slots[at as usize];
            match std::mem::take(&mut slot.held) {
                Held::No => self.release(&[at]),
                Held::InPlace => slot.owners -= 1,
                Held::Passed => {
                    slot.owners -= 1;
                    self.order.insert(0, at);
                }
            }
        }
    }

    /// Releases slots, the last one first.
    pub fn release(&mut self, slots: &[u32]) {
        for &at in slots.iter().rev() {
            let slot = &mut self.slots[at as usize];
            slot.owners -= 1;
            if slot.owners == 0 && slot.content.is_some() {
                self.order.push(at);
            }
        }
    }

    fn free(&self) -> BTreeSet<u32> {
        let is_free = |slot: &Slot| slot.owners == 0 && slot.content.is_none();
        (0..).zip(&self.slots).filter(|(_, slot)| is_free(slot)).map(|(at, _)| at).collect()
    }

    pub fn room(&self) -> usize {
        self.free().len() + self.num_idle()
    }

    fn num_idle(&self) -> usize {
        self.order.iter().filter(|&&slot| self.is_idle(slot)).count()
    }

    /// Takes the oldest idle contents out of the order, past those that are held.
    fn reclaim(&mut self, num_lost: usize) -> BTreeSet<u32> {
        let mut lost = BTreeSet::new();
        while lost.len() < num_lost {
            let slot = self.order.remove(0);
            match self.is_idle(slot) {
                true => _ = lost.insert(slot),
                false => self.slots[slot as usize].held = Held::Passed,
            }
        }
        lost
    }

    /// Checks which slots a ticket got: free ones, and then those of the contents that were idle for longest.
    pub fn take(&mut self, taken: &[u32]) {
        let free = self.free();
        let num_lost = taken.len().saturating_sub(free.len());
        let lost = self.reclaim(num_lost);
        let got: BTreeSet<u32> = taken.iter().copied().collect();
        assert_eq!(got.len(), taken.len(), "a slot is given once");
        let not_free: BTreeSet<u32> = got.difference(&free).copied().collect();
        assert_eq!(not_free, lost, "the oldest idle contents, after the free slots {free:?}");
        for &at in taken {
            let slot = &mut self.slots[at as usize];
            if let Some(content) = slot.content.take() {
                self.ready.remove(&content);
            }
            slot.owners = 1;
        }
    }

    pub fn fill(&mut self, slot: u32, content: Content) {
        self.slots[slot as usize].content = Some(content);
        let before = self.ready.insert(content, slot);
        assert!(before.is_none(), "a tier has a content once");
    }

    /// Gives all slots to a restore.
    pub fn take_all(&mut self) {
        let slots: Vec<u32> = (0..self.slots.len() as u32).collect();
        self.take(&slots);
    }

    /// Returns true if no slot is owned or has a content.
    pub fn is_free(&self) -> bool {
        self.free().len() == self.slots.len()
    }

    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    pub fn forget(&mut self, slot: u32) {
        self.leave_order(slot);
        if let Some(content) = self.slots[slot as usize].content.take() {
            self.ready.remove(&content);
        }
    }

    /// Checks the counts of the cache, which is in this generation, for this tier.
    pub fn check(&self, stats: &TierStats, generation: u64) {
        let counts = Counts {
            stored: stats.blocks_stored,
            loaded: stats.blocks_loaded,
            failed: stats.copies_failed,
            dropped: stats.stores_dropped,
        };
        assert_eq!(counts, self.counts);
        let used = self.slots.iter().filter(|slot| slot.owners > 0).count();
        let slots = (stats.slots_total, stats.slots_used, stats.slots_ready);
        let is_current =
            |slot: &&u32| self.slots[**slot as usize].content.is_some_and(|of| of.1 == generation);
        let idle = self.order.iter().filter(|&&slot| self.is_idle(slot));
        let ready = idle.filter(is_current).count();
        assert_eq!(slots, (self.slots.len(), used, ready));
        assert_eq!(stats.prompt_tokens_loaded, counts.loaded * BLOCK_SIZE as u64);
    }
}
