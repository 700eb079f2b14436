//! Tests of pins: blocks that stay cached until a deadline, and are no room meanwhile.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::random::Random;
use common::{assert_empties, s, shapes_with};
use paged_kv::{
    CachePin, PagedKvCache, PagedKvError, PinAnswer, ReclaimPolicy, Snapshot, Watermark,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn prompt(name: u32, num_tokens: usize) -> Vec<u32> {
    (0..num_tokens as u32).map(|position| name * 1_000 + position).collect()
}

fn serve(cache: &PagedKvCache, tokens: &[u32]) {
    cache.admit(s(999), tokens).expect("there is room");
    cache.commit(s(999), tokens.len()).expect("it was just admitted");
    cache.free(s(999)).expect("it is not leased");
}

/// Caches whose pins may have `budget` blocks.
fn caches(num_blocks: usize, budget: usize) -> Vec<PagedKvCache> {
    shapes_with(num_blocks, 4, |builder| builder.pin_budget(Watermark::Blocks(budget)))
}

fn pin(cache: &PagedKvCache, tokens: &[u32], stays: Duration) -> PinAnswer {
    cache.retention().pin(&cache.prompt(tokens), Instant::now() + stays).expect("a fitting prompt")
}

fn accepted(cache: &PagedKvCache, tokens: &[u32], stays: Duration) -> CachePin {
    match pin(cache, tokens, stays) {
        PinAnswer::Accepted(pin) => pin,
        answer => panic!("the budget and the cache suffice: {answer:?}"),
    }
}

fn cached(cache: &PagedKvCache, tokens: &[u32]) -> usize {
    cache.prefix().probe(&cache.prompt(&[tokens, &[u32::MAX]].concat()))
}

#[test]
fn pinned_blocks_are_no_room_until_the_guard_is_dropped() {
    for cache in caches(8, 8) {
        serve(&cache, &prompt(1, 12));
        let pin = accepted(&cache, &prompt(1, 12), HOUR);
        assert_eq!((cache.free_block_count(), cache.retention().pinned_blocks()), (5, 3));
        let refused = cache.allocate(s(1), 24).unwrap_err();
        assert_eq!(refused, PagedKvError::OutOfMemory { requested: 6, available: 5 });
        (10..40).for_each(|name| serve(&cache, &prompt(name, 20)));
        assert_eq!(cached(&cache, &prompt(1, 12)), 12);
        drop(pin);
        assert_eq!(cache.retention().pinned_blocks(), 0);
        cache.allocate(s(1), 24).unwrap();
        assert_empties(&cache);
    }
}

#[test]
fn contents_count_as_just_released_when_their_pin_ends() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity] {
        for ends in [false, true] {
            let builder = PagedKvCache::builder().num_blocks(8).block_size(4).home_shards(1);
            let builder = builder.reclaim_policy(policy).pin_budget(Watermark::Blocks(8));
            let cache = builder.build().unwrap();
            serve(&cache, &prompt(1, 8));
            let pin = accepted(&cache, &prompt(1, 8), if ends { Duration::ZERO } else { HOUR });
            (2..=4).for_each(|name| serve(&cache, &prompt(name, 8)));
            match ends {
                false => drop(pin),
                true => assert_eq!(cache.free_block_count(), 8),
            }
            cache.allocate(s(1), 24).unwrap();
            assert_eq!(cached(&cache, &prompt(1, 8)), 8, "{policy:?}");
            assert_empties(&cache);
        }
    }
}

#[test]
fn an_expired_pin_is_ended_before_a_refusal() {
    for cache in caches(8, 8) {
        serve(&cache, &prompt(1, 12));
        let pin = accepted(&cache, &prompt(1, 12), Duration::ZERO);
        let mut snapshot = Snapshot::default();
        cache.inspect(&mut snapshot);
        assert_eq!(snapshot.counts()[1], 3, "no thread watches the deadline");
        cache.allocate(s(1), 32).unwrap();
        assert_eq!(cache.retention().pinned_blocks(), 0);
        cache.free(s(1)).unwrap();
        serve(&cache, &prompt(1, 12));
        let later = accepted(&cache, &prompt(1, 12), Duration::ZERO);
        cache.admit(s(1), &prompt(2, 32)).unwrap();
        drop((pin, later));
        assert_eq!(cache.used_block_count(), 8, "a guard after its deadline ends nothing");
        assert_empties(&cache);
    }
}

