//! Tests that the index of NVIDIA Dynamo's router finds exactly the blocks that a probe finds. Events of
//! many threads pass through sockets, and the crate `dynamo-kv-router` decodes and indexes them, in both
//! dialects. Other tests cover lost batches, a late router, a restarted publisher, groups of layers, and tiers below the
//! device.

#[path = "../../publisher/client.rs"]
mod client;
#[path = "../../common/random.rs"]
mod random;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use client::{Batch, Client};
use dynamo_kv_router::RadixTree;
use dynamo_kv_router::protocols::{
    BlockHashOptions, KvCacheEventData, RouterEvent, StorageTier, WorkerWithDpRank,
    compute_block_hash_for_seq,
};
use dynamo_kv_router::zmq_wire::{ZmqEventNormalizer, decode_event_batch};
use paged_kv::event::{Dialect, EventPublisher, PublishedGroups, PublisherOptions};
use paged_kv::{
    AdmitOptions, CopyOutcome, ExtraKeys, LayerGroup, Medium, PagedKvCache, Prompt, Tier, TierId,
};
use random::Random;

const BLOCK_SIZE: usize = 16;
const DIALECTS: [Dialect; 2] = [Dialect::Map, Dialect::Array];
const WORKER: WorkerWithDpRank = WorkerWithDpRank { worker_id: 7, dp_rank: 0 };

/// Dynamo's index, fed as its listener feeds it: events of the device go to the tree, and those of other media to other
/// indexes.
struct Router {
    tree: RadixTree,
    /// Contents of other media that were removed, and events of these that stored some.
    removed_below: HashMap<StorageTier, HashSet<u64>>,
    stored_below: HashMap<StorageTier, usize>,
    normalizer: ZmqEventNormalizer,
    next: Option<u64>,
    events: u64,
    /// Events of groups that Dynamo does not index.
    filtered: u64,
    /// False if the events have no salts.
    salts: bool,
}

impl Router {
    fn new() -> Self {
        let normalizer = ZmqEventNormalizer::new(BLOCK_SIZE as u32);
        let (removed_below, stored_below) = (HashMap::new(), HashMap::new());
        let tree = RadixTree::new();
        let (next, events, filtered, salts) = (None, 0, 0, true);
        Self { tree, removed_below, stored_below, normalizer, next, events, filtered, salts }
    }

    fn take(&mut self, (sequence, payload): &Batch) {
        assert!(self.next.is_none_or(|next| next == *sequence), "no gap, or it was filled");
        self.next = Some(sequence + 1);
        let batch = decode_event_batch(payload).expect("Dynamo decodes every batch");
        assert_eq!(batch.data_parallel_rank, Some(0));
        for raw in batch.events {
            let Some(event) = self.normalizer.normalize(raw, *sequence, WORKER) else {
                self.filtered += 1;
                continue;
            };
            let event = event.into_router_event().expect("it is of this worker");
            self.events += 1;
            if !event.storage_tier.is_gpu() {
                self.note_below(event);
                continue;
            }
            self.tree.apply_event(event).expect("a parent is there before its children");
        }
    }

    /// Notes an event of a tier. Dynamo indexes no block without tokens, and looks removed ones up by their hashes.
    fn note_below(&mut self, event: RouterEvent) {
        let tier = event.storage_tier;
        match event.event.data {
            KvCacheEventData::Stored(stored) => {
                assert!(stored.blocks.is_empty());
                *self.stored_below.entry(tier).or_default() += 1;
            }
            KvCacheEventData::Removed(removed) => {
                let hashes = removed.block_hashes.iter().map(|hash| hash.0);
                self.removed_below.entry(tier).or_default().extend(hashes);
            }
            KvCacheEventData::Cleared => panic!("a clearing is of all media"),
        }
    }

    /// Takes the missing batches, if there are any, and then a batch.
    fn take_or_recover(&mut self, batch: &Batch, replay: &mut Client) {
        match self.next {
            Some(next) if batch.0 < next => return,
            Some(next) if batch.0 > next => {
                let missing = replay.replay(next);
                missing.iter().filter(|(number, _)| *number < batch.0).for_each(|b| self.take(b));
            }
            _ => {}
        }
        self.take(batch);
    }

