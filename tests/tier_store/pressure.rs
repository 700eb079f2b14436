//! Bounds: a slow medium delays no store and no request; movers end with work that waits; functions of loads panic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use paged_kv::Tier;
use paged_kv::tier_store::{TierMover, TierResets};

use crate::stores::FaultyStore;
use crate::world::{SLOTS, SOON, TempPath, World, cache_of, disk_at};
use crate::{BLOCK_BYTES, BLOCK_SIZE, FIRST};

/// Returns a world with a store that can be held, with one thread, two places in the queue and 8 staging buffers.
fn narrow(path: &TempPath) -> (World, Arc<FaultyStore>) {
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    let store = Arc::new(FaultyStore::new(disk_at(path, &cache)));
    let of_mover = Arc::clone(&store);
    let world = World::new(&[Tier::disk(SLOTS)], |builder, _, resets| {
        builder.store(FIRST, of_mover, resets).threads(1).queue(2).staging(8)
    });
    (world, store)
}

#[test]
fn a_slow_store_skips_and_holds_up_no_caller() {
    let path = TempPath::new("slow");
    let (world, store) = narrow(&path);
    let held = store.hold();
    let begin = Instant::now();
    for name in 0..40 {
        let prompt = world.prompt(name, 3);
        let sequence = world.compute(&prompt);
        world.mover.store(world.storing(FIRST, &prompt));
        drop(sequence);
    }
    assert!(begin.elapsed() < SOON / 10, "{:?}", begin.elapsed());
    store.wait_until_held();
    // 3 + 3 + 2 contents are staged, and the device's blocks are free already.
    assert_eq!(world.cache.used_block_count(), 0, "blocks wait for the medium");
    let stats = world.mover.stats();
    assert_eq!((stats.stores_skipped, stats.staging_used), (120 - 8, 8), "{stats:?}");
    assert_eq!(world.cache.stats().contents_in_flight, 9, "three whole tickets");
    drop(held);
    world.wait();
    world.forget_device();
    let loaded: usize = (0..40).map(|name| world.load(&world.prompt(name, 3))).sum();
    assert_eq!(loaded, 8, "those that were staged");
    assert_eq!(world.cache.stats().tiers[0].stores_dropped, 112);
    world.forget_device();
    world.assert_at_rest();
}

/// The step's kernels overwrite the blocks while their contents wait for the medium.
#[test]
fn contents_may_be_overwritten_when_the_call_returns() {
    let path = TempPath::new("overwritten");
    let (world, store) = narrow(&path);
    let prompt = world.prompt(1, 6);
    drop(world.compute(&prompt));
    let held = store.hold();
    let blocks = world.cache.free_block_count();
    let mut rows = [(world.cache.allocate_sequence(0).unwrap(), blocks * BLOCK_SIZE)];
    let mut step = world.cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let ticket = world.cache.tiers().store_overwritten(FIRST, &step).unwrap();
    world.mover.store(ticket.expect("six contents are lost"));
    let garbage = vec![0x55; BLOCK_BYTES];
    rows[0].0.block_ids().iter().for_each(|&block| world.device.write(block, &garbage));
    step.complete();
    drop((held, rows));
    world.wait();
    assert_eq!(world.load(&prompt), 6);
    world.forget_device();
    world.assert_at_rest();
}

/// The only thread waits for the medium. Two loads wait for it, and the third one is answered without contents.
#[test]
fn a_load_without_a_place_in_the_queue_is_answered_at_once() {
    let path = TempPath::new("loads");
    let (world, store) = narrow(&path);
    let prompts: Vec<_> = (1..=4).map(|name| world.prompt(name, 2)).collect();
    prompts[..3].iter().for_each(|prompt| world.put(FIRST, prompt));
    let held = store.hold();
    let sequence = world.compute(&prompts[3]);
    world.mover.store(world.storing(FIRST, &prompts[3]));
    store.wait_until_held();
    let (sender, receiver) = mpsc::channel();
    for prompt in &prompts[..3] {
        let sender = sender.clone();
        let count = prompt.hashes().len();
        world.mover.load(world.loading(prompt), move |loaded| {
            let loaded = loaded.expect("an outcome a copy");
            sender.send((loaded.loaded_tokens, count)).unwrap();
        });
    }
    let first = receiver.recv_timeout(SOON).expect("answered by the call");
    assert_eq!(first, (0, 2));
    assert_eq!(world.mover.stats().loads_skipped, 2);
    assert!(!world.mover.quiesce(Duration::from_millis(10)), "two loads wait");
    drop(held);
    for _ in 0..2 {
        assert_eq!(receiver.recv_timeout(SOON).expect("the medium goes on"), (8, 2));
    }
    drop(sequence);
    world.wait();
    world.forget_device();
    world.assert_at_rest();
}

