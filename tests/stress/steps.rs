//! Does a block stay put while a device is at it? Each scheduler thread has a device thread one step
//! behind, which writes and checks every slot of the step while the scheduler truncates, frees, forks
//! and admits. A block that is reused inside a step holds another step's writing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, PagedKvCache, PagedKvError, Prompt, Step,
};

use crate::common::random::Random;
use crate::{for_a_while, threads, watched};

const BLOCK_SIZE: usize = 4;

/// What the device does for one step: the blocks it reads, with what they hold, and those it writes.
struct Launch {
    step: Step,
    reads: Vec<(BlockId, u64)>,
    writes: Vec<(BlockId, u64)>,
}

/// What was computed into each block.
struct Tensor(Vec<AtomicU64>);

impl Tensor {
    fn run(&self, launch: &Launch) {
        for &(id, value) in &launch.writes {
            self.0[id.0 as usize].store(value, Ordering::Relaxed);
        }
        for _ in 0..3 {
            for &(id, value) in launch.reads.iter().chain(&launch.writes) {
                let held = self.0[id.0 as usize].load(Ordering::Relaxed);
                assert_eq!(held, value, "{id} was reused inside a step");
            }
            thread::yield_now();
        }
    }
}

/// A request, and what is in its blocks.
struct Request {
    sequence: CachedSequence,
    contents: Vec<u64>,
}

/// The hash says what a block holds, so that whoever matches it knows.
fn content(family: usize, at: usize) -> u64 {
    1 + (family * 1_000 + at) as u64
}

fn steps(num_blocks: usize) {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let cache = builder.home_shards(4).build().unwrap();
    let tensor = Tensor((0..num_blocks).map(|_| AtomicU64::new(0)).collect());
    let launched = AtomicU64::new(0);
    for_a_while(1, |random, _| {
        thread::scope(|scope| {
            // Two steps are in flight at most: one the device is at, and one behind it.
            let (launch, launches) = mpsc::sync_channel::<Launch>(0);
            let device = scope.spawn(|| {
                for launch in launches {
                    tensor.run(&launch);
                    launched.fetch_add(1, Ordering::Relaxed);
                    // Some launches fail at the end.
                    if launch.reads.len() % 7 == 3 {
                        drop(launch)
                    } else {
                        _ = launch.step.complete()
                    }
                }
            });
            schedule(&cache, random, |next| launch.send(next).expect("the device waits"));
            drop(launch);
            device.join().expect("the device finds what it wrote");
        });
    });
    assert!(launched.into_inner() > 0, "nothing was ever launched");
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
}

/// A few hundred steps over a few requests.
fn schedule(cache: &PagedKvCache, random: &mut Random, launch: impl Fn(Launch)) {
    let mut held: Vec<Request> = Vec::new();
    for _ in 0..100 {
        let mut next = Launch { step: cache.step(), reads: Vec::new(), writes: Vec::new() };
        if held.len() < 4 {
            let (family, blocks) = (random.below(400), 1 + random.below(5));
            let hashes: Vec<BlockHash> =
                (0..blocks).map(|at| BlockHash::from_u128(content(family, at).into())).collect();
            let prompt = Prompt::from_hashes(&hashes, blocks * BLOCK_SIZE + 1);
            match cache.admit_sequence(&prompt, &AdmitOptions::default()) {
                Ok((mut sequence, admission)) => {
                    next.step.take_part(&mut sequence);
                    let hits = admission.cached_tokens / BLOCK_SIZE;
                    // The last block is of this request alone.
                    let own = 1_000_000 + random.next() % 1_000_000_000;
                    let contents: Vec<u64> =
                        (0..blocks).map(|at| content(family, at)).chain([own]).collect();
                    let blocks = || sequence.block_ids().iter().copied().zip(contents.clone());
                    next.reads.extend(blocks().take(hits));
                    next.writes.extend(blocks().skip(hits));
                    next.step.commit(&mut sequence, (contents.len() - 1) * BLOCK_SIZE).unwrap();
                    held.push(Request { sequence, contents });
                }
                Err(PagedKvError::OutOfMemory { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for request in &mut held {
            next.step.take_part(&mut request.sequence);
            let blocks = request.sequence.block_ids().iter().copied();
            // In order on one device: what this step reads an earlier one has written.
            next.reads.extend(blocks.zip(request.contents.iter().copied()));
        }
        next.reads.retain(|(id, _)| next.writes.iter().all(|(written, _)| written != id));
        launch(next);
        // The scheduler moves on while the device is at it.
        for at in (0..held.len()).rev() {
            match random.below(6) {
                0 => drop(held.swap_remove(at)),
                1 => {
                    let request = &mut held[at];
                    let full = request.contents.len().saturating_sub(1).min(1 + random.below(4));
                    request.sequence.truncate(full * BLOCK_SIZE).unwrap();
                    request.contents.truncate(full);
                }
                2 => {
                    let request = &mut held[at];
                    let (fork, contents) = (request.sequence.fork(), request.contents.clone());
                    if let Ok(sequence) = fork {
                        held.push(Request { sequence, contents });
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn no_block_is_reused_inside_a_step_in_a_tiny_pool() {
    watched(|| steps(8 * threads().max(4)));
}

#[test]
fn no_block_is_reused_inside_a_step() {
    watched(|| steps(40 * threads().max(4)));
}
