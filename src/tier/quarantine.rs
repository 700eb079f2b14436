//! `Quarantine`: blocks and slots that a failed copy may still write. They have an owner here, so that they get no
//! other content, until the mover is quiet.

use std::collections::HashMap;

use super::TicketNumber;
use crate::sync::Mutex;
use crate::table::BlockTable;

/// The most blocks and slots that may be in quarantine. Beyond it no new ticket is made.
pub(crate) const MOST_QUARANTINED: usize = 4_096;

/// The tables of failed copies, by their tickets.
pub(crate) struct Quarantine(Mutex<HashMap<TicketNumber, Vec<BlockTable>>>);

impl Quarantine {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Keeps the blocks of a table until the ticket is quiet.
    pub(crate) fn keep(&self, ticket: TicketNumber, blocks: BlockTable) {
        if !blocks.is_empty() {
            self.0.lock().entry(ticket).or_default().push(blocks);
        }
    }

    /// Gives back the blocks of a ticket whose copies write no more. Returns how many they were.
    pub(crate) fn release(&self, ticket: TicketNumber) -> usize {
        // Dropped after the lock is released.
        let blocks = self.0.lock().remove(&ticket);
        blocks.iter().flatten().map(BlockTable::len).sum()
    }

    /// Returns the number of blocks and slots in quarantine.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().values().flatten().map(BlockTable::len).sum()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= MOST_QUARANTINED
    }
}
