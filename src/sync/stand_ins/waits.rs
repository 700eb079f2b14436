//! Waits of a modelled thread: for another thread, and for a future. Deadlines do not pass here.

use super::ground;

/// The wait for another thread: the build runs another thread first.
pub(crate) struct Backoff;

impl Backoff {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn wait(&mut self) {
        ground::yield_now();
    }
}

/// Polls a future on this thread until it is done.
#[cfg(feature = "async")]
pub(crate) fn block_on_until<F: Future>(
    future: F,
    _deadline: Option<std::time::Instant>,
) -> Option<F::Output> {
    crate::sync::later::perform_now();
    Some(ground::block_on(future))
}

/// An alarm that never wakes a task.
#[cfg(feature = "async")]
pub(crate) struct Alarm;

#[cfg(feature = "async")]
impl Alarm {
    pub(crate) fn set(_at: std::time::Instant, _waker: std::task::Waker) -> Self {
        Self
    }
}
