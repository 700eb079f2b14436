//! `Report`: the result of a soak.
//!
//! Its fields are those of the JSON object, and its `Display` is the summary for people. One finding is
//! enough to call the cache broken.

use std::fmt;

use serde::Serialize;

use super::memory::{Growth, Sample};
use super::shared::{Ground, Tally};
use super::watch::{Plan, Seen};
use crate::grouped::grouped;

/// Samples of the memory that are reported.
const SAMPLES_TOLD: usize = 12;

#[derive(Debug, Serialize)]
pub struct Report {
    threads: usize,
    blocks_total: usize,
    block_size: usize,
    seed: u64,
    wall_seconds: f64,
    steps: u64,
    operations: u64,
    refusals: u64,
    admissions: u64,
    hit_blocks: u64,
    reclaimed_blocks: u64,
    resets: u64,
    evicted_sequences: u64,
    forks: u64,
    blocks_allocated: u64,
    blocks_freed: u64,
    peak_blocks_used: usize,
    injected_panics: u64,
    audits: u64,
    audits_busy: u64,
    leaked_blocks: usize,
    /// "ok", or the fault.
    validate: String,
    /// `None` if the system does not report it or the run was too short.
    resident: Option<Growth>,
    resident_samples: Vec<Sample>,
    findings: u64,
    first_findings: Vec<String>,
}

impl Report {
    /// Creates the report. Every sequence of the cache must have been freed.
    pub fn new(ground: &Ground, plan: Plan, seen: &Seen, validate: String) -> Self {
        let Tally { operations, refusals, admissions, hit_blocks } = &ground.tally;
        let [operations, refusals, admissions, hit_blocks] =
            [operations, refusals, admissions, hit_blocks]
                .map(|counter| counter.load(std::sync::atomic::Ordering::Relaxed));
        let stats = ground.cache.stats();
        Self {
            threads: plan.threads,
            blocks_total: ground.cache.total_blocks(),
            block_size: ground.cache.block_size(),
            seed: plan.seed,
            wall_seconds: seen.wall.as_secs_f64(),
            steps: seen.steps,
            operations,
            refusals,
            admissions,
            hit_blocks,
            reclaimed_blocks: stats.blocks_reclaimed,
            resets: ground.resets_done(),
            evicted_sequences: stats.total_evictions,
            forks: stats.total_forks,
            blocks_allocated: stats.total_allocations,
            blocks_freed: stats.total_frees,
            peak_blocks_used: stats.peak_blocks_used,
            injected_panics: seen.injected_panics,
            audits: seen.audits,
            audits_busy: seen.audits_busy,
            leaked_blocks: ground.cache.used_block_count(),
            validate,
            resident: seen.memory.growth(),
            resident_samples: seen.memory.outline(SAMPLES_TOLD),
            findings: ground.cells.findings.count(),
            first_findings: ground.cells.findings.first(),
        }
    }

    pub fn is_sound(&self) -> bool {
        self.findings == 0 && self.validate == "ok" && self.leaked_blocks == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "{name:<14}{value}");
        line(
            "soaked by",
            format!("{} threads for {:.1} s, seed {}", self.threads, self.wall_seconds, self.seed),
        )?;
        line(
            "operations",
            format!(
                "{} in {} steps, {} refused",
                grouped(self.operations),
                grouped(self.steps),
                grouped(self.refusals),
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
        line(
            "reuse",
            format!(
                "{} admissions, {} blocks hit, {} reclaimed, {} resets",
                grouped(self.admissions),
                grouped(self.hit_blocks),
                grouped(self.reclaimed_blocks),
                grouped(self.resets),
            ),
        )?;
        line(
            "sequences",
            format!("{} forks, {} evicted", grouped(self.forks), grouped(self.evicted_sequences)),
        )?;
        line("panics", format!("{} on purpose", grouped(self.injected_panics)))?;
        line(
            "audits",
            format!(
                "{} under load, {} of them busy",
                grouped(self.audits),
                grouped(self.audits_busy)
            ),
        )?;
        line("validate", self.validate.clone())?;
        line("memory", self.memory())?;
        for Sample { seconds, resident_kib } in &self.resident_samples {
            line("", format!("{} KiB at {seconds:.1} s", grouped(*resident_kib)))?;
        }
        line("findings", grouped(self.findings))?;
        self.first_findings.iter().try_for_each(|finding| line("", finding.clone()))
    }
}

impl Report {
    fn memory(&self) -> String {
        match self.resident {
            Some(Growth { warm_kib, end_kib }) => {
                format!("{} KiB warm, {} KiB at the end", grouped(warm_kib), grouped(end_kib))
            }
            None if self.resident_samples.is_empty() => {
                "not judged: this system has no /proc/self/statm".to_owned()
            }
            None => "not judged: too few samples in so short a run".to_owned(),
        }
    }
}
