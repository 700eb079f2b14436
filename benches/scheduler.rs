//! Requests: appends, whole scheduler steps, exports, evictions. `cargo bench --bench scheduler`
//!
//! Our handles and ids are compared with a cache under one lock, by id and by place in its slab. A figure is
//! the time per operation, over the operations of all threads together. Each thread has its own requests.

mod baseline;
mod rig;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use foldhash::fast::RandomState;
use paged_kv::export::{Gaps, TableShape, block_tables};
use paged_kv::{BlockPool, PagedKvCache, SeqId};

use baseline::one_lock_cache::OneLockCache;
use rig::requests::{BLOCK_SIZE, ByHandle, ById, ByPlace, Growth, Steps, growing, stepping};
use rig::timing::{self, THREADS};

fn append(criterion: &mut Criterion) {
    let name = "append one token, 1024 live";
    let rows = Growth::<ByHandle<'_>>::ROWS;
    let blocks = THREADS[3] * Growth::<ByHandle<'_>>::MOST_BLOCKS;
    timing::print_control(name);
    let mut group = criterion.benchmark_group(name);
    for threads in THREADS {
        let (pool, ours, lock) = designs(blocks);
        timing::bench(&mut group, "ours by handle", threads, &|_| {
            growing(ByHandle::new(&pool, rows))
        });
        timing::bench(&mut group, "ours by id", threads, &|thread| {
            growing(ById::new(&ours, rows, thread))
        });
        timing::bench(&mut group, "one lock by id", threads, &|thread| {
            growing(ById::new(&lock, rows, thread))
        });
        timing::bench(&mut group, "one lock by place", threads, &|thread| {
            growing(ByPlace::new(&lock, rows, thread))
        });
    }
}

fn step(criterion: &mut Criterion) {
    let name = "scheduler step, 256 live";
    let rows = Steps::<ByHandle<'_>>::ROWS;
    let blocks = THREADS[3] * Steps::<ByHandle<'_>>::MOST_BLOCKS;
    timing::print_control(name);
    let mut group = criterion.benchmark_group(name);
    for threads in THREADS {
        let (pool, ours, lock) = designs(blocks);
        timing::bench(&mut group, "ours by handle", threads, &|thread| {
            stepping(ByHandle::new(&pool, rows), thread as u64)
        });
        timing::bench(&mut group, "ours by id", threads, &|thread| {
            stepping(ById::new(&ours, rows, thread), thread as u64)
        });
        timing::bench(&mut group, "one lock by id", threads, &|thread| {
            stepping(ById::new(&lock, rows, thread), thread as u64)
        });
        timing::bench(&mut group, "one lock by place", threads, &|thread| {
            stepping(ByPlace::new(&lock, rows, thread), thread as u64)
        });
    }
}

const BATCH: usize = 256;
const STRIDE: usize = 512;

fn export(criterion: &mut Criterion) {
    let name = "block table of 256 x 512";
    timing::print_control(name);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements((BATCH * STRIDE) as u64));
    // The rows range from a single block to a full row.
    let tokens = |row: usize| (1 + row * (STRIDE - 1) / (BATCH - 1)) * BLOCK_SIZE;
    let (pool, ours, lock) = designs(BATCH * STRIDE);
    let handles: Vec<_> = (0..BATCH)
        .map(|row| pool.allocate_sequence(tokens(row), BLOCK_SIZE).expect("room for the batch"))
        .collect();
    let ids: Vec<u64> = (0..BATCH as u64).collect();
    for (row, &id) in ids.iter().enumerate() {
        ours.allocate(SeqId(id), tokens(row)).expect("room for the batch");
        lock.allocate(id, tokens(row)).expect("room for the batch");
    }
    let shape = TableShape { stride: STRIDE, pad: -1, gaps: Gaps::Show };
    for threads in THREADS {
        timing::bench(&mut group, "ours by handle", threads, &|_| {
            let (mut out, handles) = (vec![0_i32; BATCH * STRIDE], &handles);
            Box::new(move || {
                block_tables(handles, &mut out, shape).expect("the table fits");
                1
            })
        });
        timing::bench(&mut group, "ours by lease", threads, &|_| {
            let mut out = vec![0_i32; BATCH * STRIDE];
            let ids: Vec<SeqId> = ids.iter().copied().map(SeqId).collect();
            let lease = ours.lease(&ids).expect("all are there");
            Box::new(move || {
                lease.block_tables(&mut out, shape).expect("the table fits");
                1
            })
        });
        timing::bench(&mut group, "one lock by id", threads, &|_| {
            let (mut out, lock, ids) = (vec![0_i32; BATCH * STRIDE], &lock, &ids);
            Box::new(move || {
                lock.export(ids, &mut out, STRIDE, -1).expect("the table fits");
                1
            })
        });
    }
}

