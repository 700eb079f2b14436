//! Tests of the collector: a scrape shows the snapshot's figures, under names that dashboards know, and waits for
//! no operation.

mod dashboard;
mod exposition;
mod prometheus;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use paged_kv::metrics::{BlockSampler, CacheCollector};
use paged_kv::{
    AdmitOptions, BlockHash, CopyOutcome, LoadLimit, PagedKvCache, PinAnswer, SeqId, StepBuffers,
    Tier, TierAdmission, TierId,
};
use prometheus_client::registry::Registry;

use self::exposition::Scraped;

/// Creates a cache in which every figure but the rare ones is above 0.
pub fn used_cache() -> Arc<PagedKvCache> {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.admit(SeqId(1), &[7; 9]).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    cache.admit(SeqId(2), &[7; 9]).unwrap();
    cache.fork(SeqId(1), SeqId(3)).unwrap();
    cache.admit(SeqId(4), &[1, 2]).unwrap();
    cache.evict().unwrap();
    cache.admit(SeqId(5), &[9; 5]).unwrap();
    cache.commit(SeqId(5), 5).unwrap();
    cache.free(SeqId(5)).unwrap();
    Arc::new(cache)
}

/// Creates a registry with this collector.
pub fn registry(collector: CacheCollector) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    registry
}

#[test]
fn a_scrape_shows_each_figure_of_the_snapshot() {
    let cache = used_cache();
    let registry = registry(CacheCollector::new(cache.clone()));
    let step = cache.step(StepBuffers::default());
    let until = Instant::now() + Duration::from_secs(3_600);
    let pin = cache.retention().pin(&cache.prompt(&[9; 4]), until).unwrap();
    assert!(matches!(pin, PinAnswer::Accepted(_)));
    let stats = cache.stats();
    for scraped in Scraped::in_both_formats(&registry) {
        let value = |name: &str| scraped.only(name);
        let figures = [
            ("paged_kv_block_size_tokens", 4),
            ("paged_kv_block_size_bytes", cache.block_memory_bytes() as u64),
            ("paged_kv_blocks", 16),
            ("paged_kv_blocks_used", stats.blocks_used as u64),
            ("paged_kv_blocks_used_peak", stats.peak_blocks_used as u64),
            ("paged_kv_blocks_idle", stats.blocks_idle as u64),
            ("paged_kv_blocks_pinned", 1),
            ("paged_kv_sequences", stats.num_sequences as u64),
            ("paged_kv_steps_open", 1),
            ("paged_kv_evicted_ids", stats.evicted_ids as u64),
            ("paged_kv_blocks_allocated_total", stats.total_allocations),
            ("paged_kv_blocks_freed_total", stats.total_frees),
            ("paged_kv_blocks_reclaimed_total", stats.blocks_reclaimed),
            ("paged_kv_evictions_total", 1),
            ("paged_kv_evicted_ids_forgotten_total", stats.evicted_ids_forgotten),
            ("paged_kv_forks_total", 1),
            ("paged_kv_prompt_tokens_total", 25),
            ("paged_kv_prompt_tokens_hit_total", 8),
            ("paged_kv_prompt_tokens_too_short_total", 2),
            ("paged_kv_events_dropped_total", 0),
        ];
        for (name, expected) in figures {
            assert_eq!(value(name), expected as f64, "{name}");
        }
        for class in ["new", "growing"] {
            let waiting = scraped.find("paged_kv_requests_waiting", &[("class", class)]);
            assert_eq!(waiting, [0.0], "{class}");
        }
        assert_eq!(scraped.series.len(), figures.len() + 2, "nothing else");
        scraped.assert_well_formed();
    }
    step.complete();
}

#[test]
fn a_scrape_of_all_names_describes_each_metric_once() {
    let collector = CacheCollector::new(used_cache()).vllm_names("llama", 0).vllm_requests();
    for scraped in Scraped::in_both_formats(&registry(collector)) {
        scraped.assert_well_formed();
    }
}

