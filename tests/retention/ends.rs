//! Tests of the ends of levels: many at once, and in the orders of all policies.

use std::sync::mpsc;

use super::*;

const POLICIES: [ReclaimPolicy; 3] =
    [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity];

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

/// One thread gives contents levels that end at once, another one allocates only. Each time all entries move, so entries
/// that are stale by then must be dropped in between.
#[test]
fn levels_that_end_again_and_again_leave_room_for_their_entries() {
    for policy in POLICIES {
        let builder = PagedKvCache::builder().num_blocks(4_096).block_size(4).home_shards(2);
        let cache = builder.retention_levels(true).reclaim_policy(policy).build().unwrap();
        let (of_a, of_b) = (mpsc::channel(), mpsc::channel());
        thread::scope(|scope| {
            let cache = &cache;
            let (turns, done) = (of_a.1, of_b.0);
            scope.spawn(move || {
                let tokens = prompt(100, 4 * 4_000);
                cache.admit(s(2), &tokens).unwrap();
                cache.commit(s(2), tokens.len()).unwrap();
                cache.free(s(2)).unwrap();
                let (prompt, high) = (cache.prompt(&tokens), whole(Level::High).ttl(MOMENT));
                while turns.recv().is_ok() {
                    cache.retention().set(&prompt, &high).unwrap();
                    done.send(()).expect("the other thread waits");
                }
            });
            serve(cache, &prompt(1, 4 * 96));
            let (next_turn, has_set) = (of_a.0, of_b.1);
            for id in 10..40 {
                next_turn.send(()).expect("the other thread waits");
                has_set.recv().expect("the other thread answers");
                cache.allocate(s(id), 4).unwrap();
            }
        });
        (10..40).for_each(|id| cache.free(s(id)).unwrap());
        assert_empties(&cache);
    }
}
