//! Random histories: after any operations, every waiter that is due a result is woken. They use all
//! public operations on small caches, and the rules of [`rules`] are checked after each.
//!
//! On one thread, tasks are polled by hand and only when they were woken. At the end of a history all
//! waiters are polled unwoken. One that is served then has slept too long.

mod calls;
mod rules;
mod threads;
mod world;

use self::world::World;
use super::common::random::Random;

/// Histories of each test; each has up to 40 operations.
const HISTORIES: u64 = if cfg!(debug_assertions) { 2_000 } else { 60_000 };

/// Runs a history, checks the rules after each operation, and polls all waiters unwoken at the end.
fn run(seed: u64) {
    let mut random = Random::new(seed);
    let (cache, shape) = world::cache(&mut random);
    let mut world = World::new(&cache, shape, random);
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let operations = 1 + world.random.below(40);
        for _ in 0..operations {
            world.operate();
            world.run_woken();
            world.note_state();
            world.check();
        }
        world.poll_all_unwoken();
        world.end();
    }));
    if let Err(panic) = checked {
        eprintln!("history {seed} of {cache}, {shape:?}");
        world.log.iter().for_each(|line| eprintln!("  {line}"));
        std::panic::resume_unwind(panic);
    }
}

/// `PAGED_KV_HISTORY` runs one history, `PAGED_KV_HISTORIES` sets their number.
#[test]
fn after_every_operation_no_waiter_sleeps_that_is_due_something() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    match number("PAGED_KV_HISTORY") {
        Some(seed) => run(seed),
        None => (0..number("PAGED_KV_HISTORIES").unwrap_or(HISTORIES)).for_each(run),
    }
}