#[test]
fn the_caches_of_two_engines_are_distinguished_by_labels() {
    let mut registry = Registry::default();
    for engine in 0..2_u32 {
        let label = ("engine".into(), engine.to_string().into());
        let collector = CacheCollector::new(used_cache());
        registry.sub_registry_with_label(label).register_collector(Box::new(collector));
    }
    let scraped = Scraped::of(&registry);
    for engine in ["0", "1"] {
        assert_eq!(scraped.find("paged_kv_blocks", &[("engine", engine)]), [16.0]);
    }
}

#[test]
fn an_empty_cache_uses_nothing() {
    let cache = Arc::new(PagedKvCache::new(8, 4, 1, 1));
    let scraped = Scraped::of(&registry(CacheCollector::new(cache).vllm_names("llama", 3)));
    let labels = [("model_name", "llama"), ("engine", "3")];
    assert_eq!(scraped.find("vllm:kv_cache_usage_perc", &labels), [0.0]);
}

#[test]
fn a_scrape_waits_for_no_sequence_that_a_closure_reads() {
    let cache = used_cache();
    let registry = registry(CacheCollector::new(cache.clone()).vllm_names("llama", 0));
    let (send, receive) = channel();
    std::thread::scope(|scope| {
        let registry = &registry;
        cache.with_sequence(SeqId(3), |_| {
            scope.spawn(move || send.send(Scraped::of(registry).only("paged_kv_sequences")));
            assert_eq!(receive.recv_timeout(Duration::from_secs(20)), Ok(3.0));
        })
    });
}

/// Creates a cache whose tiers have copied blocks each way: two of a prompt are in the host's memory and come back, a
/// third one is on disk.
fn used_tiers() -> Arc<PagedKvCache> {
    let builder = PagedKvCache::builder().num_blocks(16).block_size(4);
    let cache = builder.tier(Tier::host(8)).tier(Tier::disk(8)).build().unwrap();
    let prompt = cache.prompt(&[7; 13]);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(13).unwrap();
    let store = |tier, hashes: &[BlockHash], outcomes: &[CopyOutcome]| {
        let ticket = cache.tiers().store(TierId(tier), hashes).unwrap().expect("to be stored");
        let number = ticket.number();
        ticket.complete(outcomes).unwrap();
        number
    };
    store(0, &prompt.hashes()[..2], &[CopyOutcome::Done; 2]);
    let failed = store(1, &prompt.hashes()[2..], &[CopyOutcome::Failed]);
    cache.tiers().quiesced(failed);
    store(1, &prompt.hashes()[2..], &[CopyOutcome::Done]);
    drop(sequence);
    cache.prefix().forget(16);
    store(1, &prompt.hashes()[..1], &[CopyOutcome::Done]);
    let short = cache.prompt(&[7; 9]);
    let admit =
        || cache.tiers().admit(&short, &AdmitOptions::default(), LoadLimit::default()).unwrap();
    let TierAdmission::Loading(ticket) = admit() else { panic!("it is in the host's memory") };
    assert!(matches!(admit(), TierAdmission::Pending));
    drop(ticket.complete(&[CopyOutcome::Done; 2]).unwrap());
    Arc::new(cache)
}

