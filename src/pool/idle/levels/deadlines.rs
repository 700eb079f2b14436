//! `Deadlines`: the blocks whose levels end, by the time: a binary heap in which each block knows its place.
//!
//! It allocates no memory after it was made, so that it can be used under a claim.

use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;

/// The place of a block without a deadline.
const NOWHERE: u32 = u32::MAX;

pub(super) struct Deadlines {
    /// The first `len` are blocks. A block's deadline is not before that of the block at half of its place.
    heap: Box<[BlockId]>,
    len: usize,
    /// The places of the blocks in the heap.
    places: Box<[u32]>,
    /// The deadline that each block had last.
    times: Box<[u64]>,
}

impl Deadlines {
    /// Creates deadlines for blocks with ids below `num_ids`.
    pub(super) fn new(num_ids: usize) -> Result<Self> {
        Ok(Self {
            heap: array_of(num_ids, || BlockId(0))?,
            len: 0,
            places: array_of(num_ids, || NOWHERE)?,
            times: array_of(num_ids, || 0)?,
        })
    }

    /// Returns the earliest deadline, and its block.
    pub(super) fn first(&self) -> Option<(u64, BlockId)> {
        (self.len > 0).then(|| (self.times[self.heap[0].index()], self.heap[0]))
    }

    /// Returns the deadline that the block had last, also if it was removed.
    pub(super) fn last(&self, id: BlockId) -> u64 {
        self.times[id.index()]
    }

    /// Returns the block's deadline.
    pub(super) fn get(&self, id: BlockId) -> Option<u64> {
        (self.places[id.index()] != NOWHERE).then(|| self.times[id.index()])
    }

    /// Sets the block's deadline.
    pub(super) fn set(&mut self, id: BlockId, time: u64) {
        self.remove(id);
        self.times[id.index()] = time;
        self.put(self.len, id);
        self.len += 1;
        self.rise(self.len - 1);
    }

    /// Removes the block's deadline, if it has one.
    pub(super) fn remove(&mut self, id: BlockId) {
        let place = std::mem::replace(&mut self.places[id.index()], NOWHERE);
        if place == NOWHERE {
            return;
        }
        self.len -= 1;
        let (at, last) = (place as usize, self.heap[self.len]);
        if at < self.len {
            self.put(at, last);
            self.rise(at);
            self.sink(self.places[last.index()] as usize);
        }
    }

    fn put(&mut self, at: usize, id: BlockId) {
        self.heap[at] = id;
        self.places[id.index()] = at as u32;
    }

    fn time_at(&self, at: usize) -> u64 {
        self.times[self.heap[at].index()]
    }

    fn swap(&mut self, one: usize, other: usize) {
        let (id, second) = (self.heap[one], self.heap[other]);
        self.put(one, second);
        self.put(other, id);
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let above = (at - 1) / 2;
            if self.time_at(above) <= self.time_at(at) {
                return;
            }
            self.swap(at, above);
            at = above;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let below = (2 * at + 1..(2 * at + 3).min(self.len)).min_by_key(|&at| self.time_at(at));
            match below {
                Some(below) if self.time_at(below) < self.time_at(at) => {
                    self.swap(at, below);
                    at = below;
                }
                _ => return,
            }
        }
    }

    /// Returns the first fault found.
    pub(super) fn audit(&self) -> std::result::Result<(), String> {
        for at in 0..self.len {
            let id = self.heap[at];
            if self.places[id.index()] as usize != at {
                return Err(format!("the deadline of {id} is at {at}, and not where it says"));
            }
            if self.time_at(at) < self.time_at(at.saturating_sub(1) / 2) {
                return Err(format!("the deadline of {id} is after a later one"));
            }
        }
        let placed = self.places.iter().filter(|&&place| place != NOWHERE).count();
        if placed != self.len {
            return Err(format!("{placed} blocks have deadlines, and {} are kept", self.len));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_first_deadline_is_that_of_a_naive_model() {
        const BLOCKS: u32 = 40;
        // Under an interpreter each takes a millisecond.
        const CHANGES: usize = if cfg!(miri) { 300 } else { 20_000 };
        let (mut deadlines, mut model) =
            (Deadlines::new(BLOCKS as usize).unwrap(), BTreeMap::new());
        let mut random = 1_u64;
        for _ in 0..CHANGES {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let (id, time) = (BlockId((random >> 33) as u32 % BLOCKS), random >> 58);
            if random >> 32 & 3 == 0 {
                deadlines.remove(id);
                model.remove(&id);
            } else {
                deadlines.set(id, time);
                model.insert(id, time);
            }
            assert_eq!(deadlines.audit(), Ok(()));
            assert_eq!(deadlines.first().map(|(time, _)| time), model.values().copied().min());
            assert_eq!(deadlines.get(id), model.get(&id).copied());
            if let Some((time, id)) = deadlines.first() {
                assert_eq!(model[&id], time);
            }
        }
    }
}
