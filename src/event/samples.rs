//! Events for tests, of a cache without groups.

use crate::groups::LayerGroup;
use crate::id::{GroupId, Medium};
use crate::prefix::BlockHash;
use crate::prefix::kv_event::KvEvent;

pub(super) const FULL: LayerGroup = LayerGroup::Full { block_size: 4 };

/// Returns the event as one of another group.
pub(super) fn of_group(mut event: KvEvent<'_>, id: GroupId, of_kind: LayerGroup) -> KvEvent<'_> {
    if let KvEvent::BlockStored { group, kind, .. } | KvEvent::BlockRemoved { group, kind, .. } =
        &mut event
    {
        (*group, *kind) = (id, of_kind);
    }
    event
}

/// Returns the event as one of a tier: hashes alone.
pub(super) fn in_tier(mut event: KvEvent<'_>, of: Medium) -> KvEvent<'_> {
    match &mut event {
        KvEvent::BlockStored { medium, tokens, .. } => (*medium, *tokens) = (of, &[]),
        KvEvent::BlockRemoved { medium, .. } => *medium = of,
        KvEvent::AllBlocksCleared => {}
    }
    event
}

/// Returns the event of removed blocks.
pub(super) fn removed(hashes: &[BlockHash]) -> KvEvent<'_> {
    KvEvent::BlockRemoved { hashes, group: GroupId(0), kind: FULL, medium: Medium::Device }
}

/// Returns the event of stored blocks of equal size at the beginning of a prompt.
pub(super) fn stored<'a>(hashes: &'a [BlockHash], tokens: &'a [u32]) -> KvEvent<'a> {
    let block_size = tokens.len() / hashes.len().max(1);
    let (group, kind) = (GroupId(0), FULL);
    KvEvent::BlockStored {
        hashes,
        parent: None,
        tokens,
        block_size,
        extra: None,
        index: 0,
        group,
        kind,
        medium: Medium::Device,
    }
}
