//! Stand-ins for types of other crates, in builds for loom and for shuttle, which see only their own
//! atomics and locks: a queue, a lock for readers and writers, and a map by shards.
//!
//! Each is made of what the build's `ground` has: the one module that both kinds of build differ in.

mod lock;
mod map;
mod queue;

pub(crate) use self::lock::{RwLock, RwLockReadGuard, RwLockWriteGuard, read_past_writers};
pub(crate) use self::map::{DashMap, Entry};
pub use self::queue::ArrayQueue;

use super::ground;
