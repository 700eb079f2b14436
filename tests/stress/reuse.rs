//! A matched block has the content that its hash stands for, while other threads reclaim, publish and
//! reset. Each block has a cell with the content that was computed into it.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, PagedKvCache, PagedKvError, Prompt, ReclaimPolicy,
};

use crate::common::random::Random;
use crate::{for_a_while, threads, watched};

const BLOCK_SIZE: usize = 4;

/// The content of each block, as a hash; 0 for a block whose content was never published.
struct Contents(Vec<AtomicU64>);

impl Contents {
    /// Checks the hits, and computes the rest as its only owner.
    fn compute(&self, sequence: &CachedSequence, hits: usize, contents: &[u64]) {
        self.check(sequence, hits, contents);
        for (index, &id) in sequence.block_ids().iter().enumerate().skip(hits) {
            let content = contents.get(index).copied().unwrap_or(0);
            self.0[id.0 as usize].store(content, Ordering::Relaxed);
        }
    }

    fn check(&self, sequence: &CachedSequence, blocks: usize, contents: &[u64]) {
        for (&id, &content) in sequence.block_ids()[..blocks].iter().zip(contents) {
            let holds = self.0[id.0 as usize].load(Ordering::Relaxed);
            assert_eq!(holds, content, "{id} was reused under who holds it");
        }
    }
}

/// Returns a chain of contents: families share beginnings.
fn contents(random: &mut Random, most: usize) -> Vec<u64> {
    let (family, branch, len) = (random.below(6), random.below(8), 1 + random.below(most));
    let content = |index: usize| match index < branch {
        true => 1_000_000 + family * 1_000 + index,
        false => 2_000_000 + (family * 10 + branch) * 1_000 + index,
    };
    (0..len).map(|index| content(index) as u64).collect()
}

/// Admits, checks, publishes, holds and drops, on all threads.
fn reuse(num_blocks: usize, most: usize, resets: bool, policy: ReclaimPolicy) {
    let cache = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let cache = cache.home_shards(4).reclaim_policy(policy).build().unwrap();
    let cells = Contents((0..num_blocks).map(|_| AtomicU64::new(0)).collect());
    let hits_seen = AtomicU64::new(0);
    for_a_while(1, |random, _| {
        let mut held: Vec<(CachedSequence, Vec<u64>)> = Vec::new();
        for _ in 0..200 {
            let contents = contents(random, most);
            let hashes: Vec<BlockHash> =
                contents.iter().map(|&content| BlockHash::from_u128(content.into())).collect();
            let num_tokens = contents.len() * BLOCK_SIZE + random.below(BLOCK_SIZE);
            let prompt = Prompt::from_hashes(&hashes, num_tokens);
            match cache.admit_sequence(&prompt, &AdmitOptions::default()) {
                Ok((mut sequence, admission)) => {
                    let hits = admission.cached_tokens / BLOCK_SIZE;
                    hits_seen.fetch_add(hits as u64, Ordering::Relaxed);
                    cells.compute(&sequence, hits, &contents);
                    sequence.commit(random.below(num_tokens + 1)).unwrap();
                    sequence.commit(num_tokens).unwrap();
                    held.push((sequence, contents));
                }
                Err(PagedKvError::OutOfMemory { requested, available }) => {
                    assert!(requested > available);
                    held.clear();
                }
                Err(refusal) => panic!("{refusal}"),
            }
            if resets && random.below(50) == 0 {
                cache.prefix().reset();
            }
            while held.len() > random.below(4) {
                let (mut sequence, contents) = held.swap_remove(random.below(held.len()));
                cells.check(&sequence, contents.len(), &contents);
                if random.below(4) == 0 {
                    let fork = sequence.fork().unwrap();
                    drop(sequence);
                    cells.check(&fork, contents.len(), &contents);
                }
            }
        }
    });
    assert!(hits_seen.into_inner() > 0, "nothing ever hit");
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
    let all = cache.allocate_sequence(num_blocks * BLOCK_SIZE).expect("idle blocks are room");
    assert_eq!(cache.stats().blocks_idle, 0);
    drop(all);
    cache.validate().unwrap();
}

#[test]
fn matched_blocks_agree_with_their_hashes_in_a_tiny_pool() {
    watched(|| reuse(24, 6, false, ReclaimPolicy::Lru));
}

#[test]
fn matched_blocks_agree_with_their_hashes_in_a_large_pool() {
    watched(|| reuse(24 * threads().max(8), 12, false, ReclaimPolicy::Lru));
}

#[test]
fn matched_blocks_agree_with_their_hashes_through_resets() {
    watched(|| reuse(64, 6, true, ReclaimPolicy::Lru));
}

#[test]
fn matched_blocks_agree_with_their_hashes_under_two_queues() {
    watched(|| reuse(40, 6, true, ReclaimPolicy::TwoQueue));
}
