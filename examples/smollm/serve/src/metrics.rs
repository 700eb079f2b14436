//! `Metrics`: the figures of the server under vLLM's names, beside the collector of its cache.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use paged_kv::PagedKvCache;
use paged_kv::metrics::CacheCollector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// The upper bounds of latencies, in seconds.
const BOUNDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 20.0, 80.0];

/// The reason for which a sample ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Reason {
    /// `stop`, `length` or `abort`.
    pub finished_reason: &'static str,
}

/// Counts seconds.
pub type Seconds = Counter<f64, AtomicU64>;

/// The figures of a server.
pub struct Metrics {
    /// Samples that have blocks.
    pub running: Gauge,
    /// Samples that wait for blocks.
    pub waiting: Gauge,
    /// Samples that gave up their blocks.
    pub preemptions: Counter,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Generated tokens.
    pub generation_tokens: Counter,
    /// Drafts that were computed.
    pub draft_tokens: Counter,
    /// Drafts that were right.
    pub accepted_tokens: Counter,
    /// Samples that ended.
    pub success: Family<Reason, Counter>,
    /// Time from a request to its first token.
    pub first_token: Histogram,
    /// Time from a request to its end.
    pub latency: Histogram,
    /// Steps.
    pub steps: Counter,
    /// Copies on write.
    pub copies: Counter,
    /// Time of steps.
    pub step_seconds: Seconds,
    /// Time of the calls of the cache in steps and admissions.
    pub cache_seconds: Seconds,
    registry: Registry,
}

impl Metrics {
    /// Registers the figures of a server and of its cache.
    pub fn new(model: &str, cache: Arc<PagedKvCache>) -> Self {
        let mut registry = Registry::default();
        let collector = CacheCollector::new(cache).vllm_names(model, 0);
        registry.register_collector(Box::new(collector));
        let labels = [("model_name", model), ("engine", "0")];
        let labels = labels.map(|(name, value)| (name.into(), value.to_owned().into()));
        let of_model = registry.sub_registry_with_labels(labels.into_iter());
        let seconds = || Histogram::new(BOUNDS);
        let r = of_model;
        Self {
            running: register(r, "vllm:num_requests_running", "Samples that have blocks"),
            waiting: register(r, "vllm:num_requests_waiting", "Samples that wait for blocks"),
            preemptions: register(r, "serve_preemptions", "Samples that gave up their blocks"),
            prompt_tokens: register(r, "vllm:prompt_tokens", "Tokens of prompts"),
            generation_tokens: register(r, "vllm:generation_tokens", "Generated tokens"),
            draft_tokens: register(r, "vllm:spec_decode_num_draft_tokens", "Drafts computed"),
            accepted_tokens: register(
                r,
                "vllm:spec_decode_num_accepted_tokens",
                "Drafts that were right",
            ),
            success: register(r, "vllm:request_success", "Samples that ended"),
            first_token: add(
                r,
                "vllm:time_to_first_token_seconds",
                "To the first token",
                seconds(),
            ),
            latency: add(r, "vllm:e2e_request_latency_seconds", "To the end", seconds()),
            steps: register(r, "serve_steps", "Steps of all workers"),
            copies: register(r, "serve_copies", "Copies on write"),
            step_seconds: register(r, "serve_step_seconds", "Time of steps"),
            cache_seconds: register(r, "serve_cache_seconds", "Time of steps inside paged-kv"),
            registry,
        }
    }

    /// Counts the time of calls of the cache.
    pub fn count_cache(&self, time: Duration) {
        self.cache_seconds.inc_by(time.as_secs_f64());
    }

    /// Counts a sample that ended.
    pub fn count_end(&self, finished_reason: &'static str) {
        self.success.get_or_create(&Reason { finished_reason }).inc();
    }

    /// Renders all metrics as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string takes all");
        text
    }
}

fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    add(registry, name, help, M::default())
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
