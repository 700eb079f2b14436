//! Random operations on caches with one to three tiers, compared with the reference after each.

use paged_kv::{CopyOutcome, PagedKvCache, Prompt, Tier};

use crate::common::random::Random;
use crate::lru::TierModel;
use crate::mirror::Mirror;
use crate::reference::{Allowed, Reference};
use crate::world::{Ending, World};
use crate::{BLOCK_SIZE, assert_at_rest, cache_of};

/// Operations, if the environment sets no other number.
const OPERATIONS: u64 = 6_000;

/// Operations of one history.
const OF_HISTORY: u64 = 300;

/// The most full blocks of a prompt.
const MOST_BLOCKS: usize = 6;

/// From this block on, the prompts of one family differ.
const FORK: usize = 3;

const FAMILIES: u32 = 4;
const BRANCHES: u32 = 3;

pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

#[test]
#[cfg_attr(miri, ignore = "one thread, thousands of operations: minutes under an interpreter")]
fn random_operations_are_answered_as_the_reference_says() {
    let operations = setting("PAGED_KV_TIERS_OPERATIONS", OPERATIONS);
    let seed = setting("PAGED_KV_TIERS_SEED", 0);
    let (mut loads, mut pending, mut overwritten, mut moved) = (0, 0, 0, 0);
    let (mut ahead, mut by_loads, mut found) = (0, 0, 0);
    for history in seed..seed + operations.div_ceil(OF_HISTORY) {
        let world = run_history(history);
        loads += world.num_loads;
        pending += world.num_pending;
        overwritten += world.num_overwritten;
        moved += world.num_from_tiers;
        ahead += world.num_ahead;
        by_loads += world.num_by_loads;
        found += world.num_found;
    }
    println!(
        "{operations} operations, {loads} loads, {pending} pending, {overwritten} overwritten, \
         {moved} from another tier, {ahead} ahead, {by_loads} overwritten by loads, {found} found"
    );
    let least = operations as usize / 200;
    assert!(loads > least && pending > 0 && overwritten > least / 2 && moved > least / 10);
    assert!(ahead > least && by_loads > 0 && found > least / 20);
}

fn run_history(seed: u64) -> World {
    let mut random = Random::new(seed);
    let num_tiers = 1 + random.below(3);
    let tiers: Vec<TierModel> = (0..num_tiers)
        .map(|tier| TierModel::new(2 + random.below(20), tier == 1, random.below(2) == 0))
        .collect();
    let most_blocks = [8, 40, 40][random.below(3)];
    let num_blocks = 8 + random.below(most_blocks);
    let description = format!("history {seed}, {num_blocks} blocks, {tiers:?}");
    let of_cache: Vec<Tier> = tiers.iter().map(|tier| tier.tier).collect();
    // Half of the caches have an event sink, by which contents are published on another way.
    let (cache, mirror) = match seed % 2 {
        0 => (cache_of(num_blocks, &of_cache), None),
        _ => {
            let (cache, mirror) = Mirror::cache_of(num_blocks, &of_cache);
            (cache, Some(mirror))
        }
    };
    let prompts = longest_prompts(&cache);
    let mut world = World::new(cache, Reference::new(tiers));
    world.mirror = mirror;
    let mut history = History { world, random, log: Vec::new() };
    if history.chance(40) {
        let tier = history.tier();
        history.note(format!("restore {tier}"));
        history.world.restore(tier);
    }
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for operation in 0..OF_HISTORY {
            history.operate();
            history.world.check(&prompts);
            if operation % 25 == 0 {
                history.world.cache.validate().expect("a consistent cache");
            }
        }
        history.end();
        history.world.check(&prompts);
        assert_at_rest(&history.world.cache);
    }));
    if let Err(panic) = ended {
        eprintln!("{description}");
        history.log.iter().rev().take(30).rev().for_each(|line| eprintln!("  {line}"));
        std::panic::resume_unwind(panic);
    }
    history.world
}

/// Returns the longest prompts of each family.
pub fn longest_prompts(cache: &PagedKvCache) -> Vec<Prompt> {
    let longest = |family| (0..BRANCHES).map(move |branch| (family, branch, MOST_BLOCKS));
    let prompts = (0..FAMILIES).flat_map(longest);
    prompts.map(|of| cache.prompt(&tokens(of))).collect()
}

