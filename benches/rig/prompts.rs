//! Whole requests with prompts that share prefixes, the same for every design.
//!
//! A *stream* is the sequence of requests of several conversations. Each turn's prompt is the conversation
//! so far and new tokens, and conversations share system prompts. Threads take requests from the stream in
//! order, a few at a time, and keep [`LIVE`] of them alive in all. To serve a request, a thread frees its
//! oldest, admits and commits the new one, and appends the generated tokens.
//!
//! The stream is hashed beforehand. At its end it starts again; by then the blocks of its first requests
//! have been reclaimed.

use std::sync::atomic::{AtomicUsize, Ordering};

use paged_kv::{AdmitOptions, BlockHash, CachedSequence, PagedKvCache, Prompt, SeqId};

use super::team::Burst;
use crate::baseline::one_lock_prefix::OneLockPrefix;

/// Tokens of one content, which a number names.
pub const NAMED_TOKENS: usize = 512;

/// Tokens of a prompt after its last content, so that all contents may be cached.
const TAIL_TOKENS: usize = 7;

/// Live requests of all threads.
pub const LIVE: usize = 64;

/// The appends of a request, and the tokens of each.
const APPENDS: usize = 4;
const APPENDED_TOKENS: usize = 16;

/// Conversations that are open at a time, of all threads and of a thread with its own.
const OPEN: usize = 160;
const OPEN_OWN: usize = 40;

/// Live requests of a thread that has its own conversations.
pub const LIVE_OWN: usize = 16;

/// Returns the requests in order, each a list of contents of 512 tokens.
pub fn conversations(num_requests: usize) -> Vec<Vec<u64>> {
    turns(OPEN, 0, num_requests)
}

/// Returns the requests of thread `thread` alone: no other thread has one of their contents. There are a
/// quarter of the conversations, so that a quarter of the blocks gives a thread about the same hits.
pub fn own_conversations(thread: usize, num_requests: usize) -> Vec<Vec<u64>> {
    turns(OPEN_OWN, (thread as u64 + 1) << 32, num_requests)
}

/// Returns requests of `open` conversations, whose contents have names from `first_name` on.
fn turns(open: usize, first_name: u64, num_requests: usize) -> Vec<Vec<u64>> {
    const SYSTEM_PROMPTS: u64 = 12;
    let mut random = Random(0x5eed ^ first_name);
    let mut next_name = first_name + 1_000;
    let mut fresh = |n: u64| {
        next_name += n;
        next_name - n..next_name
    };
    let mut conversations: Vec<Vec<u64>> = vec![Vec::new(); open];
    let turn = |_| {
        let conversation = &mut conversations[random.below(open as u64) as usize];
        if conversation.is_empty() {
            let system = random.below(SYSTEM_PROMPTS);
            let first = first_name + 20 * system;
            conversation.extend(first..first + 2 + system / 2);
            conversation.extend(fresh(6 + random.below(20)));
        } else {
            conversation.extend(fresh(5 + random.below(20)));
        }
        let prompt = conversation.clone();
        if prompt.len() > 40 {
            conversation.clear();
        }
        prompt
    };
    (0..num_requests).map(turn).collect()
}

/// Returns a prompt of these contents in blocks of `block_size` tokens, which divides [`NAMED_TOKENS`].
pub fn prompt(names: &[u64], block_size: usize) -> Prompt {
    let parts = (NAMED_TOKENS / block_size) as u64;
    let hashes = names.iter().flat_map(|name| (0..parts).map(move |part| hash(name * 512 + part)));
    let hashes: Vec<BlockHash> = hashes.collect();
    Prompt::from_hashes(&hashes, names.len() * NAMED_TOKENS + TAIL_TOKENS)
}

fn hash(n: u64) -> BlockHash {
    let (high, low) = (Random(n).next(), Random(!n).next());
    BlockHash::from_u128(u128::from(high) << 64 | u128::from(low))
}

