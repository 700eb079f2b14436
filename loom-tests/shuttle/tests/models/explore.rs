//! Many schedules of a model: in some each step may be any thread's, in others there are few preemptions.
//!
//! - `PAGED_KV_SHUTTLE_EXECUTIONS`: executions of a model under each scheduler.
//! - `PAGED_KV_SHUTTLE_SEED`: the seed of the schedules.
//!
//! Both have fixed defaults, so a run repeats. A failure names the scheduler, the seed and the execution.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

const EXECUTIONS: u64 = 1_000;

/// Default seed of the schedules.
const SEED: u64 = 0x9A6E_D4B5;

/// Limit of the steps of an execution, above which it counts as endless. The longest take a tenth of it.
const MOST_STEPS: usize = 100_000;

/// Bytes of a thread's stack.
const STACK: usize = 1 << 18;

/// How a schedule is drawn.
#[derive(Clone, Copy, Debug)]
enum Draw {
    /// Each step is run by any runnable thread.
    EachStep,
    /// The thread of the highest priority runs. This many times, the running thread gets the lowest
    /// priority.
    Preemptions(usize),
}

const DRAWS: [Draw; 4] =
    [Draw::EachStep, Draw::Preemptions(1), Draw::Preemptions(2), Draw::Preemptions(4)];

impl Draw {
    fn scheduler(self, seed: u64, executions: usize) -> Box<dyn Scheduler + Send> {
        match self {
            Self::EachStep => Box::new(RandomScheduler::new_from_seed(seed, executions)),
            Self::Preemptions(n) => Box::new(PctScheduler::new_from_seed(seed, n + 1, executions)),
        }
    }
}

/// Runs `model` on many schedules of every kind, and prints how many there were and how long they took.
///
/// # Panics
/// If the model fails: the message names the values that repeat the failure.
pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    let seed = setting("PAGED_KV_SHUTTLE_SEED", SEED);
    let executions = setting("PAGED_KV_SHUTTLE_EXECUTIONS", EXECUTIONS);
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    let model = Arc::new(model);
    let start = Instant::now();
    for draw in DRAWS {
        let model = Arc::clone(&model);
        let begun = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&begun);
        let _report = ReportOnPanic { name: &name, draw, seed, begun };
        Runner::new(draw.scheduler(seed, executions as usize), config()).run(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            model();
        });
    }
    say(&format!("{name}: {} x {executions} executions in {:.1?}", DRAWS.len(), start.elapsed()));
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config
}

/// Prints the values that repeat a failure.
struct ReportOnPanic<'a> {
    name: &'a str,
    draw: Draw,
    seed: u64,
    begun: Arc<AtomicU64>,
}

impl Drop for ReportOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { name, draw, seed, begun } = self;
            let execution = begun.load(Ordering::Relaxed);
            say(&format!(
                "{name} fails in execution {execution} of {draw:?}, seed {seed}. Again:\n  \
                 PAGED_KV_SHUTTLE_SEED={seed} PAGED_KV_SHUTTLE_EXECUTIONS={execution} \
                 loom-tests/run-shuttle {name}"
            ));
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

/// Writes to standard error directly, because the test runner captures the output of `println!`.
fn say(line: &str) {
    let line = format!("{line}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
}
