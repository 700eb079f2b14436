//! Resets: no content from before one is found by a later process.

use std::sync::Arc;

use paged_kv::Tier;
use paged_kv::tier_store::{
    DiskStore, SlotError, SlotKey, SlotStore, SlotWrite, TierMover, TierResets,
};

use crate::FIRST;
use crate::stores::{Fault, FaultyStore};
use crate::world::{SLOTS, TempPath, World, cache_of, device, disk_at, options_of};

fn world_of(store: Arc<FaultyStore>) -> World {
    World::new(&[Tier::disk(SLOTS)], |builder, _, resets| builder.store(FIRST, store, resets))
}

fn faulty(path: &TempPath) -> Arc<FaultyStore> {
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    Arc::new(FaultyStore::new(disk_at(path, &cache)))
}

#[test]
fn contents_from_before_a_reset_are_not_found_after_a_restart() {
    let path = TempPath::new("resets");
    let world = World::disk(&path);
    let (old, new) = (world.prompt(1, 6), world.prompt(2, 4));
    world.put(FIRST, &old);
    world.cache.prefix().reset();
    assert_eq!(world.load(&old), 0);
    world.put(FIRST, &new);
    drop(world);
    let world = World::disk(&path);
    assert_eq!((world.load(&old), world.load(&new)), (0, 4));
    world.forget_device();
    world.assert_at_rest();
}

/// The write of an old content waits for the medium while the cache is reset.
#[test]
fn a_write_that_comes_after_the_reset_is_not_found_after_a_restart() {
    let path = TempPath::new("late");
    let store = faulty(&path);
    let world = world_of(Arc::clone(&store));
    let prompt = world.prompt(1, 6);
    let sequence = world.compute(&prompt);
    let held = store.hold();
    world.mover.store(world.storing(FIRST, &prompt));
    store.wait_until_held();
    world.cache.prefix().reset();
    drop(held);
    world.wait();
    drop(sequence);
    world.forget_device();
    world.assert_at_rest();
    drop((world, store));
    let world = World::disk(&path);
    assert_eq!(world.load(&prompt), 0);
}

/// The ticket is made before the reset and given to the mover after it.
#[test]
fn a_ticket_from_before_the_reset_is_not_found_after_a_restart() {
    let path = TempPath::new("ticket");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 6);
    let sequence = world.compute(&prompt);
    let ticket = world.storing(FIRST, &prompt);
    world.cache.prefix().reset();
    world.mover.store(ticket);
    world.wait();
    drop(sequence);
    world.forget_device();
    world.assert_at_rest();
    drop(world);
    assert_eq!(World::disk(&path).load(&prompt), 0);
}

#[test]
fn resets_before_the_mover_is_built_count() {
    let path = TempPath::new("before");
    let world = World::disk(&path);
    let (old, new) = (world.prompt(1, 6), world.prompt(2, 4));
    world.put(FIRST, &old);
    drop(world);
    let world = World::new(&[Tier::disk(SLOTS)], |builder, cache, resets| {
        cache.prefix().reset();
        cache.prefix().reset();
        builder.store(FIRST, disk_at(&path, cache), resets)
    });
    assert_eq!(world.restore(FIRST), 0);
    world.put(FIRST, &new);
    world.cache.prefix().reset();
    drop(world);
    let world = World::disk(&path);
    assert_eq!((world.load(&old), world.load(&new)), (0, 0));
}

/// Slots that a restore still holds are free after a reset, and nothing old comes back.
#[test]
fn a_reset_while_contents_are_found_makes_none_ready() {
    let path = TempPath::new("found");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 6);
    world.put(FIRST, &prompt);
    drop(world);
    let resets = TierResets::new();
    let cache = cache_of(&[Tier::disk(SLOTS)], &resets);
    let builder = TierMover::builder(device());
    let mover = builder.store(FIRST, disk_at(&path, &cache), &resets).build().unwrap();
    let restore = cache.tiers().restore(FIRST).unwrap();
    cache.prefix().reset();
    mover.restore(restore).unwrap();
    while !mover.stats().restores[0].is_done {
        std::thread::yield_now();
    }
    assert_eq!(cache.tiers().lookup(&prompt), vec![0, 0]);
    drop(mover);
    crate::world::assert_at_rest(&cache);
}

