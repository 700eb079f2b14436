//! `explore`: every interleaving of a model, up to a number of preemptions.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use loom::sync::atomic::AtomicBool;
use loom::thread::JoinHandle;
use paged_kv::loom_api::place_thread;

/// Preemptions of an execution, unless `LOOM_MAX_PREEMPTIONS` overrides it.
const PREEMPTIONS: usize = 2;

/// Operations of an execution: more than loom's default of 1,000, because the pools consist of many
/// atomics.
const MAX_BRANCHES: usize = 20_000;

/// Runs `model` in every interleaving; the calling thread is at home shard 0. Prints how many
/// interleavings there were and how long they took.
///
/// # Panics
/// If the model fails, or if it has only one interleaving: then it models nothing.
pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    explore_within(bound(), model);
}

/// As [`explore`], with one preemption less where the orderings are as written: for models that have 60,000 or more
/// executions then, most of them because a load may read older values.
pub fn explore_large(model: impl Fn() + Send + Sync + 'static) {
    let are_exchanges = std::env::var("PAGED_KV_LOOM_SC").is_ok_and(|value| value == "1");
    explore_within(bound().saturating_sub(usize::from(!are_exchanges)), model);
}

/// Returns the preemptions of an execution.
fn bound() -> usize {
    loom::model::Builder::new().preemption_bound.unwrap_or(PREEMPTIONS)
}

fn explore_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = builder.max_branches.max(MAX_BRANCHES);
    builder.preemption_bound = Some(preemptions);
    let start = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        place_thread(0);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    // Written directly, because the test runner captures the output of `println!`.
    let line = format!("{name}: {executions} executions in {:.1?}\n", start.elapsed());
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
    assert!(executions > 1, "a model whose threads never meet checks nothing");
}

/// Spawns a thread of the model, at home shard `home` (modulo the number of shards).
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

/// A flag that one thread sets and another reads `Relaxed`. The reader learns the order of the two
/// threads and nothing else. Without the flag loom would rarely explore such an order.
#[derive(Clone)]
pub struct Told(Arc<AtomicBool>);

impl Told {
    /// Creates a flag that is not set.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// Sets the flag.
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True after [`tell`](Self::tell), in some executions only: the load may read the older value.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
