//! When does a modelled thread that holds a lock call foreign code? Never: no operation of the modelled
//! build gives blocks back, or changes contents, with a lock of a cache held. So no scope is ever open.

use crate::sync::PlainArc;

/// Something that has foreign code to call.
pub(crate) trait Postponed: Send + Sync {
    /// Calls it. The caller holds no lock.
    fn perform(self: PlainArc<Self>);
}

pub(crate) fn is_open() -> bool {
    false
}

pub(crate) fn postpone(postponed: PlainArc<dyn Postponed>) {
    postponed.perform();
}

#[cfg(feature = "async")]
pub(crate) fn call_nested(foreign: impl FnOnce()) {
    foreign();
}

/// A scope that postpones nothing.
pub(crate) struct Later;

impl Later {
    pub(crate) fn begin() -> Self {
        Self
    }
}
