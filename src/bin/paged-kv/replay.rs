//! `paged-kv replay`: serves a whole trace and checks the cache afterwards.
//!
//! Loads the requests, builds the cache, serves, and then checks the cache: no block may be left in use,
//! and its accounts must agree.

#[cfg(feature = "events")]
pub mod publish;
pub mod report;
pub mod synthetic;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, Result};
use paged_kv::{BlockHash, PagedKvCache, PagedKvCacheBuilder};

use self::report::{Report, Setting};
use crate::args::ReplayArguments;
use crate::layer_groups::GroupArguments;
use crate::machine::Memory;
use crate::outputs;
use crate::progress::Progress;
use crate::serve::needs::Needs;
use crate::serve::prompts::Prompts;
use crate::serve::worker::offload::Offload;
use crate::serve::{Plan, serve};
use crate::tiers::TierSetup;
use crate::trace;
use crate::trace::request::Request;
use crate::verdict::{Verdict, complain};

/// Default number of synthetic requests.
const SYNTHETIC_REQUESTS: usize = 100_000;

/// Bytes of a synthetic request, and of its place in the queue.
const REQUEST_BYTES: usize = size_of::<Request>() + WAITING_BYTES;

/// Bytes of a request's place in the queue, which grows by doubling.
const WAITING_BYTES: usize = 3 * size_of::<usize>();

/// Bytes of the hashes of one block of the current prompt. Their vector grows by doubling and is copied.
const HASH_BYTES: usize = 4 * size_of::<BlockHash>();

/// Bytes of a token.
const TOKEN_BYTES: usize = size_of::<u32>();

/// Bytes of a published block in addition to its tokens: tables that grow by doubling.
const LISTENED_BYTES: usize = 200;

/// Address space that the publisher's threads reserve, in bytes.
const PUBLISHER_BYTES: usize = 192 << 20;

/// Runs the command and prints its report to standard output.
///
/// # Errors
/// The trace cannot be read, the machine lacks memory or threads, the cache cannot be built, or the
/// report cannot be written.
pub fn run(arguments: &ReplayArguments) -> Result<Verdict> {
    outputs::check_distinct(arguments.trace.as_deref(), &[])?;
    let begin = Instant::now();
    let Input { name, requests, id_tokens } = input(arguments)?;
    let reading = begin.elapsed();
    let needs = needs(arguments)?;
    check_memory(arguments, &requests, &needs, id_tokens)?;
    #[cfg(feature = "events")]
    let publishing = crate::replay::publish::Publishing::start(&arguments.publish)?;
    let tiers = arguments.tiers.setup(arguments.blocks().get());
    let builder = cache_builder(arguments, tiers.as_ref());
    #[cfg(feature = "events")]
    let builder = match &publishing {
        Some(publishing) => builder.event_sink(publishing.publisher.clone()),
        None => builder,
    };
    let cache = builder.build().context("cannot build the cache")?;
    let plan = Plan {
        threads: arguments.threads(),
        live: arguments.live(mean_blocks(&requests, &needs)),
        leave_free: arguments.leave_free,
        victims: arguments.strategy,
        threshold: arguments.threshold,
        prompts: Prompts { id_tokens, as_tokens: arguments.publishes(), unit: needs.unit() },
        offload: tiers.map(|setup| Offload::new(&setup, needs.unit())),
        gives_hints: arguments.hints,
    };
    let progress = Progress::new();
    progress.begin(requests.len());
    let served = serve(&cache, &requests, &needs, plan, &progress);
    progress.finish();
    let outcome = match served? {
        Ok(outcome) => outcome,
        Err(error) => {
            complain(&format!("the cache broke a promise: {error}"));
            return Ok(Verdict::Broken);
        }
    };
    let setting = Setting {
        trace: &name,
        requests: requests.len() as u64,
        reading,
        plan,
        reclaim: arguments.reclaim,
        groups: arguments.groups.groups.as_ref(),
        retention: arguments.group_retention,
        tiers,
    };
    #[cfg(feature = "events")]
    if let Some(publishing) = publishing {
        publishing.end(&mut io::stderr()).context("cannot say what was published")?;
    }
    let report = Report::new(&setting, &outcome, &cache);
    print(&report, arguments.json).context("cannot write the report")?;
    Ok(if report.is_sound() { Verdict::Sound } else { Verdict::Broken })
}

