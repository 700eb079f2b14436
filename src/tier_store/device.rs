//! [`Device`]: copies between the blocks of a device and memory of the host, which the caller implements.

use crate::id::BlockId;

/// The reason why a copy was not made.
///
/// ```
/// use paged_kv::tier_store::DeviceError;
///
/// let refusal = DeviceError::Refused("the stream is closed".to_owned());
/// assert_eq!(refusal.to_string(), "refused: the stream is closed");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The copy was not made or ended early. Nothing reads its source or writes its destination any more.
    #[error("refused: {0}")]
    Refused(String),
    /// The copy may still read its source and write its destination, until [`Device::quiesce`] says that it does not.
    #[error("uncertain: {0}")]
    Uncertain(String),
}

/// A copy from a block of the device to memory of the host.
#[derive(Debug)]
pub struct CopyOut<'a> {
    /// The block.
    pub block: BlockId,
    /// The destination: the bytes of one block.
    pub into: &'a mut [u8],
    /// The outcome, which [`Device::copy_out_all`] sets. Uncertain before.
    pub outcome: Result<(), DeviceError>,
}

/// A copy from memory of the host to a block of the device.
#[derive(Debug)]
pub struct CopyIn<'a> {
    /// The block.
    pub block: BlockId,
    /// The source: the bytes of one block.
    pub from: &'a [u8],
    /// The outcome, which [`Device::copy_in_all`] sets. Uncertain before.
    pub outcome: Result<(), DeviceError>,
}

impl<'a> CopyOut<'a> {
    pub(super) fn new(block: BlockId, into: &'a mut [u8]) -> Self {
        Self { block, into, outcome: Err(unmade()) }
    }
}

impl<'a> CopyIn<'a> {
    pub(super) fn new(block: BlockId, from: &'a [u8]) -> Self {
        Self { block, from, outcome: Err(unmade()) }
    }
}

/// The outcome of a copy of which the device has said nothing: the device panicked.
fn unmade() -> DeviceError {
    DeviceError::Uncertain("the device reported no outcome".to_owned())
}

/// A device whose blocks are copied to memory of the host and back.
///
/// A mover calls it from the threads that call the mover, and from threads of its own, several at a time. Each copy is
/// complete when the method returns, unless its outcome is [`Uncertain`](DeviceError::Uncertain). Streams, their order
/// after the kernels that wrote a block, and pinned memory are the implementation's business: a method for several copies
/// can start all of them and wait once. A panic counts as uncertain.
///
/// ```
/// use paged_kv::BlockId;
/// use paged_kv::tier_store::{CpuDevice, Device, DeviceError};
///
/// let device = CpuDevice::new(4, 64)?;
/// device.copy_in(BlockId(2), &[7; 64])?;
/// let mut bytes = [0; 64];
/// device.copy_out(BlockId(2), &mut bytes)?;
/// assert_eq!(bytes, [7; 64]);
/// assert!(matches!(device.copy_in(BlockId(4), &bytes), Err(DeviceError::Refused(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Device: Send + Sync {
    /// Copies a block to memory of the host.
    ///
    /// # Errors
    /// [`Refused`](DeviceError::Refused) if nothing is copied any more, else [`Uncertain`](DeviceError::Uncertain).
    fn copy_out(&self, block: BlockId, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies memory of the host to a block.
    ///
    /// # Errors
    /// As [`copy_out`](Self::copy_out).
    fn copy_in(&self, block: BlockId, from: &[u8]) -> Result<(), DeviceError>;

    /// Copies several blocks to memory of the host, and sets the outcome of each. The default makes one copy after the
    /// other.
    fn copy_out_all(&self, copies: &mut [CopyOut<'_>]) {
        copies.iter_mut().for_each(|copy| copy.outcome = self.copy_out(copy.block, copy.into));
    }

    /// Copies memory of the host to several blocks, and sets the outcome of each. The default makes one copy after the
    /// other, and none after one that failed: the rest of a prompt is of no use without it.
    fn copy_in_all(&self, copies: &mut [CopyIn<'_>]) {
        let mut has_failed = false;
        for copy in copies {
            copy.outcome = match has_failed {
                true => Err(DeviceError::Refused("a copy before it failed".to_owned())),
                false => self.copy_in(copy.block, copy.from),
            };
            has_failed = copy.outcome.is_err();
        }
    }

    /// Waits until no copy with an uncertain outcome reads or writes any more. The default is for devices whose copies
    /// end before they return, also with an error. The mover calls it after each uncertain copy, and if it failed, again
    /// after later tickets and every 100 ms; the blocks are in quarantine until it succeeds.
    ///
    /// # Errors
    /// Any: such a copy may still write.
    fn quiesce(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
