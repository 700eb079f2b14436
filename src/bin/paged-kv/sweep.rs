//! `paged-kv sweep`: how much would this trace hit in how large a cache?
//!
//! Each size and policy is a *cell*: a cache of its own, to which the trace is served one request at
//! a time, so that a cell's outcome is the same whatever runs beside it. Cells run in parallel.

mod ceiling;
mod picture;
mod table;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use paged_kv::{PagedKvCache, ReclaimPolicy};

use crate::Verdict;
use crate::args::SweepArguments;
use crate::progress::Progress;
use crate::request::Request;
use crate::serve::{Plan, serve};
use crate::trace;

/// Sizes that are tried unless they are given.
const MOST_SIZES: usize = 16;

/// What came of one size and policy.
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

/// What the trace is, to a cache.
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
/// The trace cannot be read or names no contents, a cache cannot be built, a file cannot be written.
pub fn run(arguments: &SweepArguments) -> Result<Verdict> {
    let trace = load(arguments)?;
    let ceiling = ceiling::of(&trace.requests, trace.block_size.get(), trace.id_tokens);
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
    let progress = Progress::new();
    progress.begin(grid.len() * trace.requests.len());
    let cells = serve_all(&trace, &grid, arguments.threads(), &progress);
    progress.finish();
    let cells = cells?;
    let csv = &arguments.csv;
    table::write(csv, &cells, &ceiling)
        .with_context(|| format!("cannot write {}", csv.display()))?;
    let (svg, title) = (&arguments.svg, arguments.trace.to_string_lossy());
    picture::draw(svg, &title, trace.block_size.get(), &cells, &ceiling)
        .with_context(|| format!("cannot draw {}", svg.display()))?;
    table::print(&cells, &ceiling).context("cannot write the table")?;
    Ok(Verdict::Sound)
}

fn load(arguments: &SweepArguments) -> Result<Trace> {
    let requests = trace::load(&arguments.trace, arguments.requests)?;
    let given = arguments.block_size.unwrap_or(NonZeroUsize::MIN);
    let Some(id_tokens) = trace::id_tokens(&requests, given, arguments.id_tokens)? else {
        bail!("{}: the requests have no hash_ids to share by", arguments.trace.display());
    };
    let of_an_id = NonZeroUsize::new(id_tokens).expect("an id names at least one token");
    Ok(Trace { requests, block_size: arguments.block_size.unwrap_or(of_an_id), id_tokens })
}

/// From what the longest request needs, doubled, to where everything fits.
fn sizes(trace: &Trace, ceiling: &ceiling::Ceiling) -> Vec<usize> {
    let needs = trace.requests.iter().map(|one| one.blocks_needed(trace.block_size.get()));
    let longest = needs.max().unwrap_or(1).max(1);
    let enough = ceiling.distinct_blocks + longest;
    let doubled = std::iter::successors(Some(longest), |size| size.checked_mul(2));
    doubled.take_while(|&size| size < enough).take(MOST_SIZES).chain([enough]).collect()
}

/// As many threads take one cell after the other.
fn serve_all(
    trace: &Trace,
    grid: &[(ReclaimPolicy, usize)],
    threads: NonZeroUsize,
    progress: &Progress,
) -> Result<Vec<Cell>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.get().min(grid.len()) {
            scope.spawn(|| {
                // Relaxed: the number alone tells who takes which cell.
                while let Some(&(reclaim, blocks)) = grid.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let cell = serve_one(trace, reclaim, blocks, progress);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
                }
            });
        }
    });
    let cells = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut cells = cells.into_iter().collect::<Result<Vec<Cell>>>()?;
    cells.sort_by_key(|cell| (cell.reclaim.to_string(), cell.blocks));
    Ok(cells)
}

fn serve_one(
    trace: &Trace,
    reclaim: ReclaimPolicy,
    blocks: usize,
    progress: &Progress,
) -> Result<Cell> {
    let block_size = trace.block_size.get();
    let cache = PagedKvCache::builder()
        .num_blocks(blocks)
        .block_size(block_size)
        .with_reclaim_policy(reclaim)
        .build()
        .with_context(|| format!("cannot build a cache of {blocks} blocks"))?;
    let plan = Plan {
        as_tokens: false,
        threads: NonZeroUsize::MIN,
        live: NonZeroUsize::MIN,
        threshold: 1.0,
        id_tokens: Some(trace.id_tokens),
    };
    let outcome = serve(&cache, &trace.requests, plan, progress)
        .with_context(|| format!("{blocks} blocks, {reclaim}"))?;
    // A request that is rejected asks for its blocks, and hits none.
    let asked = |one: &Request| (one.prompt_tokens() / block_size) as u64;
    let rejected = trace.requests.iter().filter(|one| one.blocks_needed(block_size) > blocks);
    Ok(Cell {
        reclaim,
        blocks,
        prompt_blocks: outcome.meter.prompt_blocks + rejected.map(asked).sum::<u64>(),
        hit_blocks: outcome.meter.hit_blocks,
        reclaimed_blocks: cache.stats().blocks_reclaimed,
        rejected: outcome.rejected,
    })
}