#[test]
fn a_mover_that_is_dropped_settles_all_that_waits() {
    let path = TempPath::new("dropped");
    let (world, store) = narrow(&path);
    let prompts: Vec<_> = (1..=4).map(|name| world.prompt(name, 2)).collect();
    prompts[..2].iter().for_each(|prompt| world.put(FIRST, prompt));
    let held = store.hold();
    for prompt in &prompts[2..] {
        let sequence = world.compute(prompt);
        world.mover.store(world.storing(FIRST, prompt));
        drop(sequence);
    }
    store.wait_until_held();
    let answered = Arc::new(AtomicUsize::new(0));
    for prompt in &prompts[..2] {
        let answered = Arc::clone(&answered);
        world.mover.load(world.loading(prompt), move |loaded| {
            assert_eq!(loaded.expect("an outcome a copy").loaded_tokens, 0);
            answered.fetch_add(1, Ordering::Relaxed);
        });
    }
    let World { cache, mover, device: _ } = world;
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| drop(mover));
        while answered.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        assert!(!dropping.is_finished(), "it waits for the write that is under way");
        drop(held);
    });
    cache.prefix().forget(usize::MAX);
    crate::world::assert_at_rest(&cache);
    assert_eq!(cache.tiers().lookup(&prompts[2])[1], 8, "its write was under way");
    assert_eq!(cache.tiers().lookup(&prompts[3])[1], 0);
}

#[test]
fn a_panic_of_the_callers_function_is_counted_and_ends_nothing() {
    let path = TempPath::new("panics");
    for world in [World::host(), World::disk(&path)] {
        let prompt = world.prompt(1, 4);
        world.put(FIRST, &prompt);
        for _ in 0..3 {
            world.mover.load(world.loading(&prompt), |_| panic!("a fault of the caller"));
            world.wait();
            world.forget_device();
        }
        assert_eq!(world.mover.stats().callback_panics, 3);
        assert_eq!(world.load(&prompt), 4);
        world.forget_device();
        world.assert_at_rest();
    }
}

/// The function of a load has the last handle of the mover.
#[test]
fn a_mover_may_be_dropped_by_its_own_thread() {
    let path = TempPath::new("own");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 4);
    world.put(FIRST, &prompt);
    let ticket = world.loading(&prompt);
    let World { cache, mover, device: _ } = world;
    let (mover, (sender, receiver)) = (Arc::new(mover), mpsc::channel());
    let (own, is_alone) = (Arc::clone(&mover), Arc::new(Mutex::new(())));
    let (held, waits) = (is_alone.lock().unwrap(), Arc::clone(&is_alone));
    mover.load(ticket, move |loaded| {
        drop(waits.lock());
        assert!(!own.quiesce(SOON), "it would wait for itself");
        let own: TierMover = Arc::into_inner(own).expect("the last handle");
        drop(own);
        sender.send(loaded.map(|loaded| loaded.loaded_tokens)).unwrap();
    });
    drop(mover);
    drop(held);
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), Ok(16));
    cache.prefix().forget(usize::MAX);
    crate::world::assert_at_rest(&cache);
}

/// A load in the function of a load.
#[test]
fn the_function_of_a_load_may_use_the_mover() {
    let path = TempPath::new("nested");
    let world = World::disk(&path);
    let prompts = [world.prompt(1, 4), world.prompt(2, 3)];
    prompts.iter().for_each(|prompt| world.put(FIRST, prompt));
    let tickets = prompts.each_ref().map(|prompt| world.loading(prompt));
    let [first, second] = tickets;
    let (mover, (sender, receiver)) = (Arc::new(world.mover), mpsc::channel());
    let own = Arc::clone(&mover);
    mover.load(first, move |one| {
        own.load(second, move |other| sender.send((one, other)).unwrap());
    });
    let (one, other) = receiver.recv_timeout(SOON).unwrap();
    assert_eq!((one.unwrap().loaded_tokens, other.unwrap().loaded_tokens), (16, 12));
    assert!(mover.quiesce(SOON));
}
