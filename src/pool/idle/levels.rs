//! `Levels`: the idle blocks whose contents callers have given another level than the default one.
//!
//! ```text
//!   Lowest, Low ──> lists of the shards: the order of the policy ──> High, Highest
//!                               ▲ a level whose duration has passed
//! ```
//!
//! The queues of these levels are those of the whole pool, under one lock. A thread that releases, reclaims or lists such
//! blocks takes it while it holds a claim, and takes nothing else under it. Pools without levels have none of this.
//!
//! A content's level is noted beside its block until the content ends. An owner notes it, so the block is not
//! reclaimed at that time.
//!
//! A deadline begins anew at each release. No thread watches it: a thread that is about to reclaim blocks first moves those
//! of passed deadlines to the end of the default order. Each release has a moment of its own, so that blocks with equal
//! durations keep the order of their releases.
//!
//! Source: the levels, and the deadlines that begin at each release, are those of TensorRT-LLM's `LRUEvictionPolicy`.

mod audit;
mod deadlines;
mod queues;
mod run;

use std::time::Instant;

use self::queues::{LevelQueues, QUEUES};
pub(crate) use self::run::LevelledRun;
use super::{AgedBlock, BATCH, IdleLists, Oldest};
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::level::{Level, LevelNote};
use crate::pool::word::{BlockWords, IdleBlock, ReleasedIdle};
use crate::sync::{AtomicU64, CachePadded, Mutex, Ordering};

/// The deadline of no block.
const NEVER: u64 = u64::MAX;

/// The notes that a thread computes before it takes the lock.
const NOTED_AT_ONCE: usize = 64;

/// The levels on one side of the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The levels that are reclaimed before the default one.
    Below,
    /// The levels that are reclaimed after it.
    Above,
}

/// The contents with a level, and those of them that are idle.
pub(crate) struct Levels {
    /// The bits of the note of each block's content; 0 for the default level.
    notes: Box<[AtomicU64]>,
    queues: CachePadded<Mutex<LevelQueues>>,
    shown: CachePadded<ShownLevels>,
    begin: Instant,
    /// Nanoseconds by which a test has moved the clock.
    #[cfg(test)]
    skipped: AtomicU64,
}

/// Values that other threads read without the lock. They are exact for a thread with all claims.
struct ShownLevels {
    /// The first deadline, in nanoseconds after `begin`.
    earliest: AtomicU64,
    /// The entries on each side of the default level.
    entries: [AtomicU64; 2],
    /// The number of the last reset, after which all contents were dropped.
    resets: AtomicU64,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Below, Self::Above];

    fn queues(self) -> std::ops::Range<usize> {
        match self {
            Self::Below => 0..QUEUES / 2,
            Self::Above => QUEUES / 2..QUEUES,
        }
    }
}

/// Returns the queue of a level, or `None` for the default one.
fn queue_of(level: Level) -> Option<usize> {
    match level {
        Level::Lowest => Some(0),
        Level::Low => Some(1),
        Level::Default => None,
        Level::High => Some(2),
        Level::Highest => Some(3),
    }
}

/// Returns the bits of a note beside a block: 0 for the default level.
fn stored_bits(note: LevelNote) -> u64 {
    if note.level() == Level::Default { 0 } else { note.bits() }
}

// All accesses to the notes and to `shown` are Relaxed: only the reclaim order depends on them. Notes are changed under
// the lock, or by a thread that has just reclaimed the block.
impl Levels {
    /// Creates levels of blocks with ids below `num_ids`.
    pub(super) fn new(num_ids: usize) -> Result<Self> {
        let zero = || AtomicU64::new(0);
        let shown = ShownLevels {
            earliest: AtomicU64::new(NEVER),
            entries: [zero(), zero()],
            resets: zero(),
        };
        Ok(Self {
            notes: array_of(num_ids, zero)?,
            queues: CachePadded::new(Mutex::new(LevelQueues::new(num_ids)?)),
            shown: CachePadded::new(shown),
            begin: Instant::now(),
            #[cfg(test)]
            skipped: zero(),
        })
    }

    fn now(&self) -> u64 {
        let nanos = self.begin.elapsed().as_nanos() as u64;
        #[cfg(test)]
        let nanos = nanos + self.skipped.load(Ordering::Relaxed);
        nanos
    }

    /// Returns the note of a content that has another level than the default one.
    pub(super) fn note(&self, id: BlockId) -> Option<LevelNote> {
        LevelNote::from_bits(self.bits(id))
    }