    /// Returns the number of blocks at the beginning of a prompt that the index expects this worker to
    /// hit.
    fn find(&self, asked: &Asked) -> usize {
        let options = BlockHashOptions {
            lora_name: asked.lora,
            cache_namespace: asked.salt.filter(|_| self.salts),
            ..Default::default()
        };
        let hashes = compute_block_hash_for_seq(&asked.tokens, BLOCK_SIZE as u32, options);
        let found = self.tree.find_matches(hashes, false);
        found.scores.get(&WORKER).copied().unwrap_or(0) as usize
    }

    /// Compares the index with the cache, by 1,000 prompts.
    fn assert_true(&self, cache: &PagedKvCache) {
        assert_eq!(self.filtered, 0);
        let (mut random, mut blocks) = (Random::new(99), 0);
        for number in 0..1_000 {
            let asked = Asked::of(&mut random, true);
            let probed = cache.prefix().probe(&asked.prompt(cache)) / BLOCK_SIZE;
            assert_eq!(self.find(&asked), probed, "prompt {number}");
            blocks += probed;
        }
        assert!(blocks > 1_000, "{blocks} blocks of 1,000 prompts hit");
        println!("1,000 prompts agree in {blocks} blocks, after {} events", self.events);
    }
}

/// A request.
struct Asked {
    tokens: Vec<u32>,
    lora: Option<&'static str>,
    salt: Option<&'static str>,
}

impl Asked {
    fn of(random: &mut Random, whole: bool) -> Self {
        let (family, branch) = (random.below(40), random.below(10));
        let blocks = if whole { 20 } else { 1 + random.below(20) };
        let token = |at: usize| {
            let of_branch = if at / BLOCK_SIZE < branch { 0 } else { 1 + branch };
            (family * 3_000 + of_branch * 211 + at) as u32
        };
        // One token follows the last full block, because the last token is always computed.
        let tokens = (0..=blocks * BLOCK_SIZE).map(token).collect();
        let lora = (family % 8 == 3).then_some("sql");
        let salt = (family % 8 == 5).then_some("tenant");
        Self { tokens, lora, salt }
    }

    fn prompt(&self, cache: &PagedKvCache) -> Prompt {
        let mut extra = ExtraKeys::default();
        if let Some(name) = self.lora {
            extra = extra.lora(name, "/adapters/sql");
        }
        if let Some(salt) = self.salt {
            // Dynamo's frontend passes the salt to the engine in this form; the array dialect has no
            // other place for it.
            extra = extra.salt(format!("dynamo-cache-salt:{salt}"));
        }
        cache.prompt_with(&self.tokens, &extra)
    }
}

fn options(dialect: Dialect) -> PublisherOptions {
    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    let options = options.replay_endpoint("tcp://127.0.0.1:0").topic("kv@pod@model");
    options.dialect(dialect).batch_blocks(64).batch_age(Duration::from_millis(2))
}

fn cache_of(publisher: &Arc<EventPublisher>) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(1_024).block_size(BLOCK_SIZE).home_shards(4);
    builder.event_sink(publisher.clone()).build().unwrap()
}

fn work(cache: &PagedKvCache, rounds: usize) {
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let mut random = Random::new(number);
                for round in 0..rounds {
                    let asked = Asked::of(&mut random, false);
                    let prompt = asked.prompt(cache);
                    let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
                    if let Ok((mut sequence, _)) = admitted {
                        sequence.commit(asked.tokens.len()).unwrap();
                        if random.below(8) == 0 {
                            sequence.apply_streaming_llm(BLOCK_SIZE, 2 * BLOCK_SIZE).unwrap();
                        }
                    }
                    // Resets are frequent, and always followed by enough prompts to fill the pool again.
                    if number == 0 && round % 100 == 50 {
                        cache.prefix().reset();
                    }
                }
            });
        }
    });
}

fn replay_of(publisher: &EventPublisher) -> Client {
    Client::connect(publisher.replay_address().unwrap(), "DEALER")
}

/// Receives until all events so far have arrived; loses every `lost`th batch on the way.
fn drain(
    router: &mut Router,
    publisher: &EventPublisher,
    subscriber: &mut Client,
    replay: &mut Client,
    lost: u64,
) {
    publisher.flush();
    let last = publisher.stats().next_sequence;
    let mut count = 0;
    while router.next != Some(last) {
        let (_, batch) = subscriber.receive().expect("the publisher is there");
        count += 1;
        // The last batch is never lost, because a gap shows only at a later batch.
        if count % lost != 0 || batch.0 + 1 == last {
            router.take_or_recover(&batch, replay);
        }
    }
}

