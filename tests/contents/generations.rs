//! Tests of generations: contents of different weights never match each other, whatever hashes a caller
//! invents.

use super::*;
use crate::common::{assert_empties, s};
use paged_kv::{AdmitOptions, BlockHash, Prompt};

/// Returns the mask that once mixed a generation into a content key, and that any caller could compute.
fn public_mask(generation: u64) -> u128 {
    let mix = generation.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u128::from(mix) << 64 | u128::from(mix.wrapping_mul(0xD6E8_FEB8_6659_FD93))
}

fn cached(cache: &PagedKvCache, hash: u128, id: u64) -> usize {
    let prompt = Prompt::from_hashes(&[BlockHash::from_u128(hash)], BLOCK_SIZE + 1);
    let admission = cache.admit_with(s(id), &prompt, &AdmitOptions::default()).unwrap();
    cache.commit(s(id), BLOCK_SIZE + 1).unwrap();
    cache.free(s(id)).unwrap();
    admission.cached_tokens
}

#[test]
fn no_forged_hash_hits_a_content_published_before_a_reset() {
    for (cache, _) in caches(40) {
        let hash = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;
        assert_eq!(cached(&cache, hash, 1), 0);
        assert_eq!(cached(&cache, hash, 2), BLOCK_SIZE);
        for reset in 1..4 {
            cache.prefix().reset();
            for earlier in 0..reset {
                let made_up = hash ^ public_mask(earlier) ^ public_mask(reset);
                let probe = |hash: u128| {
                    let hashes = [BlockHash::from_u128(hash)];
                    cache.prefix().probe(&Prompt::from_hashes(&hashes, BLOCK_SIZE + 1))
                };
                assert_eq!((probe(made_up), probe(hash)), (0, 0), "{earlier}, {reset}");
                assert_eq!(cached(&cache, made_up, 3), 0, "{earlier}, {reset}");
            }
        }
        assert_empties(&cache);
    }
}

/// Otherwise a lower tier would copy keys and values of old weights. Contents of earlier generations are
/// not reported as overwritten.
#[test]
fn a_step_overwrites_contents_of_earlier_weights_without_a_word() {
    for (cache, _) in caches(6) {
        let grow = |blocks: usize| {
            let mut rows = [(cache.allocate_sequence(0).unwrap(), blocks * BLOCK_SIZE)];
            let mut step = cache.step(Default::default());
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            let reclaimed: Vec<_> = step.overwritten().iter().map(|lost| lost.hash).collect();
            step.complete();
            reclaimed
        };
        cached(&cache, 0xA, 1);
        cache.prefix().reset();
        cached(&cache, 0xB, 1);
        cached(&cache, 0xC, 1);
        let mut reclaimed = grow(6);
        reclaimed.sort();
        assert_eq!(reclaimed, [0xB, 0xC].map(BlockHash::from_u128));
        cache.prefix().reset();
        assert_eq!(grow(6), [], "what is not cached any more neither");
        assert_empties(&cache);
    }
}
