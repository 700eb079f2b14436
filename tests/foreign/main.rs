//! Tests of foreign code that panics or calls the cache: wakers, event sinks, closures and iterators, at
//! every call that the library makes of them.
//!
//! A test that hangs fails after a time limit.

#[path = "../common/mod.rs"]
mod common;

mod calls_back;
mod closures;
mod iterators;
mod operations;
mod panics;
mod sinks;
mod storm;
mod trip;
mod wakers;
mod world;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Tokens per block.
const BLOCK_SIZE: usize = 4;

/// Long enough that only a defect makes a test wait so long.
const HANG: Duration = Duration::from_secs(100);

/// Fails instead of hanging when `body` does not return.
#[track_caller]
fn watched(body: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        let _ended = ended;
        body();
    });
    let timed_out = end.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout);
    assert!(!timed_out, "no end after {HANG:?}: a thread waits for itself");
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Panics without a message on standard error.
fn panic_quietly() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}
