//! `next_epoch`: numbers that distinguish all sequences that are ever under the same id.
//!
//! A thread counts its own calls, below its ordinal, so that no cache line is written by every thread.
//!
//! Invariant: no two calls in the life of the process return the same epoch (up to 2^32 threads, and
//! 2^32 calls of one thread). The clock's stamps do not suffice: they repeat after 65,536 threads.

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