/// SplitMix64: pseudo-random numbers, the same on each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A design, as one thread uses it to serve requests, each in its own row.
pub trait Server {
    /// Admits a request into an empty row and commits its prompt. Returns how many blocks were cached.
    fn admit(&mut self, row: usize, prompt: &Prompt) -> usize;
    fn append(&mut self, row: usize, num_tokens: usize);
    /// Empties a row, which may be empty already.
    fn free(&mut self, row: usize);
}

/// The requests that threads take in order, and the index of the next one.
pub struct Stream<'a> {
    prompts: &'a [Prompt],
    /// Requests that a thread takes in one batch: few, so that threads keep the order, and more than one if
    /// requests are short.
    portion: usize,
    next: AtomicUsize,
}

impl<'a> Stream<'a> {
    pub fn new(prompts: &'a [Prompt], portion: usize) -> Self {
        Self { prompts, portion, next: AtomicUsize::new(0) }
    }

    fn take(&self) -> impl Iterator<Item = &'a Prompt> + use<'a> {
        let first = self.next.fetch_add(self.portion, Ordering::Relaxed);
        let prompts = self.prompts;
        (first..first + self.portion).map(move |at| &prompts[at % prompts.len()])
    }
}

/// A thread that serves requests of a stream.
pub struct Serving<'a, S: Server> {
    server: S,
    stream: &'a Stream<'a>,
    rows: usize,
    row: usize,
    pub hits: Hits,
}

/// Full blocks of prompts, and how many of them were cached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hits {
    pub asked: usize,
    pub hit: usize,
}

impl<'a, S: Server> Serving<'a, S> {
    /// Creates one of `threads` threads that share the live requests.
    pub fn new(server: S, stream: &'a Stream<'a>, threads: usize) -> Self {
        Self::with_rows(server, stream, (LIVE / threads).max(1))
    }

    /// Creates a thread that keeps `rows` requests live, at most [`LIVE`].
    pub fn with_rows(server: S, stream: &'a Stream<'a>, rows: usize) -> Self {
        Self { server, stream, rows, row: 0, hits: Hits::default() }
    }

    /// Serves the next portion. Calls `around` with each part of a request and its work: first a free, then
    /// an admission.
    #[inline]
    pub fn portion(&mut self, mut around: impl FnMut(Part, &mut dyn FnMut())) -> u64 {
        for prompt in self.stream.take() {
            let (server, row) = (&mut self.server, self.row);
            around(Part::Free, &mut || server.free(row));
            let mut hit = 0;
            around(Part::Admit, &mut || hit = server.admit(row, prompt));
            self.hits.asked += prompt.hashes().len();
            self.hits.hit += hit;
            for _ in 0..APPENDS {
                server.append(row, APPENDED_TOKENS);
            }
            self.row = if row + 1 == self.rows { 0 } else { row + 1 };
        }
        self.stream.portion as u64
    }
}

impl<S: Server> Drop for Serving<'_, S> {
    fn drop(&mut self) {
        (0..self.rows).for_each(|row| self.server.free(row));
    }
}

/// A part of serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Free,
    /// An admission and its commit.
    Admit,
}

/// Returns bursts of one portion.
pub fn serving<'a, S: Server + 'a>(mut serving: Serving<'a, S>) -> Burst<'a> {
    Box::new(move || serving.portion(|_, work| work()))
}

/// Serves the whole stream once, so that the cache is full and later work is typical.
pub fn warm_up<S: Server>(server: S, prompts: &[Prompt]) -> Hits {
    let stream = Stream::new(prompts, 1);
    let mut serving = Serving::new(server, &stream, 1);
    for _ in prompts {
        serving.portion(|_, work| work());
    }
    serving.hits
}

/// Our cache, by handle.
pub struct ByHandle<'a> {
    cache: &'a PagedKvCache,
    options: AdmitOptions,
    rows: Vec<Option<CachedSequence>>,
}

impl<'a> ByHandle<'a> {
    pub fn new(cache: &'a PagedKvCache) -> Self {
        let rows = (0..LIVE).map(|_| None).collect();
        Self { cache, options: AdmitOptions::default(), rows }
    }
}

