//! Tests of levels: which contents stay cached, as TensorRT-LLM's retention priorities say, and how ours differ.

#[path = "../common/mod.rs"]
mod common;
mod copies;
mod ends;

use std::thread;
use std::time::Duration;

use common::random::Random;
use common::{assert_empties, s, shapes_with};
use paged_kv::{
    AdmitOptions, ErrorKind, LayerGroup, Level, LoadLimit, PagedKvCache, PagedKvError,
    ReclaimPolicy, Retain, StepBuffers, Tier,
};

const LEVELS: [Level; 5] = [Level::Lowest, Level::Low, Level::Default, Level::High, Level::Highest];
const HOUR: Duration = Duration::from_secs(3_600);

/// A duration that has passed when the next operation looks.
const MOMENT: Duration = Duration::from_nanos(1);

fn prompt(name: u32, num_tokens: usize) -> Vec<u32> {
    (0..num_tokens as u32).map(|position| name * 1_000 + position).collect()
}

/// Caches with levels, in blocks of four tokens.
fn caches(num_blocks: usize) -> Vec<PagedKvCache> {
    shapes_with(num_blocks, 4, |builder| builder.retention_levels(true))
}

/// A cache with levels and one home shard, so that its order is exact under each policy.
fn cache_of(num_blocks: usize, policy: ReclaimPolicy) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(4).home_shards(1);
    builder.retention_levels(true).reclaim_policy(policy).build().unwrap()
}

fn serve_with(cache: &PagedKvCache, tokens: &[u32], options: &AdmitOptions) {
    let options = options.clone().allow_full_hit();
    cache.admit_with(s(999), &cache.prompt(tokens), &options).expect("there is room");
    cache.commit(s(999), tokens.len()).expect("it was just admitted");
    cache.free(s(999)).expect("it is not leased");
}

fn serve(cache: &PagedKvCache, tokens: &[u32]) {
    serve_with(cache, tokens, &AdmitOptions::default());
}

fn whole(level: Level) -> Retain {
    Retain::new(0..usize::MAX, level)
}

fn at(level: Level) -> AdmitOptions {
    AdmitOptions::default().retain(whole(level))
}

/// Takes `n` blocks from other contents, and gives them back without a content.
fn press(cache: &PagedKvCache, n: usize) {
    cache.allocate(s(998), 4 * n).expect("there is room");
    cache.free(s(998)).expect("it is not leased");
}

/// Returns the tokens at the beginning of these that are cached.
fn cached(cache: &PagedKvCache, tokens: &[u32]) -> usize {
    cache.prefix().probe(&cache.prompt(&[tokens, &[u32::MAX]].concat()))
}

#[track_caller]
fn assert_cached(cache: &PagedKvCache, expected: &[(u32, usize)]) {
    let found: Vec<_> =
        expected.iter().map(|&(name, _)| (name, cached(cache, &prompt(name, 8)))).collect();
    assert_eq!(found, expected);
    cache.validate().expect("levels change no count");
}

