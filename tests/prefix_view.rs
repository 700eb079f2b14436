//! Tests of the view of the cached contents: how it forgets, uncaches and publishes, the count of cached
//! blocks and its limit, alone and beside other threads.

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use common::random::Random;
use common::{assert_empties, s, shapes};
use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, EventSink, KvEvent, PagedKvCache,
    PagedKvError, Prompt,
};

const BLOCK_SIZE: usize = 4;

/// The contents that a router believes to be cached.
#[derive(Default)]
struct Router(Mutex<HashSet<BlockHash>>);

impl EventSink for Router {
    fn on_event(&self, event: &KvEvent<'_>) {
        let mut cached = self.0.lock().unwrap();
        match event {
            KvEvent::BlockStored { hashes, .. } => {
                hashes.iter().for_each(|&hash| assert!(cached.insert(hash), "stored twice"));
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                hashes.iter().for_each(|hash| assert!(cached.remove(hash), "never stored"));
            }
            _ => cached.clear(),
        }
    }
}

/// Prompts of a few families, which share beginnings.
fn some_prompt(cache: &PagedKvCache, random: &mut Random) -> Prompt {
    let (family, branch) = (random.below(3) as u32, random.below(12) as u32);
    let token = |at: u32| 1000 * family + if at < 8 { at } else { 100 * branch + at };
    let tokens: Vec<u32> = (0..random.below(22) as u32).map(token).collect();
    cache.prompt(&tokens)
}

/// Does one operation at random, of those that a server and an operator call.
/// Returns the limit of cached blocks if it sets one.
fn act(cache: &PagedKvCache, random: &mut Random, held: &mut Vec<CachedSequence>) -> Option<usize> {
    let prompt = some_prompt(cache, random);
    let (prefix, total) = (cache.prefix(), cache.total_blocks());
    match random.below(14) {
        0..5 => {
            if let Ok((mut sequence, _)) = cache.admit_sequence(&prompt, &AdmitOptions::default()) {
                sequence.commit(prompt.num_tokens()).unwrap();
                held.push(sequence);
            }
        }
        5..8 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
        8 => assert!(prefix.forget(random.below(4)) < 4),
        9 => assert!(prefix.forget_prompt(&prompt).unwrap() <= total),
        10 => {
            let ids: Vec<BlockId> =
                (0..random.below(4)).map(|_| BlockId(random.below(total + 9) as u32)).collect();
            assert!(prefix.uncache(&ids) <= ids.len());
        }
        11 => {
            let most = [0, 3, 9, usize::MAX][random.below(4)];
            prefix.set_max_cached(most);
            return Some(most);
        }
        12 => {
            let hit = prefix.acquire(prompt.hashes());
            assert!(hit.len() <= prompt.hashes().len());
            if let Ok(table) = cache.pool().allocate(prompt.hashes().len()) {
                prefix.publish(table.as_slice(), prompt.hashes(), None).unwrap();
            }
        }
        _ => drop(cache.allocate_sequence(random.below(40))),
    }
    None
}

/// Counts the cached blocks by uncaching all of them.
fn uncache_all(cache: &PagedKvCache) -> usize {
    let all: Vec<BlockId> = (0..cache.total_blocks() as u32 + 1).map(BlockId).collect();
    cache.prefix().uncache(&all)
}

#[test]
fn the_count_of_cached_blocks_is_that_of_the_blocks_that_can_be_uncached() {
    for seed in 0..60 {
        for cache in shapes(24, BLOCK_SIZE) {
            let (mut random, mut held) = (Random::new(seed), Vec::new());
            let mut most = usize::MAX;
            for _ in 0..100 {
                most = act(&cache, &mut random, &mut held).unwrap_or(most);
                let is_within = cache.prefix().cached_blocks() <= most;
                assert!(is_within || cache.stats().blocks_idle == 0, "seed {seed}");
            }
            cache.prefix().set_max_cached(usize::MAX);
            let cached = cache.prefix().cached_blocks();
            cache.validate().unwrap();
            assert_eq!(uncache_all(&cache), cached, "seed {seed}");
            assert_eq!(cache.prefix().cached_blocks(), 0);
            assert_eq!(cache.stats().blocks_idle, 0);
            held.clear();
            assert_eq!(cache.free_block_count(), 24);
            let stats = cache.stats();
            assert_eq!(stats.total_allocations, stats.total_frees);
            assert_empties(&cache);
        }
    }
}

#[test]
fn a_router_learns_of_every_content_that_is_forgotten() {
    for seed in 0..40 {
        let router = Arc::new(Router::default());
        let builder = PagedKvCache::builder().num_blocks(24).block_size(BLOCK_SIZE).home_shards(2);
        let cache = builder.event_sink(router.clone()).build().unwrap();
        let (mut random, mut held) = (Random::new(seed), Vec::new());
        for _ in 0..150 {
            act(&cache, &mut random, &mut held);
            for hash in router.0.lock().unwrap().iter() {
                assert_eq!(cache.prefix().acquire(&[*hash]).len(), 1, "it can be matched");
            }
        }
        uncache_all(&cache);
        assert!(router.0.lock().unwrap().is_empty());
    }
}

