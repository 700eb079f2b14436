//! The ratios of our rates to one lock's, in a minute: `cargo bench --bench ratios [-- [--one] name ..]`
//!
//! Slices of the designs alternate within milliseconds. The bench prints medians of their ratios over many
//! short rounds, which depend less on a noisy machine than rates do. Rounds in which the machine did not give
//! two cores, or kept a thread waiting, do not count for two threads; see `quiet`. `--one` measures one
//! thread only, which takes a second per figure.

mod baseline;
mod rig;

use std::env;
use std::time::Duration;

use paged_kv::export::{Gaps, TableShape, block_tables};
use paged_kv::{BlockPool, PagedKvCache, SeqId};

use baseline::one_lock_cache::OneLockCache;
use baseline::one_lock_pool::OneLockPool;
use rig::control;
use rig::pools::{KEPT, cycling, forking as forking_blocks};
use rig::requests::{
    BLOCK_SIZE, ByHandle, ById, ByPlace, Growth, Steps, forking, growing, stepping,
};
use rig::rounds::{WAITED_MAX, median, on_time, quiet};
use rig::team::{Burst, Contender, alternate};

const SLICE: Duration = Duration::from_millis(2);
/// Long enough that each of many threads runs several times.
const CROWD_SLICE: Duration = Duration::from_millis(120);
const CROWD: usize = 32;

/// The target ratios of a figure; 0 means no target.
struct Wanted {
    one_to_lock: f64,
    two_to_one: f64,
    two_to_lock: f64,
    crowd_to_two: f64,
}

const SCALES: Wanted =
    Wanted { one_to_lock: 0.0, two_to_one: 1.7, two_to_lock: 2.0, crowd_to_two: 0.9 };

/// Sets up a thread's work, from the index of the instance and the number of the thread.
type Work<'w, 'a> = &'w (dyn Fn(usize, usize) -> Burst<'a> + Sync);

/// The number of threads that work in each instance of a figure.
const THREADS: [usize; 5] = [1, 1, 2, 2, CROWD];

fn main() {
    let names: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    println!(
        "{:<28} {:>8} {:>8} | {:>12} | {:>12} {:>12} {:>7} | {:>12} {:>6}",
        "",
        "ours ns",
        "lock ns",
        "1: /lock",
        "2: /ours 1",
        "2: /lock",
        "rounds",
        "32: /ours 2",
        "rounds"
    );
    for (name, figure) in FIGURES {
        if names.is_empty() || names.iter().any(|part| name.contains(part.as_str())) {
            figure(name);
        }
    }
}

