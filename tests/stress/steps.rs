//! Tests that a block stays in place while a device uses it. Each scheduler thread has a device thread
//! one step behind, which copies, writes and checks every block of the step. The scheduler truncates,
//! frees, forks, evicts and admits at the same time. A block that is reused inside a step holds another
//! step's contents.
//!
//! Without the fence both tests must fail within seconds, which shows that they detect such a reuse:
//! `RUSTFLAGS="--cfg paged_kv_unfenced" cargo test --release --target-dir target/unfenced --test stress steps`

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, PagedKvCache, PagedKvError, Prompt, Result,
    SeqId, Step,
};

use crate::common::random::Random;
use crate::common::row_if_there;
use crate::{for_a_while, threads, watched};

const BLOCK_SIZE: usize = 4;

/// The device's work for one step: the blocks that it copies, writes and reads, with their contents.
struct Launch {
    step: Step,
    copies: Vec<[u32; 2]>,
    reads: Vec<(BlockId, u64)>,
    writes: Vec<(BlockId, u64)>,
}

/// The contents that were computed into each block.
struct Tensor(Vec<AtomicU64>);

impl Tensor {
    fn run(&self, launch: &Launch) {
        for &[src, dst] in &launch.copies {
            let copied = self.0[src as usize].load(Ordering::Relaxed);
            self.0[dst as usize].store(copied, Ordering::Relaxed);
        }
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

/// A request, and the contents of its blocks. The last block belongs to this request and its forks alone.
struct Request {
    sequence: CachedSequence,
    contents: Vec<u64>,
}

/// A request by id: any thread may evict it.
struct Listed {
    id: SeqId,
    contents: Vec<u64>,
}

fn steps(num_blocks: usize) {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let cache = builder.home_shards(4).build().unwrap();
    let tensor = Tensor((0..num_blocks).map(|_| AtomicU64::new(0)).collect());
    let (launched, copied) = (AtomicU64::new(0), AtomicU64::new(0));
    for_a_while(1, |random, thread| {
        thread::scope(|scope| {
            // Two steps are in flight at most: one that the device runs, and one after it.
            let (launch, launches) = mpsc::sync_channel::<Launch>(0);
            let device = scope.spawn(|| {
                for launch in launches {
                    tensor.run(&launch);
                    launched.fetch_add(1, Ordering::Relaxed);
                    copied.fetch_add(launch.copies.len() as u64, Ordering::Relaxed);
                    // Some launches fail at the end.
                    if launch.reads.len() % 7 == 3 {
                        drop(launch)
                    } else {
                        _ = launch.step.complete()
                    }
                }
            });
            let mut scheduler = Scheduler::new(&cache, random, thread);
            // Runs a hundred steps over a few requests, or until the device finds a fault.
            while scheduler.steps < 100 && launch.send(scheduler.build()).is_ok() {
                scheduler.move_on();
            }
            drop(launch);
            device.join().expect("the device finds what it wrote");
            scheduler.listed.iter().for_each(|listed| _ = cache.free(listed.id));
        });
    });
    let (launched, copied) = (launched.into_inner(), copied.into_inner());
    assert!(launched > 0 && copied > 0, "{launched} steps and {copied} copies were launched");
    assert!(cache.stats().total_evictions > 0, "nothing was ever evicted");
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
}

struct Scheduler<'a> {
    cache: &'a PagedKvCache,
    random: &'a mut Random,
    next_id: u64,
    steps: usize,
    held: Vec<Request>,
    listed: Vec<Listed>,
}

impl<'a> Scheduler<'a> {
    fn new(cache: &'a PagedKvCache, random: &'a mut Random, thread: usize) -> Self {
        let (held, listed) = (Vec::new(), Vec::new());
        Self { cache, random, next_id: (thread as u64) << 32, steps: 0, held, listed }
    }

    /// Builds a step over the held requests, and some that it admits.
    fn build(&mut self) -> Launch {
        self.steps += 1;
        let (copies, reads, writes) = (Vec::new(), Vec::new(), Vec::new());
        let mut launch =
            Launch { step: self.cache.step(Default::default()), copies, reads, writes };
        if self.held.len() < 4 {
            self.admit(&mut launch);
        }
        if self.listed.len() < 2 {
            self.admit_listed(&mut launch);
        }
        let mut rows: Vec<(&mut CachedSequence, usize)> =
            self.held.iter_mut().map(|request| (&mut request.sequence, 1)).collect();
        let grown = launch.step.grow(&mut rows).unwrap().grown_rows;
        launch.step.copies(&mut launch.copies).unwrap();
        for (row, request) in self.held.iter_mut().enumerate() {
            launch.step.join(&mut request.sequence).unwrap();
            let ids = request.sequence.block_ids();
            if row < grown && ids.len() > request.contents.len() {
                request.contents.push(own(self.random));
                launch.writes.extend(ids.last().copied().zip(request.contents.last().copied()));
            }
            // One device runs the steps in order: an earlier step has written the blocks that this one
            // reads.
            launch.reads.extend(ids.iter().copied().zip(request.contents.iter().copied()));
        }
        self.listed.retain(|listed| {
            let joined = join(self.cache, listed.id, &mut launch.step);
            let ids = self.cache.with_sequence(listed.id, |sequence| sequence.block_ids().to_vec());
            let (true, Some(ids)) = (joined.is_ok(), ids) else {
                return false; // evicted
            };
            launch.reads.extend(ids.into_iter().zip(listed.contents.iter().copied()));
            true
        });
        launch.reads.retain(|(id, _)| launch.writes.iter().all(|(written, _)| written != id));
        launch
    }

