//! Random operations on caches of one to four groups, compared with the reference after each.
//!
//! In a large pool no content is reclaimed, and the reference knows every hit. In a small pool a hit must be
//! sound: each block of it holds the content that it is matched for.

use paged_kv::{GroupRetention, LayerGroup, PagedKvCache};

use crate::attention::least_common_multiple;
use crate::common::random::Random;
use crate::held::{Held, Layout};
use crate::operations::{Ending, StepPlan};
use crate::reference::Reference;
use crate::world::{Asked, Owner, Report, World};

/// Operations of both tests, if the environment sets no other number.
const OPERATIONS: u64 = 12_000;

/// Operations of one history.
const OF_HISTORY: u64 = 300;

/// The most sequences at a time.
const MOST_SEQUENCES: usize = 10;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

/// Runs histories of random operations, half of the operations that the environment sets.
fn run_histories(is_small: bool) {
    let operations = setting("PAGED_KV_GROUPS_OPERATIONS", OPERATIONS) / 2;
    let seed = setting("PAGED_KV_GROUPS_SEED", 0);
    let (mut hits, mut refusals) = (0, 0);
    for history in seed..seed + operations.div_ceil(OF_HISTORY) {
        let world = run_history(history, is_small);
        (hits, refusals) = (hits + world.hits, refusals + world.refusals);
    }
    println!("{operations} operations, {hits} hits, {refusals} refusals");
    assert!(hits as u64 > operations / 200, "{hits} admissions hit");
    assert!(!is_small || refusals as u64 > operations / 200, "{refusals} calls were refused");
}

#[test]
#[cfg_attr(miri, ignore = "one thread, thousands of operations: minutes under an interpreter")]
fn in_a_large_pool_the_reference_knows_every_hit() {
    run_histories(false);
}

#[test]
#[cfg_attr(miri, ignore = "one thread, thousands of operations: minutes under an interpreter")]
fn in_a_small_pool_every_hit_is_sound_and_needs_as_predicted() {
    run_histories(true);
}

fn run_history(seed: u64, is_small: bool) -> World {
    let mut random = Random::new(seed.wrapping_mul(2) + u64::from(is_small));
    let layout = layout(&mut random);
    let num_blocks = if is_small { 30 + random.below(70) } else { 6_000 };
    let description = format!("history {seed}, {num_blocks} blocks, {layout:?}");
    let cache = PagedKvCache::builder()
        .num_blocks(num_blocks)
        .groups(&layout.kinds)
        .max_rewind(layout.max_rewind)
        .group_retention(layout.retention)
        .build()
        .expect("the groups make sense");
    assert_eq!(cache.block_size(), layout.kinds[0].block_size());
    let world = World::new(cache, Reference::new(layout), !is_small);
    let mut history = History { world, random, log: Vec::new() };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for operation in 0..OF_HISTORY {
            history.operate();
            history.world.check();
            if operation % 25 == 0 {
                history.world.cache.validate().expect("a consistent cache");
            }
        }
        for key in history.world.keys() {
            history.world.free(key);
        }
        history.world.check();
        history.world.cache.validate().expect("a consistent cache");
    }));
    if let Err(panic) = ended {
        eprintln!("{description}");
        history.log.iter().rev().take(40).rev().for_each(|line| eprintln!("  {line}"));
        std::panic::resume_unwind(panic);
    }
    history.world
}

/// Draws one to four groups. Block sizes divide each other, or do not.
fn layout(random: &mut Random) -> Layout {
    const SIZES: [&[usize]; 6] = [&[4], &[2, 4, 8], &[4, 6], &[3, 6, 2], &[1, 4], &[6, 4, 12]];
    let sizes = SIZES[random.below(SIZES.len())];
    let groups = 1 + random.below(4);
    let kinds: Vec<LayerGroup> = (0..groups)
        .map(|_| {
            let block_size = sizes[random.below(sizes.len())];
            let window = 1 + random.below(20);
            match random.below(7) {
                0 | 1 => LayerGroup::Full { block_size },
                2 | 3 => LayerGroup::SlidingWindow { block_size, window },
                4 => LayerGroup::Chunked { block_size, chunk: window },
                5 => LayerGroup::State { block_size },
                _ => {
                    let sink = random.below(12);
                    LayerGroup::SinkWindow { block_size, sink, window }
                }
            }
        })
        .collect();
    let retention = match random.below(5) {
        0 => GroupRetention::Every(1 + random.below(24)),
        1 => GroupRetention::PromptEnd,
        _ => GroupRetention::Dense,
    };
    let alignment = least_common_multiple(&kinds);
    let max_rewind = [0, 0, 1, 3, 9][random.below(5)];
    Layout { kinds, alignment, max_rewind, retention }
}

struct History {
    world: World,
    random: Random,
    log: Vec<String>,
}

