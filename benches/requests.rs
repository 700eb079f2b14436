//! Whole requests with shared prefixes: `cargo bench --bench requests [-- --quick] [name ..]`
//!
//! Our cache and one lock serve the same stream of conversations: admit by hashes, commit, append, free.
//! Their slices alternate within milliseconds. Blocks have two sizes. With 16 tokens, a prompt has hundreds
//! of blocks and nearly all work is lookups. With 512 tokens, it has a few dozen and the rest counts too.
//!
//! Then follow the single operations of a router: a probe, and hits of the same blocks. Rounds in which the
//! machine did not give two cores do not count for two threads. Figures of 16 threads are percentiles, which
//! show how long a thread waits for others.

mod baseline;
mod rig;

use std::env;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use paged_kv::{PagedKvCache, Prompt};

use baseline::one_lock_prefix::OneLockPrefix;
use rig::control;
use rig::prompts::{
    ByHandle, ById, ByTable, Hits, Part, Server, Serving, Stream, conversations, prompt, serving,
    warm_up,
};
use rig::rounds::{median, on_time, quiet};
use rig::tails::histogram;
use rig::team::{Burst, Contender, alternate};

const CROWD: usize = 16;

/// The number of threads that work in each instance of a figure.
const THREADS: [usize; 2] = [1, 2];

/// The target ratios of a figure; 0 means no target.
#[derive(Clone, Copy)]
struct Wanted {
    one_to_lock: f64,
    two_to_one: f64,
    two_to_lock: f64,
}

const REQUESTS: Wanted = Wanted { one_to_lock: 1.0, two_to_one: 1.7, two_to_lock: 1.5 };
const PROBES: Wanted = Wanted { one_to_lock: 1.0, two_to_one: 0.0, two_to_lock: 2.0 };
const NOTHING: Wanted = Wanted { one_to_lock: 0.0, two_to_one: 0.0, two_to_lock: 0.0 };

/// Sets up a thread's work, from the index of the instance and the number of the thread.
type Work<'w, 'a> = &'w (dyn Fn(usize, usize) -> Burst<'a> + Sync);

/// A block size, and the length of its slices.
struct Setting {
    name: &'static str,
    block_size: usize,
    num_blocks: usize,
    slice: Duration,
    /// Requests that a thread takes from the stream in one batch.
    portion: usize,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "16-token blocks",
        block_size: 16,
        num_blocks: 200_000,
        slice: Duration::from_millis(16),
        portion: 1,
    },
    Setting {
        name: "512-token blocks",
        block_size: 512,
        num_blocks: 6_000,
        slice: Duration::from_millis(5),
        portion: 8,
    },
];

fn main() {
    let names: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    println!("control: 2 threads of arithmetic over 1: {:.2}\n", control::parallelism(2));
    let contents = conversations(if quick() { 800 } else { 1_600 });
    for setting in SETTINGS.iter().filter(|setting| is_wanted(setting.name)) {
        let prompts: Vec<Prompt> =
            contents.iter().map(|names| prompt(names, setting.block_size)).collect();
        setting.describe(&prompts);
        print_head();
        by_handle(setting, &prompts);
        by_id(setting, &prompts);
        crowds(setting, &prompts);
        println!();
    }
    print_head();
    for (name, figure) in FIGURES.iter().filter(|(name, _)| is_wanted(name)) {
        figure(name);
    }
    println!("\ncontrol again: {:.2}", control::parallelism(2));
}

/// A name, and the function that measures and prints that figure.
type Figure = (&'static str, fn(&str));

/// The figures in addition to whole requests.
const FIGURES: &[Figure] = &[
    ("probe of 512 blocks", probes),
    ("hit of 512, own prompts", |name| hits(name, false)),
    ("hit of 512, same prompt", |name| hits(name, true)),
];

fn quick() -> bool {
    env::args().any(|arg| arg == "--quick")
}

impl Setting {
    fn ours(&self) -> PagedKvCache {
        cache(self.num_blocks, self.block_size)
    }

    fn describe(&self, prompts: &[Prompt]) {
        let blocks: usize = prompts.iter().map(|prompt| prompt.hashes().len()).sum();
        let (ours, lock) = (self.ours(), OneLockPrefix::new(self.num_blocks));
        let rate = |pass: &dyn Fn() -> Hits| {
            pass();
            let Hits { asked, hit } = pass();
            100.0 * hit as f64 / asked as f64
        };
        println!(
            "{}: {} in all, {} a prompt; hits: ours {:.1} %, one lock {:.1} %",
            self.name,
            self.num_blocks,
            blocks / prompts.len(),
            rate(&|| warm_up(ByHandle::new(&ours), prompts)),
            rate(&|| warm_up(ByTable::new(&lock, self.block_size), prompts)),
        );
    }
}

fn cache(num_blocks: usize, block_size: usize) -> PagedKvCache {
    PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size).build().unwrap()
}

