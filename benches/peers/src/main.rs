//! The ratios of our rates to kvbm-logical's: `cargo run --release [-- --quick] [name ..]`
//!
//! The work is that of the other benches: batches of blocks that are released and allocated, and whole
//! requests with shared prefixes. Slices of both designs alternate within milliseconds. Rounds in which the
//! machine did not give two cores do not count for two threads.

#[path = "../../baseline/mod.rs"]
mod baseline;
mod kvbm;
mod rig;

use std::env;
use std::time::Duration;

use paged_kv::{BlockPool, PagedKvCache, Prompt};

use kvbm::{ByGuard, Kvbm, Names};
use rig::control;
use rig::pools::{KEPT, cycling};
use rig::prompts::{ByHandle, Serving, Stream, conversations, prompt, serving, warm_up};
use rig::rounds::{median, on_time, quiet};
use rig::team::{Burst, Contender, alternate};

const THREADS: [usize; 3] = [1, 2, 32];

/// The target ratio at each number of threads; 0 means no target.
type Wanted = [f64; THREADS.len()];

/// Sets up a thread's work, from the index of the instance and the number of the thread.
type Work<'w, 'a> = &'w (dyn Fn(usize, usize) -> Burst<'a> + Sync);

fn main() {
    let names: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    println!("control: 2 threads of arithmetic over 1: {:.2}\n", control::parallelism(2));
    println!(
        "{:<20} | {:<30} | {:<30} | {:<30}",
        "", "1 thread: ours, kvbm-logical", "2 threads", "32 threads"
    );
    for n in [1, 8, 64] {
        let name = format!("blocks n={n}");
        if is_wanted(&name) {
            blocks(&name, n);
        }
    }
    for (name, num_blocks, block_size, slice) in
        [("requests 16-token", 200_000, 16, 16), ("requests 512-token", 6_000, 512, 6)]
    {
        if is_wanted(name) {
            requests(name, num_blocks, block_size, Duration::from_millis(slice));
        }
    }
    println!("\ncontrol again: {:.2}", control::parallelism(2));
}

fn quick() -> bool {
    env::args().any(|arg| arg == "--quick")
}

fn blocks(name: &str, n: usize) {
    const BLOCKS: usize = 65_536;
    let ours = THREADS.map(|_| BlockPool::new(BLOCKS));
    let kvbm = THREADS.map(|_| Kvbm::new(BLOCKS, 16));
    assert!(THREADS.iter().all(|threads| threads * KEPT * n <= BLOCKS));
    let ours = |i: usize, _| cycling(&ours[i], n);
    let kvbm = |i: usize, _| cycling(&kvbm[i], n);
    let wanted = if n == 1 { 5.0 } else { 10.0 };
    report(name, [0.0, 0.0, wanted], Duration::from_millis(4), &ours, &kvbm);
}

fn requests(name: &str, num_blocks: usize, block_size: usize, slice: Duration) {
    let contents = conversations(if quick() { 400 } else { 1_000 });
    let prompts: Vec<Prompt> = contents.iter().map(|names| prompt(names, block_size)).collect();
    let (prompts, names) = (&prompts, Names::new(&prompts));
    let cache =
        || PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size).build().unwrap();
    let stream = || Stream::new(prompts, 1);
    let ours = THREADS.map(|threads| (cache(), stream(), threads));
    let kvbm = THREADS.map(|threads| (Kvbm::new(num_blocks, block_size), stream(), threads));
    for ((ours, ..), (kvbm, ..)) in ours.iter().zip(&kvbm) {
        let ours = warm_up(ByHandle::new(ours), prompts);
        let kvbm = warm_up(ByGuard::new(kvbm, &names), prompts);
        let difference = ours.hit.abs_diff(kvbm.hit) as f64 / ours.asked as f64;
        assert!(difference < 0.02, "alike work has alike hits: {ours:?}, {kvbm:?}");
    }
    let ours = |i: usize, _| {
        let (cache, stream, threads) = &ours[i];
        serving(Serving::new(ByHandle::new(cache), stream, *threads))
    };
    let kvbm = |i: usize, _| {
        let (kvbm, stream, threads) = &kvbm[i];
        serving(Serving::new(ByGuard::new(kvbm, &names), stream, *threads))
    };
    report(name, [15.0, 0.0, 0.0], slice, &ours, &kvbm);
}

fn report(name: &str, wanted: Wanted, slice: Duration, ours: Work<'_, '_>, kvbm: Work<'_, '_>) {
    let mut contenders = vec![control::arithmetic(1), control::arithmetic(2)];
    for (i, threads) in THREADS.into_iter().enumerate() {
        // Long enough that each of many threads runs several times.
        let slice = if threads > 2 { Duration::from_millis(150) } else { slice };
        contenders.push(Contender::new(threads, slice, move |thread| ours(i, thread)));
        contenders.push(Contender::new(threads, slice, move |thread| kvbm(i, thread)));
    }
    let (enough, most) = if quick() { (3, 8) } else { (15, 40) };
    let (mut counted, mut rounds) = ([const { Vec::new() }; THREADS.len()], 0);
    alternate(&contenders, |slices| {
        rounds += 1;
        for (i, counted) in counted.iter_mut().enumerate() {
            let pair = &slices[2 + 2 * i..4 + 2 * i];
            let counts = match THREADS[i] {
                1 => on_time(pair),
                2 => on_time(pair) && quiet(slices[0], slices[1]),
                _ => true, // threads outnumber cores, so they wait in both designs
            };
            if counts {
                counted.push([pair[0].rate, pair[1].rate]);
            }
        }
        counted.iter().all(|counted| counted.len() >= enough) || rounds == most
    });
    print!("{name:<20}");
    for (counted, wanted) in counted.into_iter().zip(wanted) {
        let ratio = median(counted.iter().map(|[ours, kvbm]| ours / kvbm));
        let ours = in_short(median(counted.iter().map(|[ours, _]| *ours)));
        let kvbm = in_short(median(counted.iter().map(|[_, kvbm]| *kvbm)));
        let mark = if ratio < wanted { '!' } else { ' ' };
        print!(" | {ours:>7} {kvbm:>7} {ratio:>6.1}x{mark} {:>2}/{rounds:<2}", counted.len());
    }
    println!();
}

/// Formats a rate in thousands or millions.
fn in_short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.1}M", rate / 1e6),
        rate => format!("{:.1}k", rate / 1e3),
    }
}
