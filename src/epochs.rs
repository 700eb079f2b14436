//! Which of all sequences that are ever under an id is meant? `next_epoch` numbers them, without a line
//! that every thread writes: a thread counts its own, below its ordinal.
//!
//! Invariant: no two calls in the life of the process return the same epoch (up to 2^32 threads, and
//! 2^32 calls of one thread). Stamps of the clock do not suffice: theirs repeat after 65,536 threads.

use std::cell::Cell;

use crate::id::AdmissionEpoch;
use crate::sync::{thread_local, thread_ordinal};

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// Returns an epoch that no other call returns.
#[inline]
pub(crate) fn next_epoch() -> AdmissionEpoch {
    let call = CALLS.with(Cell::get);
    CALLS.with(|calls| calls.set(call.wrapping_add(1)));
    AdmissionEpoch((thread_ordinal() as u64) << 32 | u64::from(call))
}
