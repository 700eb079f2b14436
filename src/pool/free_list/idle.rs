//! Which idle block goes first? Those that nobody has used for the longest time.
//!
//! ```text
//!   last release ──> newest of the home shard ──full──> queue of batches ──> oldest of a shard ──> reclaim
//! ```
//!
//! Each time a block becomes idle it gets an entry, with the epoch in which that was. A block that is
//! matched leaves its entry behind; whoever comes by it finds that the block has moved on, and drops
//! it. So the order is that of the last uses, exactly on one thread and to within a batch a shard
//! between threads, and a match writes nothing but the block's word. An epoch has 8 bits: of a block
//! that was left again a multiple of 256 times since, an old entry is taken for its last one, and the
//! block is reclaimed too early.
//!
//! Under `ReclaimPolicy::TwoQueue` all of this is there twice: for blocks asked for once, and for
//! those asked for *again*. Whichever has lain longer goes first, where the time of the latter
//! counts a third.
//!
//! A *spare* block is one copy more of a content that another block was cached under, and no match has
//! asked for it. Its entry goes to a list of the home shard, and from there to a queue, both of which are
//! reclaimed before all others. Where they are full the spare block is one like any other: beyond a
//! quarter of the blocks, or beyond 32 a shard under `ReclaimPolicy::TwoQueue`, whose memory is short.
//!
//! Invariant: an idle block has an entry of its epoch in a shard or in a queue, for anyone who
//! holds all claims. Entries do not know why blocks are cached.

mod batches;
mod ghosts;

use self::batches::{IdleBatch, IdleQueue};
use self::ghosts::Ghosts;
use super::FreeList;
use super::shard::{BATCH, Claim};
use crate::array::queue_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::name::Name;
use crate::pool::reclaim::{Keep, ReclaimPolicy};
use crate::pool::state::{BlockWords, IdleBlock, LeftIdle};
use crate::sync::{ArrayQueue, AtomicU32, AtomicU64, AtomicUsize, Ordering, thread_ordinal};

/// How many times as long as others a block stays that was asked for again.
const AGAIN_STAYS: u32 = 3;

/// Which part of the blocks at most are spare ones that wait between the shards.
const SPARE_SHARE: usize = 4;

/// Spare ones of a shard where none wait between the shards.
const SPARE_ALONE: usize = if BATCH < 32 { BATCH } else { 32 };

/// How many orders there can be side by side: of blocks asked for once, and again.
const CLASSES: usize = 2;

/// The idle blocks between the shards, and what is remembered of those reclaimed.
pub(super) struct IdleLists {
    /// One a class.
    queues: Box<[IdleQueue]>,
    /// Of spare blocks, and how many batches have room there.
    spare: Option<(ArrayQueue<IdleBatch>, usize)>,
    ghosts: Ghosts,
    /// Batches that became old so far, modulo 2^32: the time.
    clock: AtomicU32,
}

/// The entries of one shard. Written under its claim only.
pub(super) struct IdleShard {
    classes: [ClassShard; CLASSES],
    /// Those of spare blocks.
    spare: Entries,
}

/// Those of one class.
struct ClassShard {
    newest: Entries,
    oldest: Entries,
}

/// Entries in order, from `start` to `end`.
struct Entries {
    slots: Box<[AtomicU64]>,
    start: AtomicUsize,
    end: AtomicUsize,
    /// When the first of them came.
    stamp: AtomicU32,
}

impl IdleLists {
    /// For a pool of `total` blocks and so many shards; without memory where nothing is kept.
    pub(super) fn new(total: usize, shards: usize, keep: Keep) -> Result<Self> {
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

    /// True if what is called `name` was reclaimed of late, as far as that is remembered.
    pub(super) fn recall(&self, name: Name) -> bool {
        self.ghosts.recall(name)
    }

    /// Gives up the contents of blocks that were reclaimed and suffice.
    pub(super) fn finish_reclaim(&self, ids: &[BlockId], words: &BlockWords) {
        let view = words.view();
        for &id in ids {
            let was_spare = view.finish_reclaim(id);
            // Of a spare block the content mostly is still there.
            if !self.ghosts.is_empty() && !was_spare {
                self.ghosts.remember(words.named().name(id));
            }
        }
    }

    /// Shows every entry to `look` and leaves the queues as they were, for who holds all claims.
    pub(super) fn inspect(&self, mut look: impl FnMut(IdleBlock)) {
        self.queues.iter().for_each(|queue| queue.inspect(&mut look));
        let spare = self.spare.iter().flat_map(|(queue, _)| (0..queue.len()).map(move |_| queue));
        for queue in spare {
            let batch = queue.pop().expect("only a claim's holder takes from the queue");
            batch.entries().for_each(&mut look);
            assert!(queue.push(batch).is_ok(), "the queue has room for what came out of it");
        }
    }

    /// Moves all entries of a shard to the queue. Out of line, as `pop_of_next_batch`.
    #[inline(never)]
    fn push_all(&self, class: usize, newest: &Entries, words: &BlockWords) {
        // Relaxed: a time to within a batch, that nothing but an order hangs on.
        self.clock.fetch_add(1, Ordering::Relaxed);
        self.queues[class].push(newest.drain(), words);
    }

    fn now(&self) -> u32 {
        // Relaxed: as in `push_all`.
        self.clock.load(Ordering::Relaxed)
    }
}

/// How many orders of idle blocks there are.
fn classes(keep: Keep) -> usize {
    match keep {
        Keep::Nothing => 0,
        Keep::Contents(ReclaimPolicy::Lru) => 1,
        Keep::Contents(ReclaimPolicy::TwoQueue) => CLASSES,
    }
}

impl IdleShard {
    /// Without memory where contents are not kept.
    pub(super) fn new(keep: Keep) -> Self {
        let slots = |class| if class < classes(keep) { BATCH } else { 0 };
        let of_spare = match classes(keep) {
            0 => 0,
            1 => BATCH,
            _ => SPARE_ALONE,
        };
        let classes = std::array::from_fn(|class| ClassShard::new(slots(class)));
        Self { classes, spare: Entries::new(of_spare) }
    }

