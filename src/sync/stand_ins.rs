//! Stand-ins for types of other crates in builds for loom and shuttle: a queue, a read-write lock and a
//! sharded map.
//!
//! loom and shuttle see only their own atomics and locks. Each stand-in is built on the module `ground`, which
//! is the only difference between the two kinds of build.

mod lock;
mod map;
mod queue;
mod waits;

pub(crate) use self::lock::{RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers};
pub(crate) use self::map::{DashMap, Entry};
pub use self::queue::ArrayQueue;
pub(crate) use self::waits::Backoff;
#[cfg(feature = "async")]
pub(crate) use self::waits::{Alarm, block_on_until};

use super::ground;
