//! `PublishedGroups`: the groups of layers whose events a publisher sends.

use crate::id::GroupId;
use crate::prefix::kv_event::KvEvent;

/// The [groups of layers](crate::LayerGroup) whose events a publisher sends, of a cache with several.
///
/// Equal tokens have equal hashes in all groups. A consumer that keeps the groups apart by `group_idx`, or drops those
/// that are not of full attention by `kv_cache_spec_kind`, takes all. A consumer that reads neither would take the
/// blocks of a window for cached prefixes.
///
/// ```
/// use paged_kv::GroupId;
/// use paged_kv::event::{PublishedGroups, PublisherOptions};
///
/// let options = PublisherOptions::default().groups(PublishedGroups::One(GroupId(0)));
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishedGroups {
    /// All groups, as vLLM does.
    All,
    /// The groups of full attention.
    Full,
    /// One group: for a consumer that does not keep apart several groups of full attention.
    One(GroupId),
}

impl PublishedGroups {
    /// Returns true if the event is sent.
    pub(super) fn contain(self, event: &KvEvent<'_>) -> bool {
        let Some((group, kind)) = event.group() else {
            return true;
        };
        match self {
            Self::All => true,
            Self::Full => kind.is_full(),
            Self::One(one) => group == one,
        }
    }
}