#[test]
fn many_threads_reset_at_once() {
    let path = TempPath::new("many");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 6);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| world.cache.prefix().reset()));
        }
        for _ in 0..40 {
            let sequence = world.compute(&prompt);
            if let Some(ticket) = world.cache.tiers().store(FIRST, prompt.hashes()).unwrap() {
                world.mover.store(ticket);
            }
            drop(sequence);
        }
    });
    world.wait();
    world.cache.prefix().reset();
    drop(world);
    let world = World::disk(&path);
    assert_eq!(world.load(&prompt), 0);
    let cache = &world.cache;
    assert!(DiskStore::open(&*path, &options_of(cache, b"weights")).is_err(), "it is in use");
}

/// The medium refuses the reset: nothing old is read or written, and the failure is reported.
#[test]
fn a_reset_that_the_medium_refuses_is_counted() {
    let path = TempPath::new("refused");
    let store = faulty(&path);
    let resets = TierResets::new();
    let cache = cache_of(&[Tier::disk(SLOTS)], &resets);
    let builder = TierMover::builder(device());
    let mover = builder.store(FIRST, Arc::clone(&store), &resets).build().unwrap();
    store.fail(Fault::Io(5));
    cache.prefix().reset();
    store.heal();
    assert_eq!((resets.count(), resets.failed()), (1, 1));
    let tokens: Vec<u32> = (0..9).collect();
    let prompt = cache.prompt(&tokens);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &Default::default()).unwrap();
    sequence.commit(9).unwrap();
    mover.store(cache.tiers().store(FIRST, prompt.hashes()).unwrap().unwrap());
    assert!(mover.quiesce(crate::world::SOON));
    assert_eq!(mover.stats().bytes_written, 0, "{:?}", mover.stats());
    assert_eq!(store.epoch(), 2, "the mover wrote the reset again");
    mover.store(cache.tiers().store(FIRST, prompt.hashes()).unwrap().unwrap());
    assert!(mover.quiesce(crate::world::SOON));
    assert_eq!(mover.stats().bytes_written, 2 * crate::BLOCK_BYTES as u64);
    assert_eq!(resets.failed(), 1);
}

/// No test calls `quiesce` here: the end of the mover writes the reset.
#[test]
fn the_end_of_a_mover_writes_a_reset_that_failed() {
    let path = TempPath::new("end");
    let store = faulty(&path);
    let world = world_of(Arc::clone(&store));
    store.fail(Fault::Panic);
    world.cache.prefix().reset();
    assert_eq!(store.epoch(), 1);
    store.heal();
    world.mover.shutdown();
    assert_eq!(store.epoch(), 2);
}

/// A store whose reset asks for the number of resets.
struct Asking(FaultyStore, TierResets);

impl SlotStore for Asking {
    fn slots(&self) -> usize {
        self.0.slots()
    }

    fn block_bytes(&self) -> usize {
        self.0.block_bytes()
    }

    fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        self.0.write(write)
    }

    fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError> {
        self.0.read(slot, key, into)
    }

    fn epoch(&self) -> u64 {
        self.0.epoch() + self.1.count() - self.1.count()
    }

    fn reset(&self, epoch: u64) -> Result<(), SlotError> {
        assert!(self.1.count() > 0 && self.1.failed() == 0);
        self.0.reset(epoch)
    }
}

#[test]
fn a_store_is_reset_without_a_lock() {
    let path = TempPath::new("asking");
    let resets = TierResets::new();
    let cache = cache_of(&[Tier::disk(SLOTS)], &resets);
    cache.prefix().reset();
    let store = Asking(FaultyStore::new(disk_at(&path, &cache)), resets.clone());
    let store = Arc::new(store);
    let builder = TierMover::builder(device()).store(FIRST, Arc::clone(&store), &resets);
    let mover = builder.build().unwrap();
    cache.prefix().reset();
    assert_eq!((store.epoch(), resets.count(), resets.failed()), (3, 2, 0));
    drop(mover);
}
