//! [`CpuDevice`]: a device whose blocks are in memory of the host, for tests and examples.

use super::device::{Device, DeviceError};
use super::memory::zeroed;
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::outside::RwLock;

/// Blocks in memory of the host, in the place of a device.
///
/// ```
/// use paged_kv::BlockId;
/// use paged_kv::tier_store::CpuDevice;
///
/// let device = CpuDevice::new(4, 64)?;
/// device.write(BlockId(1), &[7; 64]);
/// assert_eq!(device.read(BlockId(1)), [7; 64]);
/// assert_eq!(device.read(BlockId(0)), [0; 64]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug)]
pub struct CpuDevice {
    blocks: Box<[RwLock<Box<[u8]>>]>,
}

impl CpuDevice {
    /// Creates a device of so many blocks of so many bytes, all 0.
    ///
    /// # Errors
    /// [`OutOfHostMemory`](crate::PagedKvError::OutOfHostMemory).
    ///
    /// ```
    /// assert!(paged_kv::tier_store::CpuDevice::new(4, usize::MAX).is_err());
    /// ```
    pub fn new(blocks: usize, block_bytes: usize) -> Result<Self> {
        let memory: Result<Vec<_>> = (0..blocks).map(|_| zeroed(block_bytes)).collect();
        let mut memory = memory?.into_iter();
        let blocks = array_of(blocks, || RwLock::new(memory.next().expect("one a block")))?;
        Ok(Self { blocks })
    }

    /// Returns the bytes of a block.
    ///
    /// # Panics
    /// If there is no such block.
    ///
    /// ```
    /// let device = paged_kv::tier_store::CpuDevice::new(1, 2)?;
    /// assert_eq!(device.read(paged_kv::BlockId(0)), [0, 0]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn read(&self, block: BlockId) -> Vec<u8> {
        self.blocks[block.index()].read().to_vec()
    }

    /// Writes the bytes of a block, as a kernel does.
    ///
    /// # Panics
    /// If there is no such block, or `bytes` is not of the block's length.
    ///
    /// ```
    /// let device = paged_kv::tier_store::CpuDevice::new(1, 2)?;
    /// device.write(paged_kv::BlockId(0), &[3, 4]);
    /// assert_eq!(device.read(paged_kv::BlockId(0)), [3, 4]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn write(&self, block: BlockId, bytes: &[u8]) {
        self.blocks[block.index()].write().copy_from_slice(bytes);
    }

    fn block(&self, block: BlockId) -> Result<&RwLock<Box<[u8]>>, DeviceError> {
        let refusal = || DeviceError::Refused(format!("no block {block} of {}", self.blocks.len()));
        self.blocks.get(block.index()).ok_or_else(refusal)
    }
}

impl Device for CpuDevice {
    fn copy_out(&self, block: BlockId, into: &mut [u8]) -> Result<(), DeviceError> {
        let bytes = self.block(block)?.read();
        refuse_other_length(bytes.len(), into.len())?;
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn copy_in(&self, block: BlockId, from: &[u8]) -> Result<(), DeviceError> {
        let mut bytes = self.block(block)?.write();
        refuse_other_length(bytes.len(), from.len())?;
        bytes.copy_from_slice(from);
        Ok(())
    }
}

fn refuse_other_length(of_block: usize, given: usize) -> Result<(), DeviceError> {
    match of_block == given {
        true => Ok(()),
        false => Err(DeviceError::Refused(format!("{given} bytes, a block has {of_block}"))),
    }
}