impl Server for ByHandle<'_> {
    #[inline]
    fn admit(&mut self, row: usize, prompt: &Prompt) -> usize {
        let admitted = self.cache.admit_sequence(prompt, &self.options);
        let (mut sequence, admission) = admitted.expect("room for every request");
        sequence.commit(prompt.num_tokens()).expect("the prompt has its slots");
        let hits = admission.cached_tokens / sequence.block_size();
        self.rows[row] = Some(sequence);
        hits
    }
    #[inline]
    fn append(&mut self, row: usize, num_tokens: usize) {
        let sequence = self.rows[row].as_mut().expect("the row has a request");
        drop(sequence.append(num_tokens).expect("room for every request"));
    }
    #[inline]
    fn free(&mut self, row: usize) {
        self.rows[row] = None;
    }
}

/// Our cache, by ids that were never used before.
pub struct ById<'a> {
    cache: &'a PagedKvCache,
    rows: Vec<Option<SeqId>>,
    next: u64,
}

impl<'a> ById<'a> {
    /// Creates a server of thread `thread`, whose ids differ from those of other threads.
    pub fn new(cache: &'a PagedKvCache, thread: usize) -> Self {
        Self { cache, rows: vec![None; LIVE], next: (thread as u64) << 40 }
    }
}

impl Server for ById<'_> {
    #[inline]
    fn admit(&mut self, row: usize, prompt: &Prompt) -> usize {
        self.next += 1;
        let id = SeqId(self.next);
        let admitted = self.cache.admit_with(
            id,
            &Prompt::from_hashes(prompt.hashes(), prompt.num_tokens()),
            &AdmitOptions::default(),
        );
        let admission = admitted.expect("room for every request");
        self.cache.commit(id, prompt.num_tokens()).expect("the prompt has its slots");
        self.rows[row] = Some(id);
        admission.cached_tokens / self.cache.block_size()
    }
    #[inline]
    fn append(&mut self, row: usize, num_tokens: usize) {
        let id = self.rows[row].expect("the row has a request");
        drop(self.cache.append(id, num_tokens).expect("room for every request"));
    }
    #[inline]
    fn free(&mut self, row: usize) {
        if let Some(id) = self.rows[row].take() {
            self.cache.free(id).expect("the request is there");
        }
    }
}

/// One lock, with tables that their owner keeps: no lookup, and no lock if the last block has room.
pub struct ByTable<'a> {
    cache: &'a OneLockPrefix,
    block_size: usize,
    rows: Vec<Table>,
}

#[derive(Clone, Default)]
struct Table {
    blocks: Vec<u32>,
    num_tokens: usize,
}

impl<'a> ByTable<'a> {
    pub fn new(cache: &'a OneLockPrefix, block_size: usize) -> Self {
        Self { cache, block_size, rows: vec![Table::default(); LIVE] }
    }
}

impl Server for ByTable<'_> {
    #[inline]
    fn admit(&mut self, row: usize, prompt: &Prompt) -> usize {
        let Table { blocks, num_tokens } = &mut self.rows[row];
        let hashes = prompt.hashes();
        *num_tokens = prompt.num_tokens();
        let hits = self.cache.admit(hashes, num_tokens.div_ceil(self.block_size), blocks);
        let hits = hits.expect("room for every request");
        self.cache.commit(&blocks[hits..], &hashes[hits..]);
        hits
    }
    #[inline]
    fn append(&mut self, row: usize, num_tokens: usize) {
        let table = &mut self.rows[row];
        table.num_tokens += num_tokens;
        let needed = table.num_tokens.div_ceil(self.block_size);
        if needed > table.blocks.len() {
            let grown = self.cache.grow(needed - table.blocks.len(), &mut table.blocks);
            assert!(grown, "room for every request");
        }
    }
    #[inline]
    fn free(&mut self, row: usize) {
        if !self.rows[row].blocks.is_empty() {
            self.cache.release(&mut self.rows[row].blocks);
        }
    }
}
