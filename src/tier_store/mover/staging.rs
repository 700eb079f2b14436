//! `Staging`: the memory for contents that were copied from the device and are not written yet.

use std::mem;

use crate::error::Result;
use crate::sync::outside::{Arc, Mutex};
use crate::tier_store::memory::zeroed;

/// Buffers of one block each, in a number that never changes.
pub(super) struct Staging {
    free: Mutex<Vec<Box<[u8]>>>,
    total: usize,
}

/// A buffer, which goes back when it is dropped.
pub(super) struct StagingBuffer {
    bytes: Box<[u8]>,
    home: Arc<Staging>,
}

impl Staging {
    /// # Errors
    /// `OutOfHostMemory`.
    pub(super) fn new(total: usize, block_bytes: usize) -> Result<Self> {
        let free: Result<Vec<_>> = (0..total).map(|_| zeroed(block_bytes)).collect();
        Ok(Self { free: Mutex::new(free?), total })
    }

    /// Takes at most `most` buffers. Never waits.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Vec<StagingBuffer> {
        let mut free = self.free.lock();
        let first = free.len() - most.min(free.len());
        let taken = free.drain(first..);
        taken.map(|bytes| StagingBuffer { bytes, home: Arc::clone(self) }).collect()
    }

    /// Returns the buffers that are in use, and all.
    pub(super) fn used(&self) -> (usize, usize) {
        (self.total - self.free.lock().len(), self.total)
    }
}

impl StagingBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for StagingBuffer {
    fn drop(&mut self) {
        self.home.free.lock().push(mem::take(&mut self.bytes));
    }
}
