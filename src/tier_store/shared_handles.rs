//! `Arc`s of devices and stores are devices and stores, so that the caller can keep one.

use std::ops::Range;

use super::device::{CopyIn, CopyOut, Device, DeviceError};
use super::slot_store::{FoundSlot, SlotError, SlotKey, SlotStore, SlotWrite};
use crate::id::BlockId;
use crate::sync::outside::Arc;

impl<D: Device + ?Sized> Device for Arc<D> {
    fn copy_out(&self, block: BlockId, into: &mut [u8]) -> Result<(), DeviceError> {
        (**self).copy_out(block, into)
    }

    fn copy_in(&self, block: BlockId, from: &[u8]) -> Result<(), DeviceError> {
        (**self).copy_in(block, from)
    }

    fn copy_out_all(&self, copies: &mut [CopyOut<'_>]) {
        (**self).copy_out_all(copies);
    }

    fn copy_in_all(&self, copies: &mut [CopyIn<'_>]) {
        (**self).copy_in_all(copies);
    }

    fn quiesce(&self) -> Result<(), DeviceError> {
        (**self).quiesce()
    }
}

impl<S: SlotStore + ?Sized> SlotStore for Arc<S> {
    fn slots(&self) -> usize {
        (**self).slots()
    }

    fn block_bytes(&self) -> usize {
        (**self).block_bytes()
    }

    fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        (**self).write(write)
    }

    fn write_all(&self, writes: &[SlotWrite<'_>]) -> Vec<Result<(), SlotError>> {
        (**self).write_all(writes)
    }

    fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError> {
        (**self).read(slot, key, into)
    }

    fn find(&self, slots: Range<u32>, found: &mut Vec<FoundSlot>) -> Result<(), SlotError> {
        (**self).find(slots, found)
    }

    fn epoch(&self) -> u64 {
        (**self).epoch()
    }

    fn reset(&self, epoch: u64) -> Result<(), SlotError> {
        (**self).reset(epoch)
    }
}
