//! The requests for room. Each defines how it asks the cache, and the room that it lacks when it is
//! refused.
//!
//! An [`AppendRequest`] is for one admission of its id, the one that it found when it first asked. When
//! that admission is freed or evicted, the request ends.

use super::future::Request;
use super::future::sealed::Asks;
use crate::cache::{Admission, AdmitOptions, PagedKvCache, Prompt, Reservation};
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::pool::PoolHandle;
use crate::pool::wait_queue::{Ask, Attempt, Short, Shortage};
use crate::pool::watermark::{Admit, BlockWatermark};
use crate::sequence::Append;

/// The request of [`Waiting::reserve`](super::Waiting::reserve). It borrows nothing.
pub struct ReserveRequest {
    pub(super) pool: PoolHandle,
    pub(super) watermark: BlockWatermark,
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
}

impl Asks for ReserveRequest {
    type Output = Reservation;

    fn ask(&mut self, ask: Ask) -> Attempt<Reservation> {
        let Self { watermark, num_blocks, block_size, .. } = *self;
        let pool = self.pool.clone();
        let taken = Reservation::take(pool, watermark, num_blocks, block_size, ask.into());
        unless_short(taken, |requested| Short::of_blocks(watermark.threshold(requested)))
    }
}

impl Request for ReserveRequest {
    type Value = Reservation;
}

/// The request of [`Waiting::allocate`](super::Waiting::allocate).
pub struct AllocateRequest<'a> {
    pub(super) cache: &'a PagedKvCache,
    pub(super) id: SeqId,
    pub(super) num_tokens: usize,
}

impl Asks for AllocateRequest<'_> {
    type Output = ();

    fn ask(&mut self, ask: Ask) -> Attempt<()> {
        let allocated = self.cache.allocate_as(self.id, self.num_tokens, ask.into());
        unless_short(allocated, |requested| {
            Short::of_blocks(self.cache.watermark().threshold(requested))
        })
    }
}

impl Request for AllocateRequest<'_> {
    type Value = ();
}

/// The request of [`Waiting::admit`](super::Waiting::admit).
pub struct AdmitRequest<'a> {
    pub(super) cache: &'a PagedKvCache,
    pub(super) id: SeqId,
    pub(super) prompt: Prompt,
    pub(super) options: AdmitOptions,
}

impl Asks for AdmitRequest<'_> {
    type Output = Admission;

    fn ask(&mut self, ask: Ask) -> Attempt<Admission> {
        let Self { cache, prompt, options, .. } = self;
        let admitted = cache.admit_as(self.id, prompt, options, ask.into());
        // After a lost race the refusal counts the blocks missing then, without the hits.
        unless_short(admitted, |_| Short {
            need: options
                .watermark(cache.watermark())
                .threshold(cache.room_required(prompt, options)),
            shortage: match options.is_chunked() {
                true => Shortage::ChunkOfPrompt,
                false => Shortage::Prompt,
            },
        })
    }
}

impl Request for AdmitRequest<'_> {
    type Value = Admission;
}

/// The request of [`Waiting::append`](super::Waiting::append).
pub struct AppendRequest<'a> {
    pub(super) cache: &'a PagedKvCache,
    pub(super) id: SeqId,
    pub(super) num_new_tokens: usize,
    /// The admission that was found first.
    pub(super) epoch: Option<AdmissionEpoch>,
}

impl Asks for AppendRequest<'_> {
    type Output = Append;

    fn ask(&mut self, _: Ask) -> Attempt<Append> {
        let appended = self.cache.append_or_wait(self.id, self.epoch, self.num_new_tokens);
        if let Err(short) = &appended {
            self.epoch = short.grower().map(|grower| grower.epoch);
        }
        appended
    }

    /// Checks whether all sequences wait when the request begins to wait and when it stops.
    fn asked(&self, is_served: bool, waits: bool) {
        if is_served {
            // Another append that waits for the same sequence may have needed the same block.
            self.cache.blocks().announce_change_of(self.id);
        }
        if waits {
            self.cache.tell_if_stalled();
        }
    }
}

impl Request for AppendRequest<'_> {
    type Value = Append;
}

/// Returns the outcome of an attempt with this result. `short` computes the missing room of a request that
/// was refused with `OutOfMemory`.
fn unless_short<T>(result: Result<T>, short: impl FnOnce(usize) -> Short) -> Attempt<T> {
    match result {
        Err(PagedKvError::OutOfMemory { requested, .. }) => Err(short(requested)),
        done => Ok(done),
    }
}

impl From<Ask> for Admit {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::AtOnce => Self::Now,
            Ask::InTurn => Self::FromQueue,
        }
    }
}
