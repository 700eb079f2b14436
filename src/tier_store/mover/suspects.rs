//! `Suspects`: tickets and memory of copies with an uncertain outcome, until the device is quiet.
//!
//! Invariant: memory that a copy may still read or write is neither used again nor freed.

use std::mem;

use super::staging::StagingBuffer;
use crate::sync::outside::{Arc, Mutex};
use crate::sync::{AtomicUsize, Ordering, PlainArc, foreign};
use crate::tier::{TicketNumber, TierState};
use crate::tier_store::device::{Device, DeviceError};
use crate::tier_store::host_arena::HostArena;

/// All that is needed to end the quarantine of a ticket after it was settled.
pub(super) type SettledTicket = (PlainArc<TierState>, TicketNumber);

/// A ticket with uncertain copies, and the memory that these may use.
#[derive(Default)]
pub(super) struct Suspect {
    /// The ticket, if it was settled with failed copies.
    pub(super) ticket: Option<SettledTicket>,
    pub(super) staged: Vec<StagingBuffer>,
    #[expect(dead_code, reason = "a copy may read them")]
    pub(super) buffers: Vec<Box<[u8]>>,
    #[expect(dead_code, reason = "a copy may use its slots")]
    pub(super) arenas: Vec<Arc<HostArena>>,
}

/// The copies of which the device has not said that they are over.
#[derive(Default)]
pub(super) struct Suspects {
    kept: Mutex<Vec<Suspect>>,
    /// The suspects, with those about which a thread asks the device now.
    len: AtomicUsize,
}

impl Suspects {
    /// Keeps a ticket that was settled, or memory.
    pub(super) fn keep(&self, suspect: Suspect) {
        // Relaxed: a thread that reads the earlier number asks the device at its next look.
        self.len.fetch_add(1, Ordering::Relaxed);
        self.kept.lock().push(suspect);
    }

    /// Asks the device to end all uncertain copies. If it does, their blocks and slots leave the quarantine. Costs one
    /// read if there are none.
    pub(super) fn quiesce(&self, device: &dyn Device) {
        if self.is_empty() {
            return;
        }
        let kept = mem::take(&mut *self.kept.lock());
        if kept.is_empty() {
            return;
        }
        let mut outcome = Err(DeviceError::Uncertain(String::new()));
        foreign::call(|| outcome = device.quiesce());
        if outcome.is_err() {
            self.kept.lock().extend(kept);
            return;
        }
        let len = kept.len();
        for suspect in kept {
            if let Some((state, number)) = &suspect.ticket {
                state.quarantine.release(*number);
            }
        }
        // Relaxed: as in `keep`.
        self.len.fetch_sub(len, Ordering::Relaxed);
    }

    /// Returns the number of suspects.
    pub(super) fn len(&self) -> usize {
        // Relaxed: as in `keep`.
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Suspects {
    fn drop(&mut self) {
        // A copy may still use the memory: it is never freed.
        mem::forget(mem::take(&mut *self.kept.lock()));
    }
}