#[test]
fn an_expired_pin_is_ended_before_growth_and_reservations_are_refused() {
    for cache in caches(8, 8) {
        serve(&cache, &prompt(1, 12));
        cache.allocate(s(1), 20).unwrap();
        let growth = accepted(&cache, &prompt(1, 12), Duration::ZERO);
        let _ = cache.append(s(1), 12).unwrap();
        cache.free(s(1)).unwrap();
        serve(&cache, &prompt(1, 12));
        let reserved = accepted(&cache, &prompt(1, 12), Duration::ZERO);
        assert_eq!(cache.reserve(8).unwrap().num_blocks(), 8);
        drop((growth, reserved));
        assert_empties(&cache);
    }
}

#[test]
fn the_answer_has_the_numbers() {
    for cache in caches(16, 4) {
        serve(&cache, &prompt(1, 12));
        let PinAnswer::Clipped { pin: of_cache, requested_tokens } =
            pin(&cache, &[&prompt(1, 12)[..], &prompt(2, 8)].concat(), HOUR)
        else {
            panic!("two blocks are not cached");
        };
        assert_eq!((of_cache.num_tokens(), requested_tokens), (12, 20));
        serve(&cache, &prompt(3, 8));
        let PinAnswer::Clipped { pin: of_budget, requested_tokens } =
            pin(&cache, &prompt(3, 8), HOUR)
        else {
            panic!("one block of the budget is left");
        };
        assert_eq!((of_budget.num_tokens(), requested_tokens), (4, 8));
        let answer = pin(&cache, &prompt(3, 8), HOUR);
        let PinAnswer::Refused { requested_tokens, cached_tokens, available_blocks, .. } = answer
        else {
            panic!("nothing of the budget is left");
        };
        assert_eq!((requested_tokens, cached_tokens, available_blocks), (8, 8, 0));
        drop(of_budget);
        assert!(matches!(
            pin(&cache, &prompt(4, 8), HOUR),
            PinAnswer::Refused { cached_tokens: 0, available_blocks: 1, .. }
        ));
        drop(of_cache);
        assert_empties(&cache);
    }
}

/// A request for a pin that is refused takes nothing of the budget, not even for a moment.
#[test]
fn a_refused_pin_refuses_no_other() {
    for cache in caches(64, 4) {
        serve(&cache, &prompt(1, 4));
        let (cached, absent) = (cache.prompt(&prompt(1, 4)), cache.prompt(&prompt(9, 16)));
        let until = Instant::now() + HOUR;
        let pin = |prompt| cache.retention().pin(prompt, until).expect("a fitting prompt");
        let is_over = AtomicBool::new(false);
        let refused = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    assert!(matches!(pin(&absent), PinAnswer::Refused { .. }));
                }
            });
            let is_accepted = |_: &u32| matches!(pin(&cached), PinAnswer::Accepted(_));
            let accepted = (0..20_000).filter(is_accepted).count();
            is_over.store(true, Relaxed);
            20_000 - accepted
        });
        assert_eq!(refused, 0);
        assert_empties(&cache);
    }
}

#[test]
fn an_expired_pin_is_ended_before_numbers_are_shown() {
    type Look = fn(&PagedKvCache) -> bool;
    let looks: [(&str, Look); 9] = [
        ("free_block_count", |cache| cache.free_block_count() == 8),
        ("used_block_count", |cache| cache.used_block_count() == 0),
        ("utilization", |cache| cache.utilization() == 0.0),
        ("used_memory_bytes", |cache| cache.used_memory_bytes() == 0),
        ("needs_eviction", |cache| !cache.needs_eviction()),
        ("stats", |cache| cache.stats().blocks_used == 0),
        ("blocks_pinned", |cache| cache.stats().blocks_pinned == 0),
        ("pinned_blocks", |cache| cache.retention().pinned_blocks() == 0),
        ("of the pool", |cache| cache.pool().free_block_count() == 8),
    ];
    for (name, look) in looks {
        for cache in caches(8, 8) {
            serve(&cache, &prompt(1, 32));
            let lasting = accepted(&cache, &prompt(1, 32), HOUR);
            assert!(!look(&cache), "{name} shows a pin");
            drop(lasting);
            let expired = accepted(&cache, &prompt(1, 32), Duration::ZERO);
            assert!(look(&cache), "{name} shows an expired pin");
            drop(expired);
            assert_empties(&cache);
        }
    }
}

#[cfg(feature = "async")]
#[test]
fn a_waiter_is_woken_by_the_deadline() {
    for cache in caches(8, 8) {
        serve(&cache, &prompt(1, 12));
        let begin = Instant::now();
        let pin = accepted(&cache, &prompt(1, 12), Duration::from_millis(60));
        cache.waiting().allocate(s(1), 32).timeout(HOUR).block().unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(60));
        drop(pin);
        assert_empties(&cache);
    }
}

