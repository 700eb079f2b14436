//! `alternate`: threads that do the work of several contenders in turn, in short slices.
//!
//! The threads live as long as the comparison, so each keeps its home shard in every contender. Slices of
//! different contenders alternate within milliseconds, so that other load on the machine affects all of
//! them. Each round runs the contenders in the reverse order of the previous round.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Does a few microseconds of work and returns the number of operations.
pub type Burst<'a> = Box<dyn FnMut() -> u64 + 'a>;

/// One design at one number of threads.
pub struct Contender<'a> {
    pub threads: usize,
    pub slice: Duration,
    make: Box<dyn Fn(usize) -> Burst<'a> + Sync + 'a>,
}

impl<'a> Contender<'a> {
    /// Creates a contender. Each thread calls `make` once with its number, to set up its work.
    pub fn new(
        threads: usize,
        slice: Duration,
        make: impl Fn(usize) -> Burst<'a> + Sync + 'a,
    ) -> Self {
        Self { threads, slice, make: Box::new(make) }
    }
}

/// The figures of one contender's slice.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Operations per second, all threads together.
    pub rate: f64,
    /// The largest share of the slice that one thread spent ready to run but not running.
    pub waited: f64,
    /// Share of all processors' time that other programs used, in steps of 10 ms. It means nothing for a
    /// slice that is not much longer than 10 ms.
    pub others: f64,
}

/// Runs rounds of one slice per contender until `enough` returns true.
pub fn alternate(contenders: &[Contender<'_>], mut enough: impl FnMut(&[Slice]) -> bool) {
    let threads = contenders.iter().map(|contender| contender.threads).max().unwrap_or(0);
    let gate = Gate::new(threads);
    thread::scope(|scope| {
        for number in 0..threads {
            let gate = &gate;
            scope.spawn(move || take_part(number, contenders, gate));
        }
        gate.barrier.wait(); // all threads have set up
        let mut slices = vec![Slice { rate: 0.0, waited: 0.0, others: 0.0 }; contenders.len()];
        for round in 0.. {
            for step in 0..contenders.len() {
                let turn = if round % 2 == 0 { step } else { contenders.len() - 1 - step };
                slices[turn] = gate.run(turn);
            }
            if enough(&slices) {
                break;
            }
        }
        gate.stop();
    });
}

fn take_part(number: usize, contenders: &[Contender<'_>], gate: &Gate) {
    let mut bursts = Vec::new();
    for contender in contenders {
        let takes_part = number < contender.threads;
        bursts.push(takes_part.then(|| (contender.make)(number)));
    }
    gate.barrier.wait();
    loop {
        gate.barrier.wait();
        let turn = gate.turn.load(Ordering::Relaxed);
        let Some(contender) = contenders.get(turn) else {
            return;
        };
        if let Some(burst) = &mut bursts[turn] {
            let part = gate.work(contender, burst);
            gate.parts.lock().expect("no thread panics here").push(part);
        }
        gate.barrier.wait();
    }
}

/// The work of one thread in a slice.
struct Part {
    operations: u64,
    start: Instant,
    end: Instant,
    scheduled: Scheduled,
}

/// The point at which the working threads and the directing thread meet.
struct Gate {
    barrier: Barrier,
    turn: AtomicUsize,
    ready: AtomicUsize,
    parts: Mutex<Vec<Part>>,
}

impl Gate {
    fn new(threads: usize) -> Self {
        Self {
            barrier: Barrier::new(threads + 1),
            turn: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            parts: Mutex::new(Vec::new()),
        }
    }

    /// Runs one slice of contender `turn`. The directing thread calls it.
    fn run(&self, turn: usize) -> Slice {
        self.turn.store(turn, Ordering::Relaxed);
        self.ready.store(0, Ordering::Relaxed);
        let busy = machine_busy();
        self.barrier.wait();
        self.barrier.wait();
        let busy = machine_busy().saturating_sub(busy);
        let mut parts = self.parts.lock().expect("no thread panics here");
        let start = parts.iter().map(|part| part.start).min().expect("a thread took part");
        let end = parts.iter().map(|part| part.end).max().expect("a thread took part");
        let operations: u64 = parts.iter().map(|part| part.operations).sum();
        let waited = parts.iter().map(|part| part.scheduled.waited).max();
        let ran: Duration = parts.iter().map(|part| part.scheduled.ran).sum();
        parts.clear();
        let seconds = (end - start).as_secs_f64();
        let others = busy.saturating_sub(ran + TICK).as_secs_f64();
        Slice {
            rate: operations as f64 / seconds,
            waited: waited.unwrap_or_default().as_secs_f64() / seconds,
            others: others / seconds / cores() as f64,
        }
    }

    fn stop(&self) {
        self.turn.store(usize::MAX, Ordering::Relaxed);
        self.barrier.wait();
    }

    fn work(&self, contender: &Contender<'_>, burst: &mut Burst<'_>) -> Part {
        let before = Scheduled::so_far();
        burst(); // warms the caches, which other contenders have used
        self.ready.fetch_add(1, Ordering::Relaxed);
        if contender.threads <= cores() {
            // Each thread has a core: none begins before all are awake.
            while self.ready.load(Ordering::Relaxed) < contender.threads {
                std::hint::spin_loop();
            }
        }
        let start = Instant::now();
        let mut operations = 0;
        let mut end = start;
        while end - start < contender.slice {
            operations += burst();
            end = Instant::now();
        }
        Part { operations, start, end, scheduled: Scheduled::so_far().since(before) }
    }
}

/// The times that the system reports of a thread; zero if it reports none.
#[derive(Clone, Copy)]
struct Scheduled {
    ran: Duration,
    /// Time ready to run, but not running.
    waited: Duration,
}

impl Scheduled {
    /// Reads the times of the calling thread since it began.
    fn so_far() -> Self {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let mut fields = stat.split_whitespace().map(|field| field.parse().unwrap_or(0));
        let mut next = || Duration::from_nanos(fields.next().unwrap_or(0));
        Self { ran: next(), waited: next() }
    }

    fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

/// The unit in which the system counts the time of its processors.
const TICK: Duration = Duration::from_millis(10);

/// Returns the busy time of all processors together since the system started.
fn machine_busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks =
        |at: usize| line.split_whitespace().nth(at).and_then(|field| field.parse::<u32>().ok());
    // user, nice, system, irq, softirq, steal: all except idle and iowait.
    let busy: u32 = [1, 2, 3, 6, 7, 8].into_iter().filter_map(ticks).sum();
    TICK * busy
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
