//! `Arguments`: the parsed command line.
//!
//! Every value is in range: sizes are not zero, the threshold is in 0..=1, the strategy is one the
//! cache has. Parsing reads no files and uses no cache.

mod values;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use paged_kv::{GroupRetention, ReclaimPolicy};

use self::values::{POLICIES, format, minutes, policy, requests, share, switch, victims};
use crate::layer_groups::{GroupArguments, retention};
use crate::serve::Victims;
use crate::sweep::overlap::TokenTimes;
use crate::tiers::options::{TierArguments, TierCurveArguments};
use crate::trace::{Format, LONGEST_MIB};

/// Priorities that `--strategy priority` assigns, so that the strategy has something to choose by.
pub const PRIORITY_LEVELS: usize = 4;

/// Blocks for each worker in the default pool: 64 synthetic requests need 12,700.
const WORKER_BLOCKS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// The most requests that a worker holds by default.
const MOST_LIVE: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The largest default pool, in blocks: 90 MiB.
const MOST_BLOCKS: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();

/// The smallest default pool, in blocks.
const LEAST_BLOCKS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// The exit codes, for `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  the command did what was asked
  1  the cache failed a check
  2  the command was refused: bad options or input, or memory, threads or files that cannot be had";

/// Returns the text of `--help` about traces.
fn about_traces() -> String {
    format!(
        "{EXIT_CODES}\n\n\
         A trace is a file, a pipe, or - for standard input. Its name tells the format, or --format \
         does; its first bytes tell whether it is compressed by gzip. Lines may be {LONGEST_MIB} MiB \
         long."
    )
}

/// Drive a paged KV cache with request traces.
#[derive(Debug, Parser)]
#[command(name = "paged-kv", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve every request of a trace from one shared cache, as fast as possible.
    ///
    /// Requests are batched continuously: each worker admits prompts, appends one token per step to
    /// each request it holds, and frees a request that has all its output. A prompt waits while there is
    /// no room for it and for the rest of all outputs (see --leave-free). A worker whose append finds no
    /// room preempts its youngest request, which continues later; its blocks that are still cached then are
    /// not computed again (see --strategy). A request that the pool cannot hold is rejected.
    #[command(after_help = about_traces())]
    Replay(ReplayArguments),

    /// Measure the hit rate of a trace over cache sizes, as a table and a picture.
    ///
    /// Serves the trace once for each size and policy, one request at a time. Writes the share of
    /// prompt blocks that hit for each size of the cache, and the share that an unlimited cache would
    /// hit: a CSV file and an SVG picture. With --groups, it compares the groups with caches of the same
    /// bytes in which all layers attend to all tokens. With --host-blocks, it has a curve for each size of the tier.
    #[command(after_help = about_traces())]
    Sweep(SweepArguments),

    /// Run the cache's operations at random, from many threads, for a given time, and check the results.
    ///
    /// Every writer of a block puts its tag into a cell beside the block, and the block must have no other
    /// writer; matched blocks must hold the contents that their hashes promise; workers panic at random;
    /// memory must stay flat; at the end no block may be in use. Exits with 1 at the first finding.
    #[command(after_help = EXIT_CODES)]
    Soak(SoakArguments),
}

/// Options of `soak`.
#[derive(Args, Clone, Debug)]
pub struct SoakArguments {
    /// Duration in minutes; fractions are allowed
    #[arg(long, value_name = "M", default_value = "1", value_parser = minutes)]
    pub minutes: Duration,

    /// Workers that share the cache [default: the cores of this machine, at least 2]
    #[arg(long, short = 't', value_name = "T")]
    threads: Option<NonZeroUsize>,

    /// Blocks in the pool
    #[arg(long, value_name = "B", default_value = "1024")]
    pub blocks: NonZeroUsize,

    /// Tokens per block
    #[arg(long, value_name = "S", default_value = "16")]
    pub block_size: NonZeroUsize,

    /// Seed of the workers' requests
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,
}

impl SoakArguments {
    /// Returns the workers asked for, or the threads that this machine runs in parallel, at least two.
    pub fn threads(&self) -> NonZeroUsize {
        let two = NonZeroUsize::MIN.saturating_add(1);
        self.threads.unwrap_or_else(|| thread::available_parallelism().map_or(two, |t| t.max(two)))
    }
}

