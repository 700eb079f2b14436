//! `OneLockTier`: a device and one tier below it, with the states of their contents, all under one lock.
//!
//! The device and the tier are each the state of [`OneLockPrefix`](super::one_lock_prefix::OneLockPrefix). A content that
//! is copied is in a set, from before its copy until it is published. Callers provide the memory of their tables.

use std::collections::HashSet;

use paged_kv::BlockHash;
use parking_lot::Mutex;

use super::one_lock_prefix::State;

pub struct OneLockTier(Mutex<Tiered>);

struct Tiered {
    device: State,
    tier: State,
    copied: HashSet<BlockHash>,
}

/// A request, and its copies: the blocks `table[hits..hits + slots.len()]` are loaded from `slots`.
#[derive(Default)]
pub struct Request {
    pub table: Vec<u32>,
    pub hits: usize,
    pub slots: Vec<u32>,
}

/// Copies to the tier, of contents with these hashes.
#[derive(Default)]
pub struct Stores {
    pub hashes: Vec<BlockHash>,
    pub blocks: Vec<u32>,
    pub slots: Vec<u32>,
}

impl OneLockTier {
    pub fn new(num_blocks: usize, num_slots: usize) -> Self {
        let (device, tier) = (State::new(num_blocks), State::new(num_slots));
        Self(Mutex::new(Tiered { device, tier, copied: HashSet::new() }))
    }

    /// Returns how many of `hashes` the device has, and then how many of the following ones the tier has.
    pub fn lookup(&self, hashes: &[BlockHash]) -> [usize; 2] {
        let tiered = self.0.lock();
        let on_device = hashes.iter().take_while(|&&hash| tiered.device.find(hash).is_some());
        let on_device = on_device.count();
        let rest = hashes[on_device..].iter();
        [on_device, rest.take_while(|&&hash| tiered.tier.find(hash).is_some()).count()]
    }

    /// Admits a prompt of `num_blocks` blocks. Returns false if there is no room, or another request copies a content.
    pub fn admit(&self, hashes: &[BlockHash], num_blocks: usize, request: &mut Request) -> bool {
        let mut tiered = self.0.lock();
        let Tiered { device, tier, copied } = &mut *tiered;
        request.table.extend(hashes.iter().map_while(|&hash| device.find(hash)));
        request.hits = request.table.len();
        let rest = &hashes[request.hits..];
        request.slots.extend(rest.iter().map_while(|&hash| tier.find(hash)));
        let loaded = &rest[..request.slots.len()];
        let is_pending = loaded.iter().any(|hash| copied.contains(hash));
        if is_pending || !device.has_room(num_blocks - request.hits, &request.table) {
            request.table.clear();
            request.slots.clear();
            return false;
        }
        copied.extend(loaded);
        tier.acquire(&request.slots);
        device.acquire(&request.table);
        device.take(num_blocks - request.hits, &mut request.table);
        true
    }

    /// Publishes the contents that were loaded.
    pub fn complete_load(&self, hashes: &[BlockHash], request: &mut Request) {
        let mut tiered = self.0.lock();
        let Tiered { device, tier, copied } = &mut *tiered;
        let loaded = request.hits..request.hits + request.slots.len();
        device.publish(&request.table[loaded.clone()], &hashes[loaded.clone()]);
        for hash in &hashes[loaded] {
            copied.remove(hash);
        }
        tier.give(&request.slots);
        request.slots.clear();
    }

    /// Publishes the blocks of a prompt that were computed.
    pub fn commit(&self, hashes: &[BlockHash], request: &Request) {
        self.0.lock().device.publish(&request.table, hashes);
    }

    pub fn release(&self, request: &mut Request) {
        self.0.lock().device.give(&request.table);
        request.table.clear();
    }

    /// Begins to store the contents that the device has and the tier has not. Returns false if there are none, or too few
    /// slots.
    pub fn store(&self, hashes: &[BlockHash], stores: &mut Stores) -> bool {
        let mut tiered = self.0.lock();
        let Tiered { device, tier, copied } = &mut *tiered;
        for &hash in hashes {
            if let (Some(block), None) = (device.find(hash), tier.find(hash))
                && !copied.contains(&hash)
            {
                stores.hashes.push(hash);
                stores.blocks.push(block);
            }
        }
        if stores.hashes.is_empty() || !tier.has_room(stores.hashes.len(), &[]) {
            stores.hashes.clear();
            stores.blocks.clear();
            return false;
        }
        copied.extend(&stores.hashes);
        device.acquire(&stores.blocks);
        tier.take(stores.hashes.len(), &mut stores.slots);
        true
    }

    /// Makes the contents ready that were stored.
    pub fn complete_store(&self, stores: &mut Stores) {
        let mut tiered = self.0.lock();
        let Tiered { device, tier, copied } = &mut *tiered;
        tier.publish(&stores.slots, &stores.hashes);
        tier.give(&stores.slots);
        device.give(&stores.blocks);
        for hash in stores.hashes.drain(..) {
            copied.remove(&hash);
        }
        stores.blocks.clear();
        stores.slots.clear();
    }
}