/// The requests to serve.
struct Input {
    name: String,
    requests: Vec<Request>,
    /// Tokens of a content, if prompts share their common contents.
    id_tokens: Option<usize>,
}

fn input(arguments: &ReplayArguments) -> Result<Input> {
    let Some(path) = &arguments.trace else {
        let count = arguments.requests.map_or(SYNTHETIC_REQUESTS, NonZeroUsize::get);
        Memory::new().with(&[count, REQUEST_BYTES]).check(&format!("{count} requests"))?;
        let requests = synthetic::requests(arguments.seed, count);
        return Ok(Input { name: "synthetic".to_owned(), requests, id_tokens: None });
    };
    let trace = trace::load(path, arguments.format, arguments.requests)?;
    let id_tokens = if arguments.reuse {
        let unit = arguments.groups.unit(arguments.block_size);
        trace::id_tokens(&trace, unit, arguments.id_tokens)?
    } else {
        arguments.id_tokens.map_or(Ok(()), |tokens| trace::check_ids(&trace, tokens))?;
        None
    };
    Ok(Input { name: trace.name, requests: trace.requests, id_tokens })
}

fn needs(arguments: &ReplayArguments) -> Result<Needs> {
    let GroupArguments { groups, prefill_chunk } = &arguments.groups;
    Ok(match groups {
        None => Needs::of_blocks(arguments.block_size.get()),
        Some(groups) => Needs::of_groups(groups, prefill_chunk.get())?,
    })
}

/// Returns the blocks that a request needs on average, at least one.
fn mean_blocks(requests: &[Request], needs: &Needs) -> NonZeroUsize {
    let needs = requests.iter().map(|request| needs.most(request) as u128);
    let mean = needs.sum::<u128>() / requests.len().max(1) as u128;
    usize::try_from(mean).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

/// Checks that the machine can hold the cache, the threads, and for each thread the prompt of the longest
/// request that comes back: its tokens and hashes, copied once.
fn check_memory(
    arguments: &ReplayArguments,
    requests: &[Request],
    needs: &Needs,
    id_tokens: Option<usize>,
) -> Result<()> {
    let (blocks, size) = (arguments.blocks().get(), needs.unit());
    let threads = arguments.threads().get();
    let all_tokens = |request: &Request| request.prompt_tokens() + request.output_tokens();
    let fitting = requests.iter().filter(|request| needs.most(request) <= blocks);
    let longest = fitting.map(all_tokens).max().unwrap_or(0);
    let mut memory = Memory::new()
        .with_cache(blocks, arguments.reclaim)
        .with_tiers(arguments.tiers.setup(blocks).as_ref())
        .with_threads(threads)
        .with(&[requests.len(), WAITING_BYTES])
        .with(&[threads, longest / size, HASH_BYTES]);
    if arguments.publishes() {
        let prompts = if id_tokens.is_some() { threads } else { 0 };
        memory = memory
            .with_address_space(PUBLISHER_BYTES)
            .with(&[blocks, LISTENED_BYTES])
            .with(&[blocks, size, TOKEN_BYTES])
            .with(&[prompts, longest, 2 * TOKEN_BYTES]);
    }
    memory.check(&format!("{} blocks and {threads} threads", arguments.blocks()))
}

/// Returns the cache's builder. The shape of the heads is arbitrary: no tensor is stored.
fn cache_builder(arguments: &ReplayArguments, tiers: Option<&TierSetup>) -> PagedKvCacheBuilder {
    let builder = PagedKvCache::builder()
        .num_blocks(arguments.blocks().get())
        .block_size(arguments.block_size.get())
        .num_heads(1)
        .head_dim(1)
        .with_eviction_strategy(arguments.strategy.strategy())
        .with_eviction_threshold(arguments.threshold)
        .reclaim_policy(arguments.reclaim);
    let builder = match tiers {
        None => builder,
        Some(tiers) => tiers.build_into(builder),
    };
    match &arguments.groups.groups {
        None => builder,
        Some(groups) => groups.build_into(builder, arguments.group_retention),
    }
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