/// Measures evictions on one thread: an eviction is a pass over all sequences. The reference is the least
/// work of such a pass: it reads every entry of a map of the same kind and size once.
fn evict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("evict");
    group.sample_size(10);
    for live in [1_000, 100_000, 1_000_000] {
        let (_, ours, lock) = designs(live);
        let pass = bare_map(live as u64);
        for id in 0..live as u64 {
            ours.allocate(SeqId(id), 1).expect("room for all");
            lock.allocate(id, 1).expect("room for all");
        }
        group.bench_function(BenchmarkId::new("a bare pass over the map", live), |bencher| {
            bencher.iter(|| pass.iter().map(|entry| entry.value()[0]).min());
        });
        for victims in [1, 1_000] {
            let kept = (live - victims) as f64 / live as f64;
            let name = |design: &str| BenchmarkId::new(format!("{victims} by {design}"), live);
            group.bench_function(name("ours"), |bencher| {
                bencher.iter_custom(|iterations| {
                    timed(
                        iterations,
                        || evict_ours(&ours, victims, kept),
                        |evicted| {
                            for id in evicted {
                                ours.allocate(id, 1).expect("room for who was evicted");
                            }
                        },
                    )
                });
            });
            group.bench_function(name("one lock"), |bencher| {
                bencher.iter_custom(|iterations| {
                    timed(
                        iterations,
                        || lock.evict(victims),
                        |evicted| {
                            for id in evicted {
                                lock.allocate(id, 1).expect("room for who was evicted");
                            }
                        },
                    )
                });
            });
        }
    }
}

fn evict_ours(cache: &PagedKvCache, victims: usize, kept: f64) -> Vec<SeqId> {
    let evicted = match victims {
        1 => vec![cache.evict().expect("somebody can go")],
        _ => cache.evict_to_threshold(kept).expect("somebody can go"),
    };
    assert_eq!(evicted.len(), victims, "each has one block");
    evicted
}

/// Returns the time of `iterations` calls of `work`, without the calls of `undo`.
fn timed<T>(iterations: u64, mut work: impl FnMut() -> T, mut undo: impl FnMut(T)) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..iterations {
        let start = Instant::now();
        let done = work();
        time += start.elapsed();
        undo(done);
    }
    time
}

/// Creates a map with as many shards and as large values as the cache's own map.
fn bare_map(entries: u64) -> DashMap<u64, [u64; 16], RandomState> {
    let hasher = RandomState::default();
    let map = DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, 256);
    for id in 0..entries {
        map.insert(id, [id; 16]);
    }
    map
}

fn designs(blocks: usize) -> (BlockPool, PagedKvCache, OneLockCache) {
    (
        BlockPool::new(blocks),
        PagedKvCache::builder()
            .num_blocks(blocks)
            .block_size(BLOCK_SIZE)
            .prefix_reuse(false)
            .build()
            .unwrap(),
        OneLockCache::new(blocks, BLOCK_SIZE),
    )
}

criterion_group! {
    name = scheduler;
    config = timing::criterion();
    targets = append, step, export, evict
}
criterion_main!(scheduler);