impl History {
    fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    fn key(&mut self) -> Option<u64> {
        let keys = self.world.keys();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len())])
    }

    /// Draws tokens that share a beginning with those of an earlier sequence.
    fn prompt(&mut self) -> Vec<u32> {
        let cached: Vec<_> = self.world.reference.cached_blocks().collect();
        let mut tokens = Vec::new();
        if !cached.is_empty() && self.chance(85) {
            let (_, cached) = cached[self.random.below(cached.len())];
            tokens = self.world.reference.tokens(cached.content);
            if self.chance(30) {
                tokens.truncate(self.random.below(tokens.len() + 1));
            }
        }
        if tokens.len() < 90 {
            let most = if self.chance(70) { 8 } else { 40 };
            let more = self.random.below(most);
            tokens.extend((0..more).map(|_| self.random.below(3) as u32));
        }
        tokens
    }

    fn note(&mut self, line: String) {
        self.log.push(line);
    }

    fn operate(&mut self) {
        let sequences = self.world.owners.len();
        match self.random.below(100) {
            0..20 if sequences < MOST_SEQUENCES => self.admit(),
            20..23 if sequences < MOST_SEQUENCES => {
                let length = self.random.below(40);
                self.note(format!("allocate {length}"));
                self.world.allocate(length);
            }
            23..40 => self.append(),
            40..58 => self.commit(),
            58..63 if sequences < MOST_SEQUENCES => self.fork(),
            63..70 => self.truncate(),
            70..80 => self.free(),
            80..85 => self.uncache(),
            85 if self.chance(60) => self.trim(),
            85 if self.chance(50) => {
                self.note("reset".to_owned());
                self.world.reset();
            }
            86..96 => self.step(),
            _ => {
                let tokens = self.prompt();
                self.world.probe(&tokens);
            }
        }
    }

    fn admit(&mut self) {
        let tokens = self.prompt();
        let asked = Asked {
            by_id: self.chance(50),
            allows_full_hit: self.chance(20),
            first_chunk: self.chance(25).then(|| self.random.below(12)),
            most_cached: self.chance(15).then(|| self.random.below(tokens.len() + 1)),
        };
        self.note(format!("admit {} tokens, {asked:?}", tokens.len()));
        self.world.admit(&tokens, &asked);
    }

    fn append(&mut self) {
        let Some(key) = self.key() else { return };
        let most = if self.chance(80) { 7 } else { 30 };
        let tokens = 1 + self.random.below(most);
        self.note(format!("append {tokens} to {key}"));
        self.world.append(key, tokens);
        if self.chance(75) {
            self.world.take_copies(key);
        }
    }

    fn commit(&mut self) {
        let Some(key) = self.key() else { return };
        let held = self.world.held(key).clone();
        let report = report(&mut self.random, &held);
        self.note(format!("commit {report:?} of {key}, {} tokens", held.length));
        self.world.commit(key, &report);
    }

    fn fork(&mut self) {
        let Some(key) = self.key() else { return };
        self.note(format!("fork {key}"));
        self.world.fork(key);
        if self.chance(80) {
            self.world.take_copies(key);
        }
    }

    fn truncate(&mut self) {
        let Some(key) = self.key() else { return };
        let length = self.world.held(key).length;
        let to = match self.random.below(10) {
            0 => 0,
            1 => length + self.random.below(3),
            2..7 => length.saturating_sub(self.random.below(9)),
            _ => self.random.below(length + 1),
        };
        self.note(format!("truncate {key} of {length} to {to}"));
        self.world.truncate(key, to);
    }

    fn trim(&mut self) {
        let Some(key) = self.key() else { return };
        let (sink, window) = (self.random.below(20), self.random.below(20));
        self.note(format!("trim {key} to {sink} and {window}"));
        self.world.trim(key, sink, window);
    }

    fn free(&mut self) {
        let Some(key) = self.key() else { return };
        self.note(format!("free {key}"));
        self.world.free(key);
    }

    fn uncache(&mut self) {
        let mut blocks: Vec<_> =
            self.world.reference.cached_blocks().map(|(block, _)| block).collect();
        let most = 1 + self.random.below(4);
        while blocks.len() > most {
            blocks.swap_remove(self.random.below(blocks.len()));
        }
        self.note(format!("uncache {blocks:?}"));
        self.world.uncache(&blocks);
    }

    /// Grows up to four sequences in a step, all by handle or all by id.
    fn step(&mut self) {
        let by_id = self.chance(50);
        let keys = self.world.keys().into_iter();
        let mut keys: Vec<u64> =
            keys.filter(|key| matches!(self.world.owners[key], Owner::Id(_)) == by_id).collect();
        while keys.len() > 4 {
            keys.remove(self.random.below(keys.len()));
        }
        let rows: Vec<(u64, usize)> =
            keys.into_iter().map(|key| (key, 1 + self.random.below(9))).collect();
        let ending = match self.random.below(10) {
            0 => Ending::Abort,
            1 => Ending::Drop,
            _ => Ending::Complete,
        };
        // A row without room does not grow in the step, and keeps its pending copies.
        if !self.world.is_exact {
            rows.iter().for_each(|&(key, _)| self.world.take_copies(key));
        }
        let plan = StepPlan { rows, joins: self.chance(30), ending };
        self.note(format!("by id: {by_id}, {plan:?}"));
        let Self { world, random, .. } = self;
        world.step(&plan, |held| (random.below(10) < 7).then(|| report(random, held)));
    }
}

/// Draws a report of computed tokens: all, the known ones, or new ones.
fn report(random: &mut Random, held: &Held) -> Report {
    let unnamed = held.length.saturating_sub(held.num_named());
    if held.names.is_some() && unnamed > 0 && random.below(10) < 8 {
        let tokens = if random.below(10) < 8 { unnamed } else { 1 + random.below(unnamed) };
        return Report::Tokens((0..tokens).map(|_| random.below(3) as u32).collect());
    }
    match random.below(10) {
        0 => Report::Length(held.length + 1),
        1 => Report::Length(random.below(held.length + 1)),
        _ => Report::Length(held.length),
    }
}
