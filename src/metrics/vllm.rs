//! [`VllmNames`]: the metrics of vLLM that a cache knows, under vLLM's names and with its labels.
//!
//! Source: vLLM 0.33, `vllm/v1/metrics/loggers.py` and `rust/src/metrics/src/scheduler.rs`.
//! `vllm:gpu_cache_usage_perc` is the older name of `vllm:kv_cache_usage_perc`. The dashboard that vLLM
//! publishes (`examples/online_serving/prometheus_grafana/grafana.json`) still refers to it.
//!
//! Of tiers there are those whose meaning is the same: tokens, bytes, and the share of the host's slots that copies
//! use. Loaded tokens count when their copies are done, and in vLLM when the request is admitted. Not here:
//! `vllm:kv_offload_allocation_failure` (attempts; this crate counts contents), `vllm:kv_offload_stores_skipped` (by the
//! threshold of uses), and times: the caller makes the copies.

use std::fmt;

use super::sampler::BlockSampler;
use super::scrape::{Described, Scrape};
use crate::cache::PagedKvCache;
use crate::id::Medium;
use crate::stats::{CacheStats, TierStats};

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

const EXTERNAL_QUERIES: Described = Described {
    name: "vllm:external_prefix_cache_queries",
    help: "Tokens of prompts that the device did not hold, and that were looked up in tiers.",
};
const EXTERNAL_HITS: Described = Described {
    name: "vllm:external_prefix_cache_hits",
    help: "Tokens of prompts that were loaded from tiers.",
};
const BY_SOURCE: Described = Described {
    name: "vllm:prompt_tokens_cached_by_source",
    help: "Tokens of prompts that were not computed, by the memory that held them.",
};
const LOAD_BYTES: Described = Described {
    name: "vllm:kv_offload_load_bytes",
    help: "Bytes loaded from tiers to the device.",
};
const STORE_BYTES: Described = Described {
    name: "vllm:kv_offload_store_bytes",
    help: "Bytes stored from the device to tiers.",
};
const CPU_USAGE: Described = Described {
    name: "vllm:kv_offload_cpu_cache_usage_perc",
    help: "Slots of the host's memory that copies read or write. 1 means 100 percent.",
};

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

    /// Encodes the metrics that concern the tiers, summed over them; nothing for a cache without tiers.
    pub(super) fn encode_tiers(
        &self,
        scrape: &mut Scrape<'_>,
        cache: &PagedKvCache,
        stats: &CacheStats,
    ) -> fmt::Result {
        if stats.tiers.is_empty() {
            return Ok(());
        }
        let missed = stats.prompt_tokens.saturating_sub(stats.prompt_tokens_hit);
        let loaded = |medium| sum(stats, medium, |tier| tier.prompt_tokens_loaded);
        let (host, disk) = (loaded(Medium::Host), loaded(Medium::Disk));
        scrape.counters(EXTERNAL_QUERIES, [(self.labels(), missed)])?;
        scrape.counters(EXTERNAL_HITS, [(self.labels(), host + disk)])?;
        let [model_name, engine] = self.labels();
        let sources = [("device", stats.prompt_tokens_hit), ("host", host), ("disk", disk)];
        let sources =
            sources.map(|(name, tokens)| ([model_name, engine, ("source", name)], tokens));
        scrape.counters(BY_SOURCE, sources)?;
        let bytes = |read: fn(&TierStats) -> u64| {
            stats.tiers.iter().map(read).sum::<u64>() * cache.block_memory_bytes() as u64
        };
        let (loaded, stored) = (
            bytes(|tier| tier.blocks_loaded),
            bytes(|tier| tier.blocks_stored.saturating_sub(tier.blocks_stored_from_tiers)),
        );
        scrape.counters(LOAD_BYTES, [(self.labels(), loaded)])?;
        scrape.counters(STORE_BYTES, [(self.labels(), stored)])?;
        let used = sum(stats, Medium::Host, |tier| tier.slots_used as u64);
        match sum(stats, Medium::Host, |tier| tier.slots_total as u64) {
            0 => Ok(()),
            slots => scrape.gauges(CPU_USAGE, [(self.labels(), used as f64 / slots as f64)]),
        }
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

/// Returns the sum of a figure over the tiers of a medium.
fn sum(stats: &CacheStats, medium: Medium, read: fn(&TierStats) -> u64) -> u64 {
    stats.tiers.iter().filter(|tier| tier.medium == Some(medium)).map(read).sum()
}
