//! `Owners`: the holder of each block, as an array that every holder writes: a tag at allocation, cleared
//! before release.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::BlockId;

const NOBODY: u64 = 0;

/// One cell for each block.
pub struct Owners {
    cells: Vec<AtomicU64>,
    next_tag: AtomicU64,
}

impl Owners {
    pub fn new(num_blocks: usize) -> Self {
        let cells = (0..num_blocks).map(|_| AtomicU64::new(NOBODY)).collect();
        Self { cells, next_tag: AtomicU64::new(1) }
    }

    /// Returns a tag that was never returned before.
    pub fn tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes the tag. All accesses are Relaxed: the pool's own hand-over must order the two owners'
    /// writes.
    pub fn enter(&self, id: BlockId, tag: u64) {
        let before = self.cells[id.0 as usize].swap(tag, Ordering::Relaxed);
        assert_eq!(before, NOBODY, "{id} was given to {tag} while {before} held it");
    }

    pub fn leave(&self, id: BlockId, tag: u64) {
        let before = self.cells[id.0 as usize].swap(NOBODY, Ordering::Relaxed);
        assert_eq!(before, tag, "{id} was {tag}'s, and {before} held it too");
    }

    pub fn check(&self, id: BlockId, tag: u64) {
        let now = self.cells[id.0 as usize].load(Ordering::Relaxed);
        assert_eq!(now, tag, "{id} is {tag}'s, and {now} holds it too");
    }

    pub fn assert_empty(&self) {
        assert!(self.cells.iter().all(|cell| cell.load(Ordering::Relaxed) == NOBODY));
    }
}
