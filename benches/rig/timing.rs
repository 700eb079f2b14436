//! `bench`: Criterion measurements of several threads, by the wall time in which all of them do their share.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};

use super::control;
use super::team::Burst;

/// The numbers of threads at which every operation is measured.
pub const THREADS: [usize; 4] = [1, 2, 8, 32];

/// Configures Criterion for many short benchmarks.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(12)
        .warm_up_time(Duration::from_millis(150))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args()
}

/// Benchmarks `name` at `threads` threads. An iteration is one operation; the threads share the
/// iterations, so that twice the rate is half the time.
pub fn bench<'a>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    make: &(dyn Fn(usize) -> Burst<'a> + Sync),
) {
    group.bench_function(BenchmarkId::new(name, threads), |bencher| {
        bencher.iter_custom(|iterations| shared(iterations, threads, make));
    });
}

/// Prints, with the figures of a group, how parallel the machine is at the moment.
pub fn print_control(group: &str) {
    println!("{group}: control, 2 threads of arithmetic over 1: {:.2}", control::parallelism(2));
}

/// Returns the time in which `threads` threads do `iterations` operations together.
fn shared<'a>(
    iterations: u64,
    threads: usize,
    make: &(dyn Fn(usize) -> Burst<'a> + Sync),
) -> Duration {
    let each = iterations.div_ceil(threads as u64);
    let barrier = Barrier::new(threads);
    let spans: Vec<(Instant, Instant, u64)> = thread::scope(|scope| {
        let work = |number| {
            let barrier = &barrier;
            scope.spawn(move || {
                let mut burst = make(number);
                burst();
                barrier.wait();
                let start = Instant::now();
                let mut done = 0;
                while done < each {
                    done += burst();
                }
                (start, Instant::now(), done)
            })
        };
        let threads: Vec<_> = (0..threads).map(work).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics here")).collect()
    });
    let start = spans.iter().map(|span| span.0).min().expect("there is a thread");
    let end = spans.iter().map(|span| span.1).max().expect("there is a thread");
    let done: u64 = spans.iter().map(|span| span.2).sum();
    // Bursts are whole, so the threads did slightly more than `iterations`.
    (end - start).mul_f64(iterations as f64 / done as f64)
}
