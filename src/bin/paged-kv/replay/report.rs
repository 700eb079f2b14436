//! `Report`: the result of a replay.
//!
//! Its fields are those of the JSON object, and its `Display` is the summary for people. Counts are of
//! the whole run. `blocks_*`, `leaked_blocks` and `validate` come from the cache, after every request
//! was freed. All other counts come from the workers.

use std::fmt;
use std::time::Duration;

use paged_kv::{GroupRetention, PagedKvCache, ReclaimPolicy};
use serde::Serialize;

use crate::grouped::grouped;
use crate::layer_groups::{LayerGroups, group_name, retention_name};
use crate::serve::meter::Meter;
use crate::serve::{Outcome, Plan};
use crate::tiers::TierSetup;
use crate::tiers::usage::Usage;

/// The options of the run, as the report shows them.
pub struct Setting<'a> {
    pub trace: &'a str,
    pub requests: u64,
    /// Time to read the trace.
    pub reading: Duration,
    pub plan: Plan,
    pub reclaim: ReclaimPolicy,
    pub groups: Option<&'a LayerGroups>,
    pub retention: GroupRetention,
    pub tiers: Option<TierSetup>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    trace: String,
    strategy: String,
    requests: u64,
    completed: u64,
    rejected: u64,
    admissions: u64,
    evicted_sequences: u64,
    preemptions: u64,
    /// Tokens of preempted and evicted requests that were still cached when the request came back.
    kept_tokens: u64,
    /// Tokens computed: prompt tokens that did not hit, and output tokens.
    computed_tokens: u64,
    /// Those of them that were computed again after their request was preempted or evicted.
    recomputed_tokens: u64,
    /// The share of the computed tokens that were not computed again.
    goodput: f64,
    threads: usize,
    live: usize,
    leave_free: f64,
    threshold: f64,
    blocks_total: usize,
    block_size: usize,
    prompt_tokens: u64,
    output_tokens: u64,
    blocks_allocated: u64,
    blocks_freed: u64,
    peak_blocks_used: usize,
    /// Whether prompts shared their common contents.
    reuse: bool,
    reclaim: String,
    prompt_blocks: u64,
    hit_blocks: u64,
    /// The share of the prompt blocks that hit.
    hit_rate: f64,
    reclaimed_blocks: u64,
    /// In a cache with groups of layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<OfGroups>,
    /// In a cache with tiers below the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    tiers: Option<Usage>,
    leaked_blocks: usize,
    /// "ok", or the fault.
    validate: String,
    wall_seconds: f64,
    /// Time to read the trace, or to make the synthetic requests. It is not part of `wall_seconds`.
    reading_seconds: f64,
    /// The share of the workers' time in timed calls of the cache.
    cache_share: f64,
    /// The share of the workers' time without a request, waiting for a prompt.
    waiting_share: f64,
    requests_per_second: f64,
    operations: u64,
    /// Blocks that left the pool or returned to it, per second.
    block_ops_per_second: f64,
    latency_us: Latency,
}

/// The hits in a cache with groups of layers.
#[derive(Debug, Serialize)]
struct OfGroups {
    groups: String,
    retention: String,
    /// Tokens of a prompt block: those that one hash covers.
    unit: usize,
    /// Prompt blocks that the group with the longest hit had.
    longest_hit_blocks: u64,
    by_group: Vec<OfGroup>,
}

/// The hits that one group made shorter.
#[derive(Debug, Serialize)]
struct OfGroup {
    group: String,
    /// Tokens of prompts that a hit of full attention had, and that this group lacked.
    tokens_lost: u64,
}

impl OfGroups {
    fn new(
        setting: &Setting<'_>,
        groups: &LayerGroups,
        meter: &Meter,
        cache: &PagedKvCache,
    ) -> Self {
        let of_group = |(kind, counts): (&_, paged_kv::GroupStats)| OfGroup {
            group: group_name(*kind),
            tokens_lost: counts.prompt_tokens_lost,
        };
        Self {
            groups: groups.name().to_owned(),
            retention: retention_name(setting.retention),
            unit: groups.unit(),
            longest_hit_blocks: meter.longest_hit_blocks,
            by_group: groups.kinds().iter().zip(cache.stats().groups).map(of_group).collect(),
        }
    }

