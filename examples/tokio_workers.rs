//! Worker tasks of tokio that share one cache: `cargo run --release --features async --example tokio_workers`
//!
//! Four workers serve 400 requests with 100 blocks. A request waits for room in its turn, finds the blocks of its
//! prefix, grows by a token at a time, and waits again when it lacks a block. The model is a stand-in: its next token
//! is a hash of all tokens before it, and the "keys and values" of a token are one number in its slot. So a wrong
//! block shows as a wrong token. A server with a real model is in `examples/smollm/serve`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::{Append, PagedKvCache, PagedKvError, Result, SeqId};
use tokio::task::JoinSet;

const NUM_BLOCKS: usize = 100;
const BLOCK_SIZE: usize = 16;
const WORKERS: u64 = 4;
const REQUESTS: u64 = 400;
/// Requests that a worker serves at the same time.
const AT_ONCE: usize = 8;

/// The cache, and the memory of its blocks: one number a slot.
struct Shared {
    cache: PagedKvCache,
    tensor: Vec<AtomicU64>,
    resumptions: AtomicU64,
}

fn extend(state: u64, token: u32) -> u64 {
    (state ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

fn next_token(state: u64) -> u32 {
    (state % 32_000) as u32
}

/// Returns a prompt, and the number of tokens to generate. Each eighth prompt has the same beginning.
fn request(number: u64) -> (Vec<u32>, usize) {
    let shared = (0..40 + number % 8 * 30).map(|at| (number % 8 * 1000 + at) as u32);
    (shared.chain([number as u32]).collect(), 20 + number as usize * 13 % 60)
}

impl Shared {
    fn slot(&self, blocks: &[paged_kv::BlockId], position: usize) -> &AtomicU64 {
        &self.tensor[blocks[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE]
    }

    /// Makes the copy of an append: the last block was shared.
    fn copy(&self, append: &Append) {
        let Some(copy) = &append.copy else { return };
        for slot in 0..BLOCK_SIZE {
            let [source, target] = [copy.src, copy.dst].map(|id| id.0 as usize * BLOCK_SIZE + slot);
            let state = self.tensor[source].load(Ordering::Relaxed);
            self.tensor[target].store(state, Ordering::Relaxed);
        }
    }

    /// Computes the tokens from `computed` on, and returns the state after the last one.
    fn compute(&self, id: SeqId, tokens: &[u32], computed: usize) -> Result<u64> {
        let run = |sequence: &paged_kv::Sequence| {
            let state = |at| self.slot(sequence.block_ids(), at).load(Ordering::Relaxed);
            let mut last = computed.checked_sub(1).map_or(0, state);
            for (at, &token) in tokens.iter().enumerate().skip(computed) {
                last = extend(last, token);
                self.slot(sequence.block_ids(), at).store(last, Ordering::Relaxed);
            }
            last
        };
        self.cache.with_sequence(id, run).ok_or(PagedKvError::SequenceNotFound(id))
    }

    /// Serves a request until it has `end` tokens. With `Stalled`, it has to give its blocks to others.
    async fn serve(&self, id: SeqId, tokens: &mut Vec<u32>, end: usize) -> Result<()> {
        let prompt = self.cache.prompt(tokens);
        let admission = self.cache.waiting().admit(id, &prompt, &Default::default()).await?;
        let mut state = self.compute(id, tokens, admission.cached_tokens)?;
        self.cache.commit(id, tokens.len())?; // other prompts may match its full blocks from now on
        while tokens.len() < end {
            let token = next_token(state);
            let append = self.cache.waiting().append(id, 1).await?;
            self.copy(&append);
            tokens.push(token);
            state = self.compute(id, tokens, tokens.len() - 1)?;
            self.cache.commit(id, &[token])?;
            tokio::task::yield_now().await; // the device's turn
        }
        Ok(())
    }
}

/// Serves a request to its end, and checks its tokens.
async fn run(shared: Arc<Shared>, number: u64) -> Result<()> {
    let (id, (prompt, count)) = (SeqId(number), request(number));
    let mut tokens = prompt.clone();
    while let Err(refusal) = shared.serve(id, &mut tokens, prompt.len() + count).await {
        if !matches!(refusal, PagedKvError::Stalled(_)) {
            return Err(refusal);
        }
        shared.cache.free(id)?; // the others go on; it comes back and finds most of its blocks
        shared.resumptions.fetch_add(1, Ordering::Relaxed);
    }
    shared.cache.free(id)?;
    let mut state = prompt.iter().fold(0, |state, &token| extend(state, token));
    for &token in &tokens[prompt.len()..] {
        assert_eq!(token, next_token(state), "a wrong token shows a wrong block");
        state = extend(state, token);
    }
    Ok(())
}

/// A worker: takes every `WORKERS`-th request.
async fn work(shared: Arc<Shared>, worker: u64) -> Result<()> {
    let mut running = JoinSet::new();
    for number in (worker..REQUESTS).step_by(WORKERS as usize) {
        running.spawn(run(shared.clone(), number));
        if running.len() == AT_ONCE {
            running.join_next().await.expect("some run").expect("no request panics")?;
        }
    }
    running.join_all().await.into_iter().collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let tensor = (0..NUM_BLOCKS * BLOCK_SIZE).map(|_| AtomicU64::new(0)).collect();
    let cache = PagedKvCache::new(NUM_BLOCKS, BLOCK_SIZE, 1, 1);
    let shared = Arc::new(Shared { cache, tensor, resumptions: AtomicU64::new(0) });
    let workers: JoinSet<_> = (0..WORKERS).map(|worker| work(shared.clone(), worker)).collect();
    workers.join_all().await.into_iter().collect::<Result<()>>()?;
    assert_eq!(shared.cache.used_block_count(), 0);
    let resumptions = shared.resumptions.load(Ordering::Relaxed);
    println!("{REQUESTS} requests, {resumptions} resumptions; {}", shared.cache.stats());
    shared.cache.validate()
}
