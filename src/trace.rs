//! [`TraceEvent`]: the events that the feature `tracing` emits, where memory is short and where events are lost.
//!
//! A subscriber is foreign code. So an event is emitted when its thread holds no lock: immediately, or at the
//! end of the thread's outermost [`Later`](crate::sync::Later). A panic of the subscriber is caught. An event that the
//! subscriber itself causes, because it calls the cache, is not emitted.
//!
//! Without the feature, or while no subscriber wants the event's level, nothing is emitted and nothing allocated.
//! No operation that finds room comes here.

#[cfg(feature = "tracing")]
use std::cell::Cell;

#[cfg(feature = "tracing")]
use tracing::level_filters::LevelFilter;

use crate::id::SeqId;
#[cfg(feature = "tracing")]
use crate::sync::later::{self, Postponed};
#[cfg(feature = "tracing")]
use crate::sync::{PlainArc, foreign, thread_local};

/// The target of all events.
#[cfg(feature = "tracing")]
const TARGET: &str = "paged_kv";

/// A fact that an operator may want to read in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "no event is emitted"))]
pub(crate) enum TraceEvent {
    /// A request found too little room. It is refused, or it waits.
    Refused { requested: usize, available: usize },
    /// A sequence was evicted.
    Evicted { id: SeqId, num_tokens: usize, num_blocks: usize },
    /// All sequences waited for each other, and this one yields.
    #[cfg(feature = "async")]
    Stalled { id: SeqId },
    /// Events were not emitted to the sink; all contents are repeated to it now.
    EventsDropped { events: u64 },
    /// Batches of events were dropped before the publisher could send them.
    #[cfg(feature = "events")]
    BatchesLost { batches: u64 },
}

#[cfg(not(feature = "tracing"))]
impl TraceEvent {
    #[inline(always)]
    pub(crate) fn emit(self) {}
}

#[cfg(feature = "tracing")]
thread_local! {
    /// True while this thread is in a subscriber.
    static IS_EMITTING: Cell<bool> = const { Cell::new(false) };
}

#[cfg(feature = "tracing")]
impl TraceEvent {
    /// Emits the event as soon as the thread holds no lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn emit(self) {
        if LevelFilter::current() < self.level() || IS_EMITTING.with(Cell::get) {
            return;
        }
        if later::is_open() {
            later::postpone(PlainArc::new(self));
        } else {
            self.emit_now();
        }
    }

    fn level(self) -> LevelFilter {
        match self {
            Self::Refused { .. } | Self::Evicted { .. } => LevelFilter::DEBUG,
            _ => LevelFilter::WARN,
        }
    }

    fn emit_now(self) {
        if !IS_EMITTING.with(|is_emitting| is_emitting.replace(true)) {
            foreign::call(|| self.tell());
            IS_EMITTING.with(|is_emitting| is_emitting.set(false));
        }
    }

    fn tell(self) {
        match self {
            Self::Refused { requested, available } => {
                tracing::debug!(target: TARGET, requested, available, "too little room");
            }
            Self::Evicted { id: SeqId(id), num_tokens, num_blocks } => {
                tracing::debug!(target: TARGET, id, num_tokens, num_blocks, "sequence evicted");
            }
            #[cfg(feature = "async")]
            Self::Stalled { id: SeqId(id) } => {
                tracing::warn!(target: TARGET, id, "all sequences wait for room: one yields");
            }
            Self::EventsDropped { events } => {
                tracing::warn!(target: TARGET, events, "events dropped: all contents are repeated");
            }
            #[cfg(feature = "events")]
            Self::BatchesLost { batches } => {
                tracing::warn!(target: TARGET, batches, "the publisher lost batches of events");
            }
        }
    }
}

#[cfg(feature = "tracing")]
impl Postponed for TraceEvent {
    fn perform(self: PlainArc<Self>) {
        self.emit_now();
    }
}
