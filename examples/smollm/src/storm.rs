//! `storm`: engines on several threads that share one server, some by handle, some by id.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use paged_kv::Result;

use crate::engine::{ByHandle, ById, Counts, Engine, Hold, Ids, Options};
use crate::outcome::Outcome;
use crate::request::Request;
use crate::server::Server;

/// Tells the other threads that one has panicked: they would wait for its blocks.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The requests of a storm, and its results so far.
struct Shared<'a> {
    server: &'a Server,
    requests: &'a [Arc<Request>],
    next: AtomicUsize,
    has_panicked: AtomicBool,
    storm: Mutex<Storm>,
}

/// The results of a storm.
#[derive(Clone, Debug, Default)]
pub struct Storm {
    /// All samples, compared.
    pub outcome: Outcome,
    /// The events of all engines.
    pub counts: Counts,
    /// A description of each sample that differs.
    pub faults: Vec<String>,
}

/// Serves the requests on `threads` threads. A panic of a thread becomes a panic of the caller.
pub fn run(
    server: &Server,
    requests: &[Arc<Request>],
    threads: u32,
    options: &Options,
) -> Result<Storm> {
    let shared = Shared {
        server,
        requests,
        next: AtomicUsize::new(0),
        has_panicked: AtomicBool::new(false),
        storm: Mutex::new(Storm::default()),
    };
    thread::scope(|scope| {
        let worker = |number: u32| {
            let shared = &shared;
            let seed = options.seed ^ u64::from(number) << 40;
            let options = Options { seed, ..options.clone() };
            scope.spawn(move || {
                let _alarm = Alarm(&shared.has_panicked);
                // Windows cannot be trimmed under a lease.
                let lease_in = if shared.server.groups.len() > 1 { 0 } else { 3 };
                let ids = Ids::of_worker(number, lease_in);
                match number % 2 {
                    0 => shared.serve::<ByHandle>(ids, options),
                    _ => shared.serve::<ById>(ids, options),
                }
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        ends.into_iter().try_for_each(|end| end.expect("a thread of the storm panicked"))
    })?;
    Ok(shared.storm.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Shared<'_> {
    fn serve<H: Hold>(&self, ids: Ids, options: Options) -> Result<()> {
        let most_unfinished = options.most_running + 2;
        let mut engine = Engine::<H>::new(self.server, ids, options);
        while !self.has_panicked.load(Ordering::Relaxed) {
            while engine.unfinished() < most_unfinished
                && let Some(request) = self.requests.get(self.next.fetch_add(1, Ordering::Relaxed))
            {
                engine.add(request);
            }
            if engine.unfinished() == 0 {
                engine.run_all()?; // the last flights
                self.compare(&mut engine);
                break;
            }
            if !engine.turn()? {
                thread::yield_now(); // other threads have the blocks
            }
            self.compare(&mut engine);
        }
        let mut storm = self.storm.lock().unwrap_or_else(PoisonError::into_inner);
        storm.counts.join(engine.counts());
        Ok(())
    }

    fn compare<H: Hold>(&self, engine: &mut Engine<'_, H>) {
        let (mut outcome, mut faults) = (Outcome::default(), Vec::new());
        for sample in engine.take_finished() {
            if !outcome.add(&self.server.weights, &sample) {
                let prompt = &sample.request.prompt;
                faults.push(format!("sample {} of the prompt {prompt:?}", sample.number));
            }
        }
        if outcome.samples > 0 {
            let mut storm = self.storm.lock().unwrap_or_else(PoisonError::into_inner);
            storm.outcome.join(outcome);
            storm.faults.append(&mut faults);
        }
    }
}
