//! `Delivery`: decides which thread emits the noted events, and repeats everything after a loss.
//!
//! ```text
//!   event order's lock { note ... take all that is noted } ── no lock ──> sink ──┐
//!                        ^                                                     │ more was noted
//!                        └─────────────────────────────────────────────────────┘
//! ```
//!
//! One thread emits at a time, so events are emitted in the order in which they were noted. A thread that notes
//! events while another one emits leaves them to that thread. A sink that calls the cache does the same.
//!
//! Events are lost if the sink panics, or if more are noted than a repetition of everything would take. Then
//! the noted events are dropped and counted. The sink gets `AllBlocksCleared` and every content that can be
//! matched.
//!
//! Invariant: `is_emitting` is true exactly while one thread has taken events and has not returned them.

use std::mem;

use super::noted::{NotedEvents, StoredBlocks};
use crate::id::{GroupId, Medium};
use crate::prefix::BlockHash;
use crate::sync::thread_ordinal;

/// Events and blocks that may be noted even in the smallest cache.
const LEAST_LIMIT: usize = 1024;

/// The most changes without an attempt to call a sink that keeps panicking.
const MOST_PAUSES: u32 = 1024;

pub(crate) struct Delivery {
    noted: Box<NotedEvents>,
    /// Memory for the next events, unless a thread is emitting.
    spare: Option<Box<NotedEvents>>,
    limit: usize,
    is_emitting: bool,
    /// The ordinal of the thread that took events last.
    emitter: usize,
    /// True if everything must be repeated to the sink. Until then no event is noted.
    is_lost: bool,
    /// Consecutive panics of the sink.
    failures: u32,
    /// Further changes without an attempt to call the sink.
    pauses: u32,
    dropped: u64,
    /// Those of the dropped events whose trace event was emitted or is noted.
    traced: u64,
    /// Threads that wait for the emitting thread.
    waiting: usize,
}

impl Delivery {
    /// Creates the delivery of the events of so many blocks and slots of tiers.
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            noted: Box::default(),
            spare: None,
            // Repeating everything takes at most one event and one block for each block and slot.
            limit: num_blocks.saturating_mul(4).saturating_add(LEAST_LIMIT),
            is_emitting: false,
            emitter: 0,
            is_lost: false,
            failures: 0,
            pauses: 0,
            dropped: 0,
            traced: 0,
            waiting: 0,
        }
    }

    pub(crate) fn note_stored(&mut self, stored: &StoredBlocks<'_>) {
        self.note(|noted| noted.push_stored(stored));
    }

    pub(crate) fn note_removed(&mut self, group: GroupId, medium: Medium, hashes: &[BlockHash]) {
        self.note(|noted| noted.push_removed(group, medium, hashes));
    }

    pub(crate) fn note_cleared(&mut self) {
        self.note(NotedEvents::push_cleared);
    }

    #[inline]
    fn note(&mut self, push: impl FnOnce(&mut NotedEvents)) {
        if self.is_lost {
            return;
        }
        push(&mut self.noted);
        if self.noted.weight() > self.limit {
            self.lose();
        }
    }

    /// Returns true if everything is to be repeated now. The caller notes it.
    #[inline]
    pub(crate) fn begin_again(&mut self) -> bool {
        if !self.is_lost || self.is_emitting {
            return false;
        }
        if self.pauses > 0 {
            self.pauses -= 1;
            return false;
        }
        self.is_lost = false;
        self.noted.dropped_before = self.dropped - self.traced;
        self.traced = self.dropped;
        true
    }

    /// Takes all noted events, which the caller emits outside the lock. Returns `None` if there are none, or if
    /// another thread is emitting: that thread takes them.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Box<NotedEvents>> {
        if self.is_emitting || self.noted.is_empty() {
            return None;
        }
        self.is_emitting = true;
        self.emitter = thread_ordinal();
        let next = self.spare.take().unwrap_or_default();
        Some(mem::replace(&mut self.noted, next))
    }

    /// Ends the emission that [`take`](Self::take) began.
    #[inline]
    pub(crate) fn end(&mut self, mut taken: Box<NotedEvents>) {
        self.is_emitting = false;
        if taken.pending() == 0 {
            self.failures = 0;
        } else {
            self.fail(taken.pending());
        }
        taken.clear();
        self.spare = Some(taken);
    }

    /// Makes the next change call the sink, even after panics.
    pub(crate) fn try_again(&mut self) {
        self.pauses = 0;
    }

    /// Returns true while another thread is emitting and too much is noted for this thread to note more.
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        let much = self.noted.weight() > self.limit / 2;
        much && self.is_emitting && self.emitter != thread_ordinal()
    }

    /// Counts a thread that waits for the emitting thread.
    pub(crate) fn begin_waiting(&mut self) {
        self.waiting += 1;
    }

    pub(crate) fn end_waiting(&mut self) {
        self.waiting -= 1;
    }

    /// Returns true if a waiting thread takes over from the emitting thread.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting > 0
    }

    /// Returns the number of events that were noted and dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    #[cold]
    fn fail(&mut self, pending: usize) {
        self.failures = self.failures.saturating_add(1);
        // After the first panic the next change tries again.
        self.pauses = match self.failures {
            1 => 0,
            failures => 1_u32.checked_shl(failures).map_or(MOST_PAUSES, |n| n.min(MOST_PAUSES)),
        };
        self.dropped += pending as u64;
        self.lose();
    }

    #[cold]
    fn lose(&mut self) {
        self.dropped += self.noted.pending() as u64;
        self.traced -= self.noted.dropped_before;
        self.noted.clear();
        self.is_lost = true;
    }
}
