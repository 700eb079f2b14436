//! Tests of levels of contents that several blocks hold: the last request that gave one decides, whichever block it had.

use super::*;

/// Options of a request that computes all of its contents again.
fn anew(options: AdmitOptions) -> AdmitOptions {
    options.max_cached_tokens(0)
}

/// A content is computed twice, and the second request says nothing of its level.
#[test]
fn a_further_copy_of_a_content_has_its_level() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity] {
        let builder = PagedKvCache::builder().num_blocks(8).block_size(4).home_shards(1);
        let cache = builder.retention_levels(true).reclaim_policy(policy).build().unwrap();
        serve_with(&cache, &prompt(1, 8), &at(Level::High));
        serve_with(&cache, &prompt(1, 8), &AdmitOptions::default().max_cached_tokens(0));
        serve(&cache, &prompt(2, 8));
        press(&cache, 6);
        assert_cached(&cache, &[(1, 8), (2, 0)]);
        assert_empties(&cache);
    }
}

/// The last block of such a prompt is computed again by each request.
#[test]
fn a_level_holds_for_a_last_block_that_is_computed_again() {
    for cache in caches(8) {
        for options in [AdmitOptions::default(), at(Level::High)] {
            cache.admit_with(s(1), &cache.prompt(&prompt(1, 8)), &options).unwrap();
            cache.commit(s(1), 8).unwrap();
            cache.free(s(1)).unwrap();
        }
        serve(&cache, &prompt(2, 8));
        press(&cache, 6);
        assert_cached(&cache, &[(1, 8), (2, 0)]);
        assert_empties(&cache);
    }
}

#[test]
fn a_request_that_computes_a_content_again_raises_and_lowers_its_level() {
    for copies in 1..6 {
        for cache in caches(24) {
            for _ in 0..copies {
                serve_with(&cache, &prompt(1, 8), &anew(AdmitOptions::default()));
            }
            serve_with(&cache, &prompt(1, 8), &anew(at(Level::High)));
            serve(&cache, &prompt(2, 8));
            press(&cache, 22);
            assert_cached(&cache, &[(1, 8), (2, 0)]);
            serve_with(&cache, &prompt(1, 8), &anew(at(Level::Lowest)));
            serve(&cache, &prompt(2, 8));
            press(&cache, 22);
            assert_cached(&cache, &[(1, 0), (2, 8)]);
            assert_empties(&cache);
        }
    }
}

#[test]
fn of_requests_that_compute_a_content_at_once_the_one_with_a_level_decides() {
    for is_in_step in [false, true] {
        for first_has_level in [false, true] {
            for cache in caches(12) {
                let tokens = cache.prompt(&prompt(1, 8));
                let admit = |has_level: bool| {
                    let options =
                        if has_level { at(Level::Highest) } else { AdmitOptions::default() };
                    cache.admit_sequence(&tokens, &options).unwrap().0
                };
                let (mut one, mut other) = (admit(first_has_level), admit(!first_has_level));
                let mut step = cache.step(StepBuffers::default());
                for sequence in [&mut one, &mut other] {
                    match is_in_step {
                        false => _ = sequence.commit(8).unwrap(),
                        true => _ = step.commit(sequence, 8).unwrap(),
                    }
                }
                if first_has_level {
                    drop((one, other));
                    step.complete();
                } else {
                    step.complete();
                    drop((other, one));
                }
                serve(&cache, &prompt(2, 8));
                press(&cache, 10);
                assert_cached(&cache, &[(1, 8), (2, 0)]);
                assert_empties(&cache);
            }
        }
    }
}

/// The first block of the content goes while its copy is in use.
#[test]
fn the_only_block_of_a_content_gets_a_level_although_it_was_a_copy() {
    for cache in caches(12) {
        let tokens = cache.prompt(&prompt(1, 8));
        serve(&cache, &prompt(1, 8));
        let (mut copy, _) = cache.admit_sequence(&tokens, &anew(AdmitOptions::default())).unwrap();
        copy.commit(8).unwrap();
        press(&cache, 10);
        assert_eq!(cache.retention().set(&tokens, &whole(Level::High)).unwrap(), 2);
        drop(copy);
        serve(&cache, &prompt(2, 8));
        press(&cache, 10);
        assert_cached(&cache, &[(1, 8), (2, 0)]);
        assert_empties(&cache);
    }
}

#[test]
fn copies_go_before_contents_of_lower_levels() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity] {
        let cache = cache_of(8, policy);
        serve_with(&cache, &prompt(1, 8), &at(Level::Low));
        serve(&cache, &prompt(2, 8));
        serve_with(&cache, &prompt(2, 8), &anew(AdmitOptions::default()));
        press(&cache, 4);
        assert_cached(&cache, &[(1, 8), (2, 8)]);
        assert_empties(&cache);
    }
}

/// Contents that a reset has dropped must not push out those after it.
#[test]
fn levels_that_are_set_beside_a_reset_are_of_one_generation() {
    const BLOCKS: usize = 512;
    for round in 0..60 {
        let cache = cache_of(BLOCKS, ReclaimPolicy::Lru);
        let tokens = prompt(1, 4 * BLOCKS / 2);
        let old = cache.prompt(&tokens);
        serve(&cache, &tokens);
        thread::scope(|scope| {
            scope.spawn(|| cache.retention().set(&old, &whole(Level::Highest)).unwrap());
            thread::sleep(Duration::from_micros(4 * round));
            cache.prefix().reset();
        });
        serve(&cache, &prompt(2, BLOCKS));
        press(&cache, 3 * BLOCKS / 4);
        assert_eq!(cached(&cache, &prompt(2, BLOCKS)), BLOCKS);
        assert_empties(&cache);
    }
}
