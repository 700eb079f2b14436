//! Latency percentiles of single operations under oversubscription: `cargo bench --bench tails [-- threads]`
//!
//! Far more threads than cores perform single operations of 16 blocks on every design. Each operation is
//! timed by itself. A thread that loses its core inside an operation shows in the maximum of every design.
//! The designs differ in how many other threads it then delays.

mod baseline;
mod rig;

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use paged_kv::{BlockPool, PagedKvCache};

use baseline::one_lock_cache::OneLockCache;
use baseline::one_lock_pool::OneLockPool;
use baseline::queue_pool::QueuePool;
use rig::control;
use rig::requests::{BLOCK_SIZE, ByHandle, ById};
use rig::tails::{BLOCKS, OPERATIONS, ROWS, SetUp, clock_cost, on_blocks, on_requests, times};

const SPAN: Duration = Duration::from_secs(2);

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

/// Measures one design, and prints a line of figures for each operation.
fn measure(design: &str, threads: usize, set_up: SetUp<'_, '_>) {
    let start = Instant::now();
    let all = times(threads, SPAN, set_up);
    let seconds = start.elapsed().as_secs_f64();
    for (operation, (name, times)) in OPERATIONS.iter().zip(&all).enumerate() {
        let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{:<22}{name:<10}{:>9.2}{:>9.2}{:>9.2}{:>9.1}{:>10.0}       {:>8.2}",
            if operation == 0 { design } else { "" },
            at(0.5),
            at(0.99),
            at(0.999),
            at(0.9999),
            times.max() as f64 / 1e3,
            times.len() as f64 / seconds / 1e6,
        );
    }
}
