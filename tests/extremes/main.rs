//! Extreme lengths: every constructor and operation, with every length that a type allows. None panics or
//! aborts, none allocates in proportion to a length, and a refused call has changed nothing.

#[path = "../common/mod.rs"]
mod common;

mod constructors;
mod exports;
mod memory;
mod operations;
#[cfg(feature = "events")]
mod publisher;
#[cfg(feature = "async")]
mod waiting;
mod world;

use allocation_counter::measure;

/// Lengths that no cache has room for, and small ones.
const LENGTHS: [usize; 15] = [
    0,
    1,
    2,
    4,
    5,
    1_000,
    u32::MAX as usize - 1,
    u32::MAX as usize,
    1 << 32,
    1 << 46,
    1 << 60,
    1 << 63,
    usize::MAX - 4,
    usize::MAX - 1,
    usize::MAX,
];

/// NaN, infinities, and numbers out of every range.
const SHARES: [f64; 12] = [
    f64::NAN,
    f64::NEG_INFINITY,
    f64::MIN,
    -1.0,
    -0.0,
    0.0,
    f64::MIN_POSITIVE,
    0.5,
    1.0,
    1.0 + f64::EPSILON,
    f64::MAX,
    f64::INFINITY,
];

/// Bytes that one call may allocate: a bit for each of 2^32 tokens would be 64 times as many.
const MOST_BYTES: u64 = 3 << 22;

/// Calls `call` and asserts that it asks the allocator for little.
#[track_caller]
fn in_little_memory<R>(name: &str, call: impl FnOnce() -> R) -> R {
    let mut result = None;
    let info = measure(|| result = Some(call()));
    assert!(info.bytes_max <= MOST_BYTES, "{name}: {info:?}");
    result.expect("it was called")
}
