//! `Sink` and `Observed`: the caller's event sink and observer of overwritten contents, as the builder keeps them.

use std::fmt;

use crate::prefix::kv_event::EventSink;
use crate::prefix::overwrites::Observer;
use crate::sync::PlainArc;

/// An event sink, which may lack `Debug`.
#[derive(Clone)]
pub(super) struct Sink(pub(super) PlainArc<dyn EventSink>);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink { .. }")
    }
}

/// An observer of overwritten contents, which has no `Debug`.
#[derive(Clone)]
pub(super) struct Observed(pub(super) Observer);

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OverwriteObserver { .. }")
    }
}
