//! Queries of those that read vLLM's metrics: the dashboard that vLLM publishes, and routers.
//!
//! Sources: vllm-project/vllm, `examples/online_serving/prometheus_grafana/grafana.json` (commits 004f771 and
//! e88892c); the names that llm-d and the scorers of the Kubernetes gateway read. Queries of latencies, outcomes
//! and generated tokens are left out: a cache does not know them.

use paged_kv::metrics::CacheCollector;

use super::exposition::Scraped;
use super::{registry, used_cache};

/// The queries that concern a cache, with the panel or the reader of each.
pub const QUERIES: &[(&str, &str)] = &[
    ("Scheduler State", "vllm:num_requests_running{model_name=\"$model_name\"}"),
    ("Scheduler State", "vllm:num_requests_waiting{model_name=\"$model_name\"}"),
    ("Cache Utilization", "vllm:gpu_cache_usage_perc{model_name=\"$model_name\"}"),
    ("gateway scorer", "vllm:kv_cache_usage_perc{model_name=\"$model_name\"}"),
    ("gateway scorer", "vllm:cache_config_info{block_size=\"4\",num_gpu_blocks=\"16\"}"),
    (
        "hit rate",
        "rate(vllm:prefix_cache_hits_total{model_name=\"$model_name\"}[$__rate_interval])",
    ),
    (
        "hit rate",
        "rate(vllm:prefix_cache_queries_total{model_name=\"$model_name\"}[$__rate_interval])",
    ),
    (
        "preemptions",
        "rate(vllm:num_preemptions_total{model_name=\"$model_name\"}[$__rate_interval])",
    ),
];

/// Returns a query with its variables replaced.
pub fn query_of(text: &str) -> String {
    text.replace("$model_name", "llama").replace("$__rate_interval", "1m")
}

/// Returns the name and the labels of a query's selector.
fn selector<'a>(query: &'a str) -> (&'a str, Vec<(&'a str, &'a str)>) {
    let query = query.strip_prefix("rate(").unwrap_or(query);
    let (name, rest) = query.split_once('{').expect("a selector");
    let (labels, _) = rest.split_once('}').expect("a closed brace");
    let label = |label: &'a str| {
        let (name, value) = label.split_once('=').expect("a label and a value");
        (name, value.trim_matches('"'))
    };
    (name, labels.split(',').map(label).collect())
}

#[test]
fn every_query_finds_one_series() {
    let collector = CacheCollector::new(used_cache()).vllm_names("llama", 0).vllm_requests();
    let scraped = Scraped::of(&registry(collector));
    for (reader, text) in QUERIES {
        let query = query_of(text);
        let (name, labels) = selector(&query);
        assert_eq!(scraped.find(name, &labels).len(), 1, "{reader}: {query}");
    }
}

#[test]
fn vllms_figures_have_vllms_meanings() {
    let cache = used_cache();
    let collector = CacheCollector::new(cache.clone()).vllm_names("llama", 7).vllm_requests();
    let scraped = Scraped::of(&registry(collector));
    let labels = [("model_name", "llama"), ("engine", "7")];
    let value = |name: &str| scraped.find(name, &labels);
    let stats = cache.stats();
    // Blocks that no request refers to are not in use, although they are cached.
    assert!(stats.blocks_idle > 0 && stats.blocks_used > 0);
    let usage = stats.blocks_used as f64 / 16.0;
    assert_eq!(value("vllm:kv_cache_usage_perc"), [usage]);
    assert_eq!(value("vllm:gpu_cache_usage_perc"), [usage]);
    assert_eq!(value("vllm:prefix_cache_queries_total"), [25.0], "in tokens");
    assert_eq!(value("vllm:prefix_cache_hits_total"), [8.0], "in tokens");
    assert_eq!(value("vllm:num_preemptions_total"), [1.0]);
    assert_eq!(value("vllm:num_requests_running"), [3.0]);
    assert_eq!(value("vllm:num_requests_waiting"), [0.0]);
    let config = [
        ("block_size", "4"),
        ("num_gpu_blocks", "16"),
        ("enable_prefix_caching", "True"),
        ("prefix_caching_hash_algo", "xxh3"),
        ("engine", "7"),
    ];
    assert_eq!(scraped.find("vllm:cache_config_info", &config), [1.0]);
}

#[test]
fn a_server_that_counts_its_requests_registers_them_itself() {
    let collector = CacheCollector::new(used_cache()).vllm_names("llama", 0);
    let scraped = Scraped::of(&registry(collector));
    assert!(!scraped.names().iter().any(|name| name.starts_with("vllm:num_requests")));
    let own_names_only = CacheCollector::new(used_cache()).vllm_requests();
    let scraped = Scraped::of(&registry(own_names_only));
    assert!(scraped.names().iter().all(|name| name.starts_with("paged_kv_")));
}
