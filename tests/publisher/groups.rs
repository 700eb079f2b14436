//! Tests of the publisher with groups of layers: in both dialects a subscriber that keeps groups apart holds the contents
//! of each, and a subscriber that does not know groups gets the contents of full attention only.

use std::collections::HashMap;
use std::sync::Arc;

use paged_kv::event::{Dialect, EventPublisher, PublishedGroups};
use paged_kv::{AdmitOptions, GroupId, LayerGroup, PagedKvCache};

use super::client::Client;
use super::decode::{self, Event, Group};
use super::random::Random;
use super::{BLOCK_SIZE, TOPIC, options, prompt_of};

const GROUPS: [LayerGroup; 3] = [
    LayerGroup::SlidingWindow { block_size: BLOCK_SIZE, window: 9 },
    LayerGroup::Full { block_size: BLOCK_SIZE },
    LayerGroup::State { block_size: 2 * BLOCK_SIZE },
];

/// The contents of each group that a subscriber holds, by group and hash.
type Contents = HashMap<(u64, u64), Vec<u32>>;

fn group(index: u64) -> Group {
    let (kind, window) =
        [("sliding_window", Some(9)), ("full_attention", None), ("mamba", None)][index as usize];
    Group { index: Some(index), kind: kind.to_owned(), window }
}

fn take(contents: &mut Contents, payload: &[u8]) {
    for event in decode::events(payload) {
        match event {
            Event::Stored { hashes, parent, tokens, block_size, group: of } => {
                let index = of.index.expect("each has its group");
                assert_eq!(of, group(index));
                assert_eq!(block_size, GROUPS[index as usize].block_size());
                let has_parent = |parent| contents.contains_key(&(index, parent));
                assert!(parent.is_none_or(|parent| index == 1 && has_parent(parent)));
                for (hash, tokens) in hashes.into_iter().zip(tokens.chunks(block_size)) {
                    assert_eq!(contents.insert((index, hash), tokens.to_vec()), None);
                }
            }
            Event::Removed(hashes, index) => hashes.into_iter().for_each(|hash| {
                let index = index.expect("the first group is not of full attention");
                contents.remove(&(index, hash)).expect("announced before");
            }),
            Event::Cleared => contents.clear(),
        }
    }
}

/// Serves prompts, of which the pool holds a part.
fn work(cache: &PagedKvCache) {
    let mut random = Random::new(7);
    for _ in 0..400 {
        let tokens = prompt_of(random.below(8), random.below(4), 1 + random.below(12));
        // A state is published at the end of a prompt of whole blocks.
        let tokens = &tokens[..tokens.len() - 1];
        let prompt = cache.prompt(tokens);
        let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
        admitted.unwrap().0.commit(tokens.len()).unwrap();
    }
}

/// Returns the contents that a subscriber holds at the end.
fn held(dialect: Dialect, groups: Option<PublishedGroups>) -> (PagedKvCache, Contents) {
    let options = match groups {
        Some(groups) => options(dialect).groups(groups),
        None => options(dialect),
    };
    let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
    let mut subscriber = Client::subscribe(publisher.address(), TOPIC);
    let builder = PagedKvCache::builder().num_blocks(128).groups(&GROUPS);
    let cache = builder.event_sink(publisher.clone()).build().unwrap();
    work(&cache);
    publisher.shutdown();
    let mut contents = Contents::new();
    while let Some((_, (_, payload))) = subscriber.receive() {
        take(&mut contents, &payload);
    }
    (cache, contents)
}

/// Returns the number of tokens of a prompt that the contents of all groups serve.
fn find(contents: &Contents, hashes: &[u64]) -> usize {
    let holds = |group, block: usize| contents.contains_key(&(group, hashes[block]));
    let is_hit = |blocks: &usize| {
        let windowed = blocks.saturating_sub(2)..*blocks;
        blocks.is_multiple_of(2)
            && (0..*blocks).all(|block| holds(1, block))
            && windowed.into_iter().all(|block| holds(0, block))
            && (*blocks == 0 || holds(2, blocks - 1))
    };
    (0..=hashes.len()).rev().find(is_hit).unwrap() * BLOCK_SIZE
}

#[test]
fn a_subscriber_that_keeps_groups_apart_finds_the_hits_of_a_probe() {
    for (dialect, groups) in [(Dialect::Map, None), (Dialect::Array, Some(PublishedGroups::All))] {
        let (cache, contents) = held(dialect, groups);
        let mut hits = 0;
        for (family, branch) in (0..8).flat_map(|family| (0..4).map(move |branch| (family, branch)))
        {
            let prompt = cache.prompt(&prompt_of(family, branch, 12));
            let hashes: Vec<u64> = prompt.hashes().iter().map(|hash| hash.event_hash()).collect();
            let found = find(&contents, &hashes);
            assert_eq!(found, cache.prefix().probe(&prompt));
            hits += usize::from(found > 0);
        }
        assert!(hits > 3, "{hits}");
    }
}

#[test]
fn a_subscriber_that_does_not_know_groups_gets_those_of_full_attention() {
    let all = held(Dialect::Map, None).1;
    for (dialect, groups, index) in [
        (Dialect::Array, None, 1),
        (Dialect::Map, Some(PublishedGroups::Full), 1),
        (Dialect::Array, Some(PublishedGroups::One(GroupId(0))), 0),
        (Dialect::Map, Some(PublishedGroups::One(GroupId(2))), 2),
    ] {
        let mut of_group = all.clone();
        of_group.retain(|&(of, _), _| of == index);
        assert_eq!(held(dialect, groups).1, of_group);
        assert!(!of_group.is_empty());
    }
}
