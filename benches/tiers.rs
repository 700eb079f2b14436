//! A tier below the device: `cargo bench --bench tiers [-- --quick]`
//!
//! Our cache and one lock around the same states look up prompts, store their contents in the tier and load them again.
//! No bytes are copied. Each thread has prompts of its own. Slices of both designs alternate within milliseconds; rounds
//! in which the machine did not give two cores do not count for two threads.

mod baseline;
mod rig;

use std::env;
use std::hint::black_box;
use std::time::Duration;

use paged_kv::{
    AdmitOptions, CopyOutcome, HashAlgorithm, LoadLimit, PagedKvCache, Prompt, Tier, TierAdmission,
    TierId,
};

use baseline::one_lock_tier::{OneLockTier, Request, Stores};
use rig::control;
use rig::rounds::{median, on_time, quiet};
use rig::team::{Burst, Contender, alternate};

/// Blocks of a prompt, of which all but the last are full.
const BLOCKS: usize = 33;
const BLOCK_SIZE: usize = 16;

/// Prompts of a thread.
const PROMPTS: usize = 64;

const DONE: [CopyOutcome; BLOCKS - 1] = [CopyOutcome::Done; BLOCKS - 1];

const SLICE: Duration = Duration::from_millis(5);

/// Ratios to the lock that are wanted, with one thread and with two.
const WANTED: [f64; 2] = [1.0, 1.5];

/// The blocks of the device, and the slots of the tier.
#[derive(Clone, Copy)]
struct Sizes {
    blocks: usize,
    slots: usize,
}

/// All prompts of two threads are in the tier, and few on the device: each admission loads.
const LOADING: Sizes = Sizes { blocks: 16 * BLOCKS, slots: 4 * PROMPTS * BLOCKS };

/// All prompts are on the device, and few in the tier: each store copies.
const STORING: Sizes = Sizes { blocks: 4 * PROMPTS * BLOCKS, slots: 16 * BLOCKS };

fn main() {
    println!("control: 2 threads of arithmetic over 1: {:.2}", control::parallelism(2));
    println!("{} blocks a prompt; ns a block\n", BLOCKS - 1);
    println!(
        "{:<22} {:>8} {:>8} | {:>12} | {:>12} {:>7}",
        "", "ours", "one lock", "1: /lock", "2: /lock", "rounds"
    );
    let (ours, lock) = (Ours::new(LOADING), Lock::new(LOADING));
    ours.fill();
    lock.fill();
    report("lookup in the tier", &|thread| ours.look_up(thread), &|thread| lock.look_up(thread));
    report("load and complete", &|thread| ours.load(thread), &|thread| lock.load(thread));
    let (ours, lock) = (Ours::new(STORING), Lock::new(STORING));
    ours.compute();
    lock.compute();
    report("store and complete", &|thread| ours.store(thread), &|thread| lock.store(thread));
    println!("\ncontrol again: {:.2}", control::parallelism(2));
}

struct Ours {
    cache: PagedKvCache,
    prompts: [Vec<Prompt>; 2],
}

struct Lock {
    tier: OneLockTier,
    prompts: [Vec<Prompt>; 2],
}

fn cache(sizes: Sizes) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(sizes.blocks).block_size(BLOCK_SIZE);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 });
    builder.tier(Tier::host(sizes.slots)).build().expect("the sizes make sense")
}

/// Returns the prompts of two threads.
fn prompts(cache: &PagedKvCache) -> [Vec<Prompt>; 2] {
    let prompt = |number: usize| {
        let first = (number * BLOCKS * BLOCK_SIZE) as u32;
        cache.prompt(&(first..first + (BLOCKS * BLOCK_SIZE - 8) as u32).collect::<Vec<_>>())
    };
    [0, 1].map(|thread| (0..PROMPTS).map(|at| prompt(thread * PROMPTS + at)).collect())
}

impl Ours {
    fn new(sizes: Sizes) -> Self {
        let cache = cache(sizes);
        let prompts = prompts(&cache);
        Self { cache, prompts }
    }

    /// Puts all prompts in the tier.
    fn fill(&self) {
        self.prompts.iter().flatten().for_each(|prompt| {
            let sequence = self.computed(prompt);
            self.stored(prompt);
            drop(sequence);
        });
    }

    /// Puts all prompts on the device.
    fn compute(&self) {
        self.prompts.iter().flatten().for_each(|prompt| drop(self.computed(prompt)));
    }

    fn computed(&self, prompt: &Prompt) -> paged_kv::CachedSequence {
        let admitted = self.cache.admit_sequence(prompt, &AdmitOptions::default());
        let (mut sequence, _) = admitted.expect("there is room");
        sequence.commit(prompt.num_tokens()).expect("it has slots");
        sequence
    }

    /// Returns the number of contents that were stored.
    fn stored(&self, prompt: &Prompt) -> u64 {
        let ticket = self.cache.tiers().store(TierId(0), prompt.hashes()).expect("the tier");
        let Some(ticket) = ticket else { return 0 };
        let done = &DONE[..ticket.stores().len()];
        ticket.complete(done).expect("an outcome a copy") as u64
    }

