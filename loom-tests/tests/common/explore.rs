//! Every interleaving of a model, up to a number of preemptions.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use loom::sync::atomic::AtomicBool;
use loom::thread::JoinHandle;
use paged_kv::loom_api::place_thread;

/// Preemptions of an execution, unless `LOOM_MAX_PREEMPTIONS` says otherwise.
const PREEMPTIONS: usize = 2;

/// Operations of an execution: above loom's 1,000, for the pools are made of many atomics.
const MAX_BRANCHES: usize = 20_000;

/// Runs `model` in every interleaving; the calling thread is at home shard 0. Says how many there
/// were and how long it took.
///
/// # Panics
/// If the model fails, or never got to choose: then it does not model anything.
pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = builder.max_branches.max(MAX_BRANCHES);
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    let start = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        place_thread(0);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    // Not `println!`, whose output the test runner keeps from who wants to see it.
    let line = format!("{name}: {executions} executions in {:.1?}\n", start.elapsed());
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
    assert!(executions > 1, "a model whose threads never meet checks nothing");
}

/// A thread of the model, at home shard `home` (modulo their number).
pub fn spawn_at<T: 'static>(home: usize, body: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    loom::thread::spawn(move || {
        place_thread(home);
        body()
    })
}

/// Runs `here` on the calling thread beside `there` at home shard 1.
pub fn race<A, B: 'static>(
    here: impl FnOnce() -> A,
    there: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let there = spawn_at(1, there);
    let here = here();
    (here, there.join().expect("a thread that panics fails the model"))
}

/// Says that one thread has come behind another, which learns nothing else by it: an order in which
/// loom alone would rarely have them meet.
#[derive(Clone)]
pub struct Told(Arc<AtomicBool>);

impl Told {
    /// Not yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// From now on.
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True behind it, at times.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