#[test]
fn the_figures_of_tiers_are_shown_with_their_medium() {
    let cache = used_tiers();
    let bytes = cache.block_memory_bytes() as f64;
    for scraped in Scraped::in_both_formats(&registry(CacheCollector::new(cache.clone()))) {
        let figures = [
            ("paged_kv_tier_slots", [8.0, 8.0]),
            ("paged_kv_tier_slots_ready", [2.0, 2.0]),
            ("paged_kv_tier_slots_used", [0.0, 0.0]),
            ("paged_kv_tier_slots_quarantined", [0.0, 0.0]),
            ("paged_kv_tier_blocks_stored_total", [2.0, 2.0]),
            ("paged_kv_tier_blocks_stored_from_tiers_total", [0.0, 1.0]),
            ("paged_kv_tier_blocks_loaded_total", [2.0, 0.0]),
            ("paged_kv_tier_stored_bytes_total", [2.0 * bytes, 2.0 * bytes]),
            ("paged_kv_tier_loaded_bytes_total", [2.0 * bytes, 0.0]),
            ("paged_kv_tier_prompt_tokens_loaded_total", [8.0, 0.0]),
            ("paged_kv_tier_copies_failed_total", [0.0, 1.0]),
            ("paged_kv_tier_stores_dropped_total", [0.0, 0.0]),
        ];
        for (name, [host, disk]) in figures {
            let of = |tier, medium| scraped.find(name, &[("tier", tier), ("medium", medium)]);
            assert_eq!((of("0", "host"), of("1", "disk")), (vec![host], vec![disk]), "{name}");
        }
        assert_eq!(scraped.only("paged_kv_contents_in_flight"), 0.0);
        assert_eq!(scraped.only("paged_kv_blocks_quarantined"), 0.0);
        assert_eq!(scraped.only("paged_kv_admissions_pending_total"), 1.0);
        scraped.assert_well_formed();
        assert_listed(&scraped);
    }
}

#[test]
fn tiers_appear_under_vllms_names_where_the_meaning_is_the_same() {
    let cache = used_tiers();
    let bytes = cache.block_memory_bytes() as f64;
    let registry = registry(CacheCollector::new(cache.clone()).vllm_names("llama", 7));
    let labels = [("model_name", "llama"), ("engine", "7")];
    for scraped in Scraped::in_both_formats(&registry) {
        let value = |name: &str| scraped.find(name, &labels);
        // 13 and 9 tokens, of which the device had none.
        assert_eq!(value("vllm:external_prefix_cache_queries_total"), [22.0]);
        assert_eq!(value("vllm:external_prefix_cache_hits_total"), [8.0]);
        for (source, tokens) in [("device", 0.0), ("host", 8.0), ("disk", 0.0)] {
            let of = [labels[0], labels[1], ("source", source)];
            let name = "vllm:prompt_tokens_cached_by_source_total";
            assert_eq!(scraped.find(name, &of), [tokens], "{source}");
        }
        assert_eq!(value("vllm:kv_offload_load_bytes_total"), [2.0 * bytes]);
        assert_eq!(value("vllm:kv_offload_store_bytes_total"), [3.0 * bytes], "of the device");
        assert_eq!(value("vllm:kv_offload_cpu_cache_usage_perc"), [0.0]);
        scraped.assert_well_formed();
        assert_listed(&scraped);
    }
    let without = CacheCollector::new(used_cache()).vllm_names("llama", 7);
    let names = Scraped::of(&self::registry(without)).names();
    assert!(!names.iter().any(|name| name.contains("offload") || name.contains("tier")));
}

/// The guide's page is where an operator looks a name up.
#[test]
fn the_guide_lists_every_name() {
    let cache = used_cache();
    let sampler = Arc::new(BlockSampler::new(cache.clone(), 1));
    let collector = CacheCollector::new(cache).vllm_names("llama", 0).vllm_requests();
    assert_listed(&Scraped::of(&registry(collector.sampler(sampler))));
}

fn assert_listed(scraped: &Scraped) {
    let page = include_str!("../../src/guide/metrics.md");
    for name in scraped.names() {
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = of_histogram.unwrap_or(&name);
        assert!(page.contains(&format!("`{name}`")), "{name} is not in the guide");
    }
}