/// Returns the tokens of a prompt: so many full blocks and one token more.
fn tokens((family, branch, blocks): (u32, u32, usize)) -> Vec<u32> {
    let token = |at: usize| {
        let branch = if at / BLOCK_SIZE < FORK { 0 } else { branch };
        family * 10_000 + branch * 1_000 + at as u32
    };
    (0..=blocks * BLOCK_SIZE).map(token).collect()
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

    fn note(&mut self, line: String) {
        self.log.push(line);
    }

    fn prompt(&mut self) -> Prompt {
        let of = (
            self.random.below(FAMILIES as usize) as u32,
            self.random.below(BRANCHES as usize) as u32,
            1 + self.random.below(MOST_BLOCKS),
        );
        self.note(format!("  prompt {of:?}"));
        self.world.cache.prompt(&tokens(of))
    }

    fn tier(&mut self) -> usize {
        self.random.below(self.world.reference.tiers.len())
    }

    fn operate(&mut self) {
        let (loads, stores) = (self.world.loads.len(), self.world.stores.len());
        match self.random.below(100) {
            0..28 => self.admit(),
            28..41 => self.free(),
            41..50 => self.store(),
            50..57 => self.store_ahead(),
            57..60 => self.look_through(),
            60..63 => self.overwrite(),
            63..66 if loads > 0 => {
                let at = self.random.below(loads);
                self.overwrite_by_load(at);
            }
            66..74 if loads > 0 => self.end_load(),
            74..85 if stores > 0 => self.end_store(),
            85..88 => self.quiesce(),
            88..96 => {
                let blocks = [1, 3, usize::MAX][self.random.below(3)];
                self.note(format!("forget {blocks}"));
                self.world.cache.prefix().forget(blocks);
            }
            96 if self.chance(30) => {
                self.note("reset".to_owned());
                self.world.reset();
            }
            _ => self.uncache(),
        }
    }

    fn admit(&mut self) {
        let allowed = match self.random.below(6) {
            0 => Allowed { least: 1, most: 0 },
            1 => Allowed { least: 1 + self.random.below(3), most: 1 + self.random.below(5) },
            _ => Allowed { least: 1, most: usize::MAX },
        };
        self.note(format!("admit {allowed:?}"));
        let (prompt, loads) = (self.prompt(), self.world.loads.len());
        self.world.admit(&prompt, allowed);
        if self.world.loads.len() > loads && self.chance(40) {
            self.overwrite_by_load(loads);
        }
    }

    fn overwrite_by_load(&mut self, at: usize) {
        let tier = self.tier();
        self.note(format!("store in {tier} what load {at} overwrites"));
        self.world.overwrite_by_load(at, tier);
    }

    fn free(&mut self) {
        let sequences = self.world.sequences.len();
        if sequences > 0 {
            let at = self.random.below(sequences);
            self.note(format!("free {at} of {sequences}"));
            self.world.sequences.swap_remove(at);
        }
    }

    /// Stores the contents of a prompt, in part twice or out of order.
    fn store(&mut self) {
        let tier = self.tier();
        self.note(format!("store in {tier}"));
        let mut hashes = self.prompt().hashes().to_vec();
        match self.random.below(8) {
            0 => hashes.extend_from_within(..),
            1 => hashes.reverse(),
            2 => _ = hashes.drain(..self.random.below(hashes.len() + 1)),
            _ => {}
        }
        self.world.store(tier, &hashes);
    }

    fn store_ahead(&mut self) {
        let (to, ahead) = (self.tier(), self.random.below(16));
        let tiers = self.world.reference.tiers.len();
        let from =
            (tiers > 1 && self.chance(60)).then(|| (to + 1 + self.random.below(tiers - 1)) % tiers);
        self.note(format!("store the next {ahead} of {from:?} in {to}"));
        match from {
            Some(from) => self.world.store_ahead_of_tier(from, to, ahead),
            None => self.world.store_ahead_of_device(to, ahead),
        }
    }

    /// Goes on with a restore, ends it, or begins another.
    fn look_through(&mut self) {
        let hashes = self.prompt().hashes().to_vec();
        for hash in hashes {
            let slot = self.random.below(24) as u32;
            self.note(format!("found {hash} in slot {slot}"));
            self.world.find(slot, hash);
        }
        if self.chance(30) {
            self.note("end of the restore".to_owned());
            self.world.end_restore();
        }
        if self.world.restoring.is_none() && self.chance(30) {
            let tier = self.tier();
            self.note(format!("restore {tier}"));
            self.world.restore(tier);
        }
    }

    fn overwrite(&mut self) {
        let free = self.world.cache.free_block_count();
        let (tier, blocks) = (self.tier(), self.random.below(free + 2));
        let resets_between = self.chance(2);
        self.note(format!("overwrite {blocks} blocks, store in {tier}, reset: {resets_between}"));
        self.world.overwrite(blocks * BLOCK_SIZE, tier, resets_between);
    }

    fn ending(random: &mut Random, copies: usize) -> Ending {
        let fails = random.below(4);
        let outcome = |_| match random.below(4) < fails {
            true => [CopyOutcome::Failed, CopyOutcome::Skipped, CopyOutcome::Lost][random.below(3)],
            false => CopyOutcome::Done,
        };
        let outcomes = (0..copies).map(outcome).collect();
        (random.below(6) > 0).then_some(outcomes)
    }

    fn end_load(&mut self) {
        let at = self.random.below(self.world.loads.len());
        let Self { world, random, log } = self;
        world.end_load(at, |copies| {
            let ending = Self::ending(random, copies);
            log.push(format!("load {at} ends: {ending:?}"));
            ending
        });
    }

    fn end_store(&mut self) {
        let at = self.random.below(self.world.stores.len());
        let Self { world, random, log } = self;
        world.end_store(at, |copies| {
            let ending = Self::ending(random, copies);
            log.push(format!("store {at} ends: {ending:?}"));
            ending
        });
    }

    fn quiesce(&mut self) {
        let numbers: Vec<u64> = self.world.reference.quarantine.keys().copied().collect();
        let number = if numbers.is_empty() || self.chance(10) {
            self.random.below(1_000) as u64 + 1_000_000
        } else {
            numbers[self.random.below(numbers.len())]
        };
        self.note(format!("quiesced {number}"));
        self.world.quiesce(number);
    }

    /// Takes contents of a prompt from the device, in use or idle.
    fn uncache(&mut self) {
        self.note("uncache".to_owned());
        let prompt = self.prompt();
        self.world.cache.prefix().forget_prompt(&prompt).unwrap();
    }

    /// Ends all that is under way.
    fn end(&mut self) {
        self.note("end".to_owned());
        self.world.sequences.clear();
        self.world.end_restore();
        while !self.world.loads.is_empty() {
            self.end_load();
        }
        while !self.world.stores.is_empty() {
            self.end_store();
        }
        self.world.sequences.clear();
        while let Some(&number) = self.world.reference.quarantine.keys().next() {
            self.world.quiesce(number);
        }
    }
}
