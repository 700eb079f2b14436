//! Round trips: device, host memory, disk, in each direction that tickets have.

use paged_kv::Tier;

use crate::world::{SLOTS, TempPath, World, arena, disk_at};
use crate::{FIRST, SECOND};

#[test]
fn bytes_go_to_host_memory_and_back() {
    let world = World::host();
    let prompts: Vec<_> = (1..=5).map(|name| world.prompt(name, 2 + name as usize)).collect();
    prompts.iter().for_each(|prompt| world.put(FIRST, prompt));
    for prompt in prompts.iter().rev() {
        assert_eq!(world.load(prompt), prompt.hashes().len());
    }
    world.forget_device();
    world.assert_at_rest();
    let stats = world.mover.stats();
    assert_eq!((stats.blocks_from_device, stats.blocks_to_device), (25, 25), "{stats:?}");
    assert_eq!((stats.bytes_written, stats.bytes_read), (0, 0), "no store was used: {stats:?}");
}

#[test]
fn bytes_go_to_disk_and_back() {
    let path = TempPath::new("disk");
    let world = World::disk(&path);
    let prompts: Vec<_> = (1..=5).map(|name| world.prompt(name, 2 + name as usize)).collect();
    prompts.iter().for_each(|prompt| world.put(FIRST, prompt));
    for prompt in prompts.iter().rev() {
        assert_eq!(world.load(prompt), prompt.hashes().len());
    }
    world.forget_device();
    world.assert_at_rest();
    let stats = world.mover.stats();
    assert_eq!(stats.bytes_written, 25 * crate::BLOCK_BYTES as u64, "{stats:?}");
    assert_eq!(stats.bytes_read, stats.bytes_written, "{stats:?}");
}

fn both(path: &TempPath) -> World {
    let tiers = [Tier::host(SLOTS), Tier::disk(SLOTS)];
    World::new(&tiers, |builder, cache, resets| {
        builder.host(FIRST, arena()).store(SECOND, disk_at(path, cache), resets)
    })
}

/// The device has forgotten the contents, so the arena is their only source.
#[test]
fn bytes_go_from_host_memory_to_disk() {
    let path = TempPath::new("down");
    let world = both(&path);
    let prompt = world.prompt(1, 11);
    world.put(FIRST, &prompt);
    world.mover.store(world.storing(SECOND, &prompt));
    world.wait();
    drop(world);

    let world = World::disk(&path);
    assert_eq!(world.load(&prompt), 11);
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn bytes_go_from_disk_to_host_memory() {
    let path = TempPath::new("up");
    let world = both(&path);
    let prompt = world.prompt(1, 11);
    world.put(SECOND, &prompt);
    world.mover.store(world.storing(FIRST, &prompt));
    world.wait();
    let read = world.mover.stats().bytes_read;
    assert_eq!(world.load(&prompt), 11);
    assert_eq!(world.mover.stats().bytes_read, read, "loaded from host memory");
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn a_prompt_is_loaded_from_both_tiers() {
    let path = TempPath::new("mixed");
    let world = both(&path);
    let (head, whole) = (world.prompt(1, 5), world.prompt(1, 14));
    world.put(FIRST, &head);
    world.put(SECOND, &whole);
    assert_eq!(world.load(&whole), 14);
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn more_contents_than_slots_leave_the_latest() {
    let path = TempPath::new("over");
    let world = World::disk(&path);
    let prompts: Vec<_> = (1..=12).map(|name| world.prompt(name, 9)).collect();
    prompts.iter().for_each(|prompt| world.put(FIRST, prompt));
    assert_eq!(world.load(&prompts[11]), 9);
    assert_eq!(world.load(&prompts[0]), 0, "108 contents, 64 slots");
    world.forget_device();
    world.assert_at_rest();
}

/// A ticket for a tier without a medium is settled.
#[test]
fn a_tier_without_a_medium_stores_nothing() {
    let world = World::new(&[Tier::host(SLOTS)], |builder, _, _| builder);
    let prompt = world.prompt(1, 3);
    world.put(FIRST, &prompt);
    assert_eq!(world.load(&prompt), 0);
    assert_eq!(world.mover.stats().stores_skipped, 3);
    assert!(world.mover.restore(world.cache.tiers().restore(FIRST).unwrap()).is_err());
    world.assert_at_rest();
}
