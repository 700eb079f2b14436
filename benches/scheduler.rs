//! Requests: appends, whole scheduler steps, exports, evictions. `cargo bench --bench scheduler`
//!
//! Ours by handle and by id against a cache under one lock, by id and by place in its slab. Time an
//! operation, one of all threads together, each of which has requests of its own.

mod baseline;
mod rig;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use paged_kv::export::{BlockTables, Gaps, TableShape, block_tables};
use paged_kv::{BlockPool, PagedKvCache, SeqId};

use baseline::one_lock_cache::OneLockCache;
use rig::requests::{BLOCK_SIZE, ByHandle, ById, ByPlace, Growth, Steps, growing, stepping};
use rig::timing::{self, THREADS};

fn append(criterion: &mut Criterion) {
    let name = "append one token, 1024 live";
    timing::print_control(name);
    let mut group = criterion.benchmark_group(name);
    let rows = Growth::<ByHandle<'_>>::ROWS;
    for threads in THREADS {
        let blocks = threads * Growth::<ByHandle<'_>>::MOST_BLOCKS;
        let pool = BlockPool::new(blocks);
        timing::bench(&mut group, "ours by handle", threads, &|_| {
            growing(ByHandle::new(&pool, rows))
        });
        let ours = Fresh::new(|| PagedKvCache::new(blocks, BLOCK_SIZE, 1, 1));
        timing::bench(&mut group, "ours by id", threads, &|thread| {
            growing(ById::new(ours.of(thread, threads), rows, thread))
        });
        let lock = Fresh::new(|| OneLockCache::new(blocks, BLOCK_SIZE));
        timing::bench(&mut group, "one lock by id", threads, &|thread| {
            growing(ById::new(lock.of(thread, threads), rows, thread))
        });
        let lock = Fresh::new(|| OneLockCache::new(blocks, BLOCK_SIZE));
        timing::bench(&mut group, "one lock by place", threads, &|thread| {
            growing(ByPlace::new(lock.of(thread, threads), rows, thread))
        });
    }
}
