//! [`VllmNames`]: the metrics of vLLM that a cache knows, under vLLM's names and with its labels.
//!
//! Source: vLLM 0.33, `vllm/v1/metrics/loggers.py` and `rust/src/metrics/src/scheduler.rs`.
//! `vllm:gpu_cache_usage_perc` is the older name of `vllm:kv_cache_usage_perc`. The dashboard that vLLM
//! publishes (`examples/online_serving/prometheus_grafana/grafana.json`) still refers to it.

use std::fmt;

use super::sampler::BlockSampler;
use super::scrape::{Described, Scrape};
use crate::cache::PagedKvCache;
use crate::stats::CacheStats;

const USAGE: Described = Described {
    name: "vllm:kv_cache_usage_perc",
    help: "KV-cache usage. 1 means 100 percent usage.",
};
const USAGE_ONCE: Described = Described {
    name: "vllm:gpu_cache_usage_perc",
    help: "KV-cache usage, under its older name. 1 means 100 percent usage.",
};
const QUERIES: Described = Described {
    name: "vllm:prefix_cache_queries",
    help: "Tokens of prompts that were looked up in the prefix cache.",
};
const HITS: Described = Described {
    name: "vllm:prefix_cache_hits",
    help: "Tokens of prompts that the prefix cache held.",
};
const PREEMPTIONS: Described =
    Described { name: "vllm:num_preemptions", help: "Sequences that were evicted." };
const CONFIG: Described =
    Described { name: "vllm:cache_config_info", help: "Parameters of the KV cache, as labels." };
const LIFETIME: Described = Described {
    name: "vllm:kv_block_lifetime_seconds",
    help: "Lifetime of cached blocks, sampled.",
};
const IDLE_BEFORE_EVICT: Described = Described {
    name: "vllm:kv_block_idle_before_evict_seconds",
    help: "Idle time of cached blocks before their contents were reclaimed, sampled.",
};
const REUSE_GAP: Described = Described {
    name: "vllm:kv_block_reuse_gap_seconds",
    help: "Idle time of cached blocks before they were used again, sampled.",
};
const RUNNING: Described =
    Described { name: "vllm:num_requests_running", help: "Requests that are in the cache." };
const WAITING: Described =
    Described { name: "vllm:num_requests_waiting", help: "Requests that wait for room." };

/// The labels of vLLM's metrics.
#[derive(Debug)]
pub(super) struct VllmNames {
    model_name: String,
    engine: String,
}

impl VllmNames {
    pub(super) fn new(model_name: String, engine: u32) -> Self {
        Self { model_name, engine: engine.to_string() }
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("model_name", &self.model_name), ("engine", &self.engine)]
    }

    /// Encodes the metrics that concern the pool and the prefixes.
    pub(super) fn encode(
        &self,
        scrape: &mut Scrape<'_>,
        cache: &PagedKvCache,
        stats: &CacheStats,
    ) -> fmt::Result {
        let usage = stats.blocks_used as f64 / stats.blocks_total.max(1) as f64;
        scrape.gauges(USAGE, [(self.labels(), usage)])?;
        scrape.gauges(USAGE_ONCE, [(self.labels(), usage)])?;
        scrape.counters(QUERIES, [(self.labels(), stats.prompt_tokens)])?;
        scrape.counters(HITS, [(self.labels(), stats.prompt_tokens_hit)])?;
        scrape.counters(PREEMPTIONS, [(self.labels(), stats.total_evictions)])?;
        self.encode_config(scrape, cache, stats)
    }

    /// Encodes the metric whose labels are the parameters of the cache. Their values are written as Python
    /// writes them.
    fn encode_config(
        &self,
        scrape: &mut Scrape<'_>,
        cache: &PagedKvCache,
        stats: &CacheStats,
    ) -> fmt::Result {
        let block_size = cache.block_size().to_string();
        let num_gpu_blocks = stats.blocks_total.to_string();
        let algorithm = cache.hash_algorithm().to_string();
        let [model_name, engine] = self.labels();
        let labels = [
            model_name,
            engine,
            ("block_size", &block_size),
            ("num_gpu_blocks", &num_gpu_blocks),
            ("enable_prefix_caching", if cache.has_prefix_reuse() { "True" } else { "False" }),
            ("prefix_caching_hash_algo", &algorithm),
        ];
        scrape.gauges(CONFIG, [(labels, 1_u64)])
    }

    /// Encodes the times of cached contents.
    pub(super) fn encode_times(
        &self,
        scrape: &mut Scrape<'_>,
        sampler: &BlockSampler,
    ) -> fmt::Result {
        scrape.labelled_histogram(LIFETIME, &self.labels(), &sampler.lifetime)?;
        let idle = &sampler.idle_before_reclaim;
        scrape.labelled_histogram(IDLE_BEFORE_EVICT, &self.labels(), idle)?;
        scrape.labelled_histogram(REUSE_GAP, &self.labels(), &sampler.reuse_gap)
    }

    /// Encodes the numbers of requests.
    pub(super) fn encode_requests(
        &self,
        scrape: &mut Scrape<'_>,
        stats: &CacheStats,
    ) -> fmt::Result {
        let waiting = stats.requests_waiting_new as u64;
        scrape.gauges(RUNNING, [(self.labels(), stats.num_sequences as u64)])?;
        scrape.gauges(WAITING, [(self.labels(), waiting)])
    }
}