fn by_handle(setting: &Setting, prompts: &[Prompt]) {
    let ours = THREADS.map(|threads| (setting.ours(), stream(setting, prompts), threads));
    for (cache, ..) in &ours {
        warm_up(ByHandle::new(cache), prompts);
    }
    let work = |i: usize, _| {
        let (cache, stream, threads) = &ours[i];
        serving(Serving::new(ByHandle::new(cache), stream, *threads))
    };
    against_lock("requests by handle", setting, prompts, &work);
}

fn by_id(setting: &Setting, prompts: &[Prompt]) {
    let ours = THREADS.map(|threads| (setting.ours(), stream(setting, prompts), threads));
    for (cache, ..) in &ours {
        warm_up(ByHandle::new(cache), prompts);
    }
    let work = |i: usize, thread| {
        let (cache, stream, threads) = &ours[i];
        serving(Serving::new(ById::new(cache, thread), stream, *threads))
    };
    against_lock("requests by id", setting, prompts, &work);
}

fn against_lock(name: &str, setting: &Setting, prompts: &[Prompt], ours: Work<'_, '_>) {
    let lock = THREADS
        .map(|threads| (OneLockPrefix::new(setting.num_blocks), stream(setting, prompts), threads));
    for (cache, ..) in &lock {
        warm_up(ByTable::new(cache, setting.block_size), prompts);
    }
    let lock = |i: usize, _| {
        let (cache, stream, threads) = &lock[i];
        serving(Serving::new(ByTable::new(cache, setting.block_size), stream, *threads))
    };
    report(name, REQUESTS, setting.slice, ours, &lock);
}

fn stream<'a>(setting: &Setting, prompts: &'a [Prompt]) -> Stream<'a> {
    Stream::new(prompts, setting.portion)
}

/// Blocks of a probed or matched prompt: 16 contents of 512 tokens each.
const HIT_BLOCKS: usize = 512;
const HIT_BLOCK_SIZE: usize = 16;
const HIT_CACHE: usize = 1 << 16;
const HIT_SLICE: Duration = Duration::from_millis(4);

/// Creates a prompt of 512 blocks, a different one for each thread.
fn hit_prompt(thread: usize) -> Prompt {
    let names: Vec<u64> = (0..16).map(|name| 16 * thread as u64 + name).collect();
    let prompt = prompt(&names, HIT_BLOCK_SIZE);
    assert_eq!(prompt.hashes().len(), HIT_BLOCKS);
    prompt
}

/// Creates caches in which the prompts of both threads are cached and idle.
fn with_hits() -> (PagedKvCache, OneLockPrefix) {
    let (ours, lock) = (cache(HIT_CACHE, HIT_BLOCK_SIZE), OneLockPrefix::new(HIT_CACHE));
    let prompts = [hit_prompt(0), hit_prompt(1)];
    warm_up(ByHandle::new(&ours), &prompts);
    warm_up(ByTable::new(&lock, HIT_BLOCK_SIZE), &prompts);
    (ours, lock)
}

fn probes(name: &str) {
    let (ours, lock) = with_hits();
    let probe_ours = |_, _| {
        let (prompt, ours) = (hit_prompt(0), &ours);
        let burst: Burst<'_> = Box::new(move || {
            assert_eq!(ours.prefix().probe(black_box(&prompt)), HIT_BLOCKS * HIT_BLOCK_SIZE);
            1
        });
        burst
    };
    let probe_lock = |_, _| {
        let (prompt, lock) = (hit_prompt(0), &lock);
        let burst: Burst<'_> = Box::new(move || {
            assert_eq!(lock.probe(black_box(prompt.hashes())), HIT_BLOCKS);
            1
        });
        burst
    };
    report(name, PROBES, HIT_SLICE, &probe_ours, &probe_lock);
}

