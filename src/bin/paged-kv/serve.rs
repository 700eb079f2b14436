//! `serve`: serves the requests of a trace from one cache.
//!
//! All workers share the cache and one queue. A request that is larger than the pool is rejected before
//! the start; all others are served to their end, as `worker` describes.

pub mod admission;
pub mod meter;
pub mod oldest_first;
pub mod worker;
use std::num::NonZeroUsize;
use std::panic;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use paged_kv::{PagedKvCache, PagedKvError};

use self::admission::Admission;
use self::meter::Meter;
use self::worker::{Service, Worker};
use crate::crew;
use crate::progress::Progress;
use crate::trace::request::Request;

/// The options of serving.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub threads: NonZeroUsize,
    /// Requests that a worker may hold at the same time.
    pub live: NonZeroUsize,
    /// Share of the blocks for which running requests will still ask that an admission leaves free.
    pub leave_free: f64,
    /// Utilization down to which the cache evicts when it has no room.
    pub threshold: f64,
    /// Tokens of a content, if prompts share their common contents.
    pub id_tokens: Option<usize>,
    /// Whether prompts are admitted by tokens, which published events need, or by hashes only.
    pub as_tokens: bool,
}

/// The result of serving.
pub struct Outcome {
    /// Requests larger than the pool.
    pub rejected: u64,
    pub wall: Duration,
    pub meter: Meter,
}

/// The result of calls that the cache must grant. If it refuses one, it broke a promise, and not all
/// requests are served.
pub type Kept<T> = Result<T, PagedKvError>;

/// Serves every request that the pool can hold.
///
/// # Errors
/// The threads cannot be had; nothing is served.
///
/// # Panics
/// If the cache panicked in a worker.
pub fn serve(
    cache: &PagedKvCache,
    requests: &[Request],
    plan: Plan,
    progress: &Progress,
) -> Result<Kept<Outcome>> {
    let fits =
        |request: &Request| request.blocks_needed(cache.block_size()) <= cache.total_blocks();
    let arrivals = (0..requests.len()).filter(|&arrival| fits(&requests[arrival]));
    let service = Service {
        cache,
        requests,
        admission: Admission::new(cache, arrivals),
        progress,
        live: plan.live,
        leave_free: plan.leave_free,
        growth: AtomicUsize::new(0),
        threshold: plan.threshold,
        id_tokens: plan.id_tokens,
        as_tokens: plan.as_tokens,
        shortage: Mutex::new(()),
    };
    let rejected = requests.iter().filter(|request| !fits(request)).count();
    progress.advance(rejected);
    let begin = Instant::now();
    let meter = run_workers(&service, plan.threads)?;
    Ok(meter.map(|meter| Outcome { rejected: rejected as u64, wall: begin.elapsed(), meter }))
}

fn run_workers(service: &Service<'_>, threads: NonZeroUsize) -> Result<Kept<Meter>> {
    thread::scope(|scope| {
        let workers = crew::start(scope, threads, || Worker::new(service).run())?;
        let mut total = Meter::new();
        let mut fault = None;
        for worker in workers {
            match worker.join() {
                Ok(Some(Ok(meter))) => total.add(&meter),
                Ok(Some(Err(error))) => fault = fault.or(Some(error)),
                Ok(None) => unreachable!("a crew that is complete works"),
                Err(payload) => panic::resume_unwind(payload),
            }
        }
        Ok(fault.map_or(Ok(total), Err))
    })
}