#[test]
fn find_matches_is_probe() {
    for dialect in DIALECTS {
        let publisher = Arc::new(EventPublisher::bind(&options(dialect)).unwrap());
        let (cache, mut router) = (cache_of(&publisher), Router::new());
        let mut subscriber = Client::subscribe(publisher.address(), "kv@");
        let mut replay = replay_of(&publisher);
        work(&cache, 1_500);
        drain(&mut router, &publisher, &mut subscriber, &mut replay, u64::MAX);
        router.assert_true(&cache);
    }
}

#[test]
fn after_losing_every_7th_batch_find_matches_is_probe() {
    for dialect in DIALECTS {
        let publisher = Arc::new(EventPublisher::bind(&options(dialect)).unwrap());
        let (cache, mut router) = (cache_of(&publisher), Router::new());
        let mut subscriber = Client::subscribe(publisher.address(), "kv@");
        let mut replay = replay_of(&publisher);
        work(&cache, 300);
        drain(&mut router, &publisher, &mut subscriber, &mut replay, 7);
        router.assert_true(&cache);
    }
}

#[test]
fn for_a_router_that_comes_late_find_matches_is_probe() {
    for dialect in DIALECTS {
        let publisher = Arc::new(EventPublisher::bind(&options(dialect)).unwrap());
        let (cache, mut router) = (cache_of(&publisher), Router::new());
        work(&cache, 300);
        let mut subscriber = Client::subscribe(publisher.address(), "kv@");
        let mut replay = replay_of(&publisher);
        work(&cache, 300);
        replay.replay(0).iter().for_each(|batch| router.take(batch));
        drain(&mut router, &publisher, &mut subscriber, &mut replay, u64::MAX);
        router.assert_true(&cache);
    }
}

#[test]
fn after_a_restart_find_matches_is_probe() {
    for dialect in DIALECTS {
        let mut router = Router::new();
        for rounds in [300, 200, 400] {
            let publisher = Arc::new(EventPublisher::bind(&options(dialect)).unwrap());
            let cache = cache_of(&publisher);
            work(&cache, rounds);
            publisher.flush();
            let batches = replay_of(&publisher).replay(router.next.unwrap_or(0));
            assert!(router.next.is_none_or(|next| batches[0].0 > next), "a gap, and no old number");
            router.next = None;
            batches.iter().for_each(|batch| router.take(batch));
            router.assert_true(&cache);
        }
    }
}

/// A late router of a ring that has dropped the beginning: the cache emits all its contents again.
#[test]
fn contents_that_no_ring_keeps_are_announced_again() {
    for dialect in DIALECTS {
        let options = options(dialect).ring(100, 64 << 20);
        let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
        let (cache, mut router) = (cache_of(&publisher), Router::new());
        work(&cache, 1_000);
        let mut subscriber = Client::subscribe(publisher.address(), "");
        let mut replay = replay_of(&publisher);
        publisher.flush();
        router.next = Some(publisher.stats().next_sequence);
        cache.prefix().announce_all();
        work(&cache, 10);
        drain(&mut router, &publisher, &mut subscriber, &mut replay, u64::MAX);
        router.assert_true(&cache);
    }
}

/// With groups, Dynamo indexes those of full attention: here one, whose hashes the window uses, too. Its index finds the
/// hits of that group, to which the window may add a limit.
#[test]
fn with_groups_find_matches_is_the_hit_of_full_attention() {
    let full = LayerGroup::Full { block_size: BLOCK_SIZE };
    let window = LayerGroup::SlidingWindow { block_size: BLOCK_SIZE, window: 100 };
    let chunked = LayerGroup::Chunked { block_size: BLOCK_SIZE, chunk: 64 };
    for groups in [[full, window], [window, full], [chunked, full]] {
        for (dialect, published) in [
            (Dialect::Map, PublishedGroups::All),
            (Dialect::Array, PublishedGroups::All),
            (Dialect::Array, PublishedGroups::Full),
        ] {
            let options = options(dialect).groups(published);
            let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
            let builder = PagedKvCache::builder().num_blocks(1_024).groups(&groups).home_shards(4);
            let cache = builder.event_sink(publisher.clone()).build().unwrap();
            let mut router = Router::new();
            let mut subscriber = Client::subscribe(publisher.address(), "kv@");
            let mut replay = replay_of(&publisher);
            work(&cache, 300);
            let (mut random, mut blocks) = (Random::new(99), 0);
            for number in 0..200 {
                drain(&mut router, &publisher, &mut subscriber, &mut replay, u64::MAX);
                let asked = Asked::of(&mut random, true);
                let prompt = asked.prompt(&cache);
                // The admission takes blocks of other prompts, so the next one comes after its events.
                let (mut sequence, admission) =
                    cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
                let hit = admission.longest_group_hit / BLOCK_SIZE;
                assert_eq!(router.find(&asked), hit, "prompt {number}, {groups:?}, {dialect:?}");
                sequence.commit(asked.tokens.len()).unwrap();
                blocks += hit;
            }
            assert!(blocks > 200, "{blocks} blocks of 200 prompts hit");
            assert_eq!(router.filtered > 0, published == PublishedGroups::All);
        }
    }
}

