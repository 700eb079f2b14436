//! `paged-kv sweep`: the hit rates of a trace in caches of many sizes.
//!
//! Each size and policy is a *cell*, with a cache of its own. It serves the trace one request at a time, so
//! that other cells do not affect its result. Cells run in parallel.

mod max_hit_rate;
mod svg;
mod table;

use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use paged_kv::{PagedKvCache, ReclaimPolicy};

use crate::args::SweepArguments;
use crate::machine::Memory;
use crate::outputs::{self, Output};
use crate::progress::Progress;
use crate::serve::needs::Needs;
use crate::serve::prompts::Prompts;
use crate::serve::{Kept, Plan, Victims, serve};
use crate::trace::request::Request;
use crate::verdict::{Verdict, complain};
use crate::{crew, trace};

/// The most doubled sizes that are tried if none are given.
const MOST_SIZES: usize = 16;

/// The result of one size and policy.
#[derive(Clone, Debug)]
struct Cell {
    reclaim: ReclaimPolicy,
    blocks: usize,
    prompt_blocks: u64,
    hit_blocks: u64,
    reclaimed_blocks: u64,
    /// Requests larger than the cache.
    rejected: u64,
}

/// The trace, and the sizes by which caches serve it.
struct Trace {
    requests: Vec<Request>,
    block_size: NonZeroUsize,
    id_tokens: usize,
}

impl Cell {
    fn hit_rate(&self) -> f64 {
        self.hit_blocks as f64 / self.prompt_blocks.max(1) as f64
    }
}

/// Runs the command, writes both files and prints the table.
///
/// # Errors
/// The trace cannot be read or has no hash ids, the machine cannot hold the caches, a cache cannot be
/// built, or a file cannot be written.
pub fn run(arguments: &SweepArguments) -> Result<Verdict> {
    let (csv, svg) = (&arguments.csv, &arguments.svg);
    outputs::check_distinct(Some(&arguments.trace), &[("--csv", csv), ("--svg", svg)])?;
    let trace = load(arguments)?;
    let ceiling = max_hit_rate::of(&trace.requests, trace.block_size.get(), trace.id_tokens);
    let sizes = if arguments.blocks.is_empty() {
        sizes(&trace, &ceiling)
    } else {
        arguments.blocks.iter().map(|blocks| blocks.get()).collect()
    };
    let grid: Vec<(ReclaimPolicy, usize)> = arguments
        .reclaim
        .iter()
        .flat_map(|&reclaim| sizes.iter().map(move |&blocks| (reclaim, blocks)))
        .collect();
    let threads =
        arguments.threads().min(NonZeroUsize::new(grid.len()).unwrap_or(NonZeroUsize::MIN));
    check_memory(&trace, &grid, threads)?;
    // Opened before serving, so that a file that cannot be written does not lose the result of an hour.
    let (csv, svg) = (Output::open(csv)?, Output::open(svg)?);
    let progress = Progress::new();
    progress.begin(grid.len() * trace.requests.len());
    let cells = serve_all(&trace, &grid, threads, &progress);
    progress.finish();
    let cells = match cells? {
        Ok(cells) => cells,
        Err(error) => {
            complain(&format!("the cache broke a promise: {error}"));
            return Ok(Verdict::Broken);
        }
    };
    let mut lines = Vec::new();
    table::write(&mut lines, &cells, &ceiling)?;
    let title = arguments.trace.to_string_lossy();
    let picture = svg::draw(&title, trace.block_size.get(), &cells, &ceiling)
        .context("cannot draw the picture")?;
    csv.replace(&lines)?;
    svg.replace(picture.as_bytes())?;
    table::print(&cells, &ceiling).context("cannot write the table")?;
    Ok(Verdict::Sound)
}

fn load(arguments: &SweepArguments) -> Result<Trace> {
    let trace = trace::load(&arguments.trace, arguments.format, arguments.requests)?;
    let given = arguments.block_size.unwrap_or(NonZeroUsize::MIN);
    let Some(id_tokens) = trace::id_tokens(&trace, given, arguments.id_tokens)? else {
        bail!("{}: the requests have no hash_ids to share by", trace.name);
    };
    let of_an_id = NonZeroUsize::new(id_tokens).expect("an id names at least one token");
    let block_size = arguments.block_size.unwrap_or(of_an_id);
    Ok(Trace { requests: trace.requests, block_size, id_tokens })
}

