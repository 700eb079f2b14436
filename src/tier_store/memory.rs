//! `zeroed`: memory of the host for one block, whose refusal is an error.

use crate::error::{PagedKvError, Result};

/// Returns `bytes` bytes of memory, all written, so that the operating system has given them.
///
/// # Errors
/// `OutOfHostMemory`.
pub(super) fn zeroed(bytes: usize) -> Result<Box<[u8]>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| PagedKvError::OutOfHostMemory { bytes })?;
    memory.resize(bytes, 0);
    Ok(memory.into())
}
