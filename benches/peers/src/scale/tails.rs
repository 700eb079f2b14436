//! `measure`: p99.9 of single operations with two threads a core, each operation timed by itself.

use std::time::Duration;

use paged_kv::BlockPool;

use crate::baseline::one_lock_cache::OneLockCache;
use crate::plan::Plan;
use crate::rig::requests::{BLOCK_SIZE, ByHandle, ById};
use crate::rig::rounds::median;
use crate::rig::tails::{
    BLOCKS, OPERATIONS, ROWS, SetUp, Times, add, no_times, on_requests, times,
};
use crate::rows::cache;

pub const NAME: &str = "p99.9 of single operations";

/// The designs take turns this many times.
const ROUNDS: usize = 5;

pub const DESIGNS: [&str; 3] = ["ours, by handle", "ours, by id", "one lock, by id"];

/// The figures of each design.
pub struct Tails {
    pub threads: usize,
    pub cores: usize,
    /// The median of the controls, one before each round.
    pub control: f64,
    /// Microseconds of each operation, for each design.
    pub p999: [[f64; OPERATIONS.len()]; DESIGNS.len()],
}

pub fn measure(plan: &Plan) -> Tails {
    let threads = (2 * plan.cores).min(128);
    let (pool, ids, lock) =
        (BlockPool::new(BLOCKS), cache(BLOCKS), OneLockCache::new(BLOCKS, BLOCK_SIZE));
    let by_handle = |_| on_requests(ByHandle::new(&pool, ROWS));
    let by_id = |thread| on_requests(ById::new(&ids, ROWS, thread));
    let by_lock = |thread| on_requests(ById::new(&lock, ROWS, thread));
    let designs: [SetUp<'_, '_>; DESIGNS.len()] = [&by_handle, &by_id, &by_lock];
    let span = plan.span / (ROUNDS * DESIGNS.len()) as u32;
    let (mut controls, mut all) = (Vec::new(), [(); DESIGNS.len()].map(|()| no_times()));
    for _ in 0..ROUNDS {
        controls.push(plan.control_now(threads));
        for (all, design) in all.iter_mut().zip(designs) {
            add(all, &times(threads, span.max(Duration::from_millis(100)), design));
        }
    }
    let micros =
        |times: &Times| times.each_ref().map(|times| times.value_at_quantile(0.999) as f64 / 1e3);
    Tails {
        threads,
        cores: plan.cores,
        control: median(controls.into_iter()),
        p999: all.each_ref().map(micros),
    }
}