/// Checks that the machine can hold the largest caches that may be in use at the same time.
fn check_memory(
    trace: &Trace,
    grid: &[(ReclaimPolicy, usize)],
    threads: NonZeroUsize,
) -> Result<()> {
    let mut largest = grid.to_vec();
    largest.sort_by_key(|&(_, blocks)| Reverse(blocks));
    largest.truncate(threads.get());
    let mut memory = Memory::new().with_threads(2 * threads.get());
    for &(reclaim, blocks) in &largest {
        memory = memory.with_cache(blocks, reclaim);
    }
    let blocks: Vec<String> = largest.iter().map(|(_, blocks)| blocks.to_string()).collect();
    memory
        .with(&[threads.get(), trace.requests.len(), 3 * size_of::<usize>()])
        .check(&format!("caches of {} blocks at one time", blocks.join(", ")))
}

/// Returns the sizes to try: the need of the longest request, its doubles, and a size at which everything
/// fits.
fn sizes(trace: &Trace, ceiling: &max_hit_rate::Ceiling) -> Vec<usize> {
    let needs = Needs::of_blocks(trace.block_size.get());
    let longest = trace.requests.iter().map(|one| needs.most(one)).max().unwrap_or(1).max(1);
    let enough = ceiling.distinct_blocks.saturating_add(longest);
    let doubled = std::iter::successors(Some(longest), |size| size.checked_mul(2));
    doubled.take_while(|&size| size < enough).take(MOST_SIZES).chain([enough]).collect()
}

/// Serves all cells; each thread takes one after another.
fn serve_all(
    trace: &Trace,
    grid: &[(ReclaimPolicy, usize)],
    threads: NonZeroUsize,
    progress: &Progress,
) -> Result<Kept<Vec<Cell>>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let serve_cells = || {
            // Relaxed: the number alone decides which thread takes which cell.
            while let Some(&(reclaim, blocks)) = grid.get(next.fetch_add(1, Ordering::Relaxed)) {
                let cell = serve_one(trace, reclaim, blocks, progress);
                done.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
            }
        };
        for worker in crew::start(scope, threads, serve_cells)? {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        anyhow::Ok(())
    })?;
    let cells = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let cells = cells.into_iter().collect::<Result<Kept<Vec<Cell>>>>()?;
    let Ok(mut cells) = cells else { return Ok(cells) };
    cells.sort_by_key(|cell| (cell.reclaim.to_string(), cell.blocks));
    Ok(Ok(cells))
}

fn serve_one(
    trace: &Trace,
    reclaim: ReclaimPolicy,
    blocks: usize,
    progress: &Progress,
) -> Result<Kept<Cell>> {
    let block_size = trace.block_size.get();
    let needs = Needs::of_blocks(block_size);
    let cache = PagedKvCache::builder()
        .num_blocks(blocks)
        .block_size(block_size)
        .reclaim_policy(reclaim)
        .build()
        .with_context(|| format!("cannot build a cache of {blocks} blocks"))?;
    let plan = Plan {
        threads: NonZeroUsize::MIN,
        live: NonZeroUsize::MIN,
        leave_free: 0.0,
        victims: Victims::Youngest,
        threshold: 1.0,
        prompts: Prompts { id_tokens: Some(trace.id_tokens), as_tokens: false, unit: block_size },
    };
    let outcome = match serve(&cache, &trace.requests, &needs, plan, progress)? {
        Ok(outcome) => outcome,
        Err(error) => return Ok(Err(error)),
    };
    // The blocks of a rejected request count as prompt blocks without a hit.
    let asked = |one: &Request| one.named_blocks(block_size, trace.id_tokens) as u64;
    let rejected = trace.requests.iter().filter(|one| needs.most(one) > blocks);
    Ok(Ok(Cell {
        reclaim,
        blocks,
        prompt_blocks: outcome.meter.prompt_blocks + rejected.map(asked).sum::<u64>(),
        hit_blocks: outcome.meter.hit_blocks,
        reclaimed_blocks: cache.stats().blocks_reclaimed,
        rejected: outcome.rejected,
    }))
}
