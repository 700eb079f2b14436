//! Memory of the caller that changes its length or panics: an arena of it stores and loads nothing, and holds nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paged_kv::Tier;
use paged_kv::tier_store::HostArena;

use crate::world::{SLOTS, TempPath, World, disk_at};
use crate::{BLOCK_BYTES, FIRST, SECOND};

const GOOD: usize = 0;
const SHORT: usize = 1;
const PANICS: usize = 2;

/// The ways in which memory is read and written.
#[derive(Clone, Default)]
struct Faults {
    on_read: Arc<AtomicUsize>,
    on_write: Arc<AtomicUsize>,
}

struct FaultyMemory(Vec<u8>, Faults);

fn end_of(fault: &AtomicUsize) -> usize {
    match fault.load(Ordering::Relaxed) {
        GOOD => BLOCK_BYTES,
        SHORT => BLOCK_BYTES - 1,
        _ => panic!("a fault of the memory"),
    }
}

impl AsRef<[u8]> for FaultyMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0[..end_of(&self.1.on_read)]
    }
}

impl AsMut<[u8]> for FaultyMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0[..end_of(&self.1.on_write)]
    }
}

fn memory(faults: &Faults) -> impl Iterator<Item = FaultyMemory> + use<> {
    let faults = faults.clone();
    (0..SLOTS).map(move |_| FaultyMemory(vec![0; BLOCK_BYTES], faults.clone()))
}

fn world_of(path: &TempPath, faults: &Faults) -> World {
    let arena = HostArena::from_slots(memory(faults)).unwrap();
    World::new(&[Tier::host(SLOTS), Tier::disk(SLOTS)], |builder, cache, resets| {
        builder.host(FIRST, arena).store(SECOND, disk_at(path, cache), resets)
    })
}

#[test]
fn memory_of_two_lengths_is_refused() {
    let faults = Faults::default();
    assert!(HostArena::from_slots(memory(&faults)).is_ok());
    faults.on_write.store(SHORT, Ordering::Relaxed);
    assert!(HostArena::from_slots(memory(&faults)).is_err());
}

/// From the device on the thread of the caller, and from the disk on a thread of the mover.
#[test]
fn memory_that_cannot_be_written_stores_nothing() {
    for fault in [SHORT, PANICS] {
        let (path, faults) = (TempPath::new("unwritten"), Faults::default());
        let world = world_of(&path, &faults);
        let prompt = world.prompt(1, 5);
        faults.on_write.store(fault, Ordering::Relaxed);
        world.put(FIRST, &prompt);
        assert_eq!(world.cache.tiers().lookup(&prompt), vec![0, 0, 0]);
        world.put(SECOND, &prompt);
        world.mover.store(world.storing(FIRST, &prompt));
        world.wait();
        assert_eq!(world.quarantined(), 0);
        let stats = world.mover.stats();
        let counts = if fault == SHORT { (10, 0) } else { (0, 10) };
        assert_eq!((stats.stores_skipped, stats.stores_failed), counts, "{stats:?}");
        faults.on_write.store(GOOD, Ordering::Relaxed);
        world.mover.store(world.storing(FIRST, &prompt));
        world.wait();
        assert_eq!(world.load(&prompt), 5);
        world.forget_device();
        world.assert_at_rest();
    }
}

/// On the thread of the caller, and, if the disk has a part of the prompt, on a thread of the mover.
#[test]
fn memory_that_cannot_be_read_loads_nothing() {
    for (fault, of_disk) in [(SHORT, 0), (PANICS, 0), (SHORT, 3), (PANICS, 3)] {
        let (path, faults) = (TempPath::new("unread"), Faults::default());
        let world = world_of(&path, &faults);
        let (head, prompt) = (world.prompt(1, 5), world.prompt(1, 5 + of_disk));
        world.put(FIRST, &head);
        if of_disk > 0 {
            world.put(SECOND, &prompt);
        }
        faults.on_read.store(fault, Ordering::Relaxed);
        let loaded = world.mover.load_blocking(world.loading(&prompt));
        let tokens = loaded.map(|loaded| loaded.loaded_tokens);
        assert_eq!(tokens.ok(), (fault == SHORT).then_some(0));
        world.wait();
        assert_eq!(
            (world.quarantined(), world.mover.stats().loads_failed),
            (0, 5 + of_disk as u64)
        );
        faults.on_read.store(GOOD, Ordering::Relaxed);
        assert_eq!(world.load(&prompt), 5 + of_disk);
        world.forget_device();
        world.assert_at_rest();
    }
}