/// Stores contents of random prompts in tiers, where they replace others, while other threads use the device.
fn work_with_tiers(cache: &PagedKvCache, rounds: usize) {
    thread::scope(|scope| {
        scope.spawn(|| work(cache, rounds));
        scope.spawn(|| {
            let mut random = Random::new(50);
            for _ in 0..rounds {
                let prompt = Asked::of(&mut random, true).prompt(cache);
                let tier = TierId(random.below(2) as u8);
                if let Some(ticket) = cache.tiers().store(tier, prompt.hashes()).unwrap() {
                    let outcomes = vec![CopyOutcome::Done; ticket.stores().len()];
                    ticket.complete(&outcomes).unwrap();
                }
            }
        });
    });
}

/// Contents that come to tiers and leave them do not change the blocks that Dynamo expects on the device. Dynamo keeps one record of
/// salts for the device and the host's memory, which events without tokens spoil. So the host has a name that Dynamo takes
/// for a disk, or salts are not published.
#[test]
fn with_tiers_find_matches_is_the_probe_of_the_device() {
    use StorageTier::{Disk, HostPinned};

    let names = [("CPU", false, &[HostPinned, Disk][..]), ("CPU_TIER2", true, &[Disk])];
    for dialect in DIALECTS {
        let options = options(dialect);
        let router = with_tiers(&options, true);
        assert!(router.stored_below.is_empty() && router.removed_below.is_empty());
        for (host, salts, tiers) in names {
            let options = options.clone().tiers(true).medium_of(Medium::Host, host);
            let router = with_tiers(&options.publish_salts(salts), salts);
            let stored: HashSet<&StorageTier> = router.stored_below.keys().collect();
            let removed: HashSet<&StorageTier> = router.removed_below.keys().collect();
            assert_eq!((stored, removed), (tiers.iter().collect(), tiers.iter().collect()));
        }
    }
}

/// Works on a cache with tiers, and checks that the router is right about the device.
fn with_tiers(options: &PublisherOptions, salts: bool) -> Router {
    let publisher = Arc::new(EventPublisher::bind(options).unwrap());
    let builder = PagedKvCache::builder().num_blocks(1_024).block_size(BLOCK_SIZE).home_shards(4);
    let builder = builder.tier(Tier::host(64)).tier(Tier::disk(100));
    let cache = builder.event_sink(publisher.clone()).build().unwrap();
    let mut router = Router { salts, ..Router::new() };
    let mut subscriber = Client::subscribe(publisher.address(), "kv@");
    let mut replay = replay_of(&publisher);
    work_with_tiers(&cache, 600);
    drain(&mut router, &publisher, &mut subscriber, &mut replay, u64::MAX);
    router.assert_true(&cache);
    let left_and_kept = prompts_of(&cache).any(|prompt| {
        let hits = cache.prefix().probe(&prompt) / BLOCK_SIZE;
        let is_removed = |hash: u64| router.removed_below.values().any(|all| all.contains(&hash));
        prompt.hashes()[..hits].iter().any(|hash| is_removed(hash.event_hash()))
    });
    let has_events = !router.removed_below.is_empty();
    assert_eq!(left_and_kept, has_events, "some contents left a tier and are on the device");
    router
}

fn prompts_of(cache: &PagedKvCache) -> impl Iterator<Item = Prompt> {
    let mut random = Random::new(40);
    (0..2_000).map(move |_| Asked::of(&mut random, true).prompt(cache))
}
