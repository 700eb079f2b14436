//! `paged-kv sweep`: the hit rates of a trace in caches of many sizes.
//!
//! Each size and curve (a policy, or groups of layers) is a *cell*, with a cache of its own. It serves the trace one request at a time, so
//! that other cells do not affect its result. Cells run in parallel.

mod clairvoyant;
mod curve;
mod max_hit_rate;
pub mod overlap;
mod svg;
mod table;
mod tier_table;

use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use paged_kv::PagedKvCache;

use self::clairvoyant::{Chains, Clairvoyant};
use self::curve::Curve;
use self::overlap::{Running, TokenTimes};
use crate::args::SweepArguments;
use crate::layer_groups::{GroupArguments, LayerGroups};
use crate::machine::Memory;
use crate::outputs::{self, Output};
use crate::progress::Progress;
use crate::serve::needs::Needs;
use crate::serve::prompts::Prompts;
use crate::serve::worker::offload::Offload;
use crate::serve::{Kept, Plan, Victims, serve};
use crate::tiers::TierSetup;
use crate::tiers::usage::Usage;
use crate::trace::request::Request;
use crate::verdict::{Verdict, complain};
use crate::{crew, trace};

/// The most doubled sizes that are tried if none are given.
const MOST_SIZES: usize = 16;

/// The result of one size and curve.
#[derive(Clone, Debug)]
struct Cell {
    /// The number of the curve.
    number: usize,
    curve: Curve,
    blocks: usize,
    prompt_blocks: u64,
    hit_blocks: u64,
    /// The hits that the group with the longest one had.
    longest_hit_blocks: u64,
    /// Tokens by which each group of layers made hits shorter.
    lost_tokens: Vec<u64>,
    reclaimed_blocks: u64,
    /// Requests larger than the cache.
    rejected: u64,
    /// Tokens of admitted prompts that hit, and those that were computed.
    tokens: [u64; 2],
    /// In a sweep of tiers, unless the curve has none.
    tiers: Option<Usage>,
}

/// The trace, and the sizes by which caches serve it.
struct Trace {
    name: String,
    requests: Vec<Request>,
    id_tokens: usize,
    groups: Option<LayerGroups>,
    needs: Needs,
    /// The needs in a cache without groups, whose blocks have the tokens of a hash.
    needs_of_full: Needs,
    /// The times of a token, if requests overlap.
    times: Option<TokenTimes>,
}

/// The result of a cache that knows the trace.
struct Foreseen {
    blocks: usize,
    hit_blocks: u64,
}

/// The results beside those of the cells.
struct Bounds {
    ceiling: max_hit_rate::Ceiling,
    /// By size. Empty with groups of layers.
    foreseen: Vec<Foreseen>,
}

impl Bounds {
    fn new(trace: &Trace, ceiling: max_hit_rate::Ceiling, sizes: &[usize]) -> Result<Self> {
        let mut foreseen = Vec::new();
        if trace.groups.is_none() {
            let (requests, unit) = (&trace.requests[..], trace.needs.unit());
            let largest = sizes.iter().copied().max().unwrap_or(0);
            let chains = Chains::new(requests, unit, trace.id_tokens, largest);
            for &blocks in sizes {
                let cache = Clairvoyant::new(&chains, requests, blocks);
                let fits = |one: &Request| trace.needs.most(one) <= blocks;
                let hit_blocks = match trace.times {
                    None => cache.serve_in_turn(),
                    Some(times) => overlap::serve(cache, requests, unit, times, fits)?,
                };
                foreseen.push(Foreseen { blocks, hit_blocks });
            }
        }
        Ok(Self { ceiling, foreseen })
    }
}

impl Cell {
    fn hit_rate(&self) -> f64 {
        self.hit_blocks as f64 / self.prompt_blocks.max(1) as f64
    }

    /// Returns the tokens of prompts that were on the device.
    fn device_tokens(&self) -> u64 {
        let [hit, _] = self.tokens;
        self.tiers.as_ref().map_or(hit, |tiers| tiers.device_tokens)
    }

