//! Tests of the reclaim order, in caches of many batches, under either policy.

use super::*;
use paged_kv::ReclaimPolicy;

fn two_queues(num_blocks: usize, block_size: usize) -> Vec<PagedKvCache> {
    shapes_with(num_blocks, block_size, |builder| builder.reclaim_policy(ReclaimPolicy::TwoQueue))
}

/// Serves prompts that never return.
fn scan(cache: &PagedKvCache, names: std::ops::Range<u32>, num_tokens: usize) {
    for name in names {
        serve(cache, &prompt(name, num_tokens));
    }
}

fn assert_cached(cache: &PagedKvCache, tokens: &[u32], cached: usize) {
    let mut longer = tokens.to_vec();
    longer.push(u32::MAX);
    assert_eq!(cache.prefix().probe(&cache.prompt(&longer)), cached);
}

#[test]
fn two_queues_keep_repeated_contents_longer_than_others() {
    for cache in two_queues(16, 4) {
        let [again, once] = [prompt(1, 12), prompt(2, 12)];
        serve(&cache, &again);
        serve(&cache, &once);
        let mut longer = again.clone();
        longer.push(0);
        assert_eq!(serve(&cache, &longer), 12);
        scan(&cache, 10..50, 12);
        assert_cached(&cache, &once, 0);
        assert_cached(&cache, &again, 12);
        assert_empties(&cache);
    }
}

#[test]
fn the_least_recently_used_go_first_however_often_they_were_asked_for() {
    for cache in shapes(16, 4) {
        let mut longer = prompt(1, 13);
        serve(&cache, &longer);
        serve(&cache, &longer);
        scan(&cache, 10..50, 12);
        longer.truncate(12);
        assert_cached(&cache, &longer, 0);
        assert_empties(&cache);
    }
}

/// Reclaimed keys are remembered in slots that other keys may overwrite: in most cases, not always.
#[test]
fn two_queues_count_a_soon_recomputed_content_as_requested_again() {
    let stays = |cache: &PagedKvCache, attempt: u32| {
        let names = 100 * attempt;
        let back = prompt(names + 1, 12);
        serve(cache, &back);
        scan(cache, names + 10..names + 16, 12);
        assert_cached(cache, &back, 0);
        assert_eq!(serve(cache, &back), 0);
        scan(cache, names + 20..names + 60, 12);
        let stayed = cache.prefix().probe(&cache.prompt(&[&back[..], &[0]].concat())) == 12;
        assert_empties(cache);
        stayed
    };
    for shape in 0..two_queues(16, 4).len() {
        let stayed = (0..20).any(|attempt| stays(&two_queues(16, 4)[shape], attempt));
        assert!(stayed, "shape {shape}");
    }
}

#[test]
fn two_queues_reclaim_a_repeated_content_after_triple_idle_time() {
    const BLOCKS: u32 = 4096;
    for cache in two_queues(BLOCKS as usize, 1) {
        let again = prompt(1, 32);
        serve(&cache, &again);
        let mut longer = again.clone();
        longer.push(0);
        assert_eq!(serve(&cache, &longer), 32);
        scan(&cache, 100..100 + 2 * BLOCKS / 32, 32);
        assert_cached(&cache, &again, 32);
        scan(&cache, 1_000..1_000 + 4 * BLOCKS / 32, 32);
        assert_cached(&cache, &again, 0);
        assert_empties(&cache);
    }
}

/// The two idle blocks do not suffice, and stay as they were.
#[test]
fn of_two_queues_a_refusal_leaves_each_block_in_its_own() {
    for cache in two_queues(16, 4) {
        let [again, once] = [prompt(1, 12), prompt(2, 12)];
        serve(&cache, &again);
        let mut longer = again.clone();
        longer.push(0);
        assert_eq!(serve(&cache, &longer), 12);
        assert!(cache.allocate(s(1), 17 * 4).is_err());
        serve(&cache, &once);
        cache.allocate(s(1), 13 * 4).unwrap();
        assert_cached(&cache, &once, 0);
        assert_cached(&cache, &again, 12);
        assert_empties(&cache);
    }
}

/// Three prompts of several batches each: blocks are taken from the first, from its tail.
#[test]
fn the_longest_unused_go_first_across_batches() {
    for cache in shapes(1_024, 1) {
        let prompts = [1, 2, 3].map(|name| prompt(name, 300));
        for prompt in &prompts {
            serve(&cache, prompt);
        }
        // 124 blocks were never used.
        cache.allocate(s(1), 124 + 200).unwrap();
        assert_cached(&cache, &prompts[0], 100);
        assert_cached(&cache, &prompts[1], 300);
        assert_cached(&cache, &prompts[2], 300);
        cache.allocate(s(2), 100 + 300).unwrap();
        assert_cached(&cache, &prompts[1], 0);
        assert_cached(&cache, &prompts[2], 300);
        assert_empties(&cache);
    }
}

/// One prompt is matched and released so often that the order has many more entries than blocks.
#[test]
fn the_order_stays_when_blocks_were_left_again_and_again() {
    for cache in shapes(1_024, 1) {
        let [hot, cold, warm] = [1, 2, 3].map(|name| prompt(name, 300));
        serve(&cache, &hot);
        serve(&cache, &cold);
        for _ in 0..40 {
            serve(&cache, &hot);
        }
        serve(&cache, &warm);
        cache.allocate(s(1), 124 + 300).unwrap();
        assert_cached(&cache, &cold, 0);
        // The last block of a returning prompt is computed again.
        assert_cached(&cache, &hot, 300);
        assert_cached(&cache, &warm, 300);
        cache.allocate(s(2), 300).unwrap();
        assert_cached(&cache, &hot, 0);
        assert_cached(&cache, &warm, 300);
        cache.validate().unwrap();
        assert_empties(&cache);
    }
}
