//! The atomics, locks and queues of the crate: the one module that chooses them.
//!
//! - A shipped build uses the standard library, `crossbeam`, `dashmap` and `parking_lot`.
//! - The package `loom-tests` builds the library with loom's models of the same types, so that the model
//!   checker explores the code that ships.
//! - `loom-tests/shuttle` builds it with types that let shuttle choose the next thread.
//! - A build with `--cfg paged_kv_census` counts the writes through these types, and models cache lines.
//!
//! The build scripts of the loom and shuttle packages set a cfg. All other modules import from here and do not
//! depend on the kind of build.

#[cfg(paged_kv_census)]
pub mod census;
pub(crate) mod foreign;
pub(crate) mod later;
#[cfg(paged_kv_loom)]
pub(crate) mod loom;
#[cfg(all(feature = "async", not(any(paged_kv_loom, paged_kv_shuttle))))]
mod parking;
#[cfg(not(any(paged_kv_loom, paged_kv_shuttle)))]
mod shipped;
#[cfg(paged_kv_shuttle)]
mod shuttle;
#[cfg(any(paged_kv_loom, paged_kv_shuttle))]
mod stand_ins;

pub(crate) use self::later::Later;
#[cfg(paged_kv_loom)]
use self::loom::ground;
#[cfg(paged_kv_loom)]
pub(crate) use self::loom::*;
#[cfg(not(any(paged_kv_loom, paged_kv_shuttle, paged_kv_census)))]
pub(crate) use self::shipped::*;
#[cfg(paged_kv_shuttle)]
use self::shuttle::ground;
#[cfg(paged_kv_shuttle)]
pub(crate) use self::shuttle::*;
#[cfg(paged_kv_census)]
pub(crate) use census::*;
#[cfg(all(feature = "async", not(any(paged_kv_loom, paged_kv_shuttle))))]
pub(crate) use parking::{Alarm, block_on_until};

/// Seeds of hashes: random, but the same in each run of a census.
#[cfg(paged_kv_census)]
pub(crate) use foldhash::{fast::FixedState as FastSeed, quality::FixedState as QualitySeed};
#[cfg(not(paged_kv_census))]
pub(crate) use foldhash::{fast::RandomState as FastSeed, quality::RandomState as QualitySeed};

/// An `Arc` that no model checks: for values whose count hands nothing over between threads.
pub(crate) use std::sync::{Arc as PlainArc, Weak as PlainWeak};

/// A mutex that no model checks: for data that no protocol depends on.
pub(crate) use parking_lot::Mutex as PlainMutex;

/// Locks and notifications for code outside the models: sockets and their thread, the threads of movers.
#[cfg(any(feature = "events", feature = "tier-store"))]
pub(crate) mod outside {
    pub(crate) use parking_lot::Mutex;
    #[cfg(feature = "tier-store")]
    pub(crate) use parking_lot::{Condvar, RwLock, RwLockReadGuard, RwLockWriteGuard};
    #[cfg(feature = "tier-store")]
    pub(crate) use std::sync::Weak;
    pub(crate) use std::sync::{Arc, mpsc};
    #[cfg(feature = "events")]
    pub(crate) use tokio::sync::{Notify, watch};
}

/// Tells a census where an array is, so that its lines do not depend on its address.
#[cfg(not(paged_kv_census))]
#[inline(always)]
pub(crate) fn place_array<T>(_array: &[T]) {}
