//! `LevelQueues`: the idle blocks of each level, the least recently released first, as lists linked through an array.
//!
//! A block has one entry at most. A match leaves it in place; it is stale then, until it is first or the block becomes
//! idle again.
//!
//! Invariant: the entries of a queue are linked both ways from its first to its last, and no other entry is linked.

use super::deadlines::Deadlines;
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::word::IdleBlock;

/// The levels that have a queue here: all but the default.
pub(super) const QUEUES: usize = 4;

/// The number of no block.
const NONE: u32 = u32::MAX;

/// The number of no queue.
const NO_QUEUE: u8 = u8::MAX;

pub(super) struct LevelQueues {
    queues: [LevelQueue; QUEUES],
    entries: Box<[Entry]>,
    pub(super) deadlines: Deadlines,
    /// The time of the last release with a deadline.
    moment: u64,
}

#[derive(Clone, Copy)]
struct LevelQueue {
    first: u32,
    last: u32,
    len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    before: u32,
    after: u32,
    queue: u8,
    epoch: u8,
}

impl LevelQueues {
    /// Creates queues for blocks with ids below `num_ids`.
    pub(super) fn new(num_ids: usize) -> Result<Self> {
        let entry = Entry { before: NONE, after: NONE, queue: NO_QUEUE, epoch: 0 };
        Ok(Self {
            queues: [LevelQueue { first: NONE, last: NONE, len: 0 }; QUEUES],
            entries: array_of(num_ids, || entry)?,
            deadlines: Deadlines::new(num_ids)?,
            moment: 0,
        })
    }

    /// Returns a time that no release had before: now, or just after the last one.
    pub(super) fn next_moment(&mut self, now: u64) -> u64 {
        self.moment = now.max(self.moment + 1);
        self.moment
    }

    pub(super) fn len(&self, queue: usize) -> usize {
        self.queues[queue].len
    }

    /// Adds an entry at the end of a queue, in place of an earlier one of the block.
    pub(super) fn push(&mut self, idle: IdleBlock, queue: usize) {
        self.remove(idle.id);
        let last = self.queues[queue].last;
        self.link(idle, queue, last, NONE);
    }

    /// Adds an entry before all others of a queue, in place of an earlier one of the block.
    pub(super) fn push_front(&mut self, idle: IdleBlock, queue: usize) {
        self.remove(idle.id);
        let first = self.queues[queue].first;
        self.link(idle, queue, NONE, first);
    }

    /// Returns the first entry of a queue.
    pub(super) fn first(&self, queue: usize) -> Option<IdleBlock> {
        self.entry(self.queues[queue].first)
    }

    /// Returns the entry of a block, if it has one.
    pub(super) fn get(&self, id: BlockId) -> Option<IdleBlock> {
        let Entry { queue, epoch, .. } = self.entries[id.index()];
        (queue != NO_QUEUE).then_some(IdleBlock { id, epoch })
    }

    /// Returns the entries of a queue, the oldest first.
    pub(super) fn entries(&self, queue: usize) -> impl Iterator<Item = IdleBlock> {
        let next = |idle: &IdleBlock| self.entry(self.entries[idle.id.index()].after);
        std::iter::successors(self.first(queue), next)
    }

    /// Removes the entry of a block, and its deadline.
    pub(super) fn remove(&mut self, id: BlockId) {
        let Entry { before, after, queue, .. } = self.entries[id.index()];
        if queue == NO_QUEUE {
            return;
        }
        self.join(usize::from(queue), before, after);
        self.queues[usize::from(queue)].len -= 1;
        self.entries[id.index()].queue = NO_QUEUE;
        self.deadlines.remove(id);
    }

    fn entry(&self, number: u32) -> Option<IdleBlock> {
        (number != NONE).then(|| {
            let id = BlockId(number);
            IdleBlock { id, epoch: self.entries[id.index()].epoch }
        })
    }

