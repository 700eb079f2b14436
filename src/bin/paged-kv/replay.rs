//! `paged-kv replay`: does the cache hold its promises over a whole trace, and how fast?
//!
//! Gets the requests, builds the cache, serves, and then asks the cache what is left: nothing may
//! be, and its own accounts must agree. This file knows the order of these acts and none of them.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use paged_kv::{PagedKvCache, PagedKvCacheBuilder};

use crate::Verdict;
use crate::args::ReplayArguments;
use crate::progress::Progress;
use crate::report::{Report, Setting};
use crate::request::Request;
use crate::serve::{Plan, serve};
use crate::{synthetic, trace};

/// Synthetic requests unless a number is asked for.
const SYNTHETIC_REQUESTS: usize = 100_000;

/// Runs the command and prints its report to standard output.
///
/// # Errors
/// The trace cannot be read, the cache cannot be built as asked, or nobody reads the report.
pub fn run(arguments: &ReplayArguments) -> Result<Verdict> {
    let requests = requests(arguments)?;
    #[cfg(feature = "events")]
    let publishing = crate::publish::Publishing::start(&arguments.publish)?;
    let builder = cache_builder(arguments);
    #[cfg(feature = "events")]
    let builder = match &publishing {
        Some(publishing) => builder.with_event_sink(publishing.publisher.clone()),
        None => builder,
    };
    let cache = builder.build().context("cannot build the cache")?;
    let plan = Plan {
        #[cfg(feature = "events")]
        as_tokens: publishing.is_some(),
        #[cfg(not(feature = "events"))]
        as_tokens: false,
        threads: arguments.threads(),
        live: arguments.live,
        threshold: arguments.threshold,
        id_tokens: if arguments.reuse {
            trace::id_tokens(&requests, arguments.block_size, arguments.id_tokens)?
        } else {
            None
        },
    };
    let progress = Progress::new();
    progress.begin(requests.len());
    let served = serve(&cache, &requests, plan, &progress);
    progress.finish();
    let outcome = match served {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("error: the cache broke a promise: {error}");
            return Ok(Verdict::Broken);
        }
    };
    let trace = arguments.trace.as_deref().map_or("synthetic".into(), Path::to_string_lossy);
    let reclaim = arguments.reclaim;
    let setting = Setting { trace: &trace, requests: requests.len() as u64, plan, reclaim };
    #[cfg(feature = "events")]
    if let Some(publishing) = publishing {
        publishing.end(&mut io::stderr()).context("cannot say what was published")?;
    }
    let report = Report::new(&setting, &outcome, &cache);
    print(&report, arguments.json).context("cannot write the report")?;
    Ok(if report.is_sound() { Verdict::Sound } else { Verdict::Broken })
}

fn requests(arguments: &ReplayArguments) -> Result<Vec<Request>> {
    match &arguments.trace {
        Some(path) => trace::load(path, arguments.requests),
        None => {
            let count = arguments.requests.unwrap_or(SYNTHETIC_REQUESTS);
            Ok(synthetic::requests(arguments.seed, count))
        }
    }
}

/// The shape of the heads is anything: no tensor is stored.
fn cache_builder(arguments: &ReplayArguments) -> PagedKvCacheBuilder {
    PagedKvCache::builder()
        .num_blocks(arguments.blocks.get())
        .block_size(arguments.block_size.get())
        .num_heads(1)
        .head_dim(1)
        .with_eviction_strategy(arguments.strategy)
        .with_eviction_threshold(arguments.threshold)
        .with_reclaim_policy(arguments.reclaim)
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
