//! What may be asked on the command line?
//!
//! Whatever leaves this file is in range: sizes are not zero, the threshold is in 0..=1, the
//! strategy is one the cache has. Nothing here looks at files or at the cache.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use clap::{Args, Parser, Subcommand};
use paged_kv::EvictionStrategy;

/// Priorities that `--strategy priority` gives out, so that there is something to choose by.
pub const PRIORITY_LEVELS: usize = 4;

/// Drive a paged KV cache with request traces.
#[derive(Debug, Parser)]
#[command(name = "paged-kv", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve every request of a trace from one shared cache, as fast as it goes.
    ///
    /// Requests are batched continuously: each worker admits prompts, appends one token a step to
    /// each request it holds, and frees a request that has all its output. An append that finds no
    /// room evicts by the strategy; a prompt that finds none waits; an evicted request is served
    /// again from its prompt; one that the pool cannot hold is rejected.
    Replay(ReplayArguments),
}

/// How `replay` serves.
#[derive(Args, Clone, Debug)]
pub struct ReplayArguments {
    /// Mooncake JSONL (.jsonl, .jsonl.gz) or Azure CSV (.csv, .csv.gz); without it, a synthetic
    /// multi-turn workload
    pub trace: Option<PathBuf>,

    /// Workers that share the cache [default: the cores of this machine]
    #[arg(long, short = 't', value_name = "T")]
    threads: Option<NonZeroUsize>,

    /// Requests a worker holds at once
    #[arg(long, value_name = "L", default_value = "64")]
    pub live: NonZeroUsize,

    /// Blocks in the pool
    #[arg(long, value_name = "N", default_value = "65536")]
    pub blocks: NonZeroUsize,

    /// Tokens a block
    #[arg(long, value_name = "B", default_value = "16")]
    pub block_size: NonZeroUsize,

    /// Who yields when there is no room: lru, lfu, longest, priority (request i has priority
    /// i mod 4) or streaming:SINK,WINDOW (in tokens)
    #[arg(long, default_value = "lru", value_parser = strategy)]
    pub strategy: EvictionStrategy,

    /// Utilization, 0 to 1, down to which a shortage evicts
    #[arg(long, default_value = "0.9", value_parser = share)]
    pub threshold: f64,

    /// Serve only the first R requests of the trace, or make R synthetic ones [default: the
    /// whole trace, or 100000]
    #[arg(long, value_name = "R")]
    pub requests: Option<usize>,

    /// Seed of the synthetic workload
    #[arg(long, default_value = "0")]
    pub seed: u64,

    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,
}

impl ReplayArguments {
    /// Workers asked for, or as many as this machine runs at once.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }
}

fn strategy(text: &str) -> Result<EvictionStrategy, String> {
    match text {
        "lru" => Ok(EvictionStrategy::LRU),
        "lfu" => Ok(EvictionStrategy::LFU),
        "longest" => Ok(EvictionStrategy::LongestFirst),
        "priority" => Ok(EvictionStrategy::Priority { levels: PRIORITY_LEVELS }),
        _ => streaming(text).ok_or_else(|| {
            "expected lru, lfu, longest, priority or streaming:SINK,WINDOW".to_owned()
        }),
    }
}

fn streaming(text: &str) -> Option<EvictionStrategy> {
    let (sink, window) = text.strip_prefix("streaming:")?.split_once(',')?;
    Some(EvictionStrategy::StreamingLLM {
        sink_tokens: sink.parse().ok()?,
        window_tokens: window.parse().ok()?,
    })
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_has_a_name() {
        assert_eq!(strategy("lru"), Ok(EvictionStrategy::LRU));
        assert_eq!(strategy("lfu"), Ok(EvictionStrategy::LFU));
        assert_eq!(strategy("longest"), Ok(EvictionStrategy::LongestFirst));
        assert_eq!(strategy("priority"), Ok(EvictionStrategy::Priority { levels: 4 }));
        let streaming = EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 512 };
        assert_eq!(strategy("streaming:4,512"), Ok(streaming));
    }

    #[test]
    fn half_a_strategy_is_refused() {
        for text in ["", "LRU", "streaming", "streaming:4", "streaming:4,", "streaming:-4,512"] {
            assert!(strategy(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_threshold_is_a_share() {
        assert_eq!(share("0.5"), Ok(0.5));
        for text in ["-0.1", "1.1", "NaN", "inf", "half"] {
            assert!(share(text).is_err(), "{text:?} was taken");
        }
    }
}
