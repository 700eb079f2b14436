//! The same rules after threads have worked concurrently. Each thread has ids, tasks and blocks of its
//! own. When all threads rest, and all woken tasks have been polled, no waiter sleeps that is due a
//! result.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::scope;

use super::super::common::random::Random;
use super::rules::all_wait;
use super::world::{self, IDS, World};

const THREADS: u64 = 3;

/// Number of histories; in each the threads meet a few times.
const HISTORIES: u64 = if cfg!(debug_assertions) { 300 } else { 10_000 };

/// Operations of a thread between two meetings.
const OPERATIONS: usize = 12;

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let (cache, shape) = world::cache(&mut random);
    let world = |thread: u64| {
        let random = Random::new(seed * THREADS + thread + (1 << 40));
        World { base: thread * IDS, is_alone: false, ..World::new(&cache, shape, random) }
    };
    let mut worlds: Vec<World<'_>> = (0..THREADS).map(world).collect();
    let checked = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..3 {
            scope(|scope| {
                for world in &mut worlds {
                    scope.spawn(|| work(world));
                }
            });
            check(&mut worlds);
        }
        worlds.iter_mut().for_each(World::drop_all);
        worlds[0].end();
    }));
    if let Err(panic) = checked {
        eprintln!("history {seed} of {cache}, {shape:?}");
        for world in &worlds {
            world.log.iter().rev().take(20).rev().for_each(|line| eprintln!("  {line}"));
        }
        resume_unwind(panic);
    }
}

fn work(world: &mut World<'_>) {
    for _ in 0..1 + world.random.below(OPERATIONS) {
        world.operate();
        world.run_woken();
    }
}

/// Checks the rules, while no thread works.
fn check(worlds: &mut [World<'_>]) {
    while worlds.iter_mut().any(World::run_woken) {}
    for world in &mut *worlds {
        world.note_gone();
        world.note_state();
        world.check_none_is_gone();
    }
    let cache = worlds[0].cache;
    assert_eq!(cache.waiting().len(), worlds.iter().map(|world| world.tasks.len()).sum::<usize>());
    let is_alone = !worlds.iter().any(World::holds_outside);
    let waits = |id: paged_kv::SeqId| worlds.iter().any(|world| world.waits(id.0));
    assert!(!is_alone || !all_wait(cache, waits), "all sequences wait, and none is told");
    let mut at = 0;
    while at < worlds.len() {
        let left = worlds[at].poll_once_unwoken();
        // A task that left without being served may have made room for others.
        at = if left && worlds.iter_mut().any(World::run_woken) { 0 } else { at + 1 };
    }
}

#[test]
fn after_threads_have_worked_no_waiter_sleeps_that_is_due_something() {
    (0..HISTORIES).for_each(run);
}