    fn bits(&self, id: BlockId) -> u64 {
        self.notes[id.index()].load(Ordering::Relaxed)
    }

    fn store(&self, id: BlockId, note: LevelNote) {
        self.notes[id.index()].store(stored_bits(note), Ordering::Relaxed);
    }

    /// Notes the levels of blocks that are cached, for an owner of them that had these contents after reset number
    /// `resets`. Takes the lock once for [`NOTED_AT_ONCE`] blocks, and not for blocks that have these levels already.
    pub(crate) fn set(
        &self,
        notes: impl Iterator<Item = (BlockId, LevelNote)>,
        resets: u64,
        words: &BlockWords,
    ) {
        let mut notes = notes.filter(|&(id, note)| self.bits(id) != stored_bits(note));
        while let Some(first) = notes.next() {
            let (mut part, mut len) = ([first; NOTED_AT_ONCE], 1);
            for (place, next) in part[1..].iter_mut().zip(&mut notes) {
                (*place, len) = (next, len + 1);
            }
            let _queues = self.queues.lock();
            if resets < self.resets() {
                return;
            }
            // Under the lock: a thread that ends a content removes its note after that.
            let cached = part[..len].iter().filter(|&&(id, _)| words.state(id).is_cached());
            cached.for_each(|&(id, note)| self.store(id, note));
        }
    }

    /// Gives a content the level of another one, which is the same content in another block.
    pub(crate) fn copy(&self, from: BlockId, to: BlockId, words: &BlockWords) {
        let resets = self.resets();
        if let Some(note) = self.note(from) {
            self.set([(to, note)].into_iter(), resets, words);
        }
    }

    pub(in crate::pool) fn resets(&self) -> u64 {
        self.shown.resets.load(Ordering::Relaxed)
    }

    /// Removes the notes of contents that their owner has ended.
    pub(crate) fn clear(&self, ids: &[BlockId]) {
        let _queues = self.queues.lock();
        self.forget(ids);
    }

    /// Removes the notes of contents that were reclaimed by the caller.
    pub(super) fn forget(&self, ids: &[BlockId]) {
        ids.iter().for_each(|id| self.notes[id.index()].store(0, Ordering::Relaxed));
    }

    /// Drops all contents with `advance`, which returns the number of resets, and removes all notes. Those of blocks that
    /// are idle in these queues are the lowest from then on. Returns the number of resets. Reads every note.
    pub(crate) fn reset(&self, advance: impl FnOnce() -> u64, words: &BlockWords) -> u64 {
        let (view, keyed, mut queues) = (words.view(), words.keyed(), self.queues.lock());
        // Under the lock: contents of the next generation get levels after their predecessors have lost theirs.
        let number = advance();
        self.shown.resets.store(number, Ordering::Relaxed);
        self.notes.iter().for_each(|note| note.store(0, Ordering::Relaxed));
        let entries: Vec<IdleBlock> = (0..QUEUES).flat_map(|queue| queues.entries(queue)).collect();
        for entry in entries {
            queues.remove(entry.id);
            if view.keeps_entry(keyed.mark_epoch(entry)) {
                self.store(entry.id, LevelNote::new(Level::Lowest, None));
                queues.push(entry, 0);
            }
        }
        self.show(&queues);
        number
    }

    /// Adds an entry for a block that came back unused, before all others of its level and with its old deadline: its
    /// reclaim was undone, or the copy for which it was held has ended. Returns false if its content has the default level.
    #[cold]
    pub(in crate::pool) fn put_back(&self, idle: IdleBlock, words: &BlockWords) -> bool {
        if self.note(idle.id).is_none() {
            return false;
        }
        let mut queues = self.queues.lock();
        let Some((note, queue)) = self.queued(idle.id) else { return false };
        if words.view().keeps_entry(idle) {
            queues.push_front(words.keyed().mark_epoch(idle), queue);
            if note.nanos().is_some() {
                let deadline = queues.deadlines.last(idle.id);
                queues.deadlines.set(idle.id, deadline);
            }
            self.show(&queues);
        }
        true
    }

    fn queued(&self, id: BlockId) -> Option<(LevelNote, usize)> {
        let note = self.note(id)?;
        Some((note, queue_of(note.level())?))
    }

    fn show(&self, queues: &LevelQueues) {
        let earliest = queues.deadlines.first().map_or(NEVER, |(time, _)| time);
        self.shown.earliest.store(earliest, Ordering::Relaxed);
        for (shown, side) in self.shown.entries.iter().zip(Side::BOTH) {
            let entries: usize = side.queues().map(|queue| queues.len(queue)).sum();
            shown.store(entries as u64, Ordering::Relaxed);
        }
    }

