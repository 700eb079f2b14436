//! `Kv`: the keys and values of each block, as cells that the model checker watches.

use loom::cell::UnsafeCell;
use paged_kv::BlockId;

/// One cell for each block. An access that is not ordered with another thread's write fails the model.
pub struct Kv(Vec<UnsafeCell<u64>>);

// SAFETY: loom runs one thread at a time. It fails an execution in which the accesses of two threads to a
// cell are not ordered, before the second access is made.
unsafe impl Sync for Kv {}
// SAFETY: the cells hold plain numbers.
unsafe impl Send for Kv {}

impl Kv {
    /// Creates the cells of `num_blocks` blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self((0..num_blocks).map(|_| UnsafeCell::new(0)).collect())
    }

    /// Writes the block, as its only owner.
    #[track_caller]
    pub fn write(&self, id: BlockId, value: u64) {
        // SAFETY: loom has checked that no other thread accesses the cell.
        self.0[id.0 as usize].with_mut(|cell| unsafe { *cell = value });
    }

    /// Reads the block, as one of its owners.
    #[track_caller]
    pub fn read(&self, id: BlockId) -> u64 {
        // SAFETY: loom has checked that no thread writes the cell.
        self.0[id.0 as usize].with(|cell| unsafe { *cell })
    }

    /// Writes each of `ids` and reads it again.
    #[track_caller]
    pub fn use_alone(&self, ids: &[BlockId], value: u64) {
        for &id in ids {
            self.write(id, value);
        }
        for &id in ids {
            assert_eq!(self.read(id), value, "{id} is in one owner's hand");
        }
    }
}
