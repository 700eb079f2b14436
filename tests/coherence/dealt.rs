//! Hit rates of whole traces whose requests are dealt to logical threads in turn, one at a time.
//!
//! `RUSTFLAGS="--cfg paged_kv_census" cargo test --release --test coherence dealt -- --ignored --nocapture` prints the
//! table, from traces in Mooncake's format beside the repository. With one thread the rates of `lru` are those of
//! `paged-kv sweep`; those of the other orders differ by up to 0.7 points.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};

use flate2::read::GzDecoder;
use paged_kv::{BlockHash, Prompt, ReclaimPolicy, ReuseHint};
use serde::Deserialize;

use crate::hit_rates::{FreedBy, Request, Setting, Stream};
use crate::requests::FACTOR;

const THREADS: [usize; 3] = [1, 4, 16];

/// The longest time to the next request of a session that comes back soon, in milliseconds.
const SOON: u64 = 30_000;

/// The most points by which the learned order may be under LRU with as many threads.
const MOST_UNDER_LRU: f64 = 0.2;

/// A trace, the tokens of its blocks, and the sizes of the pools.
const TRACES: [(&str, usize, &[usize]); 2] = [
    ("mooncake_conversation", 512, &[1_000, 2_000, 5_000, 10_000, 20_000, 50_000]),
    ("claude_code_3h", 64, &[4_608, 8_192, 16_384, 32_768, 131_072]),
];

/// A line of a trace.
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: usize,
    output_length: usize,
    hash_ids: Vec<u64>,
    session_id: Option<u64>,
}

impl Line {
    fn request(&self, block_size: usize, hint: ReuseHint) -> Request {
        let full_blocks = self.hash_ids.len().min(self.input_length / block_size);
        let hash = |id: &u64| BlockHash::from_u128(u128::from(id + 1).wrapping_mul(FACTOR));
        let hashes: Vec<BlockHash> = self.hash_ids[..full_blocks].iter().map(hash).collect();
        let prompt = Prompt::from_hashes(&hashes, self.input_length);
        Request { prompt, output_tokens: self.output_length, hint }
    }
}

fn path(trace: &str) -> PathBuf {
    let traces = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces");
    PathBuf::from(traces).join(format!("{trace}.jsonl.gz"))
}

fn lines(trace: &str) -> Vec<Line> {
    let file = File::open(path(trace)).expect("the trace can be read");
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    let line = |line: Result<String, _>| {
        serde_json::from_str(&line.expect("the trace is text")).expect("a line is a request")
    };
    lines.map(line).collect()
}

/// Returns the hints of `paged-kv sweep --hints`: the last request of a session is closed, and one whose session has a
/// further one within half a minute is back soon.
fn hints(lines: &[Line]) -> Vec<ReuseHint> {
    let mut later: HashMap<u64, u64> = HashMap::new();
    let hint = |line: &Line| match line.session_id {
        None => ReuseHint::Unknown,
        Some(session) => match later.insert(session, line.timestamp) {
            None => ReuseHint::Closed,
            Some(next) if next - line.timestamp <= SOON => ReuseHint::BackSoon,
            Some(_) => ReuseHint::Unknown,
        },
    };
    let mut hints: Vec<ReuseHint> = lines.iter().rev().map(hint).collect();
    hints.reverse();
    hints
}

/// A column of the table for each number of threads: a policy, and whether requests have hints.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Curve {
    policy: ReclaimPolicy,
    has_hints: bool,
}

const CURVES: [Curve; 4] = [
    Curve { policy: ReclaimPolicy::Lru, has_hints: false },
    Curve { policy: ReclaimPolicy::TwoQueue, has_hints: false },
    Curve { policy: ReclaimPolicy::HitDensity, has_hints: false },
    Curve { policy: ReclaimPolicy::HitDensity, has_hints: true },
];

/// A trace with the requests of all curves.
struct Dealt {
    plain: Stream,
    /// `None` for a trace without sessions.
    hinted: Option<Stream>,
}

impl Dealt {
    fn new(trace: &str, block_size: usize, pools: &'static [usize]) -> Self {
        let (lines, name) = (lines(trace), trace);
        let stream = |hints: Vec<ReuseHint>| {
            let requests = lines.iter().zip(hints);
            let requests = requests.map(|(line, hint)| line.request(block_size, hint)).collect();
            let name = name.to_owned();
            Stream { name, block_size, requests, pools, most_live: 1, most_points: 0.0 }
        };
        let has_sessions = lines.iter().any(|line| line.session_id.is_some());
        Self {
            plain: stream(vec![ReuseHint::Unknown; lines.len()]),
            hinted: has_sessions.then(|| stream(hints(&lines))),
        }
    }

    fn rate(&self, Curve { policy, has_hints }: Curve, pool: usize, threads: usize) -> Option<f64> {
        let stream = if has_hints { self.hinted.as_ref()? } else { &self.plain };
        let setting = Setting { pool, threads, shards: threads, freed_by: FreedBy::Own, policy };
        Some(stream.rate(setting))
    }

    /// Prints a row for each pool. Returns the most points by which the learned order is under LRU.
    fn print(&self) -> f64 {
        let pools = self.plain.pools;
        let cells = pools.iter().flat_map(|&pool| {
            CURVES.iter().flat_map(move |&curve| THREADS.map(|threads| (curve, pool, threads)))
        });
        let cells: Vec<_> = cells.collect();
        let rates = in_parallel(cells.len(), |at| {
            let (curve, pool, threads) = cells[at];
            self.rate(curve, pool, threads)
        });
        let mut most_under = 0.0_f64;
        for (pool, rates) in pools.iter().zip(rates.chunks(CURVES.len() * THREADS.len())) {
            let shown =
                |rate: &Option<f64>| rate.map_or(String::new(), |rate| format!("{rate:.2}"));
            let shown: Vec<String> = rates.iter().map(shown).collect();
            let (lru, learned) = (&rates[..THREADS.len()], &rates[2 * THREADS.len()..]);
            let under =
                lru.iter().zip(learned).filter_map(|(lru, learned)| Some((*lru)? - (*learned)?));
            let under = under.fold(f64::NEG_INFINITY, f64::max);
            most_under = most_under.max(under);
            println!("| {}, {pool} | {} | {:+.2} |", self.plain.name, shown.join(" | "), -under);
        }
        most_under
    }
}

/// Calls `work` with each number below `n`, on as many threads as there are cores.
fn in_parallel<R: Send>(n: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let take_all = || loop {
            // Relaxed: the number alone decides which thread does the work.
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= n {
                return;
            }
            let result = work(at);
            done.lock().expect("no thread panics with the lock").push((at, result));
        };
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(take_all)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        }
    });
    let mut done = done.into_inner().expect("no thread panicked");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[test]
#[ignore = "takes minutes, and whole traces"]
fn the_learned_order_is_not_under_lru_when_requests_are_dealt() {
    let columns = ["lru", "two-queue", "hit-density", "with hints"];
    let columns =
        columns.map(|name| THREADS.map(|threads| format!(" {name}, {threads} |")).concat());
    println!("\n| trace, blocks |{} least above lru |", columns.concat());
    println!("|---{}|---|", "|---".repeat(columns.len() * THREADS.len()));
    for (trace, block_size, pools) in TRACES {
        if !path(trace).exists() {
            println!("skipped a trace: there is no {}", path(trace).display());
            continue;
        }
        let under = Dealt::new(trace, block_size, pools).print();
        assert!(under <= MOST_UNDER_LRU, "{trace}: {under:.2} points under LRU");
    }
}
