//! Tests of the publisher with tiers: by default a subscriber learns of the device alone, and on request of each medium, in
//! both dialects.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use paged_kv::event::{Dialect, EventPublisher};
use paged_kv::{
    AdmitOptions, CopyOutcome, LoadLimit, Medium, PagedKvCache, Prompt, Tier, TierAdmission, TierId,
};

use super::client::Client;
use super::decode::{self, Event};
use super::random::Random;
use super::{BLOCK_SIZE, TOPIC, options, prompt_of};

/// The contents that a subscriber holds, by medium.
type Contents = HashMap<String, HashSet<u64>>;

fn take(contents: &mut Contents, payload: &[u8]) {
    for (medium, event) in decode::events_of_media(payload) {
        let on_device = medium == "GPU";
        let held = contents.entry(medium).or_default();
        match event {
            Event::Stored { hashes, parent, tokens, block_size, group } => {
                assert_eq!((block_size, group.index), (BLOCK_SIZE, Some(0)));
                assert_eq!(tokens.len(), if on_device { hashes.len() * BLOCK_SIZE } else { 0 });
                assert!(on_device || parent.is_none());
                assert!(hashes.into_iter().all(|hash| held.insert(hash)), "stored once");
            }
            Event::Removed(hashes, _) => {
                assert!(hashes.iter().all(|hash| held.remove(hash)), "stored before");
            }
            Event::Cleared => contents.clear(),
        }
    }
}

fn prompts(cache: &PagedKvCache) -> Vec<Prompt> {
    (0..8).map(|family| cache.prompt(&prompt_of(family, 0, 6))).collect()
}

/// Serves prompts through the tiers, and stores all that is computed.
fn work(cache: &PagedKvCache) {
    let (mut random, prompts) = (Random::new(7), prompts(cache));
    for round in 0..400 {
        let prompt = &prompts[random.below(prompts.len())];
        let admitted = cache.tiers().admit(prompt, &AdmitOptions::default(), LoadLimit::default());
        let mut sequence = match admitted.expect("one prompt has room") {
            TierAdmission::Loading(ticket) => {
                let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
                ticket.complete(&outcomes).unwrap().sequence
            }
            TierAdmission::Ready(sequence, _) => sequence,
            other => panic!("nothing is under way: {other:?}"),
        };
        sequence.commit(prompt.num_tokens()).unwrap();
        let tier = TierId(random.below(2) as u8);
        if let Some(ticket) = cache.tiers().store(tier, prompt.hashes()).unwrap() {
            let outcomes = vec![CopyOutcome::Done; ticket.stores().len()];
            ticket.complete(&outcomes).unwrap();
        }
        if round == 200 {
            cache.prefix().reset();
        }
    }
}

fn cache_of(publisher: &Arc<EventPublisher>) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(20).block_size(BLOCK_SIZE);
    let builder = builder.tier(Tier::host(24)).tier(Tier::disk(40));
    builder.event_sink(publisher.clone()).build().unwrap()
}

/// Returns the contents of a subscriber after all events have arrived.
fn contents_after_work(dialect: Dialect, tiers: bool) -> (PagedKvCache, Contents) {
    let options = options(dialect).tiers(tiers).medium_of(Medium::Disk, "STORAGE");
    let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
    let cache = cache_of(&publisher);
    let mut subscriber = Client::subscribe(publisher.address(), TOPIC);
    work(&cache);
    publisher.flush();
    assert_eq!(publisher.stats().blocks_without_tokens, 0);
    let (last, mut contents) = (publisher.stats().next_sequence, Contents::new());
    loop {
        let (_, (sequence, payload)) = subscriber.receive().expect("the publisher is there");
        take(&mut contents, &payload);
        if sequence + 1 == last {
            return (cache, contents);
        }
    }
}

fn assert_on_device(cache: &PagedKvCache, contents: &Contents) {
    let on_device: HashSet<u64> = prompts(cache)
        .iter()
        .flat_map(|prompt| {
            let hits = cache.prefix().probe(prompt) / BLOCK_SIZE;
            prompt.hashes()[..hits].iter().map(|hash| hash.event_hash()).collect::<Vec<_>>()
        })
        .collect();
    assert!(!on_device.is_empty());
    assert_eq!(contents["GPU"], on_device);
}

#[test]
fn tiers_are_not_published_unless_they_are_asked_for() {
    for dialect in [Dialect::Map, Dialect::Array] {
        let (cache, contents) = contents_after_work(dialect, false);
        assert_on_device(&cache, &contents);
        assert!(contents.keys().all(|medium| ["GPU", ""].contains(&&**medium)), "{contents:?}");
    }
}

#[test]
fn a_subscriber_that_keeps_media_apart_holds_the_contents_of_each() {
    for dialect in [Dialect::Map, Dialect::Array] {
        let (cache, contents) = contents_after_work(dialect, true);
        assert_on_device(&cache, &contents);
        cache.prefix().forget(usize::MAX);
        let stats = cache.stats().tiers;
        let ready = |tier: usize| stats[tier].slots_ready;
        assert!(ready(0) > 0 && ready(1) > 0);
        assert_eq!((contents["CPU"].len(), contents["STORAGE"].len()), (ready(0), ready(1)));
        for prompt in prompts(&cache) {
            for &hash in prompt.hashes() {
                let alone = Prompt::from_hashes(&[hash], BLOCK_SIZE + 1);
                let in_host = cache.tiers().lookup(&alone)[1] > 0;
                assert_eq!(contents["CPU"].contains(&hash.event_hash()), in_host);
            }
        }
    }
}
