//! `OneLockCache`: sequences by id with copy-on-write and eviction, all under one lock.
//!
//! It has a slab of entries, a map from id to place in the slab, and the [`Blocks`] of the pool. A freed
//! entry keeps the memory of its block list for the next sequence, so in a steady state no operation
//! allocates memory. Recency is a stamp, written with the rest of the entry. An intrusive list would make
//! one eviction cheaper and every append more expensive.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::one_lock_pool::Blocks;

/// The reason for which an operation was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Missing,
    Exists,
    OutOfBlocks,
    TooShort,
}

/// The changes that an append made.
#[derive(Debug, PartialEq, Eq)]
pub struct Appended {
    pub new_blocks: Range<usize>,
    /// Source and destination. The source is released immediately.
    pub copy: Option<(u32, u32)>,
}

/// The place of a sequence in the slab: a handle that needs no lookup.
#[derive(Clone, Copy, Debug)]
pub struct Place(u32);

/// A cache for many threads.
pub struct OneLockCache {
    block_size: usize,
    state: Mutex<State>,
}

struct State {
    blocks: Blocks,
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    places: HashMap<u64, u32, RandomState>,
    clock: u64,
}

#[derive(Default)]
struct Entry {
    ids: Vec<u32>,
    num_tokens: usize,
    last_use: u64,
    uses: u64,
    id: u64,
    live: bool,
}

impl OneLockCache {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let state = State {
            blocks: Blocks::new(num_blocks),
            entries: Vec::new(),
            vacant: Vec::new(),
            places: HashMap::default(),
            clock: 0,
        };
        Self { block_size, state: Mutex::new(state) }
    }

    pub fn free_blocks(&self) -> usize {
        self.state.lock().blocks.free_blocks()
    }

    pub fn len(&self) -> usize {
        self.state.lock().places.len()
    }

    pub fn allocate(&self, id: u64, num_tokens: usize) -> Result<Place, Refused> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.places.contains_key(&id) {
            return Err(Refused::Exists);
        }
        let place = state.vacant_place();
        let entry = &mut state.entries[place as usize];
        let num_blocks = num_tokens.div_ceil(self.block_size);
        if !state.blocks.allocate(num_blocks, &mut entry.ids) {
            return Err(Refused::OutOfBlocks);
        }
        state.admit(id, place, num_tokens);
        Ok(Place(place))
    }

    pub fn append(&self, id: u64, num_new_tokens: usize) -> Result<Appended, Refused> {
        let mut state = self.state.lock();
        let place = *state.places.get(&id).ok_or(Refused::Missing)?;
        state.append(place, num_new_tokens, self.block_size)
    }

    /// Appends one token to each sequence in `ids`.
    pub fn append_all(&self, ids: &[u64]) -> Result<(), Refused> {
        let mut state = self.state.lock();
        for id in ids {
            let place = *state.places.get(id).ok_or(Refused::Missing)?;
            state.append(place, 1, self.block_size)?;
        }
        Ok(())
    }

    pub fn append_at(&self, place: Place, num_new_tokens: usize) -> Result<Appended, Refused> {
        self.state.lock().append(place.0, num_new_tokens, self.block_size)
    }

    pub fn fork(&self, src: u64, dst: u64) -> Result<Place, Refused> {
        let mut state = self.state.lock();
        let src = *state.places.get(&src).ok_or(Refused::Missing)?;
        if state.places.contains_key(&dst) {
            return Err(Refused::Exists);
        }
        Ok(Place(state.fork(src, dst)))
    }

    pub fn fork_at(&self, src: Place, dst: u64) -> Place {
        Place(self.state.lock().fork(src.0, dst))
    }

    pub fn free(&self, id: u64) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let place = *state.places.get(&id).ok_or(Refused::Missing)?;
        state.remove(place);
        Ok(())
    }

    pub fn free_at(&self, place: Place) {
        self.state.lock().remove(place.0);
    }

    pub fn truncate(&self, id: u64, num_tokens: usize) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let place = *state.places.get(&id).ok_or(Refused::Missing)?;
        let entry = &mut state.entries[place as usize];
        if num_tokens > entry.num_tokens {
            return Err(Refused::TooShort);
        }
        let kept = num_tokens.div_ceil(self.block_size);
        state.blocks.release(&entry.ids[kept..]);
        entry.ids.truncate(kept);
        entry.num_tokens = num_tokens;
        Ok(())
    }

    /// Removes the `n` least recently used sequences.
    pub fn evict(&self, n: usize) -> Vec<u64> {
        let mut state = self.state.lock();
        let live = state.entries.iter().enumerate().filter(|(_, entry)| entry.live);
        let mut victims: Vec<(u64, u32)> = match n {
            0 => Vec::new(),
            1 => live
                .map(|(place, entry)| (entry.last_use, place as u32))
                .min()
                .into_iter()
                .collect(),
            _ => live.map(|(place, entry)| (entry.last_use, place as u32)).collect(),
        };
        if n < victims.len() {
            victims.select_nth_unstable(n - 1);
            victims.truncate(n);
        }
        victims.sort_unstable();
        let evict = |(_, place)| {
            state.remove(place);
            state.entries[place as usize].id
        };
        victims.into_iter().map(evict).collect()
    }

    /// Calls `read` with the blocks of a sequence.
    pub fn with_blocks<R>(&self, id: u64, read: impl FnOnce(&[u32]) -> R) -> Result<R, Refused> {
        let state = self.state.lock();
        let place = *state.places.get(&id).ok_or(Refused::Missing)?;
        Ok(read(&state.entries[place as usize].ids))
    }

    /// Writes the blocks of each of `ids` as a row of `stride` cells, padded with `pad`.
    pub fn export(
        &self,
        ids: &[u64],
        out: &mut [i32],
        stride: usize,
        pad: i32,
    ) -> Result<(), Refused> {
        let state = self.state.lock();
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(stride)) {
            let place = *state.places.get(id).ok_or(Refused::Missing)?;
            let blocks = &state.entries[place as usize].ids;
            let (used, unused) = row.split_at_mut_checked(blocks.len()).ok_or(Refused::TooShort)?;
            for (cell, &block) in used.iter_mut().zip(blocks) {
                *cell = block as i32;
            }
            unused.fill(pad);
        }
        Ok(())
    }
}

