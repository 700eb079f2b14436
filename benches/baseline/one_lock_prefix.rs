//! `OneLockPrefix`: prefix reuse that reclaims the least recently used block first, all under one lock.
//!
//! A block has 32 bytes: its hash, its owner count and its neighbours in the list of idle blocks. So
//! removing a block from the middle of that list touches no other structure. The map uses the block hashes
//! as they are, without hashing them again. Callers provide the memory of their tables, so in a steady
//! state no operation allocates memory.
//!
//! Invariant: a block is free, or idle (published, without owners, in the list), or owned.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use paged_kv::BlockHash;
use parking_lot::Mutex;

/// A cache of blocks' contents for many threads.
pub struct OneLockPrefix(Mutex<State>);

pub(super) struct State {
    /// The blocks, and after the last block the end of the idle list: its `next` is the oldest block.
    blocks: Box<[Block]>,
    free: Vec<u32>,
    named: HashMap<Name, u32, BuildHasherDefault<AsItIs>>,
    num_idle: usize,
}

#[derive(Clone)]
struct Block {
    name: Name,
    owners: u32,
    is_named: bool,
    prev: u32,
    next: u32,
}

/// A hash in two halves, which align to 8 bytes: so an entry of the map has 24 bytes, not 32.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name([u64; 2]);

impl From<BlockHash> for Name {
    #[inline]
    fn from(hash: BlockHash) -> Self {
        let bits = hash.as_u128();
        Self([bits as u64, (bits >> 64) as u64])
    }
}

impl Hash for Name {
    #[inline]
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.0[0]);
    }
}

#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("names are written as one word");
    }
    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

impl OneLockPrefix {
    pub fn new(num_blocks: usize) -> Self {
        Self(Mutex::new(State::new(num_blocks)))
    }

    /// Returns the number of available blocks: free or idle.
    pub fn room(&self) -> usize {
        let state = self.0.lock();
        state.free.len() + state.num_idle
    }

    /// Returns how many of `hashes`, from the first on, are cached.
    pub fn probe(&self, hashes: &[BlockHash]) -> usize {
        let state = self.0.lock();
        hashes.iter().take_while(|&&hash| state.named.contains_key(&hash.into())).count()
    }

    /// Fills the empty `table` with `num_blocks` blocks: the cached blocks of the leading `hashes`, then new
    /// ones. Returns how many were cached, or changes nothing and returns `None` if there is no room.
    pub fn admit(
        &self,
        hashes: &[BlockHash],
        num_blocks: usize,
        table: &mut Vec<u32>,
    ) -> Option<usize> {
        let mut state = self.0.lock();
        let hits = state.match_leading(hashes, table);
        if !state.has_room(num_blocks - hits, table) {
            table.clear();
            return None;
        }
        state.acquire(table);
        state.take(num_blocks - hits, table);
        Some(hits)
    }

    /// Appends `n` new blocks. Returns false and changes nothing if there is no room.
    pub fn grow(&self, n: usize, table: &mut Vec<u32>) -> bool {
        let mut state = self.0.lock();
        let has_room = state.has_room(n, &[]);
        if has_room {
            state.take(n, table);
        }
        has_room
    }

    /// Publishes the unpublished `blocks` under `hashes`. A block whose content is cached in another block is
    /// skipped, and the cached block counts as used. Returns how many were published.
    pub fn commit(&self, blocks: &[u32], hashes: &[BlockHash]) -> usize {
        self.0.lock().publish(blocks, hashes)
    }

    /// Removes one owner from each block of `table`, the last block first, and empties the table.
    pub fn release(&self, table: &mut Vec<u32>) {
        self.0.lock().give(table);
        table.clear();
    }
}

impl State {
    pub(super) fn new(num_blocks: usize) -> Self {
        let end = num_blocks as u32;
        let block = Block { name: Name([0; 2]), owners: 0, is_named: false, prev: end, next: end };
        Self {
            blocks: vec![block; num_blocks + 1].into(),
            free: (0..end).rev().collect(),
            named: HashMap::with_capacity_and_hasher(num_blocks, BuildHasherDefault::default()),
            num_idle: 0,
        }
    }

    /// Returns the block that has a content.
    #[inline]
    pub(super) fn find(&self, hash: BlockHash) -> Option<u32> {
        self.named.get(&hash.into()).copied()
    }

    /// Appends the cached blocks of the leading `hashes`, without owning them. Returns how many the table has then.
    #[inline]
    fn match_leading(&self, hashes: &[BlockHash], table: &mut Vec<u32>) -> usize {
        table.extend(hashes.iter().map_while(|&hash| self.find(hash)));
        table.len()
    }

    /// Adds an owner to each block.
    #[inline]
    pub(super) fn acquire(&mut self, ids: &[u32]) {
        for &id in ids {
            if self.blocks[id as usize].owners == 0 {
                self.unlink(id);
            }
            self.blocks[id as usize].owners += 1;
        }
    }

    /// Publishes blocks: see [`OneLockPrefix::commit`].
    #[inline]
    pub(super) fn publish(&mut self, blocks: &[u32], hashes: &[BlockHash]) -> usize {
        let mut named = 0;
        for (&id, &hash) in blocks.iter().zip(hashes) {
            let name = Name::from(hash);
            let holder = *self.named.entry(name).or_insert(id);
            if holder == id {
                let block = &mut self.blocks[id as usize];
                block.name = name;
                block.is_named = true;
                named += 1;
            } else if self.blocks[holder as usize].owners == 0 {
                self.unlink(holder);
                self.link(holder);
            }
        }
        named
    }

    /// Removes one owner from each block, the last block first.
    #[inline]
    pub(super) fn give(&mut self, ids: &[u32]) {
        for &id in ids.iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.owners -= 1;
            if block.owners > 0 {
                continue;
            }
            if block.is_named {
                self.link(id);
            } else {
                self.free.push(id);
            }
        }
    }

    /// Returns whether `n` blocks can be taken in addition to the cached blocks of `matched`.
    #[inline]
    pub(super) fn has_room(&self, n: usize, matched: &[u32]) -> bool {
        let room = self.free.len() + self.num_idle;
        if n + matched.len() <= room {
            return true;
        }
        let is_idle = |&&id: &&u32| self.blocks[id as usize].owners == 0;
        n + matched.iter().filter(is_idle).count() <= room
    }

    /// Appends `n` blocks. The caller has checked that there is room.
    #[inline]
    pub(super) fn take(&mut self, n: usize, table: &mut Vec<u32>) {
        let free = n.min(self.free.len());
        let rest = self.free.len() - free;
        for id in self.free.drain(rest..).rev() {
            self.blocks[id as usize].owners = 1;
            table.push(id);
        }
        for _ in free..n {
            let oldest = self.blocks[self.blocks.len() - 1].next;
            self.unlink(oldest);
            let block = &mut self.blocks[oldest as usize];
            block.owners = 1;
            block.is_named = false;
            self.named.remove(&block.name);
            table.push(oldest);
        }
    }

    /// Inserts a block at the newest end of the idle list.
    #[inline]
    fn link(&mut self, id: u32) {
        let end = self.blocks.len() - 1;
        let newest = std::mem::replace(&mut self.blocks[end].prev, id);
        self.blocks[newest as usize].next = id;
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (newest, end as u32);
        self.num_idle += 1;
    }

    /// Removes a block from the idle list.
    #[inline]
    fn unlink(&mut self, id: u32) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        self.blocks[prev as usize].next = next;
        self.blocks[next as usize].prev = prev;
        self.num_idle -= 1;
    }
}
