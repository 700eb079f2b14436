//! `Metrics`: the counters of the server beside the collector of its cache, in Prometheus' text format.

use std::sync::Arc;

use paged_kv::PagedKvCache;
use paged_kv::metrics::CacheCollector;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// The model's name in the metrics.
const MODEL: &str = "stand-in";

/// The counters that the cache does not have, and the registry that a scrape reads.
pub struct Metrics {
    pub requests: Counter,
    pub disconnects: Counter,
    pub admissions: Counter,
    pub resumptions: Counter,
    pub tokens: Counter,
    registry: Registry,
}

impl Metrics {
    /// Registers the server's counters and the figures of its cache.
    pub fn new(cache: Arc<PagedKvCache>) -> Self {
        let mut registry = Registry::default();
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let requests = counter("server_requests", "Requests accepted");
        let disconnects = counter("server_disconnects", "Clients that left early");
        let admissions = counter("server_admissions", "Sequences admitted");
        let resumptions = counter("server_resumptions", "Sequences evicted that came in again");
        let tokens = counter("vllm:generation_tokens", "Tokens generated");
        // Every running request is in the cache by its id, and all others wait in the cache's queue.
        let collector = CacheCollector::new(cache).vllm_names(MODEL, 0).vllm_requests();
        registry.register_collector(Box::new(collector));
        Self { requests, disconnects, admissions, resumptions, tokens, registry }
    }

    /// Renders all metrics as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string takes all");
        text
    }
}
