//! `paged-kv soak`: checks that the cache keeps its promises for as long as the run lasts.
//!
//! Builds one cache, runs the workers on it, ends all sequences that they left, and then checks the cache.
//! No block may be in use, every block can be allocated, and the cache's accounts must agree. The random
//! operations and their checks are in the submodules.

mod by_id;
mod findings;
mod fork_group;
mod hot;
mod memory;
mod panics;
mod random;
mod report;
mod request;
mod shadow_blocks;
mod shared;
mod token_stream;
mod watch;
mod worker;

use std::io::{self, Write};

use anyhow::{Context, Result};
use paged_kv::{PagedKvCache, ReclaimPolicy};

use self::shared::Ground;
use crate::args::SoakArguments;
use crate::machine::Memory;
use crate::progress::Progress;
use crate::verdict::Verdict;
use report::Report;
use watch::{Plan, watch};

/// Bytes of a block's cells, and of its share of the parked handles.
const CELL_BYTES: usize = 64;

/// Runs the command and prints its report to standard output.
///
/// # Errors
/// The machine lacks memory or threads, the cache cannot be built, or the report cannot be written.
pub fn run(arguments: &SoakArguments) -> Result<Verdict> {
    check_memory(arguments)?;
    let ground = Ground::new(cache(arguments)?);
    let plan = Plan {
        duration: arguments.minutes,
        threads: arguments.threads().get(),
        seed: arguments.seed,
    };
    let progress = Progress::of_time();
    let seen = watch(&ground, plan, &progress);
    progress.finish();
    let seen = seen?;
    let validate = end(&ground);
    if let Some(growth) = seen.memory.growth() {
        ground.expect(growth.is_flat(), || {
            format!("the process grew from {} KiB to {} KiB", growth.warm_kib, growth.end_kib)
        });
    }
    let report = Report::new(&ground, plan, &seen, validate);
    print(&report, arguments.json).context("cannot write the report")?;
    Ok(if report.is_sound() { Verdict::Sound } else { Verdict::Broken })
}

/// Checks that the machine can hold the cache, its cells, and the prompt of each thread.
fn check_memory(arguments: &SoakArguments) -> Result<()> {
    let (blocks, threads) = (arguments.blocks.get(), arguments.threads().get());
    let tokens = [arguments.block_size.get(), 2 * token_stream::BLOCKS_MOST, 2 * size_of::<u32>()];
    Memory::new()
        .with_cache(blocks, ReclaimPolicy::Lru)
        .with(&[blocks, CELL_BYTES])
        .with_threads(threads)
        .with(&[&[threads], &tokens[..]].concat())
        .check(&format!("{blocks} blocks and {threads} threads"))
}

/// Builds the cache. The shape of the heads is arbitrary: no tensor is stored.
fn cache(arguments: &SoakArguments) -> Result<PagedKvCache> {
    PagedKvCache::builder()
        .num_blocks(arguments.blocks.get())
        .block_size(arguments.block_size.get())
        .num_heads(1)
        .head_dim(1)
        .build()
        .context("cannot build the cache")
}

/// Frees the sequences left in the map, and returns the result of `validate`: "ok", or the fault.
fn end(ground: &Ground) -> String {
    let Ground { cache, cells, .. } = ground;
    for id in cache.sequence_ids() {
        ground.granted(cache.free(id));
    }
    let (free, total) = (cache.free_block_count(), cache.total_blocks());
    ground.expect(free == total, || format!("{free} of {total} blocks are free at the end"));
    let stats = cache.stats();
    ground.expect(stats.total_allocations == stats.total_frees, || {
        format!("{} blocks allocated, {} freed", stats.total_allocations, stats.total_frees)
    });
    ground.expect(cells.entered() == 0, || {
        format!("{} blocks are still held by somebody at the end", cells.entered())
    });
    let validate = cache.validate();
    let all = ground.granted(cache.allocate_sequence(total * cache.block_size()));
    let idle = cache.stats().blocks_idle;
    ground.expect(idle == 0, || format!("{idle} blocks are idle when all are allocated"));
    drop(all);
    let validate = validate.and_then(|()| cache.validate());
    validate.map_or_else(|fault| fault.to_string(), |()| "ok".to_owned())
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)
    } else {
        write!(out, "{report}")
    }
}
