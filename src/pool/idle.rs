//! `IdleLists` and `IdleShard`: a pool's idle blocks in reclaim order, the least recently used block first.
//!
//! ```text
//!   last release ──> newest of the home shard ──full──> queue of batches ──> oldest of a shard ──> reclaim
//! ```
//!
//! Each time a block becomes idle it gets an entry with its epoch. A match leaves the entry in place and
//! writes only the block's word. The thread that reads the entry later finds that the block has changed, and
//! drops the entry. So the order is that of the last uses: exact on one thread, to within a batch a shard
//! between threads. An epoch has 8 bits. If the block became idle a multiple of 256 times since, an old entry
//! passes for its last one, and the block is reclaimed too early.
//!
//! `ReclaimPolicy::TwoQueue` keeps two such queues: cold, for blocks asked for once, and hot,
//! for the others. The older head is reclaimed first; the age of a hot block is divided by three.
//!
//! A *spare* block holds a further copy of a content that another block was cached under, and no match has
//! asked for this copy. Its entry goes to a list of the home shard, and from there to a queue. Both are
//! reclaimed before all other idle blocks. Where they are full, a spare block is treated as any other. They
//! hold a quarter of the pool's blocks, or 32 a shard under `TwoQueue`, whose memory is short.
//!
//! Invariant: an idle block has an entry of its epoch in a shard or a queue, for a thread with all claims.

mod ghosts;
pub(crate) mod policy;
mod queue;

