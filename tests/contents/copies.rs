//! Tests of copies: a content is found as long as one of its copies is there.

use super::*;
use crate::common::{assert_empties, lease_row, s};

/// Takes all available blocks and gives them back, which reclaims every idle content.
fn reclaim_all(cache: &PagedKvCache) {
    let room = cache.free_block_count();
    cache.allocate(s(900), room * BLOCK_SIZE).unwrap();
    cache.free(s(900)).unwrap();
}

#[test]
fn a_content_in_use_stays_matchable_when_its_other_copies_are_reclaimed() {
    for copies in 2..=4_u64 {
        for survivor in 1..=copies {
            for (cache, mirror) in caches(3 * copies as usize) {
                let tokens = prompt(5, 2);
                (1..=copies).for_each(|id| _ = cache.admit(s(id), &tokens).unwrap());
                for id in 1..=copies {
                    let new = cache.commit(s(id), tokens.len());
                    assert_eq!(new, Ok(if id == 1 { 2 } else { 0 }));
                }
                for id in (1..=copies).filter(|&id| id != survivor) {
                    cache.free(s(id)).unwrap();
                    reclaim_all(&cache);
                    assert_eq!(
                        cache.prefix().probe(&cache.prompt(&tokens)),
                        8,
                        "{survivor} of {copies} has it"
                    );
                }
                // The surviving copy is in use or idle, until it is reclaimed.
                cache.free(s(survivor)).unwrap();
                assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 8);
                if let Some(mirror) = &mirror {
                    let held = mirror.held();
                    assert_eq!((held.stored, held.removed, held.contents.len()), (2, 0, 2));
                }
                reclaim_all(&cache);
                assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 0);
                if let Some(mirror) = &mirror {
                    let held = mirror.held();
                    assert_eq!((held.stored, held.removed), (2, 2));
                }
                assert_empties(&cache);
            }
        }
    }
}

/// Copies that no prompt asks for cost no other content: they are reclaimed first.
#[test]
fn copies_are_reclaimed_before_any_other_content() {
    for (cache, _) in caches(20) {
        let [once, twice] = [prompt(1, 3), prompt(2, 3)];
        cache.admit(s(1), &once).unwrap();
        cache.commit(s(1), once.len()).unwrap();
        cache.free(s(1)).unwrap();
        (2..=4).for_each(|id| _ = cache.admit(s(id), &twice).unwrap());
        for id in 2..=4 {
            cache.commit(s(id), twice.len()).unwrap();
        }
        (2..=4).for_each(|id| cache.free(s(id)).unwrap());
        // Of 20 blocks, 12 are idle, and 6 of these are copies.
        cache.allocate(s(9), 14 * BLOCK_SIZE).unwrap();
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&once)),
                cache.prefix().probe(&cache.prompt(&twice))
            ),
            (12, 12)
        );
        cache.allocate(s(10), BLOCK_SIZE).unwrap();
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&once)),
                cache.prefix().probe(&cache.prompt(&twice))
            ),
            (8, 12)
        );
        assert_empties(&cache);
    }
}

/// A content that is computed again counts as requested again. (A learned order reclaims the idle copy.)
#[test]
fn a_copy_that_is_committed_counts_as_a_use_of_the_idle_one() {
    for (cache, _) in caches_of(16, BY_LAST_USE) {
        let [twice, once] = [prompt(1, 1), prompt(2, 1)];
        (1..=2).for_each(|id| _ = cache.admit(s(id), &twice).unwrap());
        for (id, tokens) in [(1, &twice), (3, &once)] {
            let _ = cache.admit(s(id), tokens);
            cache.commit(s(id), 5).unwrap();
            cache.free(s(id)).unwrap();
        }
        cache.commit(s(2), 5).unwrap();
        let free = cache.free_block_count() - cache.stats().blocks_idle;
        cache.allocate(s(9), (free + 1) * BLOCK_SIZE).unwrap();
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&once)),
                cache.prefix().probe(&cache.prompt(&twice))
            ),
            (0, 4),
            "the other lay longer"
        );
        cache.free(s(2)).unwrap();
        assert_empties(&cache);
    }
}

/// The append copies the cached block, so the new tokens get a block that only this sequence has.
#[test]
fn a_copy_truncated_and_rewritten_keeps_its_content_private() {
    for (cache, mirror) in caches(12) {
        let tokens = prompt(5, 2);
        (1..=2).for_each(|id| _ = cache.admit(s(id), &tokens).unwrap());
        (1..=2).for_each(|id| _ = cache.commit(s(id), 9).unwrap());
        cache.truncate(s(2), 6).unwrap();
        let append = cache.append_tokens(s(2), &[7, 7]).unwrap();
        assert!(append.copy.is_some(), "a cached block is never written");
        drop(append);
        assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 8);
        assert_eq!(cache.prefix().probe(&cache.prompt(&[5, 5, 5, 5, 5, 5, 7, 7, 0])), 8);
        cache.free(s(1)).unwrap();
        reclaim_all(&cache);
        assert_eq!(
            cache.prefix().probe(&cache.prompt(&tokens)),
            4,
            "both copies of the second block are gone"
        );
        if let Some(mirror) = mirror {
            assert_eq!(mirror.held().counts(), (3, 1));
        }
        assert_empties(&cache);
    }
}

