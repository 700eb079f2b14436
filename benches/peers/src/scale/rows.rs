//! `ROWS`: the rows of the table, and the rows of blocks, appends and steps.
//!
//! A row creates its pools when it runs and drops them at its end.

use std::time::Duration;

use paged_kv::{BlockPool, PagedKvCache};

use crate::baseline::one_lock_cache::OneLockCache;
use crate::baseline::one_lock_pool::OneLockPool;
use crate::baseline::queue_pool::QueuePool;
use crate::kvbm::Kvbm;
use crate::plan::{Cell, Name, Plan};
use crate::requests::{self, LARGE_BLOCKS, SMALL_BLOCKS};
use crate::rig::pools::{KEPT, cycling, forking};
use crate::rig::requests::{BLOCK_SIZE, ByHandle, ById, Growth, Steps, growing, stepping};

/// Measures a row.
pub type Measure = fn(&Plan) -> Vec<Cell>;

pub const ROWS: &[(&str, Measure)] = &[
    ("blocks n=1", |plan| blocks(plan, 1)),
    ("blocks n=8", |plan| blocks(plan, 8)),
    ("blocks n=64", |plan| blocks(plan, 64)),
    ("fork 512", fork),
    ("append by handle", append_by_handle),
    ("append by id", append_by_id),
    ("step by handle", step_by_handle),
    ("step by id", step_by_id),
    ("requests 16-token, shared", |plan| requests::shared(plan, &SMALL_BLOCKS)),
    ("requests 16-token, own", |plan| requests::own(plan, &SMALL_BLOCKS)),
    ("requests 512-token, shared", |plan| requests::shared(plan, &LARGE_BLOCKS)),
    ("requests 512-token, own", |plan| requests::own(plan, &LARGE_BLOCKS)),
];

const SLICE: Duration = Duration::from_millis(4);

/// The least blocks of a pool.
const BLOCKS: usize = 65_536;

fn blocks(plan: &Plan, n: usize) -> Vec<Cell> {
    let num_blocks = BLOCKS.max(2 * plan.most() * KEPT * n);
    let ours = plan.each(|_| BlockPool::new(num_blocks));
    let lock = plan.each(|_| OneLockPool::new(num_blocks));
    let queue = plan.each(|_| QueuePool::new(num_blocks, 1));
    let kvbm = plan.each(|_| Kvbm::new(num_blocks, BLOCK_SIZE));
    plan.measure(
        SLICE,
        &[
            (Name::Ours, &|i, _| cycling(&ours[i], n)),
            (Name::OneLock, &|i, _| cycling(&lock[i], n)),
            (Name::ArrayQueue, &|i, _| cycling(&queue[i], n)),
            (Name::Kvbm, &|i, _| cycling(&kvbm[i], n)),
        ],
    )
}

fn fork(plan: &Plan) -> Vec<Cell> {
    const N: usize = 512;
    let num_blocks = BLOCKS.max(2 * plan.most() * N);
    let ours = plan.each(|_| BlockPool::new(num_blocks));
    let lock = plan.each(|_| OneLockPool::new(num_blocks));
    let queue = plan.each(|_| QueuePool::new(num_blocks, 1));
    plan.measure(
        SLICE,
        &[
            (Name::Ours, &|i, _| forking(&ours[i], N)),
            (Name::OneLock, &|i, _| forking(&lock[i], N)),
            (Name::ArrayQueue, &|i, _| forking(&queue[i], N)),
        ],
    )
}

const GROWTH_ROWS: usize = Growth::<ByHandle<'_>>::ROWS;

fn growth_blocks(threads: usize) -> usize {
    threads * Growth::<ByHandle<'_>>::MOST_BLOCKS
}

fn append_by_handle(plan: &Plan) -> Vec<Cell> {
    let ours = plan.each(|threads| BlockPool::new(growth_blocks(threads)));
    let lock = plan.each(|threads| OneLockCache::new(growth_blocks(threads), BLOCK_SIZE));
    plan.measure(
        SLICE,
        &[
            (Name::Ours, &|i, _| growing(ByHandle::new(&ours[i], GROWTH_ROWS))),
            (Name::OneLock, &|i, thread| growing(ById::new(&lock[i], GROWTH_ROWS, thread))),
        ],
    )
}

fn append_by_id(plan: &Plan) -> Vec<Cell> {
    let ours = plan.each(|threads| cache(growth_blocks(threads)));
    let lock = plan.each(|threads| OneLockCache::new(growth_blocks(threads), BLOCK_SIZE));
    plan.measure(
        SLICE,
        &[
            (Name::Ours, &|i, thread| growing(ById::new(&ours[i], GROWTH_ROWS, thread))),
            (Name::OneLock, &|i, thread| growing(ById::new(&lock[i], GROWTH_ROWS, thread))),
        ],
    )
}

const STEP_ROWS: usize = Steps::<ByHandle<'_>>::ROWS;

fn step_blocks(threads: usize) -> usize {
    threads * Steps::<ByHandle<'_>>::MOST_BLOCKS
}

fn step_by_handle(plan: &Plan) -> Vec<Cell> {
    let ours = plan.each(|threads| BlockPool::new(step_blocks(threads)));
    let lock = plan.each(|threads| OneLockCache::new(step_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| stepping(ByHandle::new(&ours[i], STEP_ROWS), thread as u64);
    let lock = |i: usize, thread| stepping(ById::new(&lock[i], STEP_ROWS, thread), thread as u64);
    plan.measure(SLICE, &[(Name::Ours, &ours), (Name::OneLock, &lock)])
}

fn step_by_id(plan: &Plan) -> Vec<Cell> {
    let ours = plan.each(|threads| cache(step_blocks(threads)));
    let lock = plan.each(|threads| OneLockCache::new(step_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| stepping(ById::new(&ours[i], STEP_ROWS, thread), thread as u64);
    let lock = |i: usize, thread| stepping(ById::new(&lock[i], STEP_ROWS, thread), thread as u64);
    plan.measure(SLICE, &[(Name::Ours, &ours), (Name::OneLock, &lock)])
}

/// Creates a cache for requests without prefixes, as the tails use it too.
pub fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::builder()
        .num_blocks(num_blocks)
        .block_size(BLOCK_SIZE)
        .prefix_reuse(false)
        .build()
        .expect("the options are valid")
}
