//! Tests of the ends of levels: many at once, and in the orders of all policies.

use super::*;

const POLICIES: [ReclaimPolicy; 3] =
    [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity];

fn cache_of(num_blocks: usize, policy: ReclaimPolicy) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(4).home_shards(1);
    builder.retention_levels(true).reclaim_policy(policy).build().unwrap()
}

/// A level whose duration has passed when the next operation looks.
fn ended(level: Level) -> AdmitOptions {
    AdmitOptions::default().retain(whole(level).ttl(MOMENT))
}

#[test]
fn thousands_of_levels_that_ended_count_as_the_default_one() {
    for policy in POLICIES {
        let cache = cache_of(4_096, policy);
        serve(&cache, &prompt(1, 400));
        serve_with(&cache, &prompt(100, 4 * 3_900), &ended(Level::Low));
        thread::sleep(Duration::from_millis(1));
        press(&cache, 96 + 100);
        let of_ended = cached(&cache, &prompt(100, 4 * 3_900));
        assert_eq!((cached(&cache, &prompt(1, 400)), of_ended), (0, 4 * 3_900));
        assert_empties(&cache);
    }
}

#[test]
fn thousands_of_levels_that_ended_go_before_one_that_stays() {
    for policy in POLICIES {
        let cache = cache_of(4_096, policy);
        serve_with(&cache, &prompt(1, 400), &at(Level::High));
        serve_with(&cache, &prompt(100, 4 * 3_900), &ended(Level::High));
        thread::sleep(Duration::from_millis(1));
        press(&cache, 3_996);
        assert_eq!(cached(&cache, &prompt(1, 400)), 400);
        assert_empties(&cache);
    }
}

/// A content counts as just released when its level ends or is set anew.
#[test]
fn a_level_that_ended_or_is_set_makes_a_content_the_newest_of_its_level() {
    for (policy, ends) in POLICIES.into_iter().flat_map(|policy| [(policy, false), (policy, true)])
    {
        let cache = cache_of(8, policy);
        match ends {
            true => serve_with(&cache, &prompt(1, 8), &ended(Level::High)),
            false => serve(&cache, &prompt(1, 8)),
        }
        (2..=4).for_each(|name| serve(&cache, &prompt(name, 8)));
        if !ends {
            let tokens = cache.prompt(&prompt(1, 8));
            assert_eq!(cache.retention().set(&tokens, &whole(Level::Default)).unwrap(), 2);
        }
        thread::sleep(Duration::from_millis(1));
        press(&cache, 6);
        assert_cached(&cache, &[(1, 8)]);
        assert_empties(&cache);
    }
}