/// An allocation that is refused gives back the blocks it reclaimed; each copy is as it was.
#[test]
fn a_refused_allocation_costs_no_copy() {
    for (cache, mirror) in caches(7) {
        let tokens = prompt(5, 2);
        (1..=2).for_each(|id| _ = cache.admit(s(id), &tokens).unwrap());
        (1..=2).for_each(|id| _ = cache.commit(s(id), 9).unwrap());
        cache.free(s(1)).unwrap();
        for _ in 0..3 {
            assert!(cache.allocate(s(9), 5 * BLOCK_SIZE).is_err());
            assert_eq!(cache.stats().blocks_idle, 2);
        }
        cache.free(s(2)).unwrap();
        assert!(cache.allocate(s(9), 8 * BLOCK_SIZE).is_err());
        assert_eq!(
            (cache.stats().blocks_idle, cache.prefix().probe(&cache.prompt(&tokens))),
            (4, 8)
        );
        if let Some(mirror) = mirror {
            assert_eq!(mirror.held().counts(), (2, 0));
        }
        assert_empties(&cache);
    }
}

/// Four copies suffice, as long as they exist. The fifth is offered again when its sequence fills a
/// block.
#[test]
fn a_copy_beyond_the_fourth_is_found_after_a_later_commit() {
    for by_step in [false, true] {
        for (cache, mirror) in caches(7 * 3) {
            let tokens = prompt(5, 2);
            // The third block of each sequence is its own.
            let longer = |id: u64| [&tokens[..], &[id as u32; 3]].concat();
            (1..=6).for_each(|id| _ = cache.admit(s(id), &longer(id)).unwrap());
            let commit = |id, num_tokens| {
                if !by_step {
                    return cache.commit(s(id), num_tokens).unwrap();
                }
                let mut step = cache.step(Default::default());
                step.commit(&mut lease_row(&cache, s(id)), num_tokens).unwrap();
                step.complete().published
            };
            let new: Vec<usize> = (1..=6).map(|id| commit(id, 9)).collect();
            assert_eq!(new, [2, 0, 0, 0, 0, 0]);
            (1..=4).for_each(|id| cache.free(s(id)).unwrap());
            reclaim_all(&cache);
            assert_eq!(
                cache.prefix().probe(&cache.prompt(&tokens)),
                0,
                "neither of the others has a name"
            );
            assert_eq!(
                (commit(5, 11), cache.prefix().probe(&cache.prompt(&tokens))),
                (0, 0),
                "no block was filled"
            );
            assert_eq!((commit(5, 12), cache.prefix().probe(&cache.prompt(&tokens))), (3, 8));
            assert_eq!((commit(6, 12), cache.prefix().probe(&cache.prompt(&tokens))), (1, 8));
            cache.free(s(5)).unwrap();
            reclaim_all(&cache);
            assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 8, "the sixth has it");
            if let Some(mirror) = mirror {
                assert_eq!(mirror.held().contents.len(), 3);
            }
            assert_empties(&cache);
        }
    }
}

/// The prompts have more blocks than one commit offers again in one batch.
#[test]
fn a_long_prompt_beyond_the_fourth_copy_is_found_after_one_later_commit() {
    let cache = PagedKvCache::new(6 * 202, BLOCK_SIZE, 1, 1);
    let tokens: Vec<u32> = (0..200 * BLOCK_SIZE as u32).collect();
    (1..=5).for_each(|id| _ = cache.admit(s(id), &tokens).unwrap());
    let new: Vec<usize> = (1..=5).map(|id| cache.commit(s(id), 800).unwrap()).collect();
    assert_eq!(new, [200, 0, 0, 0, 0]);
    (1..=4).for_each(|id| cache.free(s(id)).unwrap());
    reclaim_all(&cache);
    let longer = [&tokens[..], &[0]].concat();
    assert_eq!(cache.prefix().probe(&cache.prompt(&longer)), 0);
    drop(cache.append_tokens(s(5), &[1, 2, 3]).unwrap());
    assert_eq!(cache.prefix().probe(&cache.prompt(&longer)), 0, "no block was filled");
    drop(cache.append_tokens(s(5), &[4]).unwrap());
    assert_eq!(cache.prefix().probe(&cache.prompt(&longer)), 800);
    assert_empties(&cache);
}

/// There are more copies than a shard's list holds, so they pass through the queue of spare copies.
#[test]
fn a_burst_of_one_long_prompt_costs_no_other_content() {
    let cache = PagedKvCache::new(4_096, BLOCK_SIZE, 1, 1);
    let tokens =
        |from: u32, blocks: usize| -> Vec<u32> { (from..).take(blocks * BLOCK_SIZE + 1).collect() };
    let (once, burst) = (tokens(0, 1_000), tokens(1_000_000, 300));
    cache.admit(s(1), &once).unwrap();
    cache.commit(s(1), once.len()).unwrap();
    cache.free(s(1)).unwrap();
    (2..=5).for_each(|id| _ = cache.admit(s(id), &burst).unwrap());
    for id in 2..=5 {
        cache.commit(s(id), burst.len()).unwrap();
    }
    (2..=5).for_each(|id| cache.free(s(id)).unwrap());
    assert_eq!(cache.stats().blocks_idle, 1_000 + 4 * 300);
    cache.validate().unwrap();
    // Takes all free blocks, and all copies but one.
    let blocks = 4_096 - 1_000 - 300;
    cache.allocate(s(9), blocks * BLOCK_SIZE).unwrap();
    assert_eq!(
        (cache.prefix().probe(&cache.prompt(&once)), cache.prefix().probe(&cache.prompt(&burst))),
        (4_000, 1_200)
    );
    cache.validate().unwrap();
    cache.allocate(s(10), BLOCK_SIZE).unwrap();
    assert_eq!(
        (cache.prefix().probe(&cache.prompt(&once)), cache.prefix().probe(&cache.prompt(&burst))),
        (3_996, 1_200)
    );
    assert_empties(&cache);
}
