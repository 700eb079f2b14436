//! The cost of the support for waiting, and of waiting itself: `cargo bench --bench waiting`.
//!
//! Run it again with `--features async`: the first table should be the same.

use std::hint::black_box;
use std::time::Instant;

use paged_kv::BlockPool;

/// Blocks of the pools, and of the caches with many waiters.
const BLOCKS: usize = 1 << 14;

fn main() {
    println!("uncontended, the best of 15 runs, ns");
    for n in [1, 16, 64] {
        let pool = BlockPool::new(BLOCKS);
        let pair = nanoseconds(15, 200_000 / n, || drop(black_box(pool.allocate(n))));
        println!("  allocate and release {n:>3}: {pair:8.1}");
    }
    let pool = BlockPool::new(BLOCKS);
    let mut table = pool.allocate(1).expect("there is room");
    let pair = nanoseconds(15, 200_000, || {
        black_box(table.grow(1)).expect("there is room");
        table.truncate(1).unwrap();
    });
    println!("  grow a table by 1 and truncate: {pair:.1}");
    #[cfg(feature = "async")]
    waiting::report();
}

/// Returns the time of one of `times` operations, in the fastest of `runs` runs.
fn nanoseconds(runs: usize, times: usize, mut operation: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        (0..times).for_each(|_| operation());
        start.elapsed().as_nanos() as f64 / times as f64
    };
    (0..runs).map(run).fold(f64::INFINITY, f64::min)
}

#[cfg(feature = "async")]
mod waiting {
    //! `report`: the costs with waiting requests.

    use std::hint::black_box;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::task::{Context, Waker};
    use std::thread;
    use std::time::{Duration, Instant};

    use paged_kv::{PagedKvCache, SeqId};

    use super::{BLOCKS, nanoseconds};

    const ROUNDS: usize = 4_000;

    /// Blocks of the cache in which a thread waits.
    const FEW: usize = 4;

    pub fn report() {
        println!("\na release while others wait for more than it gives, and an append, ns");
        for waiters in [0, 1, 100, 10_000] {
            println!("  {waiters:>6} waiters: {:8.1}", release_beside(waiters));
        }
        println!("\na release that wakes the first, which leaves unserved and wakes the next, ns");
        for waiters in [10, 100, 10_000] {
            println!("  {waiters:>6} waiters: {:8.1}", wake_and_leave(waiters));
        }
        println!(
            "\nfrom a release to the thread that it wakes, us (median, 90 %), {ROUNDS} rounds"
        );
        for _ in 0..3 {
            let bare = percentiles(bare());
            let ours = percentiles(ours());
            let ratio = ours.0 / bare.0;
            println!("  park and unpark {bare:.1?}, ours {ours:.1?}, ratio of medians {ratio:.2}");
        }
    }

    fn cache() -> PagedKvCache {
        PagedKvCache::new(BLOCKS, 16, 1, 1)
    }

    fn poll<F: Future + Unpin>(future: &mut F) -> bool {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn release_beside(waiters: usize) -> f64 {
        let cache = cache();
        let held = cache.reserve(BLOCKS / 2).expect("there is room");
        cache.allocate(SeqId(1), 16).expect("there is room");
        let mut waits: Vec<_> = (0..waiters).map(|_| cache.waiting().reserve(BLOCKS / 2)).collect();
        waits.iter_mut().for_each(|wait| assert!(!poll(wait)));
        let pair = nanoseconds(10, 50_000, || {
            drop(black_box(cache.append(SeqId(1), 16)).expect("it passes"));
            cache.truncate(SeqId(1), 16).expect("it is that long");
        });
        drop(waits);
        drop(held);
        pair
    }

    /// Measures waiters that are woken and leave. Each is woken once, by a release or by the previous one.
    fn wake_and_leave(waiters: usize) -> f64 {
        let cache = cache();
        let held = cache.reserve(BLOCKS).expect("there is room");
        let mut waits: std::collections::VecDeque<_> =
            (0..waiters).map(|_| cache.waiting().reserve(BLOCKS)).collect();
        waits.iter_mut().for_each(|wait| assert!(!poll(wait)));
        drop(held);
        let start = Instant::now();
        for _ in 0..waiters.min(1_000) {
            drop(waits.pop_front());
        }
        start.elapsed().as_nanos() as f64 / waiters.min(1_000) as f64
    }

    /// Measures the time from `unpark` to the end of `park`.
    fn bare() -> Vec<f64> {
        let (go, asleep, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let epoch = Instant::now();
        let woken = AtomicU64::new(0);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let mut round = 0;
                while !done.load(Ordering::SeqCst) {
                    round += 1;
                    asleep.store(round, Ordering::SeqCst);
                    while go.load(Ordering::SeqCst) < round && !done.load(Ordering::SeqCst) {
                        thread::park();
                    }
                    woken.store(epoch.elapsed().as_nanos() as u64, Ordering::SeqCst);
                }
            });
            let mut times = Vec::new();
            for round in 1..=ROUNDS as u64 {
                wait_until(|| asleep.load(Ordering::SeqCst) == round);
                woken.store(0, Ordering::SeqCst);
                let start = epoch.elapsed().as_nanos() as u64;
                go.store(round, Ordering::SeqCst);
                sleeper.thread().unpark();
                wait_until_brief(|| woken.load(Ordering::SeqCst) > 0);
                times.push((woken.load(Ordering::SeqCst) - start) as f64 / 1e3);
            }
            done.store(true, Ordering::SeqCst);
            sleeper.thread().unpark();
            times
        })
    }

    /// Measures the time from a release to the return of the call that waited for it. The cache is small: a
    /// large reservation would add the time to copy its ids.
    fn ours() -> Vec<f64> {
        let cache = PagedKvCache::new(FEW, 16, 1, 1);
        let done = AtomicBool::new(false);
        let (epoch, woken) = (Instant::now(), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let room = cache.waiting().reserve(FEW).block();
                    let now = epoch.elapsed().as_nanos() as u64;
                    drop(room.expect("its turn comes"));
                    woken.store(now, Ordering::SeqCst);
                    // The other thread takes a block again, and this one waits for all blocks.
                    wait_until_brief(|| woken.load(Ordering::SeqCst) == 0);
                }
            });
            let mut times = Vec::new();
            let mut held = Some(take_one(&cache));
            for round in 0..ROUNDS {
                if round > 0 {
                    held = Some(take_one(&cache));
                    woken.store(0, Ordering::SeqCst);
                }
                wait_until(|| cache.waiting().len() == 1);
                let start = epoch.elapsed().as_nanos() as u64;
                held.take();
                wait_until_brief(|| woken.load(Ordering::SeqCst) > 0);
                times.push((woken.load(Ordering::SeqCst) - start) as f64 / 1e3);
            }
            done.store(true, Ordering::SeqCst);
            woken.store(0, Ordering::SeqCst);
            times
        })
    }

    fn take_one(cache: &PagedKvCache) -> paged_kv::Reservation {
        loop {
            match cache.reserve(1) {
                Ok(room) => return room,
                Err(_) => thread::yield_now(),
            }
        }
    }

    /// Waits until `holds` returns true, and 100 us longer: a thread that is about to sleep is asleep then.
    fn wait_until(holds: impl Fn() -> bool) {
        while !holds() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_micros(100));
    }

    fn wait_until_brief(holds: impl Fn() -> bool) {
        while !holds() {
            thread::yield_now();
        }
    }

    fn percentiles(mut times: Vec<f64>) -> (f64, f64) {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 9 / 10])
    }
}