    fn look_up(&self, thread: usize) -> Burst<'_> {
        each(&self.prompts[thread], |prompt| {
            let found = black_box(self.cache.tiers().lookup(prompt));
            (found[1] / BLOCK_SIZE) as u64
        })
    }

    fn store(&self, thread: usize) -> Burst<'_> {
        each(&self.prompts[thread], |prompt| self.stored(prompt))
    }

    fn load(&self, thread: usize) -> Burst<'_> {
        let options = AdmitOptions::default();
        each(&self.prompts[thread], move |prompt| {
            let admitted = self.cache.tiers().admit(prompt, &options, LoadLimit::default());
            match admitted.expect("there is room") {
                TierAdmission::Loading(ticket) => {
                    let done = &DONE[..ticket.loads().len()];
                    drop(ticket.complete(done).expect("an outcome a copy"));
                    done.len() as u64
                }
                // Home shards reclaim in about the order of use, so that a prompt may be on the device still.
                TierAdmission::Ready(..) => 0,
                other => panic!("no other thread loads it: {other:?}"),
            }
        })
    }
}

impl Lock {
    fn new(sizes: Sizes) -> Self {
        let prompts = prompts(&cache(sizes));
        Self { tier: OneLockTier::new(sizes.blocks, sizes.slots), prompts }
    }

    fn fill(&self) {
        let mut stores = Stores::default();
        self.prompts.iter().flatten().for_each(|prompt| {
            let mut request = self.computed(prompt);
            self.stored(prompt, &mut stores);
            self.tier.release(&mut request);
        });
    }

    fn compute(&self) {
        self.prompts.iter().flatten().for_each(|prompt| {
            let mut request = self.computed(prompt);
            self.tier.release(&mut request);
        });
    }

    fn computed(&self, prompt: &Prompt) -> Request {
        let mut request = Request::default();
        assert!(self.tier.admit(prompt.hashes(), BLOCKS, &mut request), "there is room");
        self.tier.commit(prompt.hashes(), &request);
        request
    }

    fn stored(&self, prompt: &Prompt, stores: &mut Stores) -> u64 {
        if !self.tier.store(prompt.hashes(), stores) {
            return 0;
        }
        let stored = stores.slots.len();
        self.tier.complete_store(stores);
        stored as u64
    }

    fn look_up(&self, thread: usize) -> Burst<'_> {
        each(&self.prompts[thread], |prompt| black_box(self.tier.lookup(prompt.hashes()))[1] as u64)
    }

    fn store(&self, thread: usize) -> Burst<'_> {
        let mut stores = Stores::default();
        each(&self.prompts[thread], move |prompt| self.stored(prompt, &mut stores))
    }

    fn load(&self, thread: usize) -> Burst<'_> {
        let mut request = Request::default();
        each(&self.prompts[thread], move |prompt| {
            assert!(self.tier.admit(prompt.hashes(), BLOCKS, &mut request), "there is room");
            let loaded = request.slots.len();
            self.tier.complete_load(prompt.hashes(), &mut request);
            self.tier.release(&mut request);
            loaded as u64
        })
    }
}

/// Returns work on one prompt after the other, which returns its blocks.
fn each<'a>(prompts: &'a [Prompt], mut work: impl FnMut(&'a Prompt) -> u64 + 'a) -> Burst<'a> {
    let mut prompts = prompts.iter().cycle();
    Box::new(move || work(prompts.next().expect("a cycle has no end")))
}

type Work<'a> = &'a (dyn Fn(usize) -> Burst<'a> + Sync + 'a);

/// Measures our cache and the lock at one and two threads, in the same rounds, and prints the figures.
fn report<'a>(name: &str, ours: Work<'a>, lock: Work<'a>) {
    let contenders = [
        control::arithmetic(1),
        control::arithmetic(2),
        Contender::new(1, SLICE, ours),
        Contender::new(1, SLICE, lock),
        Contender::new(2, SLICE, ours),
        Contender::new(2, SLICE, lock),
    ];
    let quick = env::args().any(|arg| arg == "--quick");
    let (enough, most) = if quick { (5, 10) } else { (25, 80) };
    let (mut one, mut two, mut rounds) = (Vec::new(), Vec::new(), 0);
    alternate(&contenders, |slices| {
        rounds += 1;
        let [single, double, ours_1, lock_1, ours_2, lock_2] = slices.try_into().expect("six ran");
        if on_time(&[ours_1, lock_1]) {
            one.push([ours_1.rate, lock_1.rate]);
        }
        if quiet(single, double) && on_time(&[ours_2, lock_2]) {
            two.push(ours_2.rate / lock_2.rate);
        }
        two.len() == enough || rounds == most
    });
    let [ours, lock] = [0, 1].map(|at| median(one.iter().map(|rates| 1e9 / rates[at])));
    let ratios = [median(one.iter().map(|[ours, lock]| ours / lock)), median(two.iter().copied())];
    print!("{name:<22} {ours:>8.1} {lock:>8.1} ");
    for (ratio, wanted) in ratios.iter().zip(WANTED) {
        let mark = if *ratio < wanted { '!' } else { ' ' };
        print!("| {ratio:>5.2} ({wanted:>3}){mark} ");
    }
    println!("{:>3}/{rounds:<3}", two.len());
}
