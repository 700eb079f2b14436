//! `Metrics`: the counters of the server, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::PagedKvCache;

/// The counters that the cache does not have.
#[derive(Default)]
pub struct Metrics {
    pub requests: AtomicU64,
    pub disconnects: AtomicU64,
    pub admissions: AtomicU64,
    pub resumptions: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub tokens: AtomicU64,
}

impl Metrics {
    /// Renders these counters and those of the cache as text.
    pub fn render(&self, cache: &PagedKvCache) -> String {
        let stats = cache.stats();
        let own = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let rows = [
            ("blocks_total", "gauge", "Blocks of the cache", stats.blocks_total as u64),
            ("blocks_used", "gauge", "Blocks in use by sequences", stats.blocks_used as u64),
            ("blocks_idle", "gauge", "Cached blocks that nobody uses", stats.blocks_idle as u64),
            ("sequences", "gauge", "Sequences in the cache", stats.num_sequences as u64),
            ("waiting", "gauge", "Requests that wait for room", cache.waiting().len() as u64),
            ("evictions_total", "counter", "Sequences evicted", stats.total_evictions),
            ("forks_total", "counter", "Sequences forked", stats.total_forks),
            ("requests_total", "counter", "Requests accepted", own(&self.requests)),
            ("disconnects_total", "counter", "Clients that left early", own(&self.disconnects)),
            ("admissions_total", "counter", "Sequences admitted", own(&self.admissions)),
            (
                "resumptions_total",
                "counter",
                "Sequences evicted that came in again",
                own(&self.resumptions),
            ),
            ("cached_tokens_total", "counter", "Tokens found cached", own(&self.cached_tokens)),
            ("tokens_total", "counter", "Tokens generated", own(&self.tokens)),
        ];
        let mut text = String::new();
        for (name, kind, help, value) in rows {
            let _ = writeln!(
                text,
                "# HELP paged_kv_{name} {help}\n# TYPE paged_kv_{name} {kind}\npaged_kv_{name} {value}"
            );
        }
        text
    }
}
