//! Does every waiter that is due something learn of it, after whatever operations? Random histories of all
//! public operations on small caches, and after each operation the rules of [`rules`].
//!
//! On one thread, tasks are polled by hand and only when they were woken. So a waiter that sleeps though it
//! would be served is seen: it is served when it is polled unwoken at the end of a history.

mod calls;
mod rules;
mod threads;
mod world;

use self::world::World;
use super::common::random::Random;

/// Histories of each test; each has up to 40 operations.
const HISTORIES: u64 = if cfg!(debug_assertions) { 2_000 } else { 60_000 };

/// Runs a history, and all of its beginnings that end with a check that wakes waiters by force.
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

/// `PAGED_KV_HISTORY` runs one history, `PAGED_KV_HISTORIES` as many.
#[test]
fn after_every_operation_no_waiter_sleeps_that_is_due_something() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    match number("PAGED_KV_HISTORY") {
        Some(seed) => run(seed),
        None => (0..number("PAGED_KV_HISTORIES").unwrap_or(HISTORIES)).for_each(run),
    }
}