/// Returns a burst that admits a cached prompt and frees it.
fn hitting<'a>(mut server: impl Server + 'a, prompt: Prompt) -> Burst<'a> {
    Box::new(move || {
        assert_eq!(server.admit(0, &prompt), HIT_BLOCKS);
        server.free(0);
        1
    })
}

fn hits(name: &str, same: bool) {
    let (ours, lock) = with_hits();
    let prompt = |thread| hit_prompt(if same { 0 } else { thread });
    let hit_ours = |_, thread| hitting(ByHandle::new(&ours), prompt(thread));
    let hit_lock = |_, thread| hitting(ByTable::new(&lock, HIT_BLOCK_SIZE), prompt(thread));
    let wanted = Wanted { two_to_lock: REQUESTS.two_to_lock, ..NOTHING };
    report(name, wanted, HIT_SLICE, &hit_ours, &hit_lock);
}

fn print_head() {
    println!(
        "{:<28} {:>8} {:>8} | {:>12} | {:>12} {:>12} {:>7} | {:>12}",
        "", "ours us", "lock us", "1: /lock", "2: /ours 1", "2: /lock", "rounds", "2: lock/its 1"
    );
}

/// Measures our cache and the lock at one and two threads, in the same rounds, and prints the figures.
fn report(name: &str, wanted: Wanted, slice: Duration, ours: Work<'_, '_>, lock: Work<'_, '_>) {
    let contenders = [
        control::arithmetic(1),
        control::arithmetic(2),
        Contender::new(1, slice, |thread| ours(0, thread)),
        Contender::new(1, slice, |thread| lock(0, thread)),
        Contender::new(2, slice, |thread| ours(1, thread)),
        Contender::new(2, slice, |thread| lock(1, thread)),
    ];
    let (enough, most) = if quick() { (5, 10) } else { (25, 60) };
    let (mut one, mut two, mut rounds) = (Vec::new(), Vec::new(), 0);
    alternate(&contenders, |slices| {
        rounds += 1;
        let [single, double, ours_1, lock_1, ours_2, lock_2] = slices.try_into().expect("six ran");
        if on_time(&[ours_1, lock_1]) {
            one.push([ours_1.rate, lock_1.rate]);
        }
        if quiet(single, double) && on_time(&[ours_1, lock_1, ours_2, lock_2]) {
            let scaled = [ours_2.rate / ours_1.rate, lock_2.rate / lock_1.rate];
            two.push([scaled[0], ours_2.rate / lock_2.rate, scaled[1]]);
        }
        two.len() == enough || rounds == most
    });
    print!("{name:<28}");
    print!(" {:>8.2}", median(one.iter().map(|[ours, _]| 1e6 / ours)));
    print!(" {:>8.2}", median(one.iter().map(|[_, lock]| 1e6 / lock)));
    let to_lock = median(one.iter().map(|[ours, lock]| ours / lock));
    print!(" | {}", against(to_lock, wanted.one_to_lock));
    print!(" | {}", against(median(two.iter().map(|two| two[0])), wanted.two_to_one));
    print!(" {}", against(median(two.iter().map(|two| two[1])), wanted.two_to_lock));
    print!(" {:>3}/{:<3}", two.len(), rounds);
    println!(" | {:>5.2}", median(two.iter().map(|two| two[2])));
}

/// Formats a ratio and its target, with a mark if the ratio is below it.
fn against(ratio: f64, wanted: f64) -> String {
    if wanted == 0.0 {
        return format!("{ratio:>5.2}       ");
    }
    let mark = if ratio < wanted { '!' } else { ' ' };
    format!("{ratio:>5.2} ({wanted:>3}){mark}")
}

/// Percentiles that are shown.
const QUANTILES: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

