//! `IdleQueue`: batches of entries of idle blocks between the shards, the oldest first.
//!
//! A match leaves the block's entry in place. When such stale entries fill half of the queue, the queue is
//! compacted: each batch is taken once, and only valid entries are put back.

use crate::array::queue_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::word::{BlockWords, IdleBlock};
use crate::sync::ArrayQueue;

/// Blocks in a batch, of idle blocks as of free ids.
pub(in crate::pool) const BATCH: usize =
    if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 2 } else { 128 };

/// A batch of entries, the oldest first. Ids and epochs are kept apart: 5 bytes an entry, not the 8 of an
/// `IdleBlock`.
pub(super) struct IdleBatch {
    ids: [u32; BATCH],
    epochs: [u8; BATCH],
    len: u32,
    /// The time at which the first entry was added.
    pub(super) stamp: u32,
}

/// The entries of one class between the shards.
pub(super) struct IdleQueue {
    batches: ArrayQueue<IdleBatch>,
    /// Above this number of batches the queue is compacted.
    full: usize,
}

impl IdleBatch {
    pub(super) fn new(stamp: u32) -> Self {
        Self { ids: [0; BATCH], epochs: [0; BATCH], len: 0, stamp }
    }

    pub(super) fn push(&mut self, idle: IdleBlock) {
        let at = self.len as usize;
        (self.ids[at], self.epochs[at]) = (idle.id.0, idle.epoch);
        self.len += 1;
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = IdleBlock> {
        let len = self.len as usize;
        let entries = self.ids[..len].iter().zip(&self.epochs[..len]);
        entries.map(|(&id, &epoch)| IdleBlock { id: BlockId(id), epoch })
    }

    fn is_full(&self) -> bool {
        self.len as usize == BATCH
    }
}

impl IdleQueue {
    /// Creates a queue for a pool of `total` blocks and `shards` home shards.
    pub(super) fn new(total: usize, shards: usize) -> Result<Self> {
        let full = 2 * total.div_ceil(BATCH) + shards;
        Ok(Self { batches: queue_of(full + 2 * shards)?, full })
    }

    pub(super) fn pop(&self) -> Option<IdleBatch> {
        self.batches.pop()
    }

    /// Appends a batch, and compacts the queue if it is too long.
    pub(super) fn push(&self, batch: IdleBatch, words: &BlockWords) {
        let mut waiting = Some(batch);
        while let Some(batch) = waiting.take() {
            waiting = self.batches.push(batch).err();
            if waiting.is_some() || self.batches.len() > self.full {
                self.turn_over(words);
            }
        }
    }

    /// Takes each batch once and puts the valid entries back in order. A pool has at most `total` idle
    /// blocks, so at least half of the entries go.
    #[cold]
    fn turn_over(&self, words: &BlockWords) {
        let mut standing = IdleBatch::new(0);
        for _ in 0..self.batches.len() {
            let Some(batch) = self.batches.pop() else { break };
            for idle in batch.entries().filter(|&idle| words.view().is_idle_since(idle)) {
                if standing.len == 0 {
                    standing.stamp = batch.stamp;
                }
                standing.push(idle);
                if standing.is_full() {
                    self.put_back(std::mem::replace(&mut standing, IdleBatch::new(0)));
                }
            }
        }
        if standing.len > 0 {
            self.put_back(standing);
        }
    }

    fn put_back(&self, batch: IdleBatch) {
        let pushed = self.batches.push(batch);
        assert!(pushed.is_ok(), "the queue has room for what came out of it");
    }

    /// Passes every entry to `look` and leaves the queue as it was. The caller holds all claims.
    pub(super) fn inspect(&self, mut look: impl FnMut(IdleBlock)) {
        for _ in 0..self.batches.len() {
            let batch = self.batches.pop().expect("only a claim's holder takes from the queue");
            batch.entries().for_each(&mut look);
            self.put_back(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::content_key::{ContentKey, NewKey};
    use crate::pool::word::Released;

    /// Creates the words of a batch of blocks, all idle, and their entries.
    fn idle_blocks() -> (BlockWords, Vec<IdleBlock>) {
        let words = BlockWords::with_keys(BATCH).unwrap();
        let make_idle = |id: BlockId| {
            words.view().occupy(id);
            assert!(words.set_key(id, NewKey::only(ContentKey::new(7)), true, |_| {}));
            match words.view().release_shared(id) {
                Released::Idle(left) => left.block,
                left => panic!("a cached block that nobody owns is idle, not {left:?}"),
            }
        };
        let entries = (0..BATCH as u32).map(BlockId).map(make_idle).collect();
        (words, entries)
    }

    fn batch(stamp: u32, entries: &[IdleBlock]) -> IdleBatch {
        let mut batch = IdleBatch::new(stamp);
        entries.iter().for_each(|&idle| batch.push(idle));
        batch
    }

    /// Returns a stale entry of the block.
    fn left_behind(idle: IdleBlock) -> IdleBlock {
        IdleBlock { epoch: idle.epoch.wrapping_add(100), ..idle }
    }

    #[test]
    fn entries_left_behind_stay_until_they_fill_the_queue_and_then_go_at_once() {
        let (words, entries) = idle_blocks();
        let stale: Vec<IdleBlock> = entries.iter().copied().map(left_behind).collect();
        for shards in [1, 4] {
            let queue = IdleQueue::new(BATCH, shards).unwrap();
            assert_eq!(queue.full, 2 + shards);
            for turn in 0..3 {
                for len in 1..=queue.full {
                    queue.push(batch(0, &stale), &words);
                    assert_eq!(queue.batches.len(), len, "in turn {turn}");
                }
                queue.push(batch(0, &stale), &words);
                assert_eq!(queue.batches.len(), 0, "nothing is left of them");
            }
        }
    }

    #[test]
    fn a_queue_that_is_turned_over_keeps_the_order_and_the_time_of_the_oldest() {
        let (words, entries) = idle_blocks();
        let queue = IdleQueue::new(BATCH, 1).unwrap();
        // Four batches, half of each stale: the valid entries fill two.
        for (stamp, part) in entries.chunks(BATCH / 4).enumerate() {
            let half: Vec<IdleBlock> =
                part.iter().copied().flat_map(|idle| [left_behind(idle), idle]).collect();
            queue.push(batch(10 + stamp as u32, &half), &words);
        }
        assert_eq!(queue.batches.len(), 1);
        let mut seen = Vec::new();
        queue.inspect(|idle| seen.push(idle));
        assert_eq!(seen, entries);
        let standing = queue.pop().expect("a batch");
        assert!(standing.is_full() && queue.pop().is_none());
        assert_eq!((standing.stamp, standing.entries().collect::<Vec<_>>()), (10, entries));
    }
}
