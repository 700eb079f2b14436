//! How long does a request wait? For ever, unless it has a deadline.

use std::time::{Duration, Instant};

/// How long a request waits for room.
///
/// ```
/// use std::time::Duration;
///
/// use paged_kv::wait::Patience;
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(8, 16, 1, 1);
/// let room = cache.reserve_blocking(8, Patience::default())?;
/// let late = cache.reserve_blocking(1, Patience::default().timeout(Duration::from_millis(1)));
/// assert_eq!(late.unwrap_err(), PagedKvError::DeadlinePassed);
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    deadline: Option<Instant>,
}

impl Patience {
    /// Until `deadline`: a request that was not served by then is refused with
    /// [`DeadlinePassed`](crate::PagedKvError::DeadlinePassed), and holds nothing. It asks once also if
    /// `deadline` has passed already, and is served if that is possible at once.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// use paged_kv::wait::Patience;
    ///
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert!(cache.reserve_blocking(8, Patience::default().deadline(Instant::now())).is_ok());
    /// ```
    pub fn deadline(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline) }
    }

    /// For so long from now on; see [`deadline`](Self::deadline). For ever, if that is beyond what the
    /// clock can tell.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use paged_kv::wait::Patience;
    ///
    /// let cache = paged_kv::PagedKvCache::new(8, 16, 1, 1);
    /// assert!(cache.reserve_blocking(8, Patience::default().timeout(Duration::ZERO)).is_ok());
    /// ```
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(timeout) }
    }

    pub(super) fn until(self) -> Option<Instant> {
        self.deadline
    }
}