    fn longest_hit_rate(&self) -> f64 {
        self.longest_hit_blocks as f64 / self.prompt_blocks.max(1) as f64
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
    let ceiling = max_hit_rate::of(&trace.requests, trace.needs.unit(), trace.id_tokens);
    let sizes = if arguments.blocks.is_empty() {
        sizes(&trace, &ceiling)
    } else {
        arguments.blocks.iter().map(|blocks| blocks.get()).collect()
    };
    let curves = Curve::all(arguments);
    let numbers = 0..curves.len();
    let grid: Vec<(usize, usize)> =
        numbers.flat_map(|number| sizes.iter().map(move |&blocks| (number, blocks))).collect();
    let threads =
        arguments.threads().min(NonZeroUsize::new(grid.len()).unwrap_or(NonZeroUsize::MIN));
    check_memory(&trace, &curves, &grid, threads)?;
    // Opened before serving, so that a file that cannot be written does not lose the result of an hour.
    let (csv, svg) = (Output::open(csv)?, Output::open(svg)?);
    let bounds = Bounds::new(&trace, ceiling, &sizes)?;
    let progress = Progress::new();
    progress.begin(grid.len() * trace.requests.len());
    let cells = serve_all(&trace, &curves, &grid, threads, &progress);
    progress.finish();
    let cells = match cells? {
        Ok(cells) => cells,
        Err(error) => {
            complain(&format!("the cache broke a promise: {error}"));
            return Ok(Verdict::Broken);
        }
    };
    let mut lines = Vec::new();
    table::write(&mut lines, &trace, &cells, &bounds)?;
    let picture = svg::draw(&trace, &cells, &bounds).context("cannot draw the picture")?;
    csv.replace(&lines)?;
    svg.replace(picture.as_bytes())?;
    table::print(&trace, &cells, &bounds).context("cannot write the table")?;
    Ok(Verdict::Sound)
}

fn load(arguments: &SweepArguments) -> Result<Trace> {
    let trace = trace::load(&arguments.trace, arguments.format, arguments.requests)?;
    let GroupArguments { groups, prefill_chunk } = &arguments.groups;
    let given = arguments.groups.unit(arguments.block_size.unwrap_or(NonZeroUsize::MIN));
    let Some(id_tokens) = trace::id_tokens(&trace, given, arguments.id_tokens)? else {
        bail!("{}: the requests have no hash_ids to share by", trace.name);
    };
    let of_an_id = NonZeroUsize::new(id_tokens).expect("an id names at least one token");
    let block_size = arguments.groups.unit(arguments.block_size.unwrap_or(of_an_id)).get();
    let needs = match groups {
        None => Needs::of_blocks(block_size),
        Some(groups) => Needs::of_groups(groups, prefill_chunk.get())?,
    };
    Ok(Trace {
        name: arguments.trace.to_string_lossy().into_owned(),
        requests: trace.requests,
        id_tokens,
        groups: groups.clone(),
        needs,
        needs_of_full: Needs::of_blocks(block_size),
        times: arguments.overlap,
    })
}

/// Checks that the machine can hold the largest caches that may be in use at the same time.
fn check_memory(
    trace: &Trace,
    curves: &[Curve],
    grid: &[(usize, usize)],
    threads: NonZeroUsize,
) -> Result<()> {
    let caches = grid.iter().map(|&(number, blocks)| {
        let curve = &curves[number];
        (curve.reclaim, curve.cache_blocks(trace, blocks), curve.setup(blocks))
    });
    let mut largest: Vec<_> = caches.collect();
    let slots = |tiers: Option<TierSetup>| tiers.map_or(0, |tiers| tiers.slots());
    largest.sort_by_key(|&(_, blocks, tiers)| Reverse(blocks.saturating_add(slots(tiers))));
    largest.truncate(threads.get());
    let mut memory = Memory::new().with_threads(2 * threads.get());
    for (reclaim, blocks, tiers) in &largest {
        memory = memory.with_cache(*blocks, *reclaim).with_tiers(tiers.as_ref());
    }
    let blocks: Vec<String> = largest.iter().map(|(_, blocks, _)| blocks.to_string()).collect();
    memory
        .with(&[threads.get(), trace.requests.len(), 3 * size_of::<usize>()])
        .check(&format!("caches of {} blocks at one time", blocks.join(", ")))
}

/// Returns the sizes to try: the need of the longest request, its doubles, and a size at which everything
/// fits.
fn sizes(trace: &Trace, ceiling: &max_hit_rate::Ceiling) -> Vec<usize> {
    let longest =
        |needs: &Needs| trace.requests.iter().map(|one| needs.most(one)).max().unwrap_or(1);
    let [longest, longest_of_full] =
        [&trace.needs, &trace.needs_of_full].map(|needs| longest(needs).max(1));
    let mut enough = ceiling.distinct_blocks.saturating_add(longest_of_full);
    if let Some(groups) = &trace.groups {
        let of_group = |kind: &paged_kv::LayerGroup| {
            ceiling.distinct_blocks.div_ceil(kind.block_size() / groups.unit())
        };
        let cached = groups.kinds().iter().map(of_group).fold(longest, usize::saturating_add);
        enough = groups.pool_blocks(enough).max(cached);
    }
    let doubled = std::iter::successors(Some(longest), |size| size.checked_mul(2));
    doubled.take_while(|&size| size < enough).take(MOST_SIZES).chain([enough]).collect()
}

/// Serves all cells; each thread takes one after another.
fn serve_all(
    trace: &Trace,
    curves: &[Curve],
    grid: &[(usize, usize)],
    threads: NonZeroUsize,
    progress: &Progress,
) -> Result<Kept<Vec<Cell>>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let serve_cells = || {
            // Relaxed: the number alone decides which thread takes which cell.
            while let Some(&(number, blocks)) = grid.get(next.fetch_add(1, Ordering::Relaxed)) {
                let cell = serve_one(trace, (number, &curves[number]), blocks, progress);
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
    cells.sort_by_key(|cell| (cell.number, cell.blocks));
    Ok(Ok(cells))
}

fn serve_one(
    trace: &Trace,
    (number, curve): (usize, &Curve),
    blocks: usize,
    progress: &Progress,
) -> Result<Kept<Cell>> {
    let (cache, needs) = (curve.cache(trace, blocks)?, curve.needs(trace));
    let (unit, setup) = (needs.unit(), curve.setup(blocks));
    let plan = Plan {
        threads: NonZeroUsize::MIN,
        live: NonZeroUsize::MIN,
        leave_free: 0.0,
        victims: Victims::Youngest,
        threshold: 1.0,
        prompts: Prompts { id_tokens: Some(trace.id_tokens), as_tokens: false, unit },
        offload: setup.map(|setup| Offload::new(&setup, unit)),
        gives_hints: curve.gives_hints,
    };
    if let Some(times) = trace.times {
        let cell = serve_overlapped(trace, (number, curve), &cache, plan.prompts, times);
        progress.advance(trace.requests.len());
        return cell.map(Ok);
    }
    let outcome = match serve(&cache, &trace.requests, needs, plan, progress)? {
        Ok(outcome) => outcome,
        Err(error) => return Ok(Err(error)),
    };
    // The blocks of a rejected request count as prompt blocks without a hit.
    let asked = |one: &Request| one.named_blocks(unit, trace.id_tokens) as u64;
    let rejected = trace.requests.iter().filter(|one| needs.most(one) > cache.total_blocks());
    let stats = cache.stats();
    Ok(Ok(Cell {
        number,
        curve: curve.clone(),
        blocks,
        prompt_blocks: outcome.meter.prompt_blocks + rejected.map(asked).sum::<u64>(),
        hit_blocks: outcome.meter.hit_blocks,
        longest_hit_blocks: outcome.meter.longest_hit_blocks,
        lost_tokens: stats.groups.iter().map(|counts| counts.prompt_tokens_lost).collect(),
        reclaimed_blocks: stats.blocks_reclaimed,
        rejected: outcome.rejected,
        tokens: [outcome.meter.prompt_tokens_hit, outcome.meter.prompt_tokens_computed],
        tiers: setup.map(|setup| Usage::new(&setup, unit, &outcome.meter, &stats)),
    }))
}

/// Serves the trace by its timestamps.
fn serve_overlapped(
    trace: &Trace,
    (number, curve): (usize, &Curve),
    cache: &PagedKvCache,
    prompts: Prompts,
    times: TokenTimes,
) -> Result<Cell> {
    let (requests, unit, blocks) = (&trace.requests[..], prompts.unit, cache.total_blocks());
    let fits = |one: &Request| trace.needs.most(one) <= blocks;
    let running = Running::new(cache, requests, prompts, curve.gives_hints);
    let hit_blocks = overlap::serve(running, requests, unit, times, fits)?;
    let asked = |one: &Request| one.named_blocks(unit, trace.id_tokens) as u64;
    Ok(Cell {
        number,
        curve: curve.clone(),
        blocks,
        prompt_blocks: requests.iter().map(asked).sum(),
        hit_blocks,
        longest_hit_blocks: hit_blocks,
        lost_tokens: Vec::new(),
        reclaimed_blocks: cache.stats().blocks_reclaimed,
        rejected: requests.iter().filter(|one| !fits(one)).count() as u64,
        tokens: [0, 0],
        tiers: None,
    })
}