    /// Returns the lines of the summary.
    fn lines(&self, prompt_blocks: u64) -> Vec<String> {
        let longest_rate = self.longest_hit_blocks as f64 / prompt_blocks.max(1) as f64;
        let mut lines = vec![format!(
            "{}, kept {}; the group with the longest hit had {} prompt blocks of {} tokens ({:.2} %)",
            self.groups,
            self.retention,
            grouped(self.longest_hit_blocks),
            self.unit,
            longest_rate * 100.0,
        )];
        lines.extend(self.by_group.iter().enumerate().map(|(number, of_group)| {
            let lost = grouped(of_group.tokens_lost);
            format!("{number}: {}, {lost} tokens of hits lost", of_group.group)
        }));
        lines
    }
}

/// Latencies of single calls of the cache, in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Report {
    /// Creates the report from the outcome and from the cache, in which every request must have been freed.
    pub fn new(setting: &Setting<'_>, outcome: &Outcome, cache: &PagedKvCache) -> Self {
        let Outcome { rejected, wall, ref meter } = *outcome;
        let stats = cache.stats();
        let blocks_moved = stats.total_allocations + stats.total_frees;
        let wall_seconds = wall.as_secs_f64();
        let workers_seconds = wall_seconds * setting.plan.threads.get() as f64;
        Self {
            trace: setting.trace.to_owned(),
            strategy: setting.plan.victims.to_string(),
            requests: setting.requests,
            completed: meter.completed,
            rejected,
            admissions: meter.admissions,
            evicted_sequences: meter.evicted_sequences,
            preemptions: meter.preemptions,
            kept_tokens: meter.kept_tokens,
            computed_tokens: meter.computed_tokens,
            recomputed_tokens: meter.recomputed_tokens,
            goodput: meter.goodput(),
            threads: setting.plan.threads.get(),
            live: setting.plan.live.get(),
            leave_free: setting.plan.leave_free,
            threshold: setting.plan.threshold,
            blocks_total: cache.total_blocks(),
            block_size: cache.block_size(),
            prompt_tokens: meter.prompt_tokens,
            output_tokens: meter.output_tokens,
            blocks_allocated: stats.total_allocations,
            blocks_freed: stats.total_frees,
            peak_blocks_used: stats.peak_blocks_used,
            reuse: setting.plan.prompts.id_tokens.is_some(),
            reclaim: setting.reclaim.to_string(),
            prompt_blocks: meter.prompt_blocks,
            hit_blocks: meter.hit_blocks,
            hit_rate: meter.hit_blocks as f64 / meter.prompt_blocks.max(1) as f64,
            reclaimed_blocks: stats.blocks_reclaimed,
            groups: setting.groups.map(|groups| OfGroups::new(setting, groups, meter, cache)),
            tiers: setting.tiers.map(|setup| Usage::new(&setup, cache.block_size(), meter, &stats)),
            leaked_blocks: cache.used_block_count(),
            validate: cache.validate().map_or_else(|fault| fault.to_string(), |()| "ok".to_owned()),
            wall_seconds,
            reading_seconds: setting.reading.as_secs_f64(),
            cache_share: meter.cache_time.as_secs_f64() / workers_seconds,
            waiting_share: meter.waiting_time.as_secs_f64() / workers_seconds,
            requests_per_second: meter.completed as f64 / wall_seconds,
            operations: meter.operations(),
            block_ops_per_second: blocks_moved as f64 / wall_seconds,
            latency_us: Latency::of(meter),
        }
    }

    fn group_lines(&self) -> Vec<String> {
        let of_groups = self.groups.as_ref();
        of_groups.map_or_else(Vec::new, |groups| groups.lines(self.prompt_blocks))
    }

    fn tier_lines(&self) -> Vec<String> {
        self.tiers.as_ref().map_or_else(Vec::new, Usage::lines)
    }

    /// Returns whether every request was served or rejected and the cache is as it was before.
    pub fn is_sound(&self) -> bool {
        self.leaked_blocks == 0
            && self.validate == "ok"
            && self.blocks_allocated == self.blocks_freed
            && self.completed + self.rejected == self.requests
    }
}

