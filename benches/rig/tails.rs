//! `times`: single operations of many threads, each operation timed by itself.
//!
//! Every design performs the same four operations in turn, on 16 blocks each.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::pools::{KEPT, Pool};
use super::requests::{BLOCK_SIZE, Requests};

/// Blocks of each allocation.
const N: usize = 16;

/// Enough blocks for 128 threads.
pub const BLOCKS: usize = 1 << 16;

/// Rows of a thread: the rows that it cycles through, and one for the fork.
pub const ROWS: usize = KEPT + 1;

/// The timed operations, in the order in which a thread performs them.
pub const OPERATIONS: [&str; 4] = ["free", "allocate", "append", "fork"];

/// The times of each operation, in nanoseconds.
pub type Times = [Histogram<u64>; OPERATIONS.len()];

/// Performs one operation of a thread: `do_one(operation, row)`.
pub type DoOne<'a> = Box<dyn FnMut(usize, usize) + 'a>;

/// Sets up a thread's operations, from the number of the thread.
pub type SetUp<'w, 'a> = &'w (dyn Fn(usize) -> DoOne<'a> + Sync);

pub fn on_requests<'a>(mut requests: impl Requests + 'a) -> DoOne<'a> {
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

pub fn on_blocks<'a, P: Pool>(pool: &'a P) -> DoOne<'a> {
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

/// Returns the times of all threads together.
pub fn times(threads: usize, span: Duration, set_up: SetUp<'_, '_>) -> Times {
    let barrier = Barrier::new(threads);
    let parts: Vec<Times> = thread::scope(|scope| {
        let work = |number| {
            let barrier = &barrier;
            scope.spawn(move || {
                let mut do_one = set_up(number);
                barrier.wait();
                time_each(&mut do_one, Instant::now() + span)
            })
        };
        let workers: Vec<_> = (0..threads).map(work).collect();
        workers.into_iter().map(|worker| worker.join().expect("no thread panics here")).collect()
    });
    let mut all = no_times();
    parts.iter().for_each(|part| add(&mut all, part));
    all
}

/// Adds the times of `part` to those of `all`.
pub fn add(all: &mut Times, part: &Times) {
    for (all, part) in all.iter_mut().zip(part) {
        all.add(part).expect("the histograms are alike");
    }
}

/// Returns empty histograms.
pub fn no_times() -> Times {
    [(); OPERATIONS.len()].map(|()| histogram())
}

fn time_each(do_one: &mut DoOne<'_>, end: Instant) -> Times {
    let mut times = no_times();
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

/// Returns an empty histogram of up to a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("a minute in nanoseconds is a valid range")
}

/// Returns the median time between two readings of the clock, in nanoseconds.
pub fn clock_cost() -> u64 {
    let mut times = histogram();
    for _ in 0..100_000 {
        let before = Instant::now();
        times.saturating_record(before.elapsed().as_nanos() as u64);
    }
    times.value_at_quantile(0.5)
}
