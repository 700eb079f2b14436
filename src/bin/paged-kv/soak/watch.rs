//! `watch`: one thread that starts the workers, replaces each that panics, audits the cache under load,
//! measures the memory, and ends the run.
//!
//! A worker that completes no step for a minute hangs. It cannot be joined, so the watch exits the program.

use std::any::Any;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use paged_kv::PagedKvError;

use super::memory::Memory;
use super::shared::{Ground, OnPurpose};
use super::worker::{Held, Worker};
use crate::crew::{self, Gate, Member};
use crate::progress::Progress;
use crate::verdict::complain;

/// Interval between two checks of the workers.
const TICK: Duration = Duration::from_millis(20);

/// Samples of the memory in a run.
const SAMPLES: u32 = 200;

/// The longest time that a step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The options of the run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub duration: Duration,
    pub threads: usize,
    pub seed: u64,
}

/// The figures that the watch collected.
#[derive(Debug, Default)]
pub struct Seen {
    pub memory: Memory,
    pub steps: u64,
    pub injected_panics: u64,
    pub audits: u64,
    /// Audits refused with `Busy` because of the load.
    pub audits_busy: u64,
    pub wall: Duration,
}

/// The post of one worker. When the worker panics, another takes the post.
struct Post<'scope> {
    worker: Member<'scope, ()>,
    steps_seen: u64,
    moved: Instant,
}

/// Runs until the time is over or there is a finding. All handles are dropped when it returns.
///
/// # Errors
/// The machine refuses a thread.
pub fn watch(ground: &Ground, plan: Plan, progress: &Progress) -> Result<Seen> {
    // A handle has about six blocks on average: together the handles need slightly more than the pool has.
    let num_places = (ground.cache.total_blocks() / 6).max(plan.threads + 1);
    let places: Vec<_> = (0..num_places).map(|_| Mutex::new(None::<Held<'_>>)).collect();
    let over = AtomicBool::new(false);
    let steps: Vec<_> = (0..plan.threads).map(|_| AtomicU64::new(0)).collect();
    let mut seen = Seen { memory: Memory::new(), ..Seen::default() };
    let (begin, mut numbers) = (Instant::now(), 0..);
    seen.memory.sample(Duration::ZERO);
    progress.begin(plan.duration.as_millis() as usize);
    let gate = Gate::new()?;
    let refused = thread::scope(|scope| {
        let mut start = |post: usize| {
            let number = numbers.next().expect("there are enough numbers");
            let (places, over, steps) = (&places[..], &over, &steps[post]);
            let worker = Worker { ground, places, over, steps, number, seed: plan.seed };
            let started = gate.spawn(scope, move || worker.run());
            started.map_err(|error| crew::refusal(plan.threads, post, &error))
        };
        let (mut posts, mut refused) = (Vec::new(), None);
        for post in 0..plan.threads {
            match start(post) {
                Ok(worker) => posts.push(Post { worker, steps_seen: 0, moved: Instant::now() }),
                Err(refusal) => {
                    refused = Some(refusal);
                    break;
                }
            }
        }
        if refused.is_some() {
            gate.close()
        } else {
            gate.open()
        }
        let every = (plan.duration / SAMPLES).max(TICK);
        let mut next_look = begin;
        let is_over = || begin.elapsed() >= plan.duration || ground.cells.findings.count() > 0;
        while refused.is_none() && !is_over() {
            thread::sleep(TICK);
            for (at, post) in posts.iter_mut().enumerate() {
                if post.worker.is_finished() {
                    match start(at) {
                        Ok(worker) => {
                            let ended = std::mem::replace(&mut post.worker, worker);
                            seen.injected_panics += end(ground, ended);
                        }
                        Err(refusal) => refused = Some(refusal),
                    }
                }
                post.note(steps[at].load(Ordering::Relaxed), at);
            }
            if Instant::now() >= next_look {
                next_look += every;
                seen.memory.sample(begin.elapsed());
                audit(ground, &mut seen);
            }
            progress.reach(begin.elapsed().as_millis() as u64);
        }
        over.store(true, Ordering::Relaxed);
        for post in posts {
            seen.injected_panics += end(ground, post.worker);
        }
        refused
    });
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    seen.steps = steps.iter().map(|steps| steps.load(Ordering::Relaxed)).sum();
    seen.wall = begin.elapsed();
    Ok(seen)
}

impl Post<'_> {
    fn note(&mut self, steps: u64, at: usize) {
        if steps != self.steps_seen {
            (self.steps_seen, self.moved) = (steps, Instant::now());
        } else if self.moved.elapsed() > PATIENCE {
            complain(&format!("worker {at} has been in one step for {PATIENCE:?}"));
            process::exit(1);
        }
    }
}

/// Joins a worker. Returns 1 if it panicked on purpose, otherwise 0. Any other panic is a finding.
fn end(ground: &Ground, worker: Member<'_, ()>) -> u64 {
    let Err(panic) = worker.join() else { return 0 };
    if panic.is::<OnPurpose>() {
        return 1;
    }
    ground.find(format_args!("a worker panicked: {}", message(&*panic)));
    0
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// Validates the cache under load. `Busy` is allowed; any other error is a finding.
fn audit(ground: &Ground, seen: &mut Seen) {
    seen.audits += 1;
    match ground.cache.validate() {
        Ok(()) => {}
        Err(PagedKvError::Busy) => seen.audits_busy += 1,
        Err(fault) => ground.find(format_args!("an audit under load: {fault}")),
    }
}