impl Latency {
    fn of(meter: &Meter) -> Self {
        Self {
            p50: meter.latency_us(0.5),
            p99: meter.latency_us(0.99),
            p999: meter.latency_us(0.999),
            max: meter.longest_latency_us(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "{name:<14}{value}");
        let round = |value: f64| grouped(value.round() as u64);
        line("trace", self.trace.clone())?;
        let victims = match self.strategy.as_str() {
            "youngest" => "preempting the youngest".to_owned(),
            strategy => format!("evicting by {strategy} down to {:.0} %", self.threshold * 100.0),
        };
        line(
            "served by",
            format!(
                "{} threads, up to {} requests each, {victims}",
                self.threads,
                grouped(self.live as u64),
            ),
        )?;
        line(
            "requests",
            format!(
                "{} of {} completed, {} rejected as larger than the pool",
                grouped(self.completed),
                grouped(self.requests),
                grouped(self.rejected),
            ),
        )?;
        line(
            "tokens",
            format!(
                "{} prompt, {} output",
                grouped(self.prompt_tokens),
                grouped(self.output_tokens),
            ),
        )?;
        line(
            "admissions",
            format!(
                "{}, {} preemptions and {} evictions, {} of their tokens hit at the return",
                grouped(self.admissions),
                grouped(self.preemptions),
                grouped(self.evicted_sequences),
                grouped(self.kept_tokens),
            ),
        )?;
        line(
            "goodput",
            format!(
                "{:.2} % of {} computed tokens, the other {} were computed before",
                self.goodput * 100.0,
                grouped(self.computed_tokens),
                grouped(self.recomputed_tokens),
            ),
        )?;
        line(
            "blocks",
            format!(
                "{} of {} tokens, {} used at the peak",
                grouped(self.blocks_total as u64),
                grouped(self.block_size as u64),
                grouped(self.peak_blocks_used as u64),
            ),
        )?;
        line(
            "",
            format!(
                "{} allocated, {} freed, {} leaked",
                grouped(self.blocks_allocated),
                grouped(self.blocks_freed),
                grouped(self.leaked_blocks as u64),
            ),
        )?;
        if self.reuse {
            line(
                "reuse",
                format!(
                    "{} of {} prompt blocks hit ({:.2} %), {} reclaimed by {}",
                    grouped(self.hit_blocks),
                    grouped(self.prompt_blocks),
                    self.hit_rate * 100.0,
                    grouped(self.reclaimed_blocks),
                    self.reclaim,
                ),
            )?;
        }
        for (name, lines) in [("groups", self.group_lines()), ("tiers", self.tier_lines())] {
            for (at, text) in lines.into_iter().enumerate() {
                line(if at == 0 { name } else { "" }, text)?;
            }
        }
        line("validate", self.validate.clone())?;
        let other_share = 1.0 - self.cache_share - self.waiting_share;
        line(
            "time",
            format!(
                "{:.3} s: {:.0} % in the cache, {:.0} % waiting for a prompt, {:.0} % elsewhere; \
                 {:.3} s before that to load the requests",
                self.wall_seconds,
                self.cache_share * 100.0,
                self.waiting_share * 100.0,
                other_share * 100.0,
                self.reading_seconds,
            ),
        )?;
        line(
            "rate",
            format!(
                "{} requests/s, {} block operations/s",
                round(self.requests_per_second),
                round(self.block_ops_per_second),
            ),
        )?;
        let Latency { p50, p99, p999, max } = self.latency_us;
        line(
            "latency",
            format!(
                "p50 {p50:.2} us, p99 {p99:.2} us, p99.9 {p999:.2} us, max {max:.2} us of {} calls",
                grouped(self.operations),
            ),
        )
    }
}