    fn seems_empty(&self, side: Side) -> bool {
        self.shown.entries[side as usize].load(Ordering::Relaxed) == 0
    }

    /// Returns the time if a level has ended whose content is in these queues still.
    #[inline]
    pub(in crate::pool) fn ended_by(&self) -> Option<u64> {
        match self.shown.earliest.load(Ordering::Relaxed) {
            NEVER => None,
            earliest => Some(self.now()).filter(|&now| earliest <= now),
        }
    }

    /// Returns true if a level has ended by `now` whose content is in these queues still.
    pub(in crate::pool) fn has_ended(&self, now: u64) -> bool {
        self.shown.earliest.load(Ordering::Relaxed) <= now
    }

    /// Passes up to [`BATCH`] blocks whose levels have ended by `now` to `push`, the earliest first. Their contents have the
    /// default level then.
    pub(in crate::pool) fn expire(
        &self,
        now: u64,
        words: &BlockWords,
        mut push: impl FnMut(ReleasedIdle),
    ) {
        let (view, keyed, mut queues) = (words.view(), words.keyed(), self.queues.lock());
        for _ in 0..BATCH {
            let Some((_, id)) = queues.deadlines.first().filter(|&(time, _)| time <= now) else {
                break;
            };
            let entry = queues.get(id).expect("a block with a deadline has an entry");
            queues.remove(id);
            let block = keyed.mark_epoch(entry);
            // A stale one had another owner since, which may have noted a level.
            if view.keeps_entry(block) {
                self.forget(&[id]);
                push(ReleasedIdle { block, hot: words.state(id).is_hot(), spare: false });
            }
        }
        self.show(&queues);
    }

    /// Moves idle blocks of one side to the end of `out` and reclaims each, those of the lowest level first, until `out`
    /// has `end` ids. The caller holds a claim, and finishes or undoes the reclaim.
    pub(in crate::pool) fn reclaim(
        &self,
        side: Side,
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        if out.len() >= end || self.seems_empty(side) {
            return;
        }
        let (view, keyed, mut queues) = (words.view(), words.keyed(), self.queues.lock());
        for queue in side.queues() {
            while out.len() < end
                && let Some(first) = queues.first(queue)
            {
                queues.remove(first.id);
                if view.reclaim(keyed.mark_epoch(first)) {
                    out.push(first.id);
                }
            }
        }
        self.show(&queues);
    }

    /// Appends up to `n` idle blocks of one side to `out` in reclaim order, with this age and time.
    pub(in crate::pool) fn list_oldest(
        &self,
        side: Side,
        n: usize,
        (age, time): (u64, u64),
        words: &BlockWords,
        out: &mut Vec<AgedBlock>,
    ) {
        let (view, keyed, queues) = (words.view(), words.keyed(), self.queues.lock());
        let entries = side.queues().flat_map(|queue| queues.entries(queue));
        let idle = entries.filter(|&entry| view.is_idle_since(keyed.mark_epoch(entry)));
        out.extend(idle.take(n).map(|IdleBlock { id, .. }| AgedBlock { age, time, id }));
    }

    /// Passes the block of every entry to `look`, with its epoch if it has the same key still. The caller holds all claims.
    pub(in crate::pool) fn inspect(&self, words: &BlockWords, mut look: impl FnMut(IdleBlock)) {
        let queues = self.queues.lock();
        let entries = (0..QUEUES).flat_map(|queue| queues.entries(queue));
        entries.for_each(|entry| look(words.keyed().mark_epoch(entry)));
    }

    /// Moves the clock of a test.
    #[cfg(test)]
    pub(in crate::pool) fn skip(&self, duration: std::time::Duration) {
        self.skipped.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl IdleLists {
    /// Returns the levels of contents, if the pool has them.
    #[inline]
    pub(crate) fn levels(&self) -> Option<&Levels> {
        self.levels.as_deref()
    }

    /// Returns true if the block's content has another level than the default one.
    pub(in crate::pool) fn is_levelled(&self, id: BlockId) -> bool {
        self.levels().is_some_and(|levels| levels.note(id).is_some())
    }

    /// Returns the age and the time of listed blocks on one side of the default level: before or after all others.
    pub(in crate::pool) fn age_of_side(&self, side: Side) -> (u64, u64) {
        match side {
            Side::Below => (u64::MAX, Oldest::FIRST),
            Side::Above => (0, self.now()),
        }
    }
}
