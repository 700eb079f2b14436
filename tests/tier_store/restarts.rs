//! Contents of an earlier process: everything is dropped and opened again.

use paged_kv::tier_store::{TierMover, TierResets};
use paged_kv::{HashAlgorithm, PagedKvCache, Tier};

use crate::world::{SLOTS, TempPath, World, cache_of, device, disk_at, options_of};
use crate::{BLOCK_SIZE, FIRST};

#[test]
fn contents_are_loaded_by_later_processes_bit_by_bit() {
    let path = TempPath::new("restart");
    let names = 1..=6;
    for process in 0..3 {
        let world = World::disk(&path);
        for name in names.clone() {
            let prompt = world.prompt(name, 3 + name as usize);
            if process == 0 {
                world.put(FIRST, &prompt);
            }
            assert_eq!(world.load(&prompt), prompt.hashes().len(), "process {process}");
            world.forget_device();
        }
        world.assert_at_rest();
    }
}

/// `quiesce` is not called: a shutdown writes all that waits.
#[test]
fn a_shutdown_writes_all_that_waits() {
    let path = TempPath::new("shutdown");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 20);
    let sequence = world.compute(&prompt);
    world.mover.store(world.storing(FIRST, &prompt));
    world.mover.shutdown();
    drop((sequence, world.cache));
    assert_eq!(World::disk(&path).load(&prompt), 20);
}

/// The tier is full, and one more content takes the place of the one that was written first.
#[test]
fn contents_of_an_earlier_process_are_given_up_in_the_order_of_their_writes() {
    let path = TempPath::new("order");
    let world = World::disk(&path);
    let prompts: Vec<_> = (0..SLOTS as u32).map(|name| world.prompt(name, 1)).collect();
    prompts.iter().for_each(|prompt| world.put(FIRST, prompt));
    drop(world);
    let world = World::disk(&path);
    let new = world.prompt(1_000, 1);
    world.put(FIRST, &new);
    assert_eq!((world.load(&prompts[0]), world.load(&prompts[1])), (0, 1));
    assert_eq!((world.load(&prompts[SLOTS - 1]), world.load(&new)), (1, 1));
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn without_a_restore_nothing_is_found_and_slots_are_written_over() {
    let path = TempPath::new("unrestored");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 10);
    world.put(FIRST, &prompt);
    drop(world);
    let world = World::new(&[Tier::disk(SLOTS)], |builder, cache, resets| {
        builder.store(FIRST, disk_at(&path, cache), resets)
    });
    assert_eq!(world.load(&prompt), 0);
    world.put(FIRST, &world.prompt(2, 10));
    assert_eq!(world.load(&world.prompt(2, 10)), 10);
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn stores_are_dropped_until_the_contents_are_found() {
    let path = TempPath::new("restoring");
    let world = World::new(&[Tier::disk(SLOTS)], |builder, cache, resets| {
        builder.store(FIRST, disk_at(&path, cache), resets)
    });
    let restore = world.cache.tiers().restore(FIRST).unwrap();
    let prompt = world.prompt(1, 3);
    let sequence = world.compute(&prompt);
    assert!(world.cache.tiers().store(FIRST, prompt.hashes()).unwrap().is_none());
    assert_eq!(world.cache.stats().tiers[0].stores_dropped, 3);
    world.mover.restore(restore).unwrap();
    while !world.mover.stats().restores[0].is_done {
        std::thread::yield_now();
    }
    let progress = world.mover.stats().restores[0];
    assert_eq!((progress.slots_read, progress.slots_total, progress.contents), (SLOTS, SLOTS, 0));
    world.mover.store(world.storing(FIRST, &prompt));
    drop(sequence);
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn a_store_of_another_size_than_its_tier_is_refused() {
    let path = TempPath::new("size");
    let world = World::new(&[Tier::disk(SLOTS / 2)], |builder, cache, resets| {
        builder.store(FIRST, disk_at(&path, cache), resets)
    });
    assert!(world.mover.restore(world.cache.tiers().restore(FIRST).unwrap()).is_err());
    world.assert_at_rest();
}

/// Other weights: the contents under these hashes are others.
#[test]
fn contents_of_other_weights_are_not_found() {
    let path = TempPath::new("weights");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 5);
    world.put(FIRST, &prompt);
    drop(world);
    let world = World::new(&[Tier::disk(SLOTS)], |builder, cache, resets| {
        let options = options_of(cache, b"other weights");
        let store = paged_kv::tier_store::DiskStore::open(&*path, &options).unwrap();
        builder.store(FIRST, store, resets)
    });
    assert_eq!(world.restore(FIRST), 0);
    assert_eq!(world.load(&prompt), 0);
}

#[test]
fn a_cache_with_a_random_key_has_no_namespace() {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(BLOCK_SIZE);
    let cache = builder.tier(Tier::disk(SLOTS)).build().unwrap();
    assert!(cache.tiers().namespace(b"weights").is_err());
}

/// Another block size or hash algorithm is another namespace.
#[test]
fn namespaces_differ_with_everything_that_contents_depend_on() {
    let resets = TierResets::new();
    let first = cache_of(&[Tier::disk(SLOTS)], &resets);
    let of = |cache: &PagedKvCache| cache.tiers().namespace(b"weights").unwrap();
    assert_eq!(of(&first), of(&cache_of(&[Tier::disk(SLOTS)], &resets)));
    for (block_size, seed) in [(BLOCK_SIZE * 2, 7), (BLOCK_SIZE, 8)] {
        let builder = PagedKvCache::builder().num_blocks(8).block_size(block_size);
        let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed });
        assert_ne!(of(&first), of(&builder.tier(Tier::disk(SLOTS)).build().unwrap()));
    }
}

/// The mover ends while it looks for contents: the tier has all of its slots again.
#[test]
fn a_mover_may_be_dropped_while_contents_are_found() {
    let path = TempPath::new("early");
    for _ in 0..20 {
        let resets = TierResets::new();
        let cache = cache_of(&[Tier::disk(SLOTS)], &resets);
        let builder = TierMover::builder(device());
        let mover = builder.store(FIRST, disk_at(&path, &cache), &resets).build().unwrap();
        mover.restore(cache.tiers().restore(FIRST).unwrap()).unwrap();
        drop(mover);
        crate::world::assert_at_rest(&cache);
    }
}