use self::ghosts::Ghosts;
use self::policy::{ReclaimPolicy, Retention};
pub(super) use self::queue::BATCH;
use self::queue::{IdleBatch, IdleQueue};
use super::content_key::ContentKey;
use super::word::{BlockWords, IdleBlock, ReleasedIdle};
use crate::array::queue_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{ArrayQueue, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The age of a hot block is divided by this before it is compared with a cold block's.
const HOT_AGE_DIVISOR: u32 = 3;

/// Spare blocks between the shards: at most the pool's blocks divided by this.
const SPARE_SHARE: usize = 4;

/// Spare blocks in a shard, where no queue of spare blocks is kept.
const SPARE_ALONE: usize = if BATCH < 32 { BATCH } else { 32 };

/// Number of classes: cold blocks and hot blocks.
const CLASSES: usize = 2;

/// The idle blocks between the shards, and the keys of recently reclaimed contents.
pub(crate) struct IdleLists {
    /// One queue for each class.
    queues: Box<[IdleQueue]>,
    /// Batches of spare blocks, and the most batches that the queue may hold.
    spare: Option<(ArrayQueue<IdleBatch>, usize)>,
    ghosts: Ghosts,
    /// The time: batches moved to a queue so far, modulo 2^32.
    clock: AtomicU32,
}

/// The entries of one shard. Written only under its claim.
pub(crate) struct IdleShard {
    classes: [ClassShard; CLASSES],
    /// Entries of spare blocks.
    spare: IdleEntries,
}

/// The entries of one class in one shard.
struct ClassShard {
    newest: IdleEntries,
    oldest: IdleEntries,
}

/// Entries from `start` to `end`, the oldest first.
struct IdleEntries {
    slots: Box<[AtomicU64]>,
    start: AtomicUsize,
    end: AtomicUsize,
    /// The time at which the first entry was added.
    stamp: AtomicU32,
}

impl IdleLists {
    /// Creates lists for a pool of `total` blocks. Allocates no memory where no contents are kept.
    pub(crate) fn new(total: usize, shards: usize, keep: Retention) -> Result<Self> {
        let classes = classes(keep);
        let queues = (0..classes).map(|_| IdleQueue::new(total, shards));
        let batches = (total / BATCH / SPARE_SHARE).max(1);
        let spare = (classes == 1).then(|| queue_of(batches)).transpose()?;
        Ok(Self {
            queues: queues.collect::<Result<_>>()?,
            spare: spare.map(|queue| (queue, batches)),
            ghosts: Ghosts::new(if classes == CLASSES { total } else { 0 })?,
            clock: AtomicU32::new(0),
        })
    }

    /// Returns true if the content with this `key` was recently reclaimed. The memory is limited and may err.
    pub(crate) fn recall(&self, key: ContentKey) -> bool {
        self.ghosts.recall(key)
    }

    /// Drops the contents of reclaimed blocks, now that they suffice for the request.
    pub(crate) fn finish_reclaim(&self, ids: &[BlockId], words: &BlockWords) {
        let view = words.view();
        for &id in ids {
            let was_spare = view.finish_reclaim(id);
            // Another block mostly still holds the content of a spare block.
            if !self.ghosts.is_empty() && !was_spare {
                self.ghosts.remember(words.keyed().key(id));
            }
        }
    }

    /// Passes every entry to `look` and leaves the queues as they were. The caller holds all claims.
    pub(crate) fn inspect(&self, mut look: impl FnMut(IdleBlock)) {
        self.queues.iter().for_each(|queue| queue.inspect(&mut look));
        let spare = self.spare.iter().flat_map(|(queue, _)| (0..queue.len()).map(move |_| queue));
        for queue in spare {
            let batch = queue.pop().expect("only a claim's holder takes from the queue");
            batch.entries().for_each(&mut look);
            assert!(queue.push(batch).is_ok(), "the queue has room for what came out of it");
        }
    }

    /// Moves all entries of a shard to the queue. Not inlined, for the reason given at `pop_of_next_batch`.
    #[inline(never)]
    fn push_all(&self, class: usize, newest: &IdleEntries, words: &BlockWords) {
        // Relaxed: the time is exact to within a batch, and only the reclaim order depends on it.
        self.clock.fetch_add(1, Ordering::Relaxed);
        self.queues[class].push(newest.drain(), words);
    }

    fn now(&self) -> u32 {
        // Relaxed: as in `push_all`.
        self.clock.load(Ordering::Relaxed)
    }
}

/// Returns the number of classes under `keep`.
fn classes(keep: Retention) -> usize {
    match keep {
        Retention::Nothing => 0,
        Retention::Contents(ReclaimPolicy::Lru) => 1,
        Retention::Contents(ReclaimPolicy::TwoQueue) => CLASSES,
    }
}

impl IdleShard {
    /// Creates the lists of one shard. Allocates no memory where no contents are kept.
    pub(crate) fn new(keep: Retention) -> Self {
        let slots = |class| if class < classes(keep) { BATCH } else { 0 };
        let of_spare = match classes(keep) {
            0 => 0,
            1 => BATCH,
            _ => SPARE_ALONE,
        };
        let classes = std::array::from_fn(|class| ClassShard::new(slots(class)));
        Self { classes, spare: IdleEntries::new(of_spare) }
    }

    /// Passes every entry to `look`. The caller holds the claim.
    pub(crate) fn inspect(&self, mut look: impl FnMut(IdleBlock)) {
        let of_classes = self.classes.iter().flat_map(|class| [&class.oldest, &class.newest]);
        for entries in of_classes.chain([&self.spare]) {
            let slots = &entries.slots[entries.start()..entries.end()];
            let entry = |slot: &AtomicU64| IdleBlock::from_bits(slot.load(Ordering::Relaxed));
            slots.iter().map(entry).for_each(&mut look);
        }
    }
}

// All accesses are Relaxed: they are made under the claim only, whose hand-over orders them.
impl ClassShard {
    fn new(slots: usize) -> Self {
        Self { newest: IdleEntries::new(slots), oldest: IdleEntries::new(slots) }
    }

    /// Returns the age of the first entry that this shard can reach, in batches moved to a queue.
    fn age(&self, queue: &IdleQueue, now: u32) -> Option<u32> {
        if self.oldest.is_empty()
            && let Some(batch) = queue.pop()
        {
            self.oldest.refill(&batch);
        }
        let first = [&self.oldest, &self.newest].into_iter().find(|entries| !entries.is_empty())?;
        Some(now.wrapping_sub(first.stamp.load(Ordering::Relaxed)))
    }

    #[inline]
    fn pop(&self, queue: &IdleQueue) -> Option<IdleBlock> {
        self.oldest.pop().or_else(|| self.pop_of_next_batch(queue))
    }

    /// Not inlined: a batch is about 650 bytes and would enlarge the caller's stack frame.
    #[inline(never)]
    fn pop_of_next_batch(&self, queue: &IdleQueue) -> Option<IdleBlock> {
        let batch = queue.pop().unwrap_or_else(|| self.newest.drain());
        self.oldest.refill(&batch);
        self.oldest.pop()
    }
}

// All accesses are Relaxed, as in `ClassShard`.
impl IdleEntries {
    fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            stamp: AtomicU32::new(0),
        }
    }

    fn start(&self) -> usize {
        self.start.load(Ordering::Relaxed)
    }

    fn end(&self) -> usize {
        self.end.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.start() == self.end()
    }

    fn len(&self) -> usize {
        self.end() - self.start()
    }

    /// Returns the first `n` entries, or all if there are fewer.
    fn first(&self, n: usize) -> impl Iterator<Item = IdleBlock> {
        let (start, end) = (self.start(), self.end());
        let slots = self.slots[start..end].iter().take(n);
        slots.map(|slot| IdleBlock::from_bits(slot.load(Ordering::Relaxed)))
    }

    #[inline]
    fn pop(&self) -> Option<IdleBlock> {
        let start = self.start();
        (start < self.end()).then(|| {
            self.start.store(start + 1, Ordering::Relaxed);
            IdleBlock::from_bits(self.slots[start].load(Ordering::Relaxed))
        })
    }

    /// Appends an entry. Returns false if there is no room.
    fn try_push(&self, idle: IdleBlock, now: u32) -> bool {
        if self.is_empty() {
            self.start.store(0, Ordering::Relaxed);
            self.end.store(0, Ordering::Relaxed);
        }
        let has_room = self.end() < self.slots.len();
        if has_room {
            self.push(idle, now);
        }
        has_room
    }

    #[inline]
    fn push(&self, idle: IdleBlock, now: u32) {
        let end = self.end();
        if end == self.start() {
            self.stamp.store(now, Ordering::Relaxed);
        }
        self.slots[end].store(idle.to_bits(), Ordering::Relaxed);
        self.end.store(end + 1, Ordering::Relaxed);
    }

    /// Removes all entries and returns them as a batch.
    fn drain(&self) -> IdleBatch {
        let mut batch = IdleBatch::new(self.stamp.load(Ordering::Relaxed));
        while let Some(idle) = self.pop() {
            batch.push(idle);
        }
        self.start.store(0, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
        batch
    }

    /// Fills the empty list with a batch.
    fn refill(&self, batch: &IdleBatch) {
        self.start.store(0, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
        batch.entries().for_each(|idle| self.push(idle, batch.stamp));
    }
}

// All accesses are Relaxed, as in `ClassShard`. The caller holds the claim.
impl IdleShard {
    /// Adds an entry for a block that became idle.
    #[inline]
    pub(in crate::pool) fn push(&self, left: ReleasedIdle, lists: &IdleLists, words: &BlockWords) {
        if left.spare && self.push_spare(left.block, lists) {
            return;
        }
        let class = usize::from(left.hot).min(lists.queues.len() - 1);
        let newest = &self.classes[class].newest;
        if newest.end() == newest.slots.len() {
            lists.push_all(class, newest, words);
        }
        newest.push(left.block, lists.now());
    }

    /// Moves idle blocks to the end of `out` and reclaims each, until `out` has `end` ids or none can be
    /// reached: first this shard's spare blocks, then its oldest, those in the queues, its newest. The
    /// caller finishes or undoes the reclaim.
    pub(in crate::pool) fn reclaim(
        &self,
        end: usize,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let view = words.view();
        let mut looked_at = 0;
        while out.len() < end {
            let Some(idle) = self.pop_idle(lists) else { break };
            if looked_at == 0 {
                // Prefetch this word with the next ones of its batch: an exchange delays later loads.
                let [cold, _] = &self.classes;
                looked_at = cold.oldest.len().min(end - out.len()) + 1;
                let others = cold.oldest.first(looked_at).map(|idle| idle.id);
                view.prefetch(std::iter::once(idle.id).chain(others));
            }
            looked_at -= 1;
            if view.reclaim(idle) {
                out.push(idle.id);
            }
        }
    }

    /// Adds an entry for a spare block that became idle. Returns false if there is no room.
    #[cold]
    fn push_spare(&self, idle: IdleBlock, lists: &IdleLists) -> bool {
        let (spare, now) = (&self.spare, lists.now());
        if spare.try_push(idle, now) {
            return true;
        }
        // Other threads may push at the same time. A batch that finds the queue full stays in this shard.
        let has_room = |(queue, batches): &&(ArrayQueue<IdleBatch>, usize)| queue.len() < *batches;
        let Some((queue, _)) = lists.spare.as_ref().filter(has_room) else {
            return false;
        };
        if let Err(batch) = queue.push(spare.drain()) {
            spare.refill(&batch);
        }
        spare.try_push(idle, now)
    }

    fn pop_spare(&self, lists: &IdleLists) -> Option<IdleBlock> {
        let spare = &self.spare;
        spare.pop().or_else(|| {
            // Mostly the queue is empty, and one load shows that.
            let (queue, _) = lists.spare.as_ref().filter(|(queue, _)| !queue.is_empty())?;
            spare.refill(&queue.pop()?);
            spare.pop()
        })
    }

    fn pop_idle(&self, lists: &IdleLists) -> Option<IdleBlock> {
        if let Some(spare) = self.pop_spare(lists) {
            return Some(spare);
        }
        let [cold, hot] = &self.classes;
        let (queue, hot_queue) = match &*lists.queues {
            [] => return None,
            [queue] => return cold.pop(queue),
            [queue, hot_queue, ..] => (queue, hot_queue),
        };
        let now = lists.now();
        let age_of_hot = hot.age(hot_queue, now);
        match cold.age(queue, now) {
            Some(age) if age_of_hot.is_none_or(|hot| hot / HOT_AGE_DIVISOR <= age) => {
                cold.pop(queue)
            }
            _ => hot.pop(hot_queue),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_old_as_the_first_of_them() {
        let entries = IdleEntries::new(3);
        let idle = [1, 2, 3].map(|id| IdleBlock { id: BlockId(id), epoch: 7 });
        entries.push(idle[0], 5);
        entries.push(idle[1], 9);
        let batch = entries.drain();
        assert!(entries.is_empty());
        assert_eq!((batch.stamp, batch.entries().collect::<Vec<_>>()), (5, idle[..2].to_vec()));
        entries.push(idle[2], 11);
        assert_eq!(entries.drain().stamp, 11);
        entries.refill(&batch);
        assert_eq!(
            [entries.pop(), entries.pop(), entries.pop()],
            [Some(idle[0]), Some(idle[1]), None]
        );
    }

    #[test]
    fn entries_that_are_full_take_more_once_all_are_gone() {
        let entries = IdleEntries::new(2);
        let idle = |id| IdleBlock { id: BlockId(id), epoch: 7 };
        for round in 0..3 {
            assert!(entries.try_push(idle(1), round) && entries.try_push(idle(2), round));
            assert!(!entries.try_push(idle(3), round));
            assert_eq!(entries.pop(), Some(idle(1)));
            assert!(!entries.try_push(idle(3), round), "the end is where it was");
            assert_eq!([entries.pop(), entries.pop()], [Some(idle(2)), None]);
        }
    }
}