    /// Shows every entry to `look`, for the holder of the claim.
    pub(super) fn inspect(&self, mut look: impl FnMut(IdleBlock)) {
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
        Self { newest: Entries::new(slots), oldest: Entries::new(slots) }
    }

    /// How long ago the first entry of this class came that is in reach.
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

    /// Out of line: a batch is large, and the frame of who holds one too.
    #[inline(never)]
    fn pop_of_next_batch(&self, queue: &IdleQueue) -> Option<IdleBlock> {
        let batch = queue.pop().unwrap_or_else(|| self.newest.drain());
        self.oldest.refill(&batch);
        self.oldest.pop()
    }
}

// As above.
impl Entries {
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

    /// Up to `n` of them.
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

    /// Appends an entry. False where there is no room.
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

    /// Takes all entries out.
    fn drain(&self) -> IdleBatch {
        let mut batch = IdleBatch::new(self.stamp.load(Ordering::Relaxed));
        while let Some(idle) = self.pop() {
            batch.push(idle);
        }
        self.start.store(0, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
        batch
    }

    /// Puts a batch in, where nothing is left.
    fn refill(&self, batch: &IdleBatch) {
        self.start.store(0, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
        batch.entries().for_each(|idle| self.push(idle, batch.stamp));
    }
}

impl FreeList {
    /// Puts back what did not suffice: the free ids before `free_end`, and the reclaimed ones behind
    /// it, which were all in reach, in their order.
    pub(super) fn put_back(
        &self,
        home: &mut Claim<'_>,
        start: usize,
        free_end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let view = words.view();
        for &id in &out[free_end..] {
            home.push_idle(view.undo_reclaim(id), &self.idle, words);
        }
        out.truncate(free_end);
        out.drain(start..).for_each(|id| home.push(id, &self.depot));
    }

    /// Reclaims from other shards.
    pub(super) fn reclaim_elsewhere(&self, end: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        let ordinal = thread_ordinal();
        for step in 1..=self.shards.len() {
            if out.len() == end {
                return;
            }
            if let Some(mut other) = self.shard_of(ordinal.wrapping_add(step)).try_claim() {
                other.reclaim(end, &self.idle, words, out);
            }
        }
    }
}

impl Claim<'_> {
    /// Notes that a block has become idle.
    #[inline]
    pub(super) fn push_idle(&mut self, left: LeftIdle, lists: &IdleLists, words: &BlockWords) {
        if left.spare && self.push_spare(left.block, lists) {
            return;
        }
        let class = usize::from(left.again).min(lists.queues.len() - 1);
        let newest = &self.shard.idle.classes[class].newest;
        if newest.end() == newest.slots.len() {
            lists.push_all(class, newest, words);
        }
        newest.push(left.block, lists.now());
    }

    /// Moves idle blocks to the end of `out`, each reclaimed, until it has `end` or none is in reach:
    /// this shard's spare ones, its oldest, those in the queues, its newest. To be finished or put back.
    pub(super) fn reclaim(
        &mut self,
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
                // The next of its batch with it: an exchange lets nothing that comes after it begin early.
                let [once, _] = &self.shard.idle.classes;
                looked_at = once.oldest.len().min(end - out.len()) + 1;
                let others = once.oldest.first(looked_at).map(|idle| idle.id);
                view.bring_near(std::iter::once(idle.id).chain(others));
            }
            looked_at -= 1;
            if view.reclaim(idle) {
                out.push(idle.id);
            }
        }
    }

    /// Notes that a spare block has become idle. False where there is no room.
    #[cold]
    fn push_spare(&mut self, idle: IdleBlock, lists: &IdleLists) -> bool {
        let (spare, now) = (&self.shard.idle.spare, lists.now());
        if spare.try_push(idle, now) {
            return true;
        }
        // Others may push at the same time: what finds no room stays here.
        let has_room = |(queue, batches): &&(ArrayQueue<IdleBatch>, usize)| queue.len() < *batches;
        let Some((queue, _)) = lists.spare.as_ref().filter(has_room) else {
            return false;
        };
        if let Err(batch) = queue.push(spare.drain()) {
            spare.refill(&batch);
        }
        spare.try_push(idle, now)
    }

    fn pop_spare(&mut self, lists: &IdleLists) -> Option<IdleBlock> {
        let spare = &self.shard.idle.spare;
        spare.pop().or_else(|| {
            // Mostly there are none, which one look says.
            let (queue, _) = lists.spare.as_ref().filter(|(queue, _)| !queue.is_empty())?;
            spare.refill(&queue.pop()?);
            spare.pop()
        })
    }

    fn pop_idle(&mut self, lists: &IdleLists) -> Option<IdleBlock> {
        if let Some(spare) = self.pop_spare(lists) {
            return Some(spare);
        }
        let [once, again] = &self.shard.idle.classes;
        let (queue, queue_of_again) = match &*lists.queues {
            [] => return None,
            [queue] => return once.pop(queue),
            [queue, queue_of_again, ..] => (queue, queue_of_again),
        };
        let now = lists.now();
        let age_of_again = again.age(queue_of_again, now);
        match once.age(queue, now) {
            Some(age) if age_of_again.is_none_or(|again| again / AGAIN_STAYS <= age) => {
                once.pop(queue)
            }
            _ => again.pop(queue_of_again),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_old_as_the_first_of_them() {
        let entries = Entries::new(3);
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
        let entries = Entries::new(2);
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
