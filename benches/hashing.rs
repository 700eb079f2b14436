//! The time to hash a prompt, beside the plain hash functions over as many bytes.
//!
//! ```sh
//! cargo bench --bench hashing
//! python3 benches/hashing.py # the same in Python, as vLLM does it
//! ```
//!
//! Each row is the median of all rounds, in which the rows take turns. The tokens are random ids of a vocabulary
//! of 200,000. A plain function hashes one block's bytes after the other, each with the digest of the one
//! before in it, and encodes nothing.

use std::hint::black_box;
use std::time::Instant;

use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_128;

const TOKENS: usize = 131_072;
const BLOCK_SIZE: usize = 16;
const BLOCKS: usize = TOKENS / BLOCK_SIZE;
const VOCABULARY: u64 = 200_000;
const ROUNDS: usize = 300;

/// Bytes of a block under the keyed hash: its parent's hash, and four bytes a token.
const KEYED_BYTES: usize = 16 + 4 * BLOCK_SIZE;

type Row<'a> = (&'a str, Box<dyn Fn() + 'a>);

fn main() {
    let tokens = tokens();
    // An array of three: a parent of 16 or of 32 bytes, the tokens in an array, and null.
    let in_cbor = tokens.iter().map(|&token| cbor_bytes(token)).sum::<usize>() / BLOCKS;
    let (short, long) = (1 + 17 + 1 + in_cbor + 1, 1 + 34 + 1 + in_cbor + 1);
    let seed = 5;
    let rows: Vec<Row> = vec![
        ("keyed", Box::new(|| hash(HashAlgorithm::Xxh3 { seed }, &tokens))),
        ("xxhash_cbor", Box::new(|| hash(HashAlgorithm::XxhashCbor, &tokens))),
        ("sha256_cbor", Box::new(|| hash(HashAlgorithm::Sha256Cbor, &tokens))),
        (
            "plain XXH3-128, as keyed",
            Box::new(|| {
                chain(KEYED_BYTES, |bytes| {
                    XxHash3_128::oneshot_with_seed(seed, bytes).to_be_bytes()
                })
            }),
        ),
        (
            "plain XXH3-128, as xxhash_cbor",
            Box::new(move || chain(short, |bytes| XxHash3_128::oneshot(bytes).to_be_bytes())),
        ),
        (
            "plain SHA-256, as sha256_cbor",
            Box::new(move || chain(long, |bytes| <[u8; 32]>::from(Sha256::digest(bytes)))),
        ),
    ];
    let mut times = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in rows.iter().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        }
    }
    println!(
        "{BLOCKS} blocks of {BLOCK_SIZE} tokens; bytes a block {KEYED_BYTES}, {short}, {long}"
    );
    println!("{:32}  ns a block  ms for {TOKENS} tokens", "");
    for ((name, _), mut times) in rows.iter().zip(times) {
        times.sort_unstable();
        let seconds = times[ROUNDS / 2].as_secs_f64();
        println!("{name:32} {:11.1} {:11.3}", seconds * 1e9 / BLOCKS as f64, seconds * 1e3);
    }
}

/// Returns token ids from a generator of a fixed seed.
fn tokens() -> Vec<u32> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % VOCABULARY) as u32
    };
    (0..TOKENS).map(next).collect()
}

fn cbor_bytes(token: u32) -> usize {
    match token {
        0..24 => 1,
        24..=0xFF => 2,
        0x100..=0xFFFF => 3,
        _ => 5,
    }
}

/// Hashes the tokens as a server hashes a prompt: by a new hasher, into a new vector.
fn hash(algorithm: HashAlgorithm, tokens: &[u32]) {
    let mut hashes = Vec::new();
    let mut hasher = BlockHasher::new(algorithm, BLOCK_SIZE, ExtraKeys::default());
    hasher.extend(black_box(tokens), &mut hashes);
    black_box(hashes);
}

/// Hashes `len` bytes a block by `function`, each block with the digest of the block before it.
fn chain<const N: usize>(len: usize, function: impl Fn(&[u8]) -> [u8; N]) {
    let mut bytes = vec![0x1a; len];
    for _ in 0..BLOCKS {
        let digest = function(black_box(&bytes));
        bytes[..N].copy_from_slice(&digest);
    }
    black_box(bytes);
}
