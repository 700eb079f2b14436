//! A storm of all operations over tiny pools, with wakers and event sinks that panic.
//!
//! Every computed block has its content written into a shadow array. Every matched block is compared with
//! the content that its hash stands for. Each round ends at rest: no block has leaked, all counts agree,
//! and the sink holds exactly the contents that a probe finds.
//!
//! `PAGED_KV_STORM_SECONDS` (4 in all) and `PAGED_KV_STORM_THREADS` (8) make it longer and wider.

#[path = "../common/mod.rs"]
mod common;

mod by_handle;
mod by_id;
mod listener;
mod shadow;
mod waits;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::random::Random;
use listener::Listener;
use paged_kv::{
    AdmitOptions, EvictionStrategy, Level, PagedKvCache, ReclaimPolicy, Retain, SeqId, Watermark,
};
use shadow::Shadow;

const BLOCK_SIZE: usize = 4;

/// The state that all threads of a round share.
pub(crate) struct Storm {
    pub(crate) cache: PagedKvCache,
    pub(crate) shadow: Shadow,
    pub(crate) listener: Option<Arc<Listener>>,
    pub(crate) threads: usize,
    has_levels: bool,
}

impl Storm {
    /// Returns options with a random level, in a cache that has levels.
    pub(crate) fn options(&self, random: &mut Random) -> AdmitOptions {
        let options = AdmitOptions::default();
        if !self.has_levels {
            return options;
        }
        let level = Level::from_priority(random.below(101) as u32);
        let (start, ttl) = (random.below(16), Duration::from_micros(random.below(400) as u64));
        let retain = Retain::new(start..start + random.below(64), level);
        let options = options.retain(retain.clone().ttl(ttl)).retain(retain);
        options.retain_generated(level, (random.below(2) == 0).then_some(ttl))
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

/// Creates the storm of a round, with a shape by the round's number.
fn storm(round: u64, threads: usize) -> Storm {
    let mut random = Random::new(round);
    let num_blocks = 1 + random.below(40);
    let mut builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    builder = builder.home_shards(1 << random.below(3));
    builder = builder.with_eviction_strategy(match random.below(4) {
        0 => EvictionStrategy::LRU,
        1 => EvictionStrategy::LFU,
        2 => EvictionStrategy::Priority { levels: 2 },
        _ => EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 8 },
    });
    if random.below(2) == 0 {
        builder = builder.reclaim_policy(ReclaimPolicy::TwoQueue);
    }
    if random.below(2) == 0 {
        builder = builder.watermark(Watermark::Blocks(random.below(num_blocks)));
    }
    if random.below(2) == 0 {
        builder = builder.fairness(paged_kv::Fairness::Bypass { at_most: random.below(4) as u32 });
    }
    let has_levels = random.below(2) == 0;
    builder = builder.retention_levels(has_levels);
    let listener = (random.below(2) == 0).then(|| Arc::new(Listener::default()));
    if let Some(listener) = &listener {
        builder = builder.event_sink(Arc::clone(listener) as Arc<dyn paged_kv::EventSink>);
    }
    let cache = builder.build().expect("the parameters make sense");
    Storm { cache, shadow: Shadow::new(num_blocks), listener, threads, has_levels }
}

fn blow(storm: &Storm, round: u64, end: Instant) {
    thread::scope(|scope| {
        for number in 0..storm.threads {
            scope.spawn(move || {
                let mut random = Random::new(round << 16 | number as u64);
                let mut handles = by_handle::Handles::new(storm);
                let mut ids = by_id::Ids::new(storm, number);
                while Instant::now() < end {
                    for _ in 0..16 {
                        match random.below(8) {
                            0..3 => handles.one(&mut random),
                            3..6 => ids.one(&mut random),
                            6 => waits::one(storm, number, &mut random),
                            _ => ids.meddle(&mut random),
                        }
                    }
                }
            });
        }
    });
}

/// Asserts that nothing is left, and that all counts agree.
fn calm(storm: &Storm, round: u64) {
    let Storm { cache, listener, .. } = storm;
    assert_eq!(cache.waiting().len(), 0, "round {round}");
    cache.sequence_ids().iter().for_each(|&id| cache.free(id).expect("it is not leased"));
    assert_eq!(cache.used_block_count(), 0, "round {round}: blocks have leaked");
    cache.validate().unwrap_or_else(|fault| panic!("round {round}: {fault}"));
    let stats = cache.stats();
    assert_eq!(stats.total_allocations, stats.total_frees, "round {round}: {stats:?}");
    if let Some(listener) = listener {
        listener.assert_holds_the_cached_contents(cache);
    }
    // This allocation may take the watermark's blocks too.
    let all = cache.pool().allocate(cache.total_blocks());
    let all = all.unwrap_or_else(|refusal| panic!("round {round}: {refusal}"));
    drop(all);
    cache.validate().unwrap_or_else(|fault| panic!("round {round}: {fault}"));
}

#[test]
fn a_storm_of_all_operations_leaves_nothing_behind() {
    // The panics are intended: their messages would fill the output.
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<listener::OnPurpose>() {
            said(info);
        }
    }));
    let threads = setting("PAGED_KV_STORM_THREADS", 8) as usize;
    let seconds = Duration::from_secs(setting("PAGED_KV_STORM_SECONDS", 4));
    let (begin, mut rounds) = (Instant::now(), 0);
    while begin.elapsed() < seconds {
        let storm = storm(rounds, threads);
        blow(&storm, rounds, Instant::now() + Duration::from_millis(400));
        calm(&storm, rounds);
        rounds += 1;
    }
    println!("{rounds} rounds of {threads} threads, 0 findings");
}

/// Returns an id that all threads know.
pub(crate) fn id(driver: usize, number: usize) -> SeqId {
    SeqId((driver * 2 + number) as u64)
}