/// A pin of blocks that no waiting sequence has may end, so no sequence is given up while there is one.
#[cfg(feature = "async")]
#[test]
fn sequences_that_wait_for_each_other_wait_for_a_pin_first() {
    for (needed, is_stalled) in [(4, false), (16, true)] {
        for cache in caches(8, 8) {
            serve(&cache, &prompt(1, 8));
            let begin = Instant::now();
            let pin = accepted(&cache, &prompt(1, 8), Duration::from_millis(60));
            cache.allocate(s(1), 12).unwrap();
            cache.allocate(s(2), 12).unwrap();
            let grow = |id| {
                let grown = cache.waiting().append(id, needed).timeout(HOUR).block().map(drop);
                assert!(begin.elapsed() >= Duration::from_millis(60), "{grown:?}");
                if let Err(refusal) = &grown {
                    assert_eq!(refusal, &PagedKvError::Stalled(id));
                    cache.free(id).unwrap();
                }
                grown.is_err()
            };
            let stalled = thread::scope(|scope| {
                let other = scope.spawn(|| grow(s(1)));
                let one = grow(s(2));
                usize::from(one) + usize::from(other.join().expect("it does not panic"))
            });
            assert_eq!(stalled, usize::from(is_stalled));
            drop(pin);
            drop([s(1), s(2)].map(|id| cache.free(id)));
            assert_empties(&cache);
        }
    }
}

#[cfg(feature = "async")]
#[test]
fn a_pin_takes_no_room_from_a_waiter() {
    for cache in caches(8, 8) {
        serve(&cache, &prompt(1, 12));
        cache.allocate(s(1), 20).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| cache.waiting().allocate(s(2), 16).block());
            while cache.stats().requests_waiting_new == 0 {
                thread::yield_now();
            }
            let answer = pin(&cache, &prompt(1, 12), HOUR);
            assert!(matches!(answer, PinAnswer::Refused { is_waited_for: true, .. }), "{answer:?}");
            cache.free(s(1)).unwrap();
            waiter.join().expect("it does not panic").unwrap();
        });
        assert_empties(&cache);
    }
}

/// A pin of contents that were not forgotten since, if the epoch of their name is the same.
struct Pinned {
    pin: CachePin,
    name: usize,
    epoch: u32,
    blocks: usize,
}

/// A cache, and a model of its pins. Prompts of different names share no block.
struct World {
    cache: PagedKvCache,
    random: Random,
    pins: Vec<Pinned>,
    epochs: [u32; 12],
}

impl World {
    fn tokens(name: usize) -> Vec<u32> {
        prompt(name as u32, 4 * (1 + name % 5))
    }

    fn act(&mut self) {
        let name = self.random.below(self.epochs.len());
        let tokens = Self::tokens(name);
        match self.random.below(16) {
            0..6 => serve(&self.cache, &tokens),
            6..11 => self.pin(name),
            11..14 if !self.pins.is_empty() => {
                let dropped = self.random.below(self.pins.len());
                drop(self.pins.swap_remove(dropped));
            }
            14 => {
                self.cache.prefix().forget_prompt(&self.cache.prompt(&tokens)).unwrap();
                self.epochs[name] += 1;
            }
            15 if self.random.below(4) == 0 => {
                self.cache.prefix().reset();
                self.epochs.iter_mut().for_each(|epoch| *epoch += 1);
            }
            _ => self.wait_for_all_but_lasting_pins(),
        }
    }

    fn pin(&mut self, name: usize) {
        let stays = match self.random.below(4) {
            0 => Duration::ZERO,
            1 => HOUR,
            _ => Duration::from_micros(1_000 + self.random.below(19_000) as u64),
        };
        let tokens = Self::tokens(name);
        let available = cached(&self.cache, &tokens) / 4;
        let answer = pin(&self.cache, &tokens, stays);
        let (PinAnswer::Accepted(pin) | PinAnswer::Clipped { pin, .. }) = answer else { return };
        let blocks = pin.num_tokens() / 4;
        assert!(blocks <= available, "{blocks} of {available}");
        self.pins.push(Pinned { pin, name, epoch: self.epochs[name], blocks });
    }

