//! Whole requests with prefix reuse, an operation at a time: free, admit, commit, four appends.
//!
//! The caches are warm: all blocks are in use or hold contents, so that a new block is reclaimed.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::VecDeque;

use paged_kv::{AdmitOptions, BlockHash, CachedSequence, PagedKvCache, Prompt, census};

use crate::rig::prompts::{LIVE, conversations, prompt};
use crate::rig::retention::{Feature, pin};
use crate::turns::{Counted, Turn, count, of_threads};

/// The appends of a request, and the tokens of each, as in `benches/requests.rs`.
const APPENDS: usize = 4;
const APPENDED_TOKENS: usize = 16;

/// A block size of `benches/requests.rs`.
pub struct Setting {
    block_size: usize,
    num_blocks: usize,
    /// Requests that a thread takes from the stream in one batch.
    portion: usize,
    /// Requests before the counts, which fill the cache, and those that are counted.
    warm_up: usize,
    counted: usize,
}

/// More requests than are served, so that threads whose conversations are short have others.
const STREAM: usize = 2_000;

pub const OF_16: Setting =
    Setting { block_size: 16, num_blocks: 200_000, portion: 1, warm_up: 800, counted: 128 };
pub const OF_512: Setting =
    Setting { block_size: 512, num_blocks: 6_000, portion: 8, warm_up: 1_200, counted: 512 };

/// Which threads serve the requests of a conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Conversations {
    /// The thread that is free next.
    Shared,
    /// One thread, which shares no content with others.
    Own,
}

/// Requests in order, for one thread or for all.
struct Stream {
    prompts: Vec<Prompt>,
    next: Cell<usize>,
}

impl Stream {
    fn new(setting: &Setting, requests: &[Vec<u64>]) -> Self {
        let prompts = requests.iter().map(|names| prompt(names, setting.block_size)).collect();
        Self { prompts, next: Cell::new(0) }
    }

    /// Returns the next requests. At the end, the stream starts again.
    fn take(&self, portion: usize) -> VecDeque<usize> {
        let first = self.next.replace(self.next.get() + portion);
        (first..first + portion).map(|at| at % self.prompts.len()).collect()
    }
}

/// Serves the requests of `benches/requests.rs` on all threads.
pub fn requests(setting: &Setting, of: Conversations, threads: usize) -> Counted {
    census::begin();
    let &Setting { block_size, num_blocks, portion, warm_up, counted } = setting;
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size);
    // As by default on a machine with 16 cores, so that all machines count the same.
    let cache = builder
        .home_shards(1 << (num_blocks / 1024).clamp(1, 64).ilog2())
        .build()
        .expect("the parameters make sense");
    let requests = conversations(STREAM);
    let streams: Vec<Stream> = match of {
        Conversations::Shared => vec![Stream::new(setting, &requests)],
        Conversations::Own => {
            let parts = own_conversations(&requests, threads);
            parts.iter().map(|requests| Stream::new(setting, requests)).collect()
        }
    };
    let turns = of_threads(threads, |thread| {
        let stream = &streams[thread % streams.len()];
        serving(&cache, stream, portion, thread, LIVE / threads)
    });
    let of_thread = |requests: usize| requests.div_ceil(threads) as u64;
    let counts = count(turns, of_thread(warm_up), of_thread(counted));
    assert!(cache.stats().blocks_reclaimed > 0, "a warm cache has only idle blocks to give");
    counts
}

/// Distributes conversations over threads, and gives each thread contents of its own.
fn own_conversations(requests: &[Vec<u64>], threads: usize) -> Vec<Vec<Vec<u64>>> {
    /// Contents below this number are system prompts.
    const SYSTEM: u64 = 1_000;
    const CONTENTS: u64 = 1 << 32;
    let mut parts = vec![Vec::new(); threads];
    let mut thread_of = HashMap::new();
    for names in requests {
        let first = names.iter().find(|&&name| name >= SYSTEM).expect("a prompt has own contents");
        let next = thread_of.len() % threads;
        let thread = *thread_of.entry(*first).or_insert(next);
        parts[thread].push(names.iter().map(|name| name + thread as u64 * CONTENTS).collect());
    }
    parts
}

