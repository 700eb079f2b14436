//! `StoreJob` and `LoadJob`: tickets whose copies a thread of the mover makes.

use super::staging::StagingBuffer;
use crate::cache::{LoadTicket, Loaded};
use crate::error::{PagedKvError, Result};
use crate::sync::foreign;
use crate::tier::store::StoreTicket;
use crate::tier::{CopyOutcome, TierSlot};

/// The state of one copy of a store.
pub(super) enum StorePart {
    /// The copy was made or was not; nothing is left to do.
    Settled(CopyOutcome),
    /// The content of a block is here.
    Staged(StagingBuffer),
    /// The content is to be read from a slot.
    From(TierSlot),
}

/// Copies to a tier, a part for each copy of the ticket.
pub(super) struct StoreJob {
    pub(super) ticket: StoreTicket,
    pub(super) parts: Vec<StorePart>,
}

/// Copies to the device.
pub(super) struct LoadJob {
    pub(super) ticket: LoadTicket,
    pub(super) on_loaded: OnLoaded,
}

/// The caller's function for the outcome of a load. It is called once; if it is dropped before, with an error.
pub(super) struct OnLoaded(Option<Box<dyn FnOnce(Result<Loaded>) + Send>>);

impl OnLoaded {
    pub(super) fn new(on_loaded: impl FnOnce(Result<Loaded>) + Send + 'static) -> Self {
        Self(Some(Box::new(on_loaded)))
    }

    /// Calls the function. Returns false if it panicked.
    pub(super) fn call(mut self, loaded: Result<Loaded>) -> bool {
        self.0.take().is_none_or(|on_loaded| foreign::call(|| on_loaded(loaded)))
    }
}

impl Drop for OnLoaded {
    fn drop(&mut self) {
        if let Some(on_loaded) = self.0.take() {
            let reason = "a mover dropped a load without its outcome".to_owned();
            foreign::call(|| on_loaded(Err(PagedKvError::Inconsistent(reason))));
        }
    }
}
