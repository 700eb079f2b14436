//! `storm`: engines on several threads that share one server, some by handle, some by id.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use paged_kv::Result;

use crate::engine::{ByHandle, ById, Counts, Engine, Hold, Ids, Options};
use crate::outcome::Outcome;
use crate::request::Request;
use crate::server::Server;

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
    let (next, storm) = (AtomicUsize::new(0), Mutex::new(Storm::default()));
    thread::scope(|scope| {
        let worker = |number: u32| {
            let (next, storm) = (&next, &storm);
            let options =
                Options { seed: options.seed ^ u64::from(number) << 40, ..options.clone() };
            scope.spawn(move || {
                // Windows cannot be trimmed under a lease.
                let lease_in = if server.groups.len() > 1 { 0 } else { 3 };
                let ids = Ids::of_worker(number, lease_in);
                match number % 2 {
                    0 => serve::<ByHandle>(server, requests, ids, options, next, storm),
                    _ => serve::<ById>(server, requests, ids, options, next, storm),
                }
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    Ok(storm.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn serve<H: Hold>(
    server: &Server,
    requests: &[Arc<Request>],
    ids: Ids,
    options: Options,
    next: &AtomicUsize,
    storm: &Mutex<Storm>,
) -> Result<()> {
    let most_unfinished = options.most_running + 2;
    let mut engine = Engine::<H>::new(server, ids, options);
    loop {
        while engine.unfinished() < most_unfinished
            && let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed))
        {
            engine.add(request);
        }
        if engine.unfinished() == 0 {
            engine.run_all()?; // the last flights
            compare(server, &mut engine, storm);
            let mut storm = storm.lock().unwrap_or_else(PoisonError::into_inner);
            storm.counts.join(engine.counts());
            return Ok(());
        }
        if !engine.turn()? {
            thread::yield_now(); // other threads have the blocks
        }
        compare(server, &mut engine, storm);
    }
}

fn compare<H: Hold>(server: &Server, engine: &mut Engine<'_, H>, storm: &Mutex<Storm>) {
    let mut outcome = Outcome::default();
    let mut faults = Vec::new();
    for sample in engine.take_finished() {
        if !outcome.add(&server.weights, &sample) {
            let prompt = &sample.request.prompt;
            faults.push(format!("sample {} of the prompt {prompt:?}", sample.number));
        }
    }
    let mut storm = storm.lock().unwrap_or_else(PoisonError::into_inner);
    storm.outcome.join(outcome);
    storm.faults.append(&mut faults);
}
