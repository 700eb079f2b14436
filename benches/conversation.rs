//! The time of all admissions of a conversation of 40 turns and 140,000 tokens: each turn hashed from its
//! beginning, or its prompt extended.
//!
//! `cargo bench --bench conversation`: the median of 9 rounds, for each hash algorithm.

use std::time::{Duration, Instant};

use paged_kv::{AdmitOptions, HashAlgorithm, PagedKvCache, Prompt, SeqId};

const TURNS: usize = 40;
const TOKENS_A_TURN: usize = 3_500;
const ROUNDS: usize = 9;

/// Returns the prompt of the next turn: all tokens up to `end`.
type NextPrompt = fn(&PagedKvCache, &mut Prompt, &[u32], usize);

fn anew(cache: &PagedKvCache, prompt: &mut Prompt, tokens: &[u32], end: usize) {
    *prompt = cache.prompt(&tokens[..end]);
}

fn extended(_: &PagedKvCache, prompt: &mut Prompt, tokens: &[u32], end: usize) {
    let known = prompt.num_tokens();
    prompt.extend(&tokens[known..end]).expect("the cache hashes its tokens");
}

/// Serves the conversation once, and returns the time of its prompts and admissions.
fn serve(algorithm: HashAlgorithm, next: NextPrompt) -> Duration {
    let tokens: Vec<u32> = (0..(TURNS * TOKENS_A_TURN) as u32).map(|at| at * 7 % 50_000).collect();
    let builder =
        PagedKvCache::builder().num_blocks(16_384).block_size(16).hash_algorithm(algorithm);
    let cache = builder.build().expect("a cache of that shape");
    let mut prompt = cache.prompt(&[]);
    let mut total = Duration::ZERO;
    for turn in 1..=TURNS {
        let (id, end) = (SeqId(turn as u64), turn * TOKENS_A_TURN);
        let start = Instant::now();
        next(&cache, &mut prompt, &tokens, end);
        let admission = cache.admit_with(id, &prompt, &AdmitOptions::default());
        total += start.elapsed();
        assert_eq!(
            admission.expect("there is room").cached_tokens,
            (end - TOKENS_A_TURN) / 16 * 16
        );
        cache.commit(id, end).expect("it was just admitted");
        cache.free(id).expect("it is not leased");
    }
    total
}

fn median(mut run: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| run()).collect();
    times.sort_unstable();
    times[ROUNDS / 2].as_secs_f64() * 1e3
}

fn main() {
    println!("{TURNS} turns, {} tokens, milliseconds of all admissions", TURNS * TOKENS_A_TURN);
    println!("{:<14} {:>8} {:>9} {:>7}", "hash", "anew", "extended", "ratio");
    for algorithm in
        [HashAlgorithm::default(), HashAlgorithm::XxhashCbor, HashAlgorithm::Sha256Cbor]
    {
        let [whole, extended] =
            [anew as NextPrompt, extended].map(|next| median(|| serve(algorithm, next)));
        let name = algorithm.to_string();
        println!("{name:<14} {whole:>8.2} {extended:>9.2} {:>7.1}", whole / extended);
    }
}
