//! Tests of the learned order of reclaim, by the contents that stay cached.

use super::*;
use paged_kv::{ReclaimPolicy, ReuseHint};

fn learning(num_blocks: usize) -> Vec<PagedKvCache> {
    shapes_with(num_blocks, 4, |builder| builder.reclaim_policy(ReclaimPolicy::HitDensity))
}

/// Serves a prompt with an answer of `answer` tokens, and says whether it comes back.
fn answer(cache: &PagedKvCache, tokens: &[u32], answer: usize, hint: ReuseHint) -> usize {
    let admission = cache.admit(s(999), tokens).expect("there is room");
    cache.commit(s(999), tokens.len()).expect("it was just admitted");
    let _ = cache.append(s(999), answer).expect("there is room");
    cache.set_reuse_hint(s(999), hint).expect("it is there");
    cache.free(s(999)).expect("it is not leased");
    admission.cached_tokens
}

fn cached(cache: &PagedKvCache, tokens: &[u32]) -> usize {
    cache.prefix().probe(&cache.prompt(&[tokens, &[u32::MAX]].concat()))
}

/// Serves conversations of two turns whose first answer is short, and prompts with a long answer that never return.
fn teach(cache: &PagedKvCache, rounds: std::ops::Range<u32>) {
    for name in rounds {
        let turn = prompt(10 * name, 33);
        answer(cache, &turn, 8, ReuseHint::Unknown);
        answer(cache, &prompt(10 * name + 1, 33), 200, ReuseHint::Unknown);
        answer(cache, &[&turn[..], &prompt(10 * name + 2, 8)].concat(), 200, ReuseHint::Unknown);
    }
}

#[test]
fn before_it_has_learned_it_is_the_order_of_last_use() {
    for cache in learning(1_024) {
        let [first, second] = [1, 2].map(|name| prompt(name, 400));
        answer(&cache, &first, 200, ReuseHint::BackSoon);
        answer(&cache, &second, 0, ReuseHint::Closed);
        let free = 1_024 - 200;
        cache.allocate(s(1), 4 * (free + 100)).unwrap();
        assert_eq!((cached(&cache, &first), cached(&cache, &second)), (0, 400));
        assert_empties(&cache);
    }
}

#[test]
fn contents_that_never_come_back_go_before_older_ones_that_do() {
    for cache in learning(256) {
        teach(&cache, 1..60);
        let [comes_back, does_not] = [prompt(900_001, 32), prompt(900_002, 32)];
        answer(&cache, &comes_back, 8, ReuseHint::Unknown);
        answer(&cache, &does_not, 200, ReuseHint::Unknown);
        for name in 0..30 {
            answer(&cache, &prompt(910_000 + name, 32), 200, ReuseHint::Unknown);
        }
        assert_eq!((cached(&cache, &comes_back), cached(&cache, &does_not)), (32, 0));
        assert_empties(&cache);
    }
}

#[test]
fn closed_conversations_go_first_and_what_others_share_stays() {
    for cache in learning(256) {
        teach(&cache, 1..60);
        let system = prompt(900_000, 16);
        let of = |name| [&system[..], &prompt(name, 16)].concat();
        for name in [900_001, 900_002, 900_003] {
            answer(&cache, &of(name), 8, ReuseHint::Unknown);
        }
        answer(&cache, &of(900_004), 8, ReuseHint::Closed);
        answer(&cache, &prompt(900_005, 32), 8, ReuseHint::Closed);
        for name in 0..5 {
            answer(&cache, &prompt(910_000 + name, 32), 200, ReuseHint::Unknown);
        }
        assert_eq!(cached(&cache, &of(900_001)), 32);
        assert_eq!(cached(&cache, &of(900_004)), 16, "the others have the system prompt, too");
        assert_eq!(cached(&cache, &prompt(900_005, 32)), 0);
        assert_empties(&cache);
    }
}

/// A head that is reclaimed leaves a tail that no prompt reaches. The content is then computed again beside it.
#[test]
fn a_content_that_is_computed_again_is_ranked_by_its_last_release() {
    for cache in learning(256) {
        teach(&cache, 1..60);
        let tokens = prompt(900_001, 64);
        answer(&cache, &tokens, 200, ReuseHint::Unknown);
        cache.prefix().forget_prompt(&cache.prompt(&tokens[..4])).unwrap();
        answer(&cache, &tokens, 8, ReuseHint::Unknown);
        for name in 0..30 {
            answer(&cache, &prompt(910_000 + name, 32), 200, ReuseHint::Unknown);
        }
        assert_eq!(cached(&cache, &tokens), 64);
        cache.validate().unwrap();
        assert_empties(&cache);
    }
}

/// A step publishes the contents of a sequence that was freed before.
#[test]
fn a_hint_holds_for_contents_that_a_step_publishes_after_the_release() {
    for is_in_step in [false, true] {
        let builder = PagedKvCache::builder().num_blocks(64).block_size(4).home_shards(1);
        let cache = builder.reclaim_policy(ReclaimPolicy::HitDensity).build().unwrap();
        (100..300).for_each(|name| _ = answer(&cache, &prompt(name, 16), 0, ReuseHint::Closed));
        (1..9).for_each(|name| _ = answer(&cache, &prompt(name, 16), 0, ReuseHint::Unknown));
        for name in 50..58 {
            let tokens = cache.prompt(&prompt(name, 16));
            let (mut sequence, _) =
                cache.admit_sequence(&tokens, &AdmitOptions::default()).unwrap();
            sequence.set_reuse_hint(ReuseHint::Closed);
            let mut step = cache.step(Default::default());
            match is_in_step {
                false => _ = sequence.commit(16).unwrap(),
                true => _ = step.commit(&mut sequence, 16).unwrap(),
            }
            drop(sequence);
            step.complete();
        }
        drop(cache.pool().allocate(44).unwrap());
        let left = |first: u32| (0..8).map(|n| cached(&cache, &prompt(first + n, 16)) / 4).sum();
        let [unknown, closed]: [usize; 2] = [left(1), left(50)];
        assert_eq!((unknown, closed), (20, 0), "in a step: {is_in_step}");
        assert_empties(&cache);
    }
}