    /// Waits for the end of the pins that end soon, if the blocks without them are too few.
    fn wait_for_all_but_lasting_pins(&self) {
        let (_, lasting) = self.pinned_and_used_at(Instant::now() + HOUR / 2);
        let num_tokens = 4 * (32 - lasting);
        #[cfg(feature = "async")]
        self.cache.waiting().allocate(s(1), num_tokens).timeout(HOUR / 60).block().unwrap();
        #[cfg(not(feature = "async"))]
        while self.cache.allocate(s(1), num_tokens).is_err() {
            thread::yield_now();
        }
        self.cache.free(s(1)).unwrap();
    }

    /// Returns the blocks of the pins that have not expired, and the number of different ones.
    fn pinned_and_used_at(&self, now: Instant) -> (usize, usize) {
        let mut used: HashMap<(usize, u32), usize> = HashMap::new();
        let mut pinned = 0;
        for Pinned { name, epoch, blocks, .. } in
            self.pins.iter().filter(|one| one.pin.until() > now)
        {
            let most = used.entry((*name, *epoch)).or_default();
            *most = (*most).max(*blocks);
            pinned += blocks;
        }
        (pinned, used.values().sum())
    }

    /// Deadlines pass at any moment: the model knows the pins before and after a look.
    fn check(&self) {
        let before = Instant::now();
        let pinned = self.cache.retention().pinned_blocks();
        let used = self.cache.used_block_count();
        let (most_pinned, _) = self.pinned_and_used_at(before);
        let (least_pinned, least_used) = self.pinned_and_used_at(Instant::now());
        assert!((least_pinned..=most_pinned.min(12)).contains(&pinned), "{pinned}");
        // Two pins of a content may hold different copies of it.
        assert!((least_used..=most_pinned).contains(&used), "{used}");
        for Pinned { pin, name, epoch, blocks } in &self.pins {
            let cached = cached(&self.cache, &Self::tokens(*name));
            if *epoch == self.epochs[*name] && pin.until() > Instant::now() {
                assert!(cached >= 4 * blocks, "{name} is pinned");
            }
        }
        self.cache.validate().unwrap();
    }
}

#[test]
fn random_deadlines_forgets_and_waits_agree_with_a_model() {
    for seed in 0..8 {
        for cache in caches(32, 12) {
            let random = Random::new(seed);
            let mut world = World { cache, random, pins: Vec::new(), epochs: [0; 12] };
            for _ in 0..200 {
                world.act();
                world.check();
            }
            world.pins.clear();
            assert_empties(&world.cache);
        }
    }
}

/// Prompts of different names share no block. A sequential model knows the pinned ones.
#[test]
fn random_operations_agree_with_a_model() {
    const NAMES: u32 = 12;
    for (seed, cache) in
        (0..20).flat_map(|seed| caches(32, 12).into_iter().map(move |one| (seed, one)))
    {
        let mut random = Random::new(seed);
        let mut pins: HashMap<u32, (CachePin, usize)> = HashMap::new();
        let mut expiring: Vec<(CachePin, u32)> = Vec::new();
        for _ in 0..300 {
            let name = random.below(NAMES as usize) as u32;
            let tokens = prompt(name, 4 * (1 + name as usize % 5));
            match random.below(5) {
                0 | 1 => serve(&cache, &tokens),
                2 => {
                    pins.remove(&name);
                }
                3 if !pins.contains_key(&name) => {
                    let budget = 12 - cache.retention().pinned_blocks();
                    let available = cached(&cache, &tokens) / 4;
                    match pin(&cache, &tokens, HOUR) {
                        PinAnswer::Accepted(pin) | PinAnswer::Clipped { pin, .. } => {
                            let blocks = pin.num_tokens() / 4;
                            assert!(blocks == available.min(blocks.max(budget)));
                            pins.insert(name, (pin, blocks));
                        }
                        _ => assert!(available == 0 || budget == 0),
                    }
                }
                _ => {
                    if let PinAnswer::Accepted(pin) = pin(&cache, &tokens, Duration::ZERO) {
                        expiring.push((pin, name));
                    }
                }
            }
            // Asks for more than there is, so that expired pins are ended.
            assert!(cache.allocate(s(1), 33 * 4).is_err());
            expiring.clear();
            let pinned: usize = pins.values().map(|(_, blocks)| blocks).sum();
            assert_eq!(cache.retention().pinned_blocks(), pinned);
            assert_eq!(cache.used_block_count(), pinned);
            for (&name, (_, blocks)) in &pins {
                assert!(cached(&cache, &prompt(name, 20)) >= 4 * blocks, "{name} is pinned");
            }
            cache.validate().unwrap();
        }
        pins.clear();
        assert_empties(&cache);
    }
}
