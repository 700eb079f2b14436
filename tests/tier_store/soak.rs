//! Faults of all kinds at once, for a while: threads of requests, a file and a device that fail, and resets. No block is
//! ever read with other bytes than those of its content, and at the end nothing is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use paged_kv::tier_store::TierResets;
use paged_kv::{Loaded, StoreFrom, Tier, TierAdmission};

use crate::devices::FaultyDevice;
use crate::random::Random;
use crate::stores::FaultyStore;
use crate::world::{SLOTS, SOON, TempPath, World, arena, cache_of, disk_at};
use crate::{BLOCK_SIZE, FIRST, SECOND};

const THREADS: u64 = 3;
/// Percent of the operations of the file, and of the copies of the device.
const FAULTS: [usize; 2] = [12, 6];

#[derive(Default, Debug)]
struct Counted {
    loads: AtomicUsize,
    blocks_loaded: AtomicUsize,
    cut_short: AtomicUsize,
    cancelled: AtomicUsize,
    resets: AtomicUsize,
}

fn count(counter: &AtomicUsize, n: usize) {
    counter.fetch_add(n, Ordering::Relaxed);
}

struct Soak {
    world: World,
    counted: Counted,
    end: Instant,
}

impl Soak {
    fn requests(&self, mut random: Random) {
        while Instant::now() < self.end {
            self.request(&mut random);
        }
    }

    fn request(&self, random: &mut Random) {
        let world = &self.world;
        let prompt = world.prompt(random.below(20) as u32, 1 + random.below(9));
        let loaded =
            match world.cache.tiers().admit(&prompt, &Default::default(), Default::default()) {
                Ok(TierAdmission::Loading(ticket)) if random.below(20) == 0 => {
                    let number = ticket.number();
                    drop(ticket);
                    // No mover had it.
                    world.cache.tiers().quiesced(number);
                    return count(&self.counted.cancelled, 1);
                }
                Ok(TierAdmission::Loading(ticket)) => self.load(ticket),
                Ok(TierAdmission::Ready(sequence, admission)) => {
                    (sequence, admission.cached_tokens)
                }
                // Another request loads it, or there is no room.
                Ok(_) | Err(_) => return std::thread::yield_now(),
            };
        let (mut sequence, cached) = loaded;
        let blocks = sequence.block_ids()[..cached / BLOCK_SIZE].iter().zip(prompt.hashes());
        for (&block, &hash) in blocks {
            let bytes = world.device.read(block);
            assert!(bytes == crate::world::bytes_of(hash), "{block} has not the bytes of {hash}");
        }
        let missing = prompt.num_tokens() - sequence.num_tokens();
        if sequence.append(missing).is_err() {
            return;
        }
        world.write(&sequence, &prompt, cached / BLOCK_SIZE);
        sequence.commit(prompt.num_tokens()).expect("it has slots");
        for tier in [FIRST, SECOND] {
            if random.below(3) > 0
                && let Ok(Some(ticket)) = world.cache.tiers().store(tier, prompt.hashes())
            {
                world.mover.store(ticket);
            }
        }
        if let Ok(Some(ticket)) =
            world.cache.tiers().store_ahead(StoreFrom::Tier(FIRST), SECOND, random.below(9))
        {
            world.mover.store(ticket);
        }
        drop(sequence);
        match random.below(400) {
            0 => {
                world.cache.prefix().reset();
                count(&self.counted.resets, 1);
            }
            1..100 => _ = world.cache.prefix().forget(random.below(40)),
            _ => {}
        }
    }

    fn load(&self, ticket: paged_kv::LoadTicket) -> (paged_kv::CachedSequence, usize) {
        let due = ticket.loads().len();
        let (sender, receiver) = mpsc::channel();
        self.world.mover.load(ticket, move |loaded| sender.send(loaded).expect("it waits"));
        let loaded = receiver.recv_timeout(SOON).expect("each load is answered");
        let loaded: Loaded = loaded.expect("an outcome a copy");
        count(&self.counted.loads, 1);
        count(&self.counted.blocks_loaded, loaded.loaded_tokens / BLOCK_SIZE);
        count(&self.counted.cut_short, usize::from(loaded.loaded_tokens < due * BLOCK_SIZE));
        (loaded.sequence, loaded.admission.cached_tokens)
    }
}

#[test]
fn no_fault_makes_wrong_bytes_or_leaks() {
    let of = |name, default| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let seconds = Duration::from_secs(of("PAGED_KV_MOVER_SECONDS", 3));
    let seed = of("PAGED_KV_MOVER_SEED", 0);
    let path = TempPath::new("soak");
    let tiers = [Tier::host(SLOTS / 2), Tier::disk(SLOTS)];
    let store = Arc::new(FaultyStore::new(disk_at(&path, &cache_of(&tiers, &TierResets::new()))));
    let (mut faulty, of_mover) = (None, Arc::clone(&store));
    let wrap = |device| Arc::clone(faulty.insert(Arc::new(FaultyDevice::new(device))));
    let world = World::with_device(&tiers, wrap, |builder, _, resets| {
        let builder = builder.host(FIRST, arena()).store(SECOND, of_mover, resets);
        builder.threads(2).queue(8).staging(24)
    });
    let device = faulty.expect("the world has a device");
    store.fail_at_random(seed, FAULTS[0]);
    device.fail_at_random(seed + 1, FAULTS[1]);
    let end = Instant::now() + seconds;
    let soak = Soak { world, counted: Counted::default(), end };
    // The panics of media and devices are many, and each is caught.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_fault = panic
            .payload()
            .downcast_ref::<&str>()
            .is_some_and(|text| text.starts_with("a fault of the"));
        if !is_fault {
            hook(panic);
        }
    }));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let soak = &soak;
            scope.spawn(move || soak.requests(Random::new(seed + 10 + thread)));
        }
    });
    store.heal();
    device.heal();
    let Soak { world, counted, .. } = soak;
    world.wait();
    world.wait();
    let stats = world.mover.stats();
    println!("{counted:?}, {} faults of the file\n{stats:#?}", store.faults());
    world.forget_device();
    world.assert_at_rest();
    assert!(store.faults() > 0 && counted.blocks_loaded.into_inner() > 0);
}
