//! `Picture`: the frame that the live page draws: blocks, sequences, the queue and the rates.
//!
//! Nothing is collected unless a frame was asked for within the last seconds. A frame is collected once for all
//! pages that look, at most every 250 ms.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use paged_kv::Snapshot;
use serde::Serialize;
use serde_json::json;
use smollm::batch::GroupBatch;

use crate::shared::Shared;

/// Workers collect for so long after a frame was asked for.
const WATCHED: Duration = Duration::from_secs(3);
/// The least time between two frames.
const FRAME: Duration = Duration::from_millis(250);
/// Waiting samples in a frame.
const MOST_WAITING: usize = 50;
/// The bit of a block's byte that says that a step in flight uses it.
const IN_STEP: u8 = 0x80;

/// A running sample, as a frame has it.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// The number of the request.
    pub request: u64,
    /// The number of the sample.
    pub sample: usize,
    /// Its priority.
    pub priority: i64,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// All its tokens.
    pub tokens: usize,
    /// Tokens whose keys and values are computed.
    pub computed: usize,
    /// Tokens of its prompt that were cached.
    pub cached: usize,
    /// Its blocks.
    pub table: Vec<u32>,
}

/// The part of a frame that one worker notes.
#[derive(Default)]
struct OfWorker {
    rows: Vec<Shown>,
    /// Blocks of its step in flight.
    in_step: Vec<u32>,
    copies: Vec<[u32; 2]>,
}

/// The frames of a server.
pub struct Picture {
    start: Instant,
    /// Milliseconds from the start to the last look, plus 1; 0 for none.
    looked: AtomicU64,
    running: Box<[AtomicUsize]>,
    workers: Box<[Mutex<OfWorker>]>,
    last: Mutex<Option<(Instant, Arc<Vec<u8>>)>>,
    snapshot: Mutex<Snapshot>,
}

impl Picture {
    /// Creates the picture of a server with some workers.
    pub fn new(workers: usize) -> Self {
        Self {
            start: Instant::now(),
            looked: AtomicU64::new(0),
            running: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            workers: (0..workers).map(|_| Mutex::default()).collect(),
            last: Mutex::default(),
            snapshot: Mutex::default(),
        }
    }

    /// Returns true if a page looks.
    pub fn is_watched(&self) -> bool {
        let looked = self.looked.load(Ordering::Relaxed);
        looked > 0 && self.now() < looked + WATCHED.as_millis() as u64
    }

    /// Notes the number of samples that a worker runs.
    pub fn count_running(&self, worker: usize, running: usize) {
        self.running[worker].store(running, Ordering::Relaxed);
    }

    /// Returns the number of samples that run.
    pub fn num_running(&self) -> usize {
        self.running.iter().map(|running| running.load(Ordering::Relaxed)).sum()
    }

    /// Returns the number of samples that run on other workers.
    pub fn num_running_without(&self, worker: usize) -> usize {
        self.num_running() - self.running[worker].load(Ordering::Relaxed)
    }

    /// Notes the blocks of a step that begins.
    pub fn begin_step(&self, worker: usize, batch: &GroupBatch) {
        let mut noted = lock(&self.workers[worker]);
        noted.in_step = batch.table.iter().filter_map(|&cell| u32::try_from(cell).ok()).collect();
        noted.copies = batch.copies.clone();
    }

    /// Notes the samples of a worker after a step.
    pub fn end_step(&self, worker: usize, rows: Vec<Shown>) {
        let mut noted = lock(&self.workers[worker]);
        noted.rows = rows;
        noted.in_step.clear();
    }

    /// Returns a frame: the length of its JSON part as four bytes, that part, then a byte a block.
    pub fn frame(&self, shared: &Shared) -> Arc<Vec<u8>> {
        self.looked.store(self.now() + 1, Ordering::Relaxed);
        let mut last = lock(&self.last);
        if let Some((time, frame)) = &*last
            && time.elapsed() < FRAME
        {
            return frame.clone();
        }
        let frame = Arc::new(self.collect(shared));
        *last = Some((Instant::now(), frame.clone()));
        frame
    }

    fn collect(&self, shared: &Shared) -> Vec<u8> {
        let mut snapshot = lock(&self.snapshot);
        shared.cache.inspect(&mut snapshot);
        let (mut rows, mut copies) = (Vec::new(), Vec::new());
        let mut blocks = snapshot.bytes().to_vec();
        for worker in &self.workers {
            let noted = lock(worker);
            rows.extend(noted.rows.iter().cloned());
            copies.extend_from_slice(&noted.copies);
            noted.in_step.iter().for_each(|&id| blocks[id as usize] |= IN_STEP);
        }
        rows.sort_by_key(|row| (row.request, row.sample));
        let (stats, metrics) = (shared.cache.stats(), &shared.metrics);
        let waiting = shared.queue.read(|samples| {
            let shown = samples.take(MOST_WAITING).map(|sample| {
                json!({ "request": sample.job.number, "sample": sample.number,
                        "tokens": sample.tokens.len(), "priority": sample.job.parameters.priority })
            });
            shown.collect::<Vec<_>>()
        });
        let head = json!({
            "model": shared.loaded.name, "seconds": self.start.elapsed().as_secs_f64(),
            "block_size": shared.config.block_size, "blocks": stats.blocks_total,
            "used": stats.blocks_used, "idle": stats.blocks_idle, "steps_open": stats.steps_open,
            "allocations": stats.total_allocations, "forks": stats.total_forks,
            "reclaimed": stats.blocks_reclaimed, "asked": stats.prompt_tokens,
            "hit": stats.prompt_tokens_hit, "running": self.num_running(),
            "waiting": shared.queue.len(), "queue": waiting, "rows": rows, "copies": copies,
            "generated": metrics.generation_tokens.get(), "steps": metrics.steps.get(),
            "preemptions": metrics.preemptions.get(), "copied": metrics.copies.get(),
            "drafts": metrics.draft_tokens.get(), "accepted": metrics.accepted_tokens.get(),
        });
        let head = head.to_string().into_bytes();
        let mut frame = (head.len() as u32).to_le_bytes().to_vec();
        frame.extend(head);
        frame.extend(blocks);
        frame
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