/// Options of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArguments {
    /// Mooncake JSONL (.jsonl, .jsonl.gz) or Azure CSV (.csv, .csv.gz), - for standard input; without
    /// it, a synthetic multi-turn workload
    pub trace: Option<PathBuf>,

    /// Format of the trace, jsonl or csv [default: by its name]
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "trace")]
    pub format: Option<Format>,

    /// Workers that share the cache [default: the cores of this machine]
    #[arg(long, short = 't', value_name = "T")]
    threads: Option<NonZeroUsize>,

    /// Requests that a worker may hold at the same time [default: as many as need the worker's share of
    /// the pool, at most 64]
    #[arg(long, value_name = "L")]
    live: Option<NonZeroUsize>,

    /// Blocks that a prompt must leave free to be admitted, as a share, 0 to 1, of the blocks that it and
    /// the running requests will still take for their outputs: with 1 hardly any request is preempted
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = share)]
    pub leave_free: f64,

    /// Blocks in the pool [default: 16384 a worker, from 65536 to 1048576]
    #[arg(long, value_name = "N")]
    blocks: Option<NonZeroUsize>,

    /// Tokens per block
    #[arg(long, value_name = "B", default_value = "16")]
    pub block_size: NonZeroUsize,

    /// Requests that give way when there is no room to append: the worker's youngest, which keeps its blocks
    /// cached, or those that the cache's eviction strategy selects among the requests of all workers: lru,
    /// lfu, longest, priority (request i has priority i mod 4) or streaming:SINK,WINDOW (in tokens)
    #[arg(long, default_value = "youngest", value_parser = victims)]
    pub strategy: Victims,

    /// Whether prompts share the contents that the trace says they have in common (`hash_ids`): on or off
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = switch,
          action = clap::ArgAction::Set)]
    pub reuse: bool,

    /// Which cached contents are reclaimed first when free blocks run out: lru, two-queue or hit-density
    #[arg(long, value_name = "POLICY", default_value = "lru", value_parser = policy)]
    pub reclaim: ReclaimPolicy,

    /// Release requests with hints from the sessions of the trace, which hit-density uses: back soon or closed
    #[arg(long, requires = "trace")]
    pub hints: bool,

    /// Tokens that one of the trace's hash ids names, a multiple of the block size [default:
    /// inferred from the lengths of the prompts]
    #[arg(long, value_name = "TOKENS")]
    pub id_tokens: Option<NonZeroUsize>,

    /// Utilization, 0 to 1, down to which an eviction strategy evicts when there is no room
    #[arg(long, default_value = "0.9", value_parser = share)]
    pub threshold: f64,

    /// Serve only the first R requests of the trace, or make R synthetic ones [default: the
    /// whole trace, or 100000]
    #[arg(long, value_name = "R", value_parser = requests)]
    pub requests: Option<NonZeroUsize>,

    /// Seed of the synthetic workload
    #[arg(long, default_value = "0")]
    pub seed: u64,

    #[command(flatten)]
    pub groups: GroupArguments,

    /// Contents of windows and chunks that stay cached: dense (all that a hit can need), every:TOKENS (for hits at
    /// multiples of it) or prompt-end (for hits of the whole prompt)
    #[arg(long, value_name = "RETENTION", default_value = "dense", requires = "groups",
          value_parser = retention)]
    pub group_retention: GroupRetention,

    #[command(flatten)]
    pub tiers: TierArguments,

    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,

    #[cfg(feature = "events")]
    #[command(flatten)]
    pub publish: crate::replay::publish::PublishArguments,
}

