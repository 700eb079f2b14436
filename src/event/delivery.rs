//! Which thread tells the sink what was noted, and what if that fails? `Delivery` decides both.
//!
//! ```text
//!   announcer's lock { note ... take all that is noted } ── no lock ──> sink ──┐
//!                        ^                                                     │ more was noted
//!                        └─────────────────────────────────────────────────────┘
//! ```
//!
//! One thread tells at a time, so events are told in the order in which they were noted. A thread that
//! notes events while another one tells leaves them to that one; so does a sink that calls the cache.
//!
//! Events are lost if the sink panics, or if more are noted than telling everything again would take. Then
//! those that are noted are dropped and counted, and the sink is told `AllBlocksCleared` and everything
//! that can be matched.
//!
//! Invariant: `is_telling` is true exactly while one thread has taken events and has not come back. It
//! does not know what is announced: [`announcer`](super::announcer) does.

use std::mem;

use super::noted::{NotedEvents, StoredBlocks};
use crate::prefix::BlockHash;
use crate::sync::thread_ordinal;

/// Events and blocks that may be noted, however small the cache is.
const LEAST_LIMIT: usize = 1024;

/// The most changes without an attempt to tell a sink that keeps panicking.
const MOST_PAUSES: u32 = 1024;

pub(crate) struct Delivery {
    noted: Box<NotedEvents>,
    /// Memory for the next ones, unless a thread tells.
    spare: Option<Box<NotedEvents>>,
    limit: usize,
    is_telling: bool,
    /// The thread that took events last.
    teller: usize,
    /// True if the sink has to be told everything again: until then nothing is noted.
    is_lost: bool,
    /// How often in a row the sink has panicked.
    failures: u32,
    /// Changes to come without an attempt.
    pauses: u32,
    dropped: u64,
    /// Threads that wait for the one that tells.
    waiting: usize,
}

impl Delivery {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            noted: Box::default(),
            spare: None,
            // Telling everything takes an event and a block for each block.
            limit: num_blocks.saturating_mul(4).saturating_add(LEAST_LIMIT),
            is_telling: false,
            teller: 0,
            is_lost: false,
            failures: 0,
            pauses: 0,
            dropped: 0,
            waiting: 0,
        }
    }

    pub(crate) fn note_stored(&mut self, stored: &StoredBlocks<'_>) {
        self.note(|noted| noted.push_stored(stored));
    }

    pub(crate) fn note_removed(&mut self, hashes: &[BlockHash]) {
        self.note(|noted| noted.push_removed(hashes));
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

    /// True if everything is to be told again now. The caller notes it.
    #[inline]
    pub(crate) fn begin_again(&mut self) -> bool {
        if !self.is_lost || self.is_telling {
            return false;
        }
        if self.pauses > 0 {
            self.pauses -= 1;
            return false;
        }
        self.is_lost = false;
        true
    }

    /// Everything noted, for the caller to tell outside the lock. `None` if nothing is, or if another
    /// thread tells: that one takes it.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Box<NotedEvents>> {
        if self.is_telling || self.noted.is_empty() {
            return None;
        }
        self.is_telling = true;
        self.teller = thread_ordinal();
        let next = self.spare.take().unwrap_or_default();
        Some(mem::replace(&mut self.noted, next))
    }

    /// Ends what [`take`](Self::take) began.
    #[inline]
    pub(crate) fn end(&mut self, mut taken: Box<NotedEvents>) {
        self.is_telling = false;
        if taken.untold() == 0 {
            self.failures = 0;
        } else {
            self.fail(taken.untold());
        }
        taken.clear();
        self.spare = Some(taken);
    }

    /// Makes the next change try to tell, however often the sink has panicked.
    pub(crate) fn try_again(&mut self) {
        self.pauses = 0;
    }

    /// True while another thread tells, and so much is noted that this one should note no more.
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        let much = self.noted.weight() > self.limit / 2;
        much && self.is_telling && self.teller != thread_ordinal()
    }

    /// Counts a thread that waits for the one that tells.
    pub(crate) fn begin_waiting(&mut self) {
        self.waiting += 1;
    }

    pub(crate) fn end_waiting(&mut self) {
        self.waiting -= 1;
    }

    /// True if another thread takes over from the one that tells.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting > 0
    }

    /// Events that were noted and dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    #[cold]
    fn fail(&mut self, untold: usize) {
        self.failures = self.failures.saturating_add(1);
        // The first time it is tried again at once.
        self.pauses = match self.failures {
            1 => 0,
            failures => 1_u32.checked_shl(failures).map_or(MOST_PAUSES, |n| n.min(MOST_PAUSES)),
        };
        self.dropped += untold as u64;
        self.lose();
    }

    #[cold]
    fn lose(&mut self) {
        self.dropped += self.noted.untold() as u64;
        self.noted.clear();
        self.is_lost = true;
    }
}