#[test]
fn sampled_times_appear_under_both_names_and_only_with_a_sampler() {
    let cache = used_cache();
    let sampler = Arc::new(BlockSampler::new(cache.clone(), 1));
    let collector = CacheCollector::new(cache.clone()).vllm_names("llama", 0);
    assert!(
        Scraped::of(&registry(collector))
            .find("paged_kv_block_lifetime_seconds_count", &[])
            .is_empty()
    );
    let collector = CacheCollector::new(cache.clone()).vllm_names("llama", 0);
    let registry = registry(collector.sampler(sampler));
    let ended = |name: &str, labels: &[(&str, &str)]| Scraped::of(&registry).find(name, labels);
    assert_eq!(ended("paged_kv_block_lifetime_seconds_count", &[]), [0.0]);
    // A scrape is a look: this content begins after the first and ends before the third.
    cache.admit(SeqId(20), &[20; 5]).unwrap();
    cache.commit(SeqId(20), 4).unwrap();
    cache.free(SeqId(20)).unwrap();
    assert_eq!(ended("paged_kv_block_lifetime_seconds_count", &[]), [0.0]);
    drop(cache.pool().allocate(cache.free_block_count()).unwrap());
    let labels = [("model_name", "llama"), ("engine", "0")];
    assert_eq!(ended("paged_kv_block_lifetime_seconds_count", &[]), [1.0]);
    assert_eq!(ended("vllm:kv_block_lifetime_seconds_count", &labels), [1.0]);
    for name in [
        "paged_kv_block_idle_before_reclaim_seconds",
        "paged_kv_block_reuse_gap_seconds",
        "vllm:kv_block_idle_before_evict_seconds",
        "vllm:kv_block_reuse_gap_seconds",
    ] {
        // vLLM's 21 bounds, and infinity.
        assert_eq!(ended(&format!("{name}_bucket"), &[]).len(), 22, "{name}");
    }
    for scraped in Scraped::in_both_formats(&registry) {
        scraped.assert_well_formed();
    }
}

#[cfg(feature = "async")]
#[test]
fn waiting_requests_are_shown_by_class() {
    let cache = used_cache();
    let registry =
        registry(CacheCollector::new(cache.clone()).vllm_names("llama", 0).vllm_requests());
    let mut waiting = Box::pin(cache.waiting().reserve(16));
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    assert!(std::future::Future::poll(waiting.as_mut(), &mut context).is_pending());
    let scraped = Scraped::of(&registry);
    assert_eq!(scraped.find("paged_kv_requests_waiting", &[("class", "new")]), [1.0]);
    assert_eq!(scraped.find("vllm:num_requests_waiting", &[("engine", "0")]), [1.0]);
    drop(waiting);
    assert_eq!(Scraped::of(&registry).find("vllm:num_requests_waiting", &[]), [0.0]);
}

#[test]
fn the_tokens_that_a_group_lost_are_shown() {
    use paged_kv::LayerGroup;

    let groups = [LayerGroup::Full { block_size: 4 }, LayerGroup::State { block_size: 4 }];
    let builder = PagedKvCache::builder().num_blocks(16).groups(&groups);
    let cache = Arc::new(builder.build().unwrap());
    cache.admit(SeqId(1), &[7; 10]).unwrap();
    cache.commit(SeqId(1), 10).unwrap(); // no state is at a multiple of 4
    cache.admit(SeqId(2), &[7; 10]).unwrap();
    let scraped = Scraped::of(&registry(CacheCollector::new(cache)));
    let lost = "paged_kv_group_prompt_tokens_lost_total";
    assert_eq!(scraped.find(lost, &[("group", "0")]), [0.0]);
    assert_eq!(scraped.find(lost, &[("group", "1")]), [8.0]);
    scraped.assert_well_formed();
    assert_listed(&scraped);
}

#[cfg(feature = "events")]
#[test]
fn the_counts_of_a_publisher_are_shown() {
    use paged_kv::event::{EventPublisher, PublisherOptions};

    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
    let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    let cache = Arc::new(builder.event_sink(publisher.clone()).build().unwrap());
    cache.admit(SeqId(1), &[7; 9]).unwrap();
    cache.commit(SeqId(1), 9).unwrap();
    let scraped = Scraped::of(&registry(CacheCollector::new(cache).publisher(publisher)));
    assert_eq!(scraped.only("paged_kv_publisher_blocks_total"), 2.0);
    assert_eq!(scraped.only("paged_kv_publisher_batches_lost_total"), 0.0);
    scraped.assert_well_formed();
    assert_listed(&scraped);
}
