//! Which atomics, locks and queues does the crate run on? The one place that names them.
//!
//! A shipped build uses the standard library, `crossbeam` and `parking_lot`; a build with
//! `--cfg paged_kv_loom` uses loom's models of the same types, so that the model checker explores
//! the very code that ships; a build with `--cfg paged_kv_census` counts what is written through
//! them. Everything above imports from here and cannot tell which it got.

#[cfg(paged_kv_census)]
pub mod census;
#[cfg(paged_kv_loom)]
pub mod model;
#[cfg(not(paged_kv_loom))]
mod native;

#[cfg(paged_kv_census)]
pub(crate) use census::*;
#[cfg(paged_kv_loom)]
pub(crate) use model::*;
#[cfg(not(any(paged_kv_loom, paged_kv_census)))]
pub(crate) use native::*;