/// TensorRT-LLM: the victim is the front of the lowest queue that is not empty.
#[test]
fn contents_of_lower_levels_are_reclaimed_first() {
    for cache in caches(10) {
        for (name, level) in [(1, Level::Highest), (2, Level::Default), (3, Level::Lowest)] {
            serve_with(&cache, &prompt(name, 8), &at(level));
        }
        serve_with(&cache, &prompt(4, 8), &at(Level::Low));
        serve_with(&cache, &prompt(5, 8), &at(Level::High));
        for (name, left) in [(3, [1, 2, 4, 5]), (4, [1, 2, 5, 0]), (2, [1, 5, 0, 0])] {
            press(&cache, 10 - 2 * left.iter().filter(|&&name| name > 0).count());
            assert_cached(&cache, &[(name, 0)]);
            let left = left.into_iter().filter(|&name| name > 0);
            assert_cached(&cache, &left.map(|name| (name, 8)).collect::<Vec<_>>());
        }
        press(&cache, 8);
        assert_cached(&cache, &[(1, 8), (5, 0)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: within a priority, released blocks are appended and the front goes.
#[test]
fn within_a_level_the_least_recently_released_goes_first() {
    for level in LEVELS {
        for cache in caches(6) {
            (1..=3).for_each(|name| serve_with(&cache, &prompt(name, 8), &at(level)));
            serve(&cache, &prompt(1, 8)); // used again, at its old level
            press(&cache, 2);
            assert_cached(&cache, &[(1, 8), (2, 0), (3, 8)]);
            press(&cache, 4);
            assert_cached(&cache, &[(1, 8), (3, 0)]);
            assert_empties(&cache);
        }
    }
}

/// TensorRT-LLM: `getPerBlockRetentionPriorityDuration` looks at the first token of each block.
#[test]
fn the_first_token_of_a_block_decides() {
    for cache in caches(8) {
        let options = AdmitOptions::default()
            .retain(Retain::new(0..5, Level::Highest))
            .retain(Retain::new(9..12, Level::Lowest));
        serve_with(&cache, &prompt(1, 16), &options);
        // Tokens 4 and 0 are in the first range. Tokens 9 to 11 begin no block, so no level is the lowest.
        serve(&cache, &prompt(2, 8));
        press(&cache, 4);
        assert_eq!(cached(&cache, &prompt(1, 16)), 8);
        assert_cached(&cache, &[(2, 8)]);
        press(&cache, 6);
        assert_eq!(cached(&cache, &prompt(1, 16)), 8);
        assert_cached(&cache, &[(2, 0)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM refuses ranges that overlap; here the earlier one counts.
#[test]
fn of_ranges_that_overlap_the_earlier_one_counts() {
    for cache in caches(8) {
        let options = AdmitOptions::default()
            .retain(Retain::new(4..8, Level::Lowest))
            .retain(Retain::new(0..16, Level::Highest));
        serve_with(&cache, &prompt(1, 16), &options);
        serve(&cache, &prompt(2, 16));
        press(&cache, 1);
        assert_eq!(cached(&cache, &prompt(1, 16)), 4, "its second block went");
        assert_eq!(cached(&cache, &prompt(2, 16)), 16);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: new priority values always override the previous value.
#[test]
fn a_new_level_overrides_the_earlier_one() {
    for (first, second) in [(Level::Highest, Level::Lowest), (Level::Lowest, Level::Highest)] {
        for cache in caches(6) {
            serve_with(&cache, &prompt(1, 8), &at(first));
            serve_with(&cache, &prompt(1, 8), &at(second));
            serve(&cache, &prompt(2, 8));
            press(&cache, 4);
            let one_left = if second == Level::Highest { [8, 0] } else { [0, 8] };
            assert_cached(&cache, &[(1, one_left[0]), (2, one_left[1])]);
            assert_empties(&cache);
        }
    }
}

/// TensorRT-LLM: a claim without a priority leaves the block's. It removes the duration, which ours keeps: a level that was
/// to end does not stay for ever because another request used the content.
#[test]
fn a_request_without_a_level_leaves_level_and_duration() {
    for cache in caches(6) {
        serve_with(&cache, &prompt(1, 8), &at(Level::High));
        serve_with(
            &cache,
            &prompt(2, 8),
            &AdmitOptions::default().retain(whole(Level::High).ttl(MOMENT)),
        );
        (1..=2).for_each(|name| serve(&cache, &prompt(name, 8)));
        serve(&cache, &prompt(3, 8));
        press(&cache, 2);
        assert_cached(&cache, &[(1, 8), (2, 8), (3, 0)]);
        press(&cache, 4);
        assert_cached(&cache, &[(1, 8), (2, 0)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: an expired block goes to the back of the default queue, and its priority is the default from then on.
#[test]
fn a_content_whose_level_has_ended_is_the_last_of_the_default_ones() {
    for level in [Level::Lowest, Level::Low, Level::High, Level::Highest] {
        for cache in caches(8) {
            let ends = AdmitOptions::default().retain(whole(level).ttl(MOMENT));
            serve_with(&cache, &prompt(1, 8), &ends);
            (2..=4).for_each(|name| serve(&cache, &prompt(name, 8)));
            thread::sleep(Duration::from_millis(1));
            press(&cache, 6);
            assert_cached(&cache, &[(1, 8), (2, 0), (3, 0), (4, 0)]);
            serve(&cache, &prompt(1, 8));
            serve(&cache, &prompt(5, 8));
            press(&cache, 6);
            assert_cached(&cache, &[(1, 0), (5, 8)]);
            assert_empties(&cache);
        }
    }
}

/// TensorRT-LLM: `release` sets the time at which the block expires, each time.
#[test]
fn the_duration_begins_anew_at_each_release() {
    const TTL: Duration = Duration::from_millis(400);
    for cache in caches(6) {
        serve_with(
            &cache,
            &prompt(1, 8),
            &AdmitOptions::default().retain(whole(Level::Low).ttl(TTL)),
        );
        serve(&cache, &prompt(2, 8));
        for _ in 0..3 {
            thread::sleep(TTL / 2);
            serve(&cache, &prompt(1, 8));
        }
        // More than one duration has passed since the first release: the level is still the low one.
        press(&cache, 4);
        assert_cached(&cache, &[(1, 0), (2, 8)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: the default priority needs no duration, and blocks of it do not expire.
#[test]
fn a_duration_of_the_default_level_changes_nothing() {
    for cache in caches(6) {
        let default = AdmitOptions::default().retain(whole(Level::Default).ttl(MOMENT));
        serve_with(&cache, &prompt(1, 8), &default);
        serve(&cache, &prompt(2, 8));
        press(&cache, 4);
        assert_cached(&cache, &[(1, 0), (2, 8)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: blocks that are allocated in the decode phase have a priority of their own.
#[test]
fn blocks_of_generated_tokens_have_a_level_of_their_own() {
    for cache in caches(8) {
        let options = at(Level::High).retain_generated(Level::Lowest, None);
        let (tokens, answer) = (prompt(1, 6), prompt(2, 10));
        cache.admit_with(s(1), &cache.prompt(&tokens), &options).unwrap();
        let _ = cache.append_tokens(s(1), &answer).unwrap();
        cache.commit(s(1), 16).unwrap();
        cache.free(s(1)).unwrap();
        serve(&cache, &prompt(3, 8));
        press(&cache, 4);
        let all = [tokens, answer].concat();
        // The second block begins in the prompt.
        assert_eq!(cached(&cache, &all), 8);
        assert_cached(&cache, &[(3, 8)]);
        assert_empties(&cache);
    }
}

/// TensorRT-LLM: every block is free or in use, whatever its priority.
#[test]
fn a_level_refuses_no_request() {
    for cache in caches(8) {
        (1..=4).for_each(|name| serve_with(&cache, &prompt(name, 8), &at(Level::Highest)));
        assert_eq!(cache.free_block_count(), 8);
        cache.allocate(s(1), 32).unwrap();
        assert_empties(&cache);
        (1..=4).for_each(|name| serve_with(&cache, &prompt(name, 8), &at(Level::Highest)));
        for id in 1..=8 {
            cache.allocate(s(id), 4).unwrap();
        }
        assert_empties(&cache);
    }
}

#[test]
fn cached_contents_get_a_level_by_their_prompt() {
    for cache in caches(8) {
        (1..=4).for_each(|name| serve(&cache, &prompt(name, 8)));
        let set = |name, retain: &Retain| {
            cache.retention().set(&cache.prompt(&prompt(name, 8)), retain).unwrap()
        };
        assert_eq!(set(1, &whole(Level::High)), 2);
        assert_eq!(set(4, &Retain::new(4..8, Level::Lowest)), 1);
        assert_eq!(set(9, &whole(Level::High)), 0, "it is not cached");
        press(&cache, 1);
        assert_cached(&cache, &[(1, 8), (2, 8), (3, 8), (4, 4)]);
        press(&cache, 6);
        assert_cached(&cache, &[(1, 8), (2, 0), (3, 0), (4, 0)]);
        assert_eq!(set(1, &whole(Level::Default)), 2);
        serve(&cache, &prompt(5, 8));
        press(&cache, 6);
        assert_cached(&cache, &[(1, 0), (5, 8)]);
        assert_empties(&cache);
    }
}

/// The level of a content in use holds from its release on.
#[test]
fn a_content_in_use_gets_a_level_too() {
    for cache in caches(6) {
        cache.admit(s(1), &prompt(1, 8)).unwrap();
        cache.commit(s(1), 8).unwrap();
        let used = cache.used_block_count();
        let set = cache.retention().set(&cache.prompt(&prompt(1, 8)), &whole(Level::High));
        assert_eq!((set.unwrap(), cache.used_block_count()), (2, used));
        cache.free(s(1)).unwrap();
        serve(&cache, &prompt(2, 8));
        press(&cache, 4);
        assert_cached(&cache, &[(1, 8), (2, 0)]);
        assert_empties(&cache);
    }
}

#[test]
fn contents_from_before_a_reset_have_no_level() {
    for cache in caches(6) {
        serve_with(&cache, &prompt(1, 8), &at(Level::Highest));
        cache.admit_with(s(1), &cache.prompt(&prompt(2, 8)), &at(Level::Highest)).unwrap();
        cache.commit(s(1), 8).unwrap();
        cache.prefix().reset();
        cache.free(s(1)).unwrap();
        serve(&cache, &prompt(3, 8));
        press(&cache, 4);
        assert_cached(&cache, &[(3, 8)]);
        assert_empties(&cache);
    }
}

/// Every way in which a sequence gives its blocks back notes the levels.
#[test]
fn the_level_holds_however_the_sequence_ends() {
    for cache in caches(8) {
        let (tokens, options) = (prompt(1, 8), at(Level::High));
        for way in 0..7 {
            let (mut handle, _) = cache.admit_sequence(&cache.prompt(&tokens), &options).unwrap();
            if way < 6 {
                handle.commit(8).unwrap();
            }
            match way {
                0 => drop(handle),
                1 => {
                    let fork = handle.fork().unwrap();
                    drop(handle);
                    drop(fork);
                }
                2 => {
                    drop(handle);
                    cache.admit_with(s(1), &cache.prompt(&tokens), &options).unwrap();
                    cache.evict().unwrap();
                }
                3 => {
                    handle.apply_streaming_llm(0, 4).unwrap();
                    drop(handle);
                }
                4 => {
                    handle.truncate(0).unwrap();
                    drop(handle);
                }
                5 => {
                    // The append copies the second block, whose content stays cached.
                    handle.truncate(6).unwrap();
                    drop(handle.append(1).unwrap());
                    drop(handle);
                }
                _ => {
                    let mut step = cache.step(StepBuffers::default());
                    step.commit(&mut handle, 8).unwrap();
                    drop(handle);
                    assert_eq!(step.complete().published, 2);
                }
            }
            serve(&cache, &prompt(2, 8));
            press(&cache, 6);
            assert_cached(&cache, &[(1, 8), (2, 0)]);
            let set = cache.retention().set(&cache.prompt(&tokens), &whole(Level::Lowest));
            assert_eq!(set.unwrap(), 2);
            press(&cache, 8);
            assert_cached(&cache, &[(1, 0)]);
        }
        assert_empties(&cache);
    }
}

#[test]
fn the_policy_orders_the_default_level_only() {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(4).home_shards(1);
    let builder = builder.retention_levels(true).reclaim_policy(ReclaimPolicy::TwoQueue);
    for level in [Level::Default, Level::High] {
        let cache = builder.clone().build().unwrap();
        serve_with(&cache, &prompt(1, 8), &at(level));
        serve_with(&cache, &prompt(1, 8), &at(level)); // used twice: hot
        (2..=3).for_each(|name| serve_with(&cache, &prompt(name, 8), &at(level)));
        press(&cache, 4);
        let hot_stays = level == Level::Default;
        assert_cached(&cache, &[(1, if hot_stays { 8 } else { 0 })]);
        assert_empties(&cache);
    }
}

#[test]
fn a_cache_without_levels_refuses_them() {
    let refused = |result: Result<(), PagedKvError>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse);
        assert!(error.to_string().contains("retention_levels"), "{error}");
    };
    for cache in shapes_with(8, 4, |builder| builder) {
        let prompt = cache.prompt(&prompt(1, 8));
        refused(cache.admit_with(s(1), &prompt, &at(Level::High)).map(drop));
        refused(cache.admit_sequence(&prompt, &at(Level::High)).map(drop));
        refused(cache.retention().set(&prompt, &whole(Level::High)).map(drop));
        assert_eq!(cache.used_block_count(), 0);
        assert_empties(&cache);
    }
    let groups = [
        LayerGroup::Full { block_size: 16 },
        LayerGroup::SlidingWindow { block_size: 16, window: 64 },
    ];
    let builder = PagedKvCache::builder().num_blocks(64).groups(&groups);
    refused(builder.clone().retention_levels(true).build().map(drop));
    let without = PagedKvCache::builder().num_blocks(64).tier(Tier::host(16));
    for builder in [builder.tier(Tier::host(16)), without] {
        let cache = builder.build().unwrap();
        let prompt = cache.prompt(&prompt(1, 100));
        let admit = |options| cache.tiers().admit(&prompt, &options, LoadLimit::default());
        refused(admit(at(Level::High)).map(drop));
        refused(admit(AdmitOptions::default().retain_generated(Level::Low, None)).map(drop));
        assert_eq!((cache.used_block_count(), cache.stats().prompt_tokens), (0, 0));
        assert!(admit(AdmitOptions::default()).is_ok());
    }
}

#[test]
fn levels_without_prefix_reuse_are_refused() {
    let builder = PagedKvCache::builder().num_blocks(8).prefix_reuse(false);
    let refusal = builder.clone().retention_levels(true).build().unwrap_err();
    let expected = "invalid retention_levels: true, and without prefix reuse no content is kept";
    assert_eq!(refusal.to_string(), expected);
    assert!(builder.build().is_ok());
}

/// A content of two blocks in the model: its level, and whether that has a duration, which has passed at the next reclaim.
struct Content {
    name: u32,
    level: Level,
    ends: bool,
}

/// The contents in the order of their releases.
#[derive(Default)]
struct Model(Vec<Content>);

impl Model {
    fn take(&mut self, name: u32) -> Option<Content> {
        let at = self.0.iter().position(|content| content.name == name)?;
        Some(self.0.remove(at))
    }

    /// Removes the content that goes first, after levels that have ended became the default one.
    fn reclaim(&mut self) {
        let (ended, others) = self.0.drain(..).partition(|content: &Content| content.ends);
        self.0 = others;
        let as_default =
            |content: Content| Content { level: Level::Default, ends: false, ..content };
        let ended: Vec<Content> = ended;
        self.0.extend(ended.into_iter().map(as_default));
        let first = (0..self.0.len()).min_by_key(|&at| self.0[at].level).expect("it is full");
        self.0.remove(first);
    }
}

/// Prompts of two blocks, with random levels and durations or with none, that come back.
#[test]
fn random_prompts_stay_as_a_naive_model_says() {
    for seed in 0..20 {
        for cache in caches(20) {
            let (mut random, mut model) = (Random::new(seed), Model::default());
            for _ in 0..300 {
                let (name, level) = (1 + random.below(24) as u32, LEVELS[random.below(5)]);
                let (retain, ends) = match random.below(3) {
                    0 => (whole(level).ttl(MOMENT), level != Level::Default),
                    1 => (whole(level).ttl(HOUR), false),
                    _ => (whole(level), false),
                };
                let old = model.take(name);
                match (random.below(4), old) {
                    (0, old) => {
                        let prompt = cache.prompt(&prompt(name, 8));
                        let num_blocks = cache.retention().set(&prompt, &retain).unwrap();
                        assert_eq!(num_blocks, if old.is_some() { 2 } else { 0 });
                        model.0.extend(old.map(|_| Content { name, level, ends }));
                    }
                    (1, Some(old)) => {
                        serve(&cache, &prompt(name, 8));
                        model.0.push(old);
                    }
                    (_, old) => {
                        if old.is_none() && model.0.len() == 10 {
                            model.reclaim();
                        }
                        let options = AdmitOptions::default().retain(retain);
                        serve_with(&cache, &prompt(name, 8), &options);
                        model.0.push(Content { name, level, ends });
                    }
                }
                let all: Vec<_> = model.0.iter().map(|content| (content.name, 8)).collect();
                assert_cached(&cache, &all);
            }
            assert_empties(&cache);
        }
    }
}

#[test]
fn threads_that_set_levels_and_expire_lose_no_block() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::HitDensity] {
        let builder = PagedKvCache::builder().num_blocks(96).block_size(4).home_shards(8);
        let cache = builder.retention_levels(true).reclaim_policy(policy).build().unwrap();
        thread::scope(|scope| {
            for seed in 0..6 {
                let cache = &cache;
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..1_500 {
                        let (name, level) = (random.below(40) as u32, LEVELS[random.below(5)]);
                        let ttl = [MOMENT, Duration::from_micros(200), HOUR][random.below(3)];
                        let (tokens, retain) = (prompt(name, 12), whole(level).ttl(ttl));
                        match random.below(12) {
                            0 => {
                                _ = cache.retention().set(&cache.prompt(&tokens), &retain).unwrap()
                            }
                            1 => _ = cache.prefix().forget(3),
                            2 => _ = cache.prefix().forget_prompt(&cache.prompt(&tokens)).unwrap(),
                            3 if random.below(20) == 0 => cache.prefix().reset(),
                            3 if random.below(20) == 0 => cache.validate().unwrap(),
                            _ => {
                                let options = AdmitOptions::default().retain(retain);
                                let prompt = cache.prompt(&tokens);
                                let (mut sequence, _) =
                                    cache.admit_sequence(&prompt, &options).expect("there is room");
                                sequence.commit(12).unwrap();
                            }
                        }
                    }
                });
            }
        });
        assert_empties(&cache);
    }
}