/// A name, and the function that measures and prints that figure.
type Figure = (&'static str, fn(&str));

const FIGURES: &[Figure] = &[
    ("blocks n=1", |name| cycle(name, 1, 0.9)),
    ("blocks n=8", |name| cycle(name, 8, 0.8)),
    ("blocks n=64", |name| cycle(name, 64, 0.85)),
    ("blocks n=512", |name| cycle(name, 512, 0.8)),
    ("blocks fork 512", fork_blocks),
    ("export by handle", export_by_handle),
    ("export by lease", export_by_lease),
    ("append by handle", append_by_handle),
    ("append by handle /place", append_by_handle_to_place),
    ("append by id", append_by_id),
    ("step by handle", step_by_handle),
    ("step by handle /place", step_by_handle_to_place),
    ("step by id", step_by_id),
    ("hot fork by handle 512", hot_fork_by_handle),
    ("hot fork by id 512", hot_fork_by_id),
];

fn cycle(name: &str, n: usize, one_to_lock: f64) {
    let blocks = |threads: usize| (2 * threads * KEPT * n).max(65_536);
    let ours = THREADS.map(|threads| BlockPool::new(blocks(threads)));
    let lock = THREADS.map(|threads| OneLockPool::new(blocks(threads)));
    let wanted = Wanted { one_to_lock, ..SCALES };
    report(name, wanted, &|i, _| cycling(&ours[i], n), &|i, _| cycling(&lock[i], n));
}

fn fork_blocks(name: &str) {
    let ours = THREADS.map(|_| BlockPool::new(65_536));
    let lock = THREADS.map(|_| OneLockPool::new(65_536));
    let wanted = Wanted { one_to_lock: 5.0, ..SCALES };
    let n = 512;
    report(name, wanted, &|i, _| forking_blocks(&ours[i], n), &|i, _| forking_blocks(&lock[i], n));
}

const GROWTH_ROWS: usize = Growth::<ByHandle<'_>>::ROWS;

fn growth_blocks(threads: usize) -> usize {
    threads * Growth::<ByHandle<'_>>::MOST_BLOCKS
}

fn append_by_handle(name: &str) {
    let ours = THREADS.map(|threads| BlockPool::new(growth_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(growth_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, _| growing(ByHandle::new(&ours[i], GROWTH_ROWS));
    let lock = |i: usize, thread| growing(ById::new(&lock[i], GROWTH_ROWS, thread));
    report(name, Wanted { one_to_lock: 3.0, ..SCALES }, &ours, &lock);
}

fn append_by_handle_to_place(name: &str) {
    let ours = THREADS.map(|threads| BlockPool::new(growth_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(growth_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, _| growing(ByHandle::new(&ours[i], GROWTH_ROWS));
    let lock = |i: usize, thread| growing(ByPlace::new(&lock[i], GROWTH_ROWS, thread));
    report(name, SCALES, &ours, &lock);
}

fn append_by_id(name: &str) {
    let ours = THREADS.map(|threads| cache(growth_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(growth_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| growing(ById::new(&ours[i], GROWTH_ROWS, thread));
    let lock = |i: usize, thread| growing(ById::new(&lock[i], GROWTH_ROWS, thread));
    report(name, Wanted { one_to_lock: 0.8, ..SCALES }, &ours, &lock);
}

const BATCH: usize = 256;
const STRIDE: usize = 512;

/// Returns the tokens of a row: the rows range from a single block to a full row.
fn row_tokens(row: usize) -> usize {
    (1 + row * (STRIDE - 1) / (BATCH - 1)) * BLOCK_SIZE
}

fn batch_lock() -> OneLockCache {
    let lock = OneLockCache::new(BATCH * STRIDE, BLOCK_SIZE);
    for row in 0..BATCH {
        lock.allocate(row as u64, row_tokens(row)).expect("a fresh cache has room");
    }
    lock
}

fn exporting_lock(lock: &OneLockCache) -> Burst<'_> {
    let ids: Vec<u64> = (0..BATCH as u64).collect();
    let mut out = vec![0_i32; BATCH * STRIDE];
    Box::new(move || {
        lock.export(&ids, &mut out, STRIDE, -1).expect("the table fits");
        1
    })
}

const SHAPE: TableShape<i32> = TableShape { stride: STRIDE, pad: -1, gaps: Gaps::Show };

fn export_by_handle(name: &str) {
    let pool = BlockPool::new(BATCH * STRIDE);
    let row = |row| pool.allocate_sequence(row_tokens(row), BLOCK_SIZE).expect("room");
    let (handles, lock): (Vec<_>, _) = ((0..BATCH).map(row).collect(), batch_lock());
    let ours = |_, _| {
        let (mut out, handles) = (vec![0_i32; BATCH * STRIDE], &handles);
        let burst: Burst<'_> = Box::new(move || {
            block_tables(handles, &mut out, SHAPE).expect("the table fits");
            1
        });
        burst
    };
    report(name, SCALES, &ours, &|_, _| exporting_lock(&lock));
}

fn export_by_lease(name: &str) {
    let (cache, lock) = (cache(BATCH * STRIDE), batch_lock());
    for row in 0..BATCH {
        cache.allocate(SeqId(row as u64), row_tokens(row)).expect("a fresh cache has room");
    }
    let ours = |_, _| {
        let mut out = vec![0_i32; BATCH * STRIDE];
        let ids: Vec<SeqId> = (0..BATCH as u64).map(SeqId).collect();
        let lease = cache.lease(&ids).expect("all are there");
        let burst: Burst<'_> = Box::new(move || {
            lease.block_tables(&mut out, SHAPE).expect("the table fits");
            1
        });
        burst
    };
    report(name, SCALES, &ours, &|_, _| exporting_lock(&lock));
}

fn step_blocks(threads: usize) -> usize {
    threads * Steps::<ByHandle<'_>>::MOST_BLOCKS
}

const STEP_ROWS: usize = Steps::<ByHandle<'_>>::ROWS;
const STEP_WANTED: Wanted = Wanted { one_to_lock: 1.0, ..SCALES };

fn step_by_handle(name: &str) {
    let ours = THREADS.map(|threads| BlockPool::new(step_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(step_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| stepping(ByHandle::new(&ours[i], STEP_ROWS), thread as u64);
    let lock = |i: usize, thread| stepping(ById::new(&lock[i], STEP_ROWS, thread), thread as u64);
    report(name, STEP_WANTED, &ours, &lock);
}

fn step_by_handle_to_place(name: &str) {
    let ours = THREADS.map(|threads| BlockPool::new(step_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(step_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| stepping(ByHandle::new(&ours[i], STEP_ROWS), thread as u64);
    let lock =
        |i: usize, thread| stepping(ByPlace::new(&lock[i], STEP_ROWS, thread), thread as u64);
    report(name, STEP_WANTED, &ours, &lock);
}

fn step_by_id(name: &str) {
    let ours = THREADS.map(|threads| cache(step_blocks(threads)));
    let lock = THREADS.map(|threads| OneLockCache::new(step_blocks(threads), BLOCK_SIZE));
    let ours = |i: usize, thread| stepping(ById::new(&ours[i], STEP_ROWS, thread), thread as u64);
    let lock = |i: usize, thread| stepping(ById::new(&lock[i], STEP_ROWS, thread), thread as u64);
    report(name, STEP_WANTED, &ours, &lock);
}

/// The id of the one sequence that all threads fork. The other ids count from 1.
const HOT: u64 = u64::MAX;
const HOT_TOKENS: usize = 512 * BLOCK_SIZE;
/// Both threads write the owner count of one shared run, so a doubling is no target.
const HOT_WANTED: Wanted =
    Wanted { one_to_lock: 5.0, two_to_one: 0.0, two_to_lock: 3.0, crowd_to_two: 0.0 };

fn hot_fork_by_handle(name: &str) {
    let ours = THREADS.map(|_| BlockPool::new(65_536));
    let hot = ours.each_ref().map(|pool| {
        let hot = pool.allocate_sequence(HOT_TOKENS, BLOCK_SIZE);
        std::sync::Mutex::new(hot.expect("a fresh pool has room"))
    });
    let lock = hot_lock();
    let ours = |i: usize, _| {
        let own = hot[i].lock().expect("no thread panics here").fork().expect("few owners");
        forking(ByHandle::new(&ours[i], 2).with_first(own))
    };
    let lock = |i: usize, thread| forking(ById::new(&lock[i], 2, thread).sharing(HOT));
    report(name, HOT_WANTED, &ours, &lock);
}

fn hot_fork_by_id(name: &str) {
    let ours = THREADS.map(|_| {
        let cache = cache(65_536);
        cache.allocate(SeqId(HOT), HOT_TOKENS).expect("a fresh cache has room");
        cache
    });
    let lock = hot_lock();
    let ours = |i: usize, thread| forking(ById::new(&ours[i], 2, thread).sharing(HOT));
    let lock = |i: usize, thread| forking(ById::new(&lock[i], 2, thread).sharing(HOT));
    report(name, HOT_WANTED, &ours, &lock);
}

fn hot_lock() -> [OneLockCache; THREADS.len()] {
    THREADS.map(|_| {
        let cache = OneLockCache::new(65_536, BLOCK_SIZE);
        cache.allocate(HOT, HOT_TOKENS).expect("a fresh cache has room");
        cache
    })
}

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::builder()
        .num_blocks(num_blocks)
        .block_size(BLOCK_SIZE)
        .prefix_reuse(false)
        .build()
        .unwrap()
}

fn report(name: &str, wanted: Wanted, ours: Work<'_, '_>, lock: Work<'_, '_>) {
    let one = one_thread(ours, lock);
    print!("{name:<28} {:>8.1} {:>8.1}", one.ours_ns, one.lock_ns);
    print!(" | {}", against(one.to_lock, wanted.one_to_lock));
    if !only_one_thread() {
        let two = two_threads(ours, lock);
        print!(" | {}", against(two.to_one, wanted.two_to_one));
        print!(" {} {:>3}/{:<3}", against(two.to_lock, wanted.two_to_lock), two.quiet, two.rounds);
        let crowd = crowd(ours);
        print!(" | {}", against(crowd.to_two, wanted.crowd_to_two));
        print!(" {:>2}/{:<2}", crowd.quiet, crowd.rounds);
    }
    println!();
}

fn only_one_thread() -> bool {
    env::args().any(|arg| arg == "--one")
}

/// Formats a ratio and its target, with a mark if the ratio is below it.
fn against(ratio: f64, wanted: f64) -> String {
    if wanted == 0.0 {
        return format!("{ratio:>5.2}       ");
    }
    let mark = if ratio < wanted { '!' } else { ' ' };
    format!("{ratio:>5.2} ({wanted:>3}){mark}")
}

struct One {
    ours_ns: f64,
    lock_ns: f64,
    to_lock: f64,
}

fn one_thread(ours: Work<'_, '_>, lock: Work<'_, '_>) -> One {
    let contenders = [
        Contender::new(1, SLICE, |thread| ours(0, thread)),
        Contender::new(1, SLICE, |thread| lock(0, thread)),
    ];
    let mut rates = Vec::new();
    let mut rounds = 0;
    alternate(&contenders, |slices| {
        rounds += 1;
        if on_time(slices) {
            rates.push([slices[0].rate, slices[1].rate]);
        }
        rates.len() == 101 || rounds == 250
    });
    One {
        ours_ns: median(rates.iter().map(|[ours, _]| 1e9 / ours)),
        lock_ns: median(rates.iter().map(|[_, lock]| 1e9 / lock)),
        to_lock: median(rates.iter().map(|[ours, lock]| ours / lock)),
    }
}

struct Two {
    to_one: f64,
    to_lock: f64,
    quiet: usize,
    rounds: usize,
}

fn two_threads(ours: Work<'_, '_>, lock: Work<'_, '_>) -> Two {
    let contenders = [
        control::arithmetic(1),
        control::arithmetic(2),
        Contender::new(1, SLICE, |thread| ours(1, thread)),
        Contender::new(2, SLICE, |thread| ours(2, thread)),
        Contender::new(2, SLICE, |thread| lock(2, thread)),
    ];
    let mut ratios = Vec::new();
    let mut rounds = 0;
    alternate(&contenders, |slices| {
        rounds += 1;
        let [single, double, ours_1, ours_2, lock_2] = slices.try_into().expect("five ran");
        if quiet(single, double) && on_time(&[ours_1, ours_2, lock_2]) {
            ratios.push([ours_2.rate / ours_1.rate, ours_2.rate / lock_2.rate]);
        }
        ratios.len() == 25 || rounds == 100
    });
    Two {
        to_one: median(ratios.iter().map(|[to_one, _]| *to_one)),
        to_lock: median(ratios.iter().map(|[_, to_lock]| *to_lock)),
        quiet: ratios.len(),
        rounds,
    }
}

struct Crowd {
    to_two: f64,
    quiet: usize,
    rounds: usize,
}

fn crowd(ours: Work<'_, '_>) -> Crowd {
    let contenders = [
        control::arithmetic(1),
        control::arithmetic(2),
        Contender::new(2, 4 * SLICE, |thread| ours(3, thread)),
        Contender::new(CROWD, CROWD_SLICE, |thread| ours(4, thread)),
    ];
    let mut ratios = Vec::new();
    let mut rounds = 0;
    alternate(&contenders, |slices| {
        rounds += 1;
        let [single, double, two, crowd] = slices.try_into().expect("four ran");
        if quiet(single, double) && on_time(&[two]) && crowd.others <= WAITED_MAX {
            ratios.push(crowd.rate / two.rate);
        }
        ratios.len() == 5 || rounds == 12
    });
    Crowd { to_two: median(ratios.iter().copied()), quiet: ratios.len(), rounds }
}