    fn admit(&mut self, launch: &mut Launch) {
        let (prompt, contents) = prompt(self.random);
        match self.cache.admit_sequence(&prompt, &AdmitOptions::default()) {
            Ok((mut sequence, admission)) => {
                launch.step.join(&mut sequence).unwrap();
                let hits = admission.cached_tokens / BLOCK_SIZE;
                let blocks = || sequence.block_ids().iter().copied().zip(contents.clone());
                launch.reads.extend(blocks().take(hits));
                launch.writes.extend(blocks().skip(hits));
                launch.step.commit(&mut sequence, (contents.len() - 1) * BLOCK_SIZE).unwrap();
                self.held.push(Request { sequence, contents });
            }
            Err(PagedKvError::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn admit_listed(&mut self, launch: &mut Launch) {
        let ((prompt, contents), id) = (prompt(self.random), SeqId(self.next_id));
        self.next_id += 1;
        match self.cache.admit_with(id, &prompt, &AdmitOptions::default()) {
            Ok(admission) => {
                let hits = admission.cached_tokens / BLOCK_SIZE;
                if join(self.cache, id, &mut launch.step).is_err() {
                    return; // evicted already
                }
                let ids = self.cache.with_sequence(id, |sequence| sequence.block_ids().to_vec());
                let blocks = ids.into_iter().flatten().zip(contents.clone());
                launch.writes.extend(blocks.skip(hits));
                self.listed.push(Listed { id, contents });
            }
            Err(PagedKvError::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Changes the requests, as a scheduler does while the device runs the step.
    fn move_on(&mut self) {
        for at in (0..self.held.len()).rev() {
            match self.random.below(6) {
                0 => drop(self.held.swap_remove(at)),
                1 => {
                    let request = &mut self.held[at];
                    let full = request.contents.len().saturating_sub(1);
                    let full = full.min(1 + self.random.below(4));
                    request.sequence.truncate(full * BLOCK_SIZE).unwrap();
                    request.contents.truncate(full);
                }
                2 => {
                    let request = &mut self.held[at];
                    let (fork, contents) = (request.sequence.fork(), request.contents.clone());
                    if let Ok(sequence) = fork {
                        self.held.push(Request { sequence, contents });
                    }
                }
                _ => {}
            }
        }
        for at in (0..self.listed.len()).rev() {
            match self.random.below(6) {
                0 => _ = self.cache.free(self.listed.swap_remove(at).id),
                1 => _ = self.cache.truncate(self.listed[at].id, BLOCK_SIZE),
                2 => _ = self.cache.evict(),
                _ => {}
            }
        }
    }
}

fn join(cache: &PagedKvCache, id: SeqId, step: &mut Step) -> Result<()> {
    step.join(&mut row_if_there(cache, id)?)
}

/// Returns a prompt of a few full blocks and one token, and the contents of its blocks.
fn prompt(random: &mut Random) -> (Prompt, Vec<u64>) {
    let (family, blocks) = (random.below(400), 1 + random.below(5));
    let hashes: Vec<BlockHash> =
        (0..blocks).map(|at| BlockHash::from_u128(content(family, at).into())).collect();
    let contents = (0..blocks).map(|at| content(family, at)).chain([own(random)]).collect();
    (Prompt::from_hashes(&hashes, blocks * BLOCK_SIZE + 1), contents)
}

/// Returns the content of a block, which is also its hash, so that a request that matches the block knows
/// it.
fn content(family: usize, at: usize) -> u64 {
    1 + (family * 1_000 + at) as u64
}

/// Returns a content that no other block has.
fn own(random: &mut Random) -> u64 {
    1_000_000 + random.next() % 1_000_000_000_000
}

#[test]
fn no_block_is_reused_inside_a_step_in_a_tiny_pool() {
    watched(|| steps(8 * threads().max(4)));
}

#[test]
fn no_block_is_reused_inside_a_step() {
    watched(|| steps(40 * threads().max(4)));
}