impl ReplayArguments {
    /// Returns the workers asked for, or the threads that this machine runs in parallel.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(cores)
    }

    /// Returns the blocks asked for, or a default that grows with the workers.
    pub fn blocks(&self) -> NonZeroUsize {
        let of_workers = self.threads().saturating_mul(WORKER_BLOCKS);
        self.blocks.unwrap_or(of_workers.clamp(LEAST_BLOCKS, MOST_BLOCKS))
    }

    /// Returns the live requests asked for, or as many of `mean_blocks` blocks as fit into a worker's share of
    /// the pool, but not more than a batch of usual size.
    pub fn live(&self, mean_blocks: NonZeroUsize) -> NonZeroUsize {
        let of_all = self.threads().saturating_mul(mean_blocks);
        let fitting = NonZeroUsize::new(self.blocks().get().div_ceil(of_all.get()));
        self.live.unwrap_or(fitting.unwrap_or(NonZeroUsize::MIN).min(MOST_LIVE))
    }

    /// Returns whether KV events are published.
    pub fn publishes(&self) -> bool {
        #[cfg(feature = "events")]
        return self.publish.is_asked_for();
        #[cfg(not(feature = "events"))]
        false
    }
}

/// Options of `sweep`.
#[derive(Args, Clone, Debug)]
pub struct SweepArguments {
    /// Mooncake JSONL (.jsonl, .jsonl.gz) with `hash_ids`, - for standard input
    pub trace: PathBuf,

    /// Format of the trace, jsonl or csv [default: by its name]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,

    /// Sizes of the cache, in blocks [default: from the longest request on, doubled until nothing is
    /// reclaimed]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    pub blocks: Vec<NonZeroUsize>,

    /// Which cached contents are reclaimed first when free blocks run out: some of lru, two-queue, hit-density [default: all;
    /// with groups or tiers lru]
    #[arg(long, value_name = "POLICY,..", value_delimiter = ',', value_parser = policy)]
    reclaim: Vec<ReclaimPolicy>,

    /// Add curves of hit-density with hints: requests whose session has another one within half a minute, or no other
    #[arg(long, conflicts_with = "groups")]
    pub hints: bool,

    /// Serve requests by their timestamps, not one at a time: they hold their blocks for so many milliseconds a token
    #[arg(long, value_name = "PREFILL,DECODE", value_parser = TokenTimes::parse,
          conflicts_with = "groups")]
    pub overlap: Option<TokenTimes>,

    /// Tokens per block [default: as many as one of the trace's hash ids names]
    #[arg(long, value_name = "B")]
    pub block_size: Option<NonZeroUsize>,

    /// Tokens that one of the trace's hash ids names, a multiple of the block size [default:
    /// inferred from the lengths of the prompts]
    #[arg(long, value_name = "TOKENS")]
    pub id_tokens: Option<NonZeroUsize>,

    /// Serve only the first R requests of the trace
    #[arg(long, value_name = "R", value_parser = requests)]
    pub requests: Option<NonZeroUsize>,

    #[command(flatten)]
    pub groups: GroupArguments,

    /// Contents of windows and chunks that stay cached, a curve for each: some of dense (all that a hit can need),
    /// every:TOKENS (for hits at multiples of it), prompt-end (for hits of the whole prompt)
    #[arg(long, value_name = "RETENTION,..", value_delimiter = ',', default_value = "dense",
          requires = "groups", value_parser = retention)]
    pub group_retention: Vec<GroupRetention>,

    #[command(flatten)]
    pub tiers: TierCurveArguments,

    /// Caches that are tried in parallel [default: the cores of this machine]
    #[arg(long, short = 't', value_name = "T")]
    threads: Option<NonZeroUsize>,

    /// File for the table
    #[arg(long, value_name = "FILE", default_value = "hit-rate.csv")]
    pub csv: PathBuf,

    /// File for the picture
    #[arg(long, value_name = "FILE", default_value = "hit-rate.svg")]
    pub svg: PathBuf,
}

impl SweepArguments {
    /// Returns the policies asked for, or all; with groups of layers or tiers, which have more curves, the first.
    pub fn reclaim(&self) -> Vec<ReclaimPolicy> {
        match &self.reclaim[..] {
            [] if self.groups.groups.is_none() && self.tiers.curves().is_empty() => {
                POLICIES.to_vec()
            }
            [] => vec![ReclaimPolicy::Lru],
            asked => asked.to_vec(),
        }
    }

    /// Returns how many caches are tried in parallel.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(cores)
    }
}

/// Returns how many threads this machine runs in parallel.
fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
