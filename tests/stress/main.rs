//! Stress tests with many threads: random work for a while. Every holder of a block writes its tag into
//! an array, so a block with two holders is detected. Each test ends at rest, with nothing leaked and
//! everything consistent.
//!
//! `PAGED_KV_STRESS_SECONDS` (2 a test) and `PAGED_KV_STRESS_THREADS` (8) make it longer and wider.

#[path = "../common/mod.rs"]
mod common;

mod handles;
mod hot;
mod ids;
mod owners;
mod panics;
mod reuse;
mod shortage;
mod steps;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use paged_kv::PagedKvCache;

use common::random::Random;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

fn seconds() -> u64 {
    setting("PAGED_KV_STRESS_SECONDS", 2)
}

fn threads() -> usize {
    setting("PAGED_KV_STRESS_THREADS", 8).max(2) as usize
}

/// Fails instead of hanging when `body` does not return.
fn watched(body: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        let _ended = ended;
        body();
    });
    let patience = Duration::from_secs(60 + 10 * seconds());
    let timed_out = end.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout);
    assert!(!timed_out, "no end after {patience:?}: threads wait for each other");
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `work` on all threads, again and again, for the time of a test divided by `share`. The last
/// argument of `work` is the number of its thread.
fn for_a_while(share: u32, work: impl Fn(&mut Random, usize) + Sync) {
    let end = Instant::now() + Duration::from_secs(seconds()) / share;
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..threads() {
            let (work, failed) = (&work, &failed);
            scope.spawn(move || {
                let mut random = Random::new(number as u64);
                let _flag = RaiseOnPanic(failed);
                while Instant::now() < end && !failed.load(Ordering::Relaxed) {
                    (0..16).for_each(|_| work(&mut random, number));
                }
            });
        }
    });
}

/// Ends the other threads' work when one thread has found a fault.
struct RaiseOnPanic<'a>(&'a AtomicBool);

impl Drop for RaiseOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Creates a tiny cache, in which all threads run short and search other shards, and a large one.
fn caches() -> [PagedKvCache; 2] {
    [(64, 4), (8192, 4)].map(|(num_blocks, home_shards)| cache(num_blocks, home_shards))
}

fn cache(num_blocks: usize, home_shards: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(4);
    builder.home_shards(home_shards).build().expect("the parameters make sense")
}
