//! `InFlight`: the contents that tickets copy at the moment, by their keys.
//!
//! A thread that adds a content has the right to copy it. It publishes the content at its destination before it removes
//! it here. So a thread that misses the content here, after it missed it everywhere else, looks once more.

use super::TicketNumber;
use crate::pool::content_key::ContentKey;
use crate::sync::{DashMap, Entry, FastSeed};

/// The contents that are being copied, each with its ticket.
pub(crate) struct InFlight {
    contents: DashMap<u128, TicketNumber, FastSeed>,
}

/// Shards of the map.
const SHARDS: usize = 64;

impl InFlight {
    pub(super) fn new() -> Self {
        let hasher = FastSeed::default();
        Self { contents: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS) }
    }

    /// Claims the right to copy a content for a ticket. Returns false if another ticket has it.
    pub(crate) fn claim(&self, key: ContentKey, ticket: TicketNumber) -> bool {
        match self.contents.entry(key.bits()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(ticket);
                true
            }
        }
    }

    /// Gives the right back, after the content was published or was not copied.
    pub(crate) fn leave(&self, key: ContentKey, ticket: TicketNumber) {
        self.contents.remove_if(&key.bits(), |_, of| *of == ticket);
    }

    /// Returns true if a ticket copies the content.
    pub(crate) fn has(&self, key: ContentKey) -> bool {
        self.contents.contains_key(&key.bits())
    }

    pub(crate) fn len(&self) -> usize {
        self.contents.iter().count()
    }
}
