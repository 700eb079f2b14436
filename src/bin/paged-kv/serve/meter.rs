//! `Meter`: the counts and latencies of one worker.
//!
//! Each worker has its own meter, so that workers share no cache line for counting. The meters are added
//! up when all workers have ended. Latencies are of single calls of the cache, also refused ones, in
//! nanoseconds.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::worker::offload::TIERS;

/// The longest latency recorded. A longer call is counted as one of an hour.
const LONGEST: Duration = Duration::from_secs(3600);

/// Every latency is recorded to three significant digits.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Counts and latencies of one worker, or of all together.
pub struct Meter {
    pub completed: u64,
    /// Tokens of the requests that completed, as the trace gives them.
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    /// Prompts admitted to the cache. The prompt of an evicted request counts again each time.
    pub admissions: u64,
    pub evicted_sequences: u64,
    /// Tokens computed: those of admitted prompts that did not hit, and those appended.
    pub computed_tokens: u64,
    /// Those of them that the same request had before, computed or cached, and lost.
    pub recomputed_tokens: u64,
    /// Full blocks of admitted prompts whose contents the trace names.
    pub prompt_blocks: u64,
    /// Those of them that were cached.
    pub hit_blocks: u64,
    /// In a cache with groups of layers: those of them that the group with the longest hit had.
    pub longest_hit_blocks: u64,
    /// Tokens of admitted prompts that hit, on the device or in a tier.
    pub prompt_tokens_hit: u64,
    /// Tokens of admitted prompts that each tier had.
    pub tier_tokens: [u64; TIERS],
    /// Tokens of admitted prompts that were computed.
    pub prompt_tokens_computed: u64,
    /// Blocks that were copied to a tier just before they were overwritten.
    pub late_stores: u64,
    /// Requests that their own worker freed and put back into the queue, for room.
    pub preemptions: u64,
    /// Tokens that requests had when they were preempted or evicted, and that hit when they came back.
    pub kept_tokens: u64,
    /// Time in the calls of the cache that are timed: all but those for leases, priorities and prompts.
    pub cache_time: Duration,
    /// Time without a request, waiting for a prompt.
    pub waiting_time: Duration,
    latency: Histogram<u64>,
}

impl Meter {
    pub fn new() -> Self {
        let longest = LONGEST.as_nanos() as u64;
        let latency = Histogram::new_with_bounds(1, longest, SIGNIFICANT_DIGITS)
            .expect("an hour in nanoseconds is a range a histogram can have");
        Self {
            completed: 0,
            prompt_tokens: 0,
            output_tokens: 0,
            admissions: 0,
            evicted_sequences: 0,
            computed_tokens: 0,
            recomputed_tokens: 0,
            prompt_blocks: 0,
            hit_blocks: 0,
            longest_hit_blocks: 0,
            prompt_tokens_hit: 0,
            tier_tokens: [0; TIERS],
            prompt_tokens_computed: 0,
            late_stores: 0,
            preemptions: 0,
            kept_tokens: 0,
            cache_time: Duration::ZERO,
            waiting_time: Duration::ZERO,
            latency,
        }
    }

    /// Makes one call of the cache and records its latency.
    pub fn time<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = operation();
        let elapsed = begin.elapsed();
        self.cache_time += elapsed;
        self.latency.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        result
    }

    /// Adds the counts and latencies of another worker.
    pub fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.prompt_tokens += other.prompt_tokens;
        self.output_tokens += other.output_tokens;
        self.admissions += other.admissions;
        self.evicted_sequences += other.evicted_sequences;
        self.computed_tokens += other.computed_tokens;
        self.recomputed_tokens += other.recomputed_tokens;
        self.prompt_blocks += other.prompt_blocks;
        self.hit_blocks += other.hit_blocks;
        self.longest_hit_blocks += other.longest_hit_blocks;
        self.prompt_tokens_hit += other.prompt_tokens_hit;
        self.prompt_tokens_computed += other.prompt_tokens_computed;
        for (tokens, more) in self.tier_tokens.iter_mut().zip(other.tier_tokens) {
            *tokens += more;
        }
        self.late_stores += other.late_stores;
        self.preemptions += other.preemptions;
        self.kept_tokens += other.kept_tokens;
        self.cache_time += other.cache_time;
        self.waiting_time += other.waiting_time;
        self.latency.add(&other.latency).expect("all meters have the same range");
    }

    /// Returns the share of the computed tokens that repeated no work of their request; 1 of no tokens.
    pub fn goodput(&self) -> f64 {
        1.0 - self.recomputed_tokens as f64 / self.computed_tokens.max(1) as f64
    }

    /// Returns how many calls were recorded.
    pub fn operations(&self) -> u64 {
        self.latency.len()
    }

    /// Returns the latency that this share of the calls did not exceed, in microseconds.
    pub fn latency_us(&self, share: f64) -> f64 {
        self.latency.value_at_quantile(share) as f64 / 1e3
    }

    /// Returns the longest latency, in microseconds.
    pub fn longest_latency_us(&self) -> f64 {
        self.latency.max() as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meters_add_up() {
        let mut one = Meter::new();
        one.completed = 2;
        one.time(|| std::thread::sleep(Duration::from_millis(2)));
        let mut all = Meter::new();
        all.time(|| ());
        all.add(&one);
        assert_eq!((all.completed, all.operations()), (2, 2));
        assert!(all.cache_time >= Duration::from_millis(2));
        assert!(all.longest_latency_us() >= 2000.0);
        assert!(all.latency_us(0.5) < 2000.0);
    }

    #[test]
    fn an_idle_meter_shows_zero() {
        let meter = Meter::new();
        assert_eq!(meter.goodput(), 1.0);
        assert_eq!((meter.latency_us(0.5), meter.longest_latency_us()), (0.0, 0.0));
    }
}