#[test]
fn threads_that_forget_and_serve_leave_a_consistent_cache() {
    for seed in 0..6 {
        for with_sink in [false, true] {
            let router = Arc::new(Router::default());
            let mut builder =
                PagedKvCache::builder().num_blocks(40).block_size(BLOCK_SIZE).home_shards(4);
            if with_sink {
                builder = builder.event_sink(router.clone());
            }
            let cache = builder.build().unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let cache = &cache;
                    scope.spawn(move || {
                        let (mut random, mut held) = (Random::new(100 * seed + thread), Vec::new());
                        for round in 0..if cfg!(miri) { 20 } else { 1_500 } {
                            act(cache, &mut random, &mut held);
                            if round % 64 == 0 {
                                cache.prefix().set_max_cached(usize::MAX);
                            }
                        }
                    });
                }
            });
            cache.validate().unwrap();
            cache.prefix().set_max_cached(usize::MAX);
            let cached = cache.prefix().cached_blocks();
            assert_eq!(uncache_all(&cache), cached);
            assert!(router.0.lock().unwrap().is_empty());
            assert_eq!(cache.free_block_count(), 40);
            let stats = cache.stats();
            assert_eq!(stats.total_allocations, stats.total_frees);
        }
    }
}

#[test]
fn the_oldest_idle_contents_are_forgotten_first() {
    let cache =
        PagedKvCache::builder().num_blocks(32).block_size(4).home_shards(1).build().unwrap();
    for family in 0..4_u32 {
        let tokens: Vec<u32> = (0..9).map(|at| 100 * family + at).collect();
        cache.admit(s(1), &tokens).unwrap();
        cache.commit(s(1), 9).unwrap();
        cache.free(s(1)).unwrap();
    }
    let hits = |family: u32| {
        let tokens: Vec<u32> = (0..9).map(|at| 100 * family + at).collect();
        cache.prefix().probe(&cache.prompt(&tokens))
    };
    assert_eq!(cache.prefix().forget(3), 3);
    assert_eq!([0, 1, 2, 3].map(hits), [0, 4, 8, 8]);
    cache.prefix().set_max_cached(2);
    assert_eq!([0, 1, 2, 3].map(hits), [0, 0, 0, 8]);
    assert_eq!(cache.prefix().forget(usize::MAX), 2);
    assert_eq!((cache.stats().blocks_idle, cache.stats().blocks_reclaimed), (0, 0));
    assert_eq!(cache.stats().peak_blocks_used, 3);
}

#[test]
fn blocks_of_an_open_step_are_forgotten_when_it_ends() {
    let cache = PagedKvCache::builder().num_blocks(8).block_size(4).home_shards(1).build().unwrap();
    cache.prefix().set_max_cached(1);
    let (mut sequence, _) =
        cache.admit_sequence(&cache.prompt(&[7; 12]), &AdmitOptions::default()).unwrap();
    let mut step = cache.step(Default::default());
    step.commit(&mut sequence, 12).unwrap();
    drop(sequence);
    assert_eq!(step.complete().published, 3);
    assert_eq!(cache.prefix().cached_blocks(), 1);
}

#[test]
fn contents_of_raw_blocks_are_published_only_with_owners_and_a_hash_each() {
    let cache =
        PagedKvCache::builder().num_blocks(8).block_size(4).null_block(true).build().unwrap();
    let hashes: Vec<BlockHash> = (1..4).map(BlockHash::from_u128).collect();
    let table = cache.pool().allocate(2).unwrap();
    let ids = table.as_slice().to_vec();
    let prefix = cache.prefix();
    for (ids, unknown) in [
        (vec![ids[0], BlockId(0)], BlockId(0)),
        (vec![ids[0], BlockId(u32::MAX)], BlockId(u32::MAX)),
        (vec![BlockId(7), ids[0]], BlockId(7)),
    ] {
        let refused = prefix.publish(&ids, &hashes[..2], None).unwrap_err();
        assert_eq!(refused, PagedKvError::BlockNotFound(unknown));
    }
    assert!(prefix.publish(&ids, &hashes, None).is_err());
    assert_eq!(prefix.cached_blocks(), 0);
    assert_eq!(prefix.publish(&ids, &hashes[..2], None), Ok(2));
    assert_eq!(prefix.publish(&ids, &hashes[1..], None), Ok(0), "they have keys");
    let hit = prefix.acquire(&hashes);
    assert_eq!(hit.as_slice(), ids);
    drop((table, hit));
    assert_eq!(cache.stats().blocks_idle, 2);
    cache.validate().unwrap();
}

#[test]
fn a_cache_without_reuse_has_nothing_to_forget() {
    let cache =
        PagedKvCache::builder().num_blocks(8).block_size(4).prefix_reuse(false).build().unwrap();
    let (prefix, prompt) = (cache.prefix(), cache.prompt(&[7; 12]));
    let table = cache.pool().allocate(3).unwrap();
    assert_eq!(prefix.publish(table.as_slice(), prompt.hashes(), None), Ok(0));
    assert_eq!(prefix.forget_prompt(&prompt), Ok(0));
    assert_eq!((prefix.forget(9), prefix.uncache(table.as_slice())), (0, 0));
    assert!(prefix.acquire(prompt.hashes()).is_empty());
    prefix.set_max_cached(0);
    assert_eq!(prefix.cached_blocks(), 0);
    drop(table);
    assert_empties(&cache);
}