    fn link(&mut self, IdleBlock { id, epoch }: IdleBlock, queue: usize, before: u32, after: u32) {
        self.entries[id.index()] = Entry { before, after, queue: queue as u8, epoch };
        self.join(queue, before, id.0);
        self.join(queue, id.0, after);
        self.queues[queue].len += 1;
    }

    /// Makes two entries of a queue neighbours; one of them may be its border.
    fn join(&mut self, queue: usize, before: u32, after: u32) {
        match before {
            NONE => self.queues[queue].first = after,
            _ => self.entries[before as usize].after = after,
        }
        match after {
            NONE => self.queues[queue].last = before,
            _ => self.entries[after as usize].before = before,
        }
    }

    /// Returns the first fault found.
    pub(super) fn audit(&self) -> std::result::Result<(), String> {
        let mut linked = 0;
        for (number, queue) in self.queues.iter().enumerate() {
            let (mut before, mut len) = (NONE, 0);
            // One more than all blocks: links may lead in a circle.
            for idle in self.entries(number).take(self.entries.len() + 1) {
                let entry = self.entries[idle.id.index()];
                if entry.before != before || usize::from(entry.queue) != number {
                    return Err(format!("{} is wrongly linked among the levels", idle.id));
                }
                (before, len) = (idle.id.0, len + 1);
            }
            if (queue.last, queue.len) != (before, len) {
                return Err(format!("level queue {number} has {len} entries, not {}", queue.len));
            }
            linked += len;
        }
        let entries = (0..).zip(&self.entries).filter(|(_, entry)| entry.queue != NO_QUEUE);
        if entries.clone().count() != linked {
            return Err(format!("{linked} entries of levels are linked, and others are not"));
        }
        let is_unlinked =
            |&id: &BlockId| self.get(id).is_none() && self.deadlines.get(id).is_some();
        if let Some(id) = (0..self.entries.len() as u32).map(BlockId).find(is_unlinked) {
            return Err(format!("{id} has a deadline and no entry"));
        }
        self.deadlines.audit()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn the_queues_are_those_of_a_naive_model() {
        const BLOCKS: u32 = 30;
        // Under an interpreter each takes a millisecond.
        const CHANGES: usize = if cfg!(miri) { 300 } else { 20_000 };
        let mut queues = LevelQueues::new(BLOCKS as usize).unwrap();
        let mut model: [VecDeque<BlockId>; QUEUES] = Default::default();
        let mut random = 7_u64;
        for step in 0..CHANGES {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let (id, queue) = (BlockId((random >> 33) as u32 % BLOCKS), (random >> 62) as usize);
            let idle = IdleBlock { id, epoch: step as u8 };
            model.iter_mut().for_each(|queue| queue.retain(|&other| other != id));
            match random >> 50 & 7 {
                0 => queues.remove(id),
                1 => {
                    queues.push_front(idle, queue);
                    model[queue].push_front(id);
                }
                _ => {
                    queues.push(idle, queue);
                    model[queue].push_back(id);
                }
            }
            assert_eq!(queues.audit(), Ok(()));
            for (at, ids) in model.iter().enumerate() {
                assert!(queues.entries(at).map(|idle| idle.id).eq(ids.iter().copied()));
                assert_eq!(queues.len(at), ids.len());
            }
            assert_eq!(queues.get(id), (random >> 50 & 7 > 0).then_some(idle));
        }
    }

    #[test]
    fn a_fault_is_found() {
        let mut queues = LevelQueues::new(3).unwrap();
        (0..3).for_each(|id| queues.push(IdleBlock { id: BlockId(id), epoch: 0 }, 1));
        queues.deadlines.set(BlockId(1), 5);
        assert_eq!(queues.audit(), Ok(()));
        queues.entries[1].queue = NO_QUEUE;
        assert!(queues.audit().unwrap_err().contains("B1"));
        queues.entries[1] = Entry { before: 0, after: 1, queue: 1, epoch: 0 };
        assert!(queues.audit().is_err(), "links that lead in a circle");
    }
}
