//! `ReadBuffers`: the memory into which one thread reads contents of stores.

use crate::error::Result;
use crate::tier_store::memory::zeroed;

/// The most contents that a thread reads or writes at a time.
pub(super) const BATCH: usize = 8;

/// `BATCH` buffers of one block each.
pub(super) struct ReadBuffers {
    buffers: Vec<Box<[u8]>>,
    block_bytes: usize,
}

impl ReadBuffers {
    /// # Errors
    /// `OutOfHostMemory`.
    pub(super) fn new(block_bytes: usize) -> Result<Self> {
        let buffers: Result<Vec<_>> = (0..BATCH).map(|_| zeroed(block_bytes)).collect();
        Ok(Self { buffers: buffers?, block_bytes })
    }

    pub(super) fn all(&self) -> &[Box<[u8]>] {
        &self.buffers
    }

    pub(super) fn all_mut(&mut self) -> &mut [Box<[u8]>] {
        &mut self.buffers
    }

    /// Returns the buffers, which a copy may still read, and takes others.
    pub(super) fn replace(&mut self) -> Vec<Box<[u8]>> {
        let others = (0..BATCH).map(|_| vec![0; self.block_bytes].into()).collect();
        std::mem::replace(&mut self.buffers, others)
    }
}