/// The figures of a round of many threads. They are requests per second, the ratio to the rate of two threads
/// timed just before, and microseconds at each percentile: of an admission with its commit, then of a free.
type Crowd = [f64; 2 + 2 * QUANTILES.len()];

fn crowds(setting: &Setting, prompts: &[Prompt]) {
    let (handles, ids) = (setting.ours(), setting.ours());
    let lock = OneLockPrefix::new(setting.num_blocks);
    warm_up(ByHandle::new(&handles), prompts);
    warm_up(ByHandle::new(&ids), prompts);
    warm_up(ByTable::new(&lock, setting.block_size), prompts);
    let stream = stream(setting, prompts);
    let by_handle = || crowd_to_two(&stream, &|_| ByHandle::new(&handles));
    let by_id = || crowd_to_two(&stream, &|thread| ById::new(&ids, thread));
    let by_lock = || crowd_to_two(&stream, &|_| ByTable::new(&lock, setting.block_size));
    let designs: [(&str, &dyn Fn() -> Crowd); 3] =
        [("ours by handle", &by_handle), ("ours by id", &by_id), ("one lock", &by_lock)];
    let mut figures = [const { Vec::new() }; 3];
    for round in 0..if quick() { 2 } else { 7 } {
        for step in 0..designs.len() {
            let turn = if round % 2 == 0 { step } else { designs.len() - 1 - step };
            figures[turn].push(designs[turn].1());
        }
    }
    println!(
        "\n{:<18} {:>9} {:>12} | {:<38} | free, us",
        format!("{CROWD} threads"),
        "requests/s",
        "/2 threads",
        "admit and commit, us: p50 p99 p99.9 max"
    );
    for ((name, _), rounds) in designs.iter().zip(&figures) {
        let figure = |at: usize| median(rounds.iter().map(|round| round[at]));
        print!("{name:<18} {:>10.0} {:>12.2}", figure(0), figure(1));
        for part in 0..2 {
            print!(" |");
            for at in 0..QUANTILES.len() {
                print!(" {:>9.1}", figure(2 + part * QUANTILES.len() + at));
            }
        }
        println!();
    }
}

fn crowd_to_two<S: Server>(stream: &Stream<'_>, make: &(dyn Fn(usize) -> S + Sync)) -> Crowd {
    let (two, _) = crowd(2, stream, make);
    let (rate, times) = crowd(CROWD, stream, make);
    let mut crowd = [rate; 2 + 2 * QUANTILES.len()];
    crowd[1] = rate / two;
    let figures = times.iter().flat_map(|part| QUANTILES.map(|at| part.value_at_quantile(at)));
    crowd[2..].iter_mut().zip(figures).for_each(|(figure, nanos)| *figure = nanos as f64 / 1e3);
    crowd
}

/// Returns the requests per second of `num_threads` threads together, and the times of their parts.
fn crowd<S: Server>(
    num_threads: usize,
    stream: &Stream<'_>,
    make: &(dyn Fn(usize) -> S + Sync),
) -> (f64, [Histogram<u64>; 2]) {
    let span = Duration::from_millis(if quick() { 200 } else { 600 });
    let barrier = Barrier::new(num_threads);
    let parts: Vec<(f64, [Histogram<u64>; 2])> = thread::scope(|scope| {
        let work = |number| {
            let barrier = &barrier;
            scope.spawn(move || {
                let mut serving = Serving::new(make(number), stream, num_threads);
                let mut times = [(); 2].map(|()| histogram());
                barrier.wait();
                let start = Instant::now();
                while start.elapsed() < span {
                    serving.portion(|part, work| {
                        let before = Instant::now();
                        work();
                        let times = &mut times[usize::from(part == Part::Free)];
                        times.saturating_record(before.elapsed().as_nanos() as u64);
                    });
                }
                (times[0].len() as f64 / start.elapsed().as_secs_f64(), times)
            })
        };
        let threads: Vec<_> = (0..num_threads).map(work).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics here")).collect()
    });
    let mut all = [(); 2].map(|()| histogram());
    for (_, times) in &parts {
        let pairs = all.iter_mut().zip(times);
        pairs.for_each(|(all, part)| all.add(part).expect("the histograms are alike"));
    }
    (parts.iter().map(|(rate, _)| rate).sum(), all)
}
