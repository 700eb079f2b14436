//! `Quarantine`: blocks and slots that a failed copy may still write. They have an owner here, so that they get no
//! other content, until the mover is quiet.

use std::collections::HashMap;

use super::TicketNumber;
use crate::pool::PoolHandle;
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::table::BlockTable;

/// The most blocks and slots that may be in quarantine. Beyond it no new ticket is made.
pub(crate) const MOST_QUARANTINED: usize = 4_096;

/// The tables of failed copies, by their tickets.
pub(crate) struct Quarantine {
    tables: Mutex<HashMap<TicketNumber, Vec<BlockTable>>>,
    /// The blocks of all tables, which each admission reads.
    len: AtomicUsize,
}

impl Quarantine {
    pub(super) fn new() -> Self {
        Self { tables: Mutex::new(HashMap::new()), len: AtomicUsize::new(0) }
    }

    /// Keeps the blocks of a table until the ticket is quiet.
    pub(crate) fn keep(&self, ticket: TicketNumber, blocks: BlockTable) {
        if !blocks.is_empty() {
            // Relaxed: a limit, which a thread may pass by as if it had called earlier.
            self.len.fetch_add(blocks.len(), Ordering::Relaxed);
            self.tables.lock().entry(ticket).or_default().push(blocks);
        }
    }

    /// Gives back the blocks of a ticket whose copies write no more. Returns how many they were.
    pub(crate) fn release(&self, ticket: TicketNumber) -> usize {
        // Dropped after the lock is released.
        let blocks = self.tables.lock().remove(&ticket);
        let len = blocks.iter().flatten().map(BlockTable::len).sum();
        // Relaxed: as in `keep`.
        self.len.fetch_sub(len, Ordering::Relaxed);
        len
    }

    /// Returns the number of blocks of a pool in quarantine.
    pub(crate) fn len_in(&self, pool: &PoolHandle) -> usize {
        let tables = self.tables.lock();
        let of_pool = tables.values().flatten().filter(|table| table.pool().is_of_same_pool(pool));
        of_pool.map(BlockTable::len).sum()
    }

    /// Returns the number of blocks and slots in quarantine.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: as in `keep`.
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= MOST_QUARANTINED
    }
}