impl OneLockCache {
    /// Writes the slot of the last token of each of `ids`.
    pub fn last_slots(&self, ids: &[u64], out: &mut [i64]) -> Result<(), Refused> {
        let state = self.state.lock();
        for (id, slot) in ids.iter().zip(out) {
            let place = *state.places.get(id).ok_or(Refused::Missing)?;
            let entry = &state.entries[place as usize];
            let position = entry.num_tokens.checked_sub(1).ok_or(Refused::TooShort)?;
            let block = entry.ids[position / self.block_size] as usize;
            *slot = (block * self.block_size + position % self.block_size) as i64;
        }
        Ok(())
    }
}

impl State {
    fn vacant_place(&mut self) -> u32 {
        if self.vacant.is_empty() {
            self.vacant.push(self.entries.len() as u32);
            self.entries.push(Entry::default());
        }
        self.vacant[self.vacant.len() - 1]
    }

    /// Completes the entry of `place`, which [`vacant_place`](Self::vacant_place) returned.
    fn admit(&mut self, id: u64, place: u32, num_tokens: usize) {
        self.vacant.pop();
        self.places.insert(id, place);
        self.clock += 1;
        let entry = &mut self.entries[place as usize];
        entry.id = id;
        entry.num_tokens = num_tokens;
        entry.last_use = self.clock;
        entry.uses = 1;
        entry.live = true;
    }

    #[inline]
    fn append(
        &mut self,
        place: u32,
        num_new_tokens: usize,
        block_size: usize,
    ) -> Result<Appended, Refused> {
        let entry = &mut self.entries[place as usize];
        let len = entry.ids.len();
        let room = len * block_size - entry.num_tokens;
        let new_blocks = num_new_tokens.saturating_sub(room).div_ceil(block_size);
        let copies = num_new_tokens > 0 && room > 0 && self.blocks.owners(entry.ids[len - 1]) > 1;
        let mut copy = None;
        if new_blocks + usize::from(copies) > 0 {
            if !self.blocks.allocate(new_blocks + usize::from(copies), &mut entry.ids) {
                return Err(Refused::OutOfBlocks);
            }
            if copies {
                let (src, dst) = (entry.ids[len - 1], entry.ids.remove(len));
                entry.ids[len - 1] = dst;
                self.blocks.release(&[src]);
                copy = Some((src, dst));
            }
        }
        self.clock += 1;
        entry.num_tokens += num_new_tokens;
        entry.last_use = self.clock;
        entry.uses += 1;
        Ok(Appended { new_blocks: len..len + new_blocks, copy })
    }

    fn fork(&mut self, src: u32, dst: u64) -> u32 {
        let place = self.vacant_place();
        let mut ids = std::mem::take(&mut self.entries[place as usize].ids);
        let source = &self.entries[src as usize];
        let num_tokens = source.num_tokens;
        self.blocks.retain(&source.ids);
        ids.extend_from_slice(&source.ids);
        self.entries[place as usize].ids = ids;
        self.admit(dst, place, num_tokens);
        place
    }

    fn remove(&mut self, place: u32) {
        let entry = &mut self.entries[place as usize];
        self.blocks.release(&entry.ids);
        entry.ids.clear();
        entry.live = false;
        self.places.remove(&entry.id);
        self.vacant.push(place);
    }
}
