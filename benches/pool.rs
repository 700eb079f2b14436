//! Blocks: batches allocated and released, forks made and released. `cargo bench --bench pool`
//!
//! The same work runs on four pools: ours, a free list under one lock, an `ArrayQueue` of blocks, and 64
//! such queues by home thread. A figure is the time per operation, over the operations of all threads
//! together. It halves where two threads do twice the work of one.

mod baseline;
mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use paged_kv::BlockPool;

use baseline::one_lock_pool::OneLockPool;
use baseline::queue_pool::QueuePool;
use rig::pools::{Pool, cycling, forking};
use rig::timing::{self, THREADS};

/// Enough for 32 threads that each keep 16 batches of 512.
const BLOCKS: usize = 1 << 19;

fn allocate_release(criterion: &mut Criterion) {
    for n in [1, 8, 64, 512] {
        let name = format!("allocate+release n={n}");
        timing::print_control(&name);
        let mut group = criterion.benchmark_group(&name);
        group.throughput(Throughput::Elements(n as u64));
        for threads in THREADS {
            cycle(&mut group, "ours", threads, &BlockPool::new(BLOCKS), n);
            cycle(&mut group, "one lock", threads, &OneLockPool::new(BLOCKS), n);
            cycle(&mut group, "ArrayQueue", threads, &QueuePool::new(BLOCKS, 1), n);
            cycle(&mut group, "64 ArrayQueues", threads, &QueuePool::new(BLOCKS, 64), n);
        }
    }
}

fn fork_release(criterion: &mut Criterion) {
    for n in [64, 512, 8_192] {
        let name = format!("fork+release n={n}");
        timing::print_control(&name);
        let mut group = criterion.benchmark_group(&name);
        group.throughput(Throughput::Elements(n as u64));
        for threads in THREADS {
            fork(&mut group, "ours", threads, &BlockPool::new(BLOCKS), n);
            fork(&mut group, "one lock", threads, &OneLockPool::new(BLOCKS), n);
            fork(&mut group, "ArrayQueue", threads, &QueuePool::new(BLOCKS, 1), n);
        }
    }
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn cycle(group: &mut Group<'_>, name: &str, threads: usize, pool: &impl Pool, n: usize) {
    timing::bench(group, name, threads, &|_| cycling(pool, n));
}

fn fork(group: &mut Group<'_>, name: &str, threads: usize, pool: &impl Pool, n: usize) {
    timing::bench(group, name, threads, &|_| forking(pool, n));
}

criterion_group! {
    name = pool;
    config = timing::criterion();
    targets = allocate_release, fork_release
}
criterion_main!(pool);
