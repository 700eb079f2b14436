//! Latency percentiles of single operations under oversubscription: `cargo bench --bench tails [-- threads]`
//!
//! Far more threads than cores perform single operations of 16 blocks on every design. Each operation is
//! timed by itself. A thread that loses its core inside an operation shows in the maximum of every design.
//! The designs differ in how many other threads it then delays.

mod baseline;
mod rig;

use std::env;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use paged_kv::{BlockPool, PagedKvCache};

use baseline::one_lock_cache::OneLockCache;
use baseline::one_lock_pool::OneLockPool;
use baseline::queue_pool::QueuePool;
use rig::control;
use rig::pools::{KEPT, Pool};
use rig::requests::{BLOCK_SIZE, ByHandle, ById, Requests};

/// Blocks of each allocation.
const N: usize = 16;
const BLOCKS: usize = 1 << 16;
const SPAN: Duration = Duration::from_secs(2);

/// The timed operations, in the order in which a thread performs them.
const OPERATIONS: [&str; 4] = ["free", "allocate", "append", "fork"];

/// Performs one operation of a thread: `do_one(operation, row)`.
type DoOne<'a> = Box<dyn FnMut(usize, usize) + 'a>;

fn main() {
    let threads = env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(32);
    println!(
        "{threads} threads, {} cores; control: 2 threads of arithmetic over 1: {:.2}",
        thread::available_parallelism().map_or(0, usize::from),
        control::parallelism(2)
    );
    println!("an empty measurement takes {} ns, which is in every figure", clock_cost());
    println!(
        "\n{:<22}{:<10}{:>9}{:>9}{:>9}{:>9}{:>10}   us; {:>8}",
        "", "", "p50", "p99", "p99.9", "p99.99", "max", "Mops/s"
    );
    let (ours, lock, queue) =
        (BlockPool::new(BLOCKS), OneLockPool::new(BLOCKS), QueuePool::new(BLOCKS, 1));
    measure("ours, blocks", threads, &|_| on_blocks(&ours));
    measure("one lock, blocks", threads, &|_| on_blocks(&lock));
    measure("ArrayQueue, blocks", threads, &|_| on_blocks(&queue));
    let (pool, cache, lock) = (
        BlockPool::new(BLOCKS),
        PagedKvCache::builder()
            .num_blocks(BLOCKS)
            .block_size(BLOCK_SIZE)
            .prefix_reuse(false)
            .build()
            .unwrap(),
        OneLockCache::new(BLOCKS, BLOCK_SIZE),
    );
    measure("ours, by handle", threads, &|_| on_requests(ByHandle::new(&pool, ROWS)));
    measure("ours, by id", threads, &|thread| on_requests(ById::new(&cache, ROWS, thread)));
    measure("one lock, by id", threads, &|thread| on_requests(ById::new(&lock, ROWS, thread)));
    println!("\ncontrol again: {:.2}", control::parallelism(2));
}

/// Rows of a thread: the rows that it cycles through, and one for the fork.
const ROWS: usize = KEPT + 1;

fn on_requests<'a>(mut requests: impl Requests + 'a) -> DoOne<'a> {
    for row in 0..KEPT {
        requests.admit(row, N * BLOCK_SIZE);
    }
    Box::new(move |operation, row| match operation {
        0 => requests.finish(row),
        1 => requests.admit(row, N * BLOCK_SIZE),
        2 => requests.append(row),
        _ => {
            requests.fork(row, KEPT);
            requests.finish(KEPT);
        }
    })
}

fn on_blocks<'a, P: Pool>(pool: &'a P) -> DoOne<'a> {
    let mut batches: Vec<_> = (0..KEPT).map(|_| pool.batch()).collect();
    batches.iter_mut().for_each(|batch| pool.allocate(N, batch));
    let mut fork = P::Fork::default();
    Box::new(move |operation, row| match operation {
        0 => pool.release(&mut batches[row]),
        1 => pool.allocate(N, &mut batches[row]),
        2 => pool.allocate(1, &mut batches[row]),
        _ => {
            pool.fork(&mut batches[row], &mut fork);
            pool.release_fork(&mut fork);
        }
    })
}

/// Measures one design, and prints a line of figures for each operation.
fn measure<'a>(design: &str, threads: usize, set_up: &(dyn Fn(usize) -> DoOne<'a> + Sync)) {
    let barrier = Barrier::new(threads);
    let start = Instant::now();
    let parts: Vec<[Histogram<u64>; 4]> = thread::scope(|scope| {
        let work = |number| {
            let barrier = &barrier;
            scope.spawn(move || {
                let mut do_one = set_up(number);
                barrier.wait();
                time_each(&mut do_one, Instant::now() + SPAN)
            })
        };
        let workers: Vec<_> = (0..threads).map(work).collect();
        workers.into_iter().map(|worker| worker.join().expect("no thread panics here")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    for (operation, name) in OPERATIONS.iter().enumerate() {
        let mut all = histogram();
        for part in &parts {
            all.add(&part[operation]).expect("the histograms are alike");
        }
        let at = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{:<22}{name:<10}{:>9.2}{:>9.2}{:>9.2}{:>9.1}{:>10.0}       {:>8.2}",
            if operation == 0 { design } else { "" },
            at(0.5),
            at(0.99),
            at(0.999),
            at(0.9999),
            all.max() as f64 / 1e3,
            all.len() as f64 / seconds / 1e6,
        );
    }
}

fn time_each(do_one: &mut DoOne<'_>, end: Instant) -> [Histogram<u64>; 4] {
    let mut times = [(); 4].map(|()| histogram());
    let mut before = Instant::now();
    let mut row = 0;
    while before < end {
        for (operation, times) in times.iter_mut().enumerate() {
            do_one(operation, row);
            let now = Instant::now();
            times.saturating_record((now - before).as_nanos() as u64);
            before = Instant::now();
        }
        row = (row + 1) % KEPT;
    }
    times
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("a minute in nanoseconds is a valid range")
}

/// Returns the median time between two readings of the clock, in nanoseconds.
fn clock_cost() -> u64 {
    let mut times = histogram();
    for _ in 0..100_000 {
        let before = Instant::now();
        times.saturating_record(before.elapsed().as_nanos() as u64);
    }
    times.value_at_quantile(0.5)
}