/// The work of one thread: it frees its oldest request and serves the next of the stream.
fn serving<'a>(
    cache: &'a PagedKvCache,
    stream: &'a Stream,
    portion: usize,
    thread: usize,
    rows: usize,
) -> Turn<'a> {
    const FREE: usize = 0;
    const ADMIT: usize = 1;
    const COMMIT: usize = 2;
    let options = AdmitOptions::default();
    let mut live: VecDeque<CachedSequence> = VecDeque::new();
    let mut taken = VecDeque::new();
    // Threads are at different operations of a request.
    let mut step = 0;
    let mut wait = thread % (COMMIT + 1 + APPENDS);
    Box::new(move || {
        if wait > 0 {
            wait -= 1;
            return 0;
        }
        if taken.is_empty() {
            taken = stream.take(portion);
        }
        let prompt = &stream.prompts[taken[0]];
        match step {
            FREE if live.len() == rows => drop(live.pop_front()),
            FREE => {}
            ADMIT => {
                let admitted = cache.admit_sequence(prompt, &options);
                live.push_back(admitted.expect("room for every request").0);
            }
            COMMIT => {
                let sequence = live.back_mut().expect("it was just admitted");
                sequence.commit(prompt.num_tokens()).expect("the prompt has its slots");
            }
            _ => {
                let sequence = live.back_mut().expect("it was just admitted");
                drop(sequence.append(APPENDED_TOKENS).expect("room for every request"));
            }
        }
        step = (step + 1) % (COMMIT + 1 + APPENDS);
        if step == 0 {
            taken.pop_front();
        }
        u64::from(step == 0)
    })
}

/// Blocks of the cache for each thread, and the least number in all. They are few, so that a thread makes its
/// hits idle less than 256 times while an entry of the idle blocks waits: then no old entry passes for a new one.
const SMALL_BLOCKS: usize = 1_024;
const LEAST_BLOCKS: usize = 2_048;
const SMALL_BLOCK_SIZE: usize = 16;
const HITS: u64 = 16;
const NEW: u64 = 16;

/// Serves requests of 32 blocks: 16 are cached from the thread's last request, 16 are reclaimed. An operation
/// is an admission, a commit or a free.
pub fn of_32_blocks(feature: Feature, home_shards: usize, threads: usize) -> Counted {
    census::begin();
    let num_blocks = (threads * SMALL_BLOCKS).max(LEAST_BLOCKS);
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(SMALL_BLOCK_SIZE);
    let cache = feature.build(builder.home_shards(home_shards));
    let _pin = feature.hold(&cache, &own_prompt(u64::MAX, 0));
    let turns = of_threads(threads, |thread| own_requests(&cache, feature, thread as u64));
    // Twice as many new contents as there are blocks.
    let warm_up = 2 * num_blocks as u64 / NEW / threads as u64;
    count(turns, warm_up, warm_up / 4)
}

/// Returns the prompt of request `number` of a thread: the contents of all its requests, and new ones.
fn own_prompt(thread: u64, number: u64) -> Prompt {
    let hash = |n: u64| BlockHash::from_u128(u128::from(n + 1).wrapping_mul(FACTOR));
    let first = thread << 32;
    let new = first + HITS + number * NEW;
    let hashes = (first..first + HITS).chain(new..new + NEW).map(hash);
    let hashes: Vec<BlockHash> = hashes.collect();
    Prompt::from_hashes(&hashes, hashes.len() * SMALL_BLOCK_SIZE)
}

fn own_requests(cache: &PagedKvCache, feature: Feature, thread: u64) -> Turn<'_> {
    let options = feature.options();
    let (mut live, mut step, mut number) = (None, 0, 0);
    let mut wait = thread % 3;
    Box::new(move || {
        if wait > 0 {
            wait -= 1;
            return 0;
        }
        match step {
            0 => {
                let prompt = own_prompt(thread, number);
                let (mut sequence, admission) =
                    cache.admit_sequence(&prompt, &options).expect("room for every request");
                let hits = if number == 0 { 0 } else { HITS as usize };
                assert_eq!(admission.cached_tokens, hits * SMALL_BLOCK_SIZE);
                feature.give_hint(&mut sequence);
                live = Some((sequence, prompt.num_tokens()));
            }
            1 => {
                let (sequence, num_tokens) = live.as_mut().expect("it was just admitted");
                sequence.commit(*num_tokens).expect("the prompt has its slots");
            }
            _ => {
                live = None;
                number += 1;
            }
        }
        step = (step + 1) % 3;
        u64::from(step == 0)
    })
}

/// Each thread pins the 32 blocks of its own last request, and ends the pin, in turn.
pub fn pins_of_32_blocks(threads: usize) -> Counted {
    census::begin();
    let builder = PagedKvCache::builder().num_blocks((threads * SMALL_BLOCKS).max(LEAST_BLOCKS));
    let builder = builder.block_size(SMALL_BLOCK_SIZE).home_shards(threads);
    let cache = Feature::PinHeld.build(builder);
    let turns = of_threads(threads, |thread| {
        let (cache, prompt) = (&cache, own_prompt(thread as u64, 0));
        let mut live = Feature::PinHeld.hold(cache, &prompt);
        let turn: Turn<'_> = Box::new(move || match live.take() {
            Some(_) => 1,
            None => {
                live = Some(pin(cache, &prompt));
                0
            }
        });
        turn
    });
    count(turns, 8, 64)
}

/// Spreads numbers over 128 bits.
pub const FACTOR: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
