//! `serve`: serves the requests of a trace from one cache.
//!
//! All workers share the cache and one queue. A request that is larger than the pool is rejected before
//! the start; all others are served to their end, as `worker` describes.

pub mod admission;
pub mod meter;
pub mod needs;
pub mod oldest_first;
pub mod prompts;
pub mod worker;

use std::fmt;
use std::num::NonZeroUsize;
use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError};

use self::meter::Meter;
use self::needs::Needs;
use self::prompts::Prompts;
use self::worker::offload::Offload;
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
    /// The requests that give way to a running request without room.
    pub victims: Victims,
    /// Utilization down to which the cache evicts by the strategy when it has no room.
    pub threshold: f64,
    pub prompts: Prompts,
    /// The use of the tiers below the device, if the cache has some.
    pub offload: Option<Offload>,
    /// Whether requests are released with the hints of the trace.
    pub gives_hints: bool,
}

/// The requests that give way when a running request finds no room for its next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// The youngest requests of the same worker are preempted.
    Youngest,
    /// Requests of any worker are evicted by the cache's strategy.
    ByStrategy(EvictionStrategy),
}

impl Victims {
    /// Returns the strategy of the cache. A worker that preempts its youngest request needs it only if it holds
    /// a single one, which is the oldest of all.
    pub fn strategy(self) -> EvictionStrategy {
        match self {
            Self::Youngest => EvictionStrategy::LRU,
            Self::ByStrategy(strategy) => strategy,
        }
    }
}

impl fmt::Display for Victims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Youngest => f.write_str("youngest"),
            Self::ByStrategy(strategy) => strategy.fmt(f),
        }
    }
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
    needs: &Needs,
    plan: Plan,
    progress: &Progress,
) -> Result<Kept<Outcome>> {
    let service = Service::new(cache, requests, needs, plan, progress);
    let rejected = requests.iter().filter(|request| !fits(cache, needs, request)).count();
    progress.advance(rejected);
    let begin = Instant::now();
    let meter = run_workers(&service, plan.threads)?;
    Ok(meter.map(|meter| Outcome { rejected: rejected as u64, wall: begin.elapsed(), meter }))
}

/// Returns whether the pool can hold the request.
fn fits(cache: &PagedKvCache, needs: &Needs, request: &Request) -> bool {
    needs.most(request) <= cache.total_blocks()
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
