//! The contents that a cache keeps: their order of reclaim and their levels.

use super::PagedKvCacheBuilder;
use super::checks::invalid;
use crate::error::Result;
use crate::groups::GroupLayout;
use crate::pool::{ReclaimPolicy, Retention};

impl PagedKvCacheBuilder {
    /// Lets callers give contents a level if true: see [`AdmitOptions::retain`](crate::AdmitOptions::retain) and
    /// [`Retained::set`](crate::Retained::set). By default false.
    ///
    /// Contents of lower levels are reclaimed first. Those of the default level have the order of the
    /// [`reclaim_policy`](Self::reclaim_policy), and those of the others the order of their releases. A level never
    /// refuses a request: contents of all levels are room.
    ///
    /// Takes about 36 bytes of memory a block. All home shards share the order of the other levels: a release or a reclaim of
    /// such a content takes one lock. A reclaim reads two more words, and the clock once a duration was given. A cache
    /// without levels has no such costs. [`build`](Self::build) refuses levels with groups of layers, and without
    /// [`prefix_reuse`](Self::prefix_reuse).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, Level, PagedKvCache, Retain, SeqId};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8);
    /// let options = AdmitOptions::default().retain(Retain::new(0..16, Level::High));
    /// let cache = builder.clone().retention_levels(true).build()?;
    /// assert!(cache.admit_with(SeqId(1), &cache.prompt(&[7; 40]), &options).is_ok());
    /// let cache = builder.build()?;
    /// assert!(cache.admit_with(SeqId(1), &cache.prompt(&[7; 40]), &options).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn retention_levels(self, retention_levels: bool) -> Self {
        Self { retention_levels, ..self }
    }

    /// Returns the choice of contents that blocks keep, and the number of blocks that can have contents.
    pub(super) fn checked_contents(
        &self,
        layout: Option<&GroupLayout>,
    ) -> Result<(Retention, usize)> {
        if self.retention_levels && !self.prefix_reuse {
            let reason = "true, and without prefix reuse no content is kept".to_owned();
            return invalid("retention_levels", reason);
        }
        if self.retention_levels && layout.is_some() {
            let reason = "true, and levels of groups of layers are not supported".to_owned();
            return invalid("retention_levels", reason);
        }
        let policy = match self.reclaim_policy {
            // The classes are those of the blocks of a prompt, and not of windows and states.
            ReclaimPolicy::HitDensity if layout.is_some() => ReclaimPolicy::Lru,
            policy => policy,
        };
        Ok(match (self.prefix_reuse, self.retention_levels) {
            (false, _) => (Retention::Nothing, 0),
            (true, false) => (Retention::Contents(policy), self.num_blocks),
            (true, true) => (Retention::Levels(policy), self.num_blocks),
        })
    }
}
