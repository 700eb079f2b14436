//! Tests of prefix reuse, after vLLM's rules and the crate's own. They state which blocks may hit, which
//! are available and which are reclaimed first. They also cover truncation, forks, trims and resets of
//! cached blocks.

#[path = "../common/mod.rs"]
mod common;

mod hit_density;
mod model;
mod policy;
mod reference;
mod steps;

use common::{ALGORITHMS, assert_empties, lease_row, s, shapes, shapes_with};
use paged_kv::{
    AdmitOptions, BlockHash, EvictionStrategy, ExtraKeys, PagedKvCache, PagedKvError, Prompt,
};

/// Returns tokens that no other `prompt` has.
fn prompt(name: u32, num_tokens: usize) -> Vec<u32> {
    (0..num_tokens as u32).map(|position| name * 1_000 + position).collect()
}

/// Admits, computes and frees; its full blocks stay cached.
fn serve(cache: &PagedKvCache, tokens: &[u32]) -> usize {
    let admission = cache.admit(s(999), tokens).expect("there is room");
    cache.commit(s(999), tokens.len()).expect("it was just admitted");
    cache.free(s(999)).expect("it is not leased");
    admission.cached_tokens
}

#[test]
fn hits_are_whole_blocks_and_never_the_last_token() {
    for cache in shapes(16, 4) {
        for (num_tokens, cached) in [(12, 0), (12, 8), (13, 12), (11, 8), (9, 8), (8, 4), (4, 0)] {
            assert_eq!(
                cache.prefix().probe(&cache.prompt(&prompt(1, num_tokens))),
                cached,
                "{num_tokens} tokens"
            );
            assert_eq!(serve(&cache, &prompt(1, num_tokens)), cached, "{num_tokens} tokens");
        }
        assert_empties(&cache);
    }
}

#[test]
fn a_lookup_stops_at_the_first_miss() {
    for cache in shapes(16, 4) {
        serve(&cache, &prompt(1, 12));
        let mut other = prompt(1, 13);
        other[5] += 1;
        assert_eq!(cache.prefix().probe(&cache.prompt(&other)), 4);
        assert_empties(&cache);
    }
}

#[test]
fn nothing_is_published_before_it_is_committed_nor_beyond() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 12)).unwrap();
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 13))), 0);
        assert_eq!(cache.commit(s(1), 7), Ok(1));
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 13))), 4);
        assert_eq!(cache.commit(s(1), 7), Ok(0));
        assert_eq!(cache.commit(s(1), 12), Ok(2));
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 13))), 12);
        let refused = PagedKvError::CommitBeyondEnd { requested: 13, num_tokens: 12 };
        assert_eq!(cache.commit(s(1), 13), Err(refused));
        assert_empties(&cache);
    }
}

#[test]
fn a_commit_never_changes_a_table() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 12)).unwrap();
        cache.admit(s(2), &prompt(1, 12)).unwrap();
        let before = cache.get_sequence(s(2)).unwrap().block_ids;
        assert_eq!(cache.commit(s(1), 12), Ok(3));
        assert_eq!(cache.commit(s(2), 12), Ok(0), "one canonical block each");
        assert_eq!(cache.get_sequence(s(2)).unwrap().block_ids, before);
        assert_empties(&cache);
    }
}

#[test]
fn idle_blocks_are_room_and_uncached_ones_go_first() {
    for cache in shapes(6, 4) {
        serve(&cache, &prompt(1, 12));
        assert_eq!((cache.used_block_count(), cache.free_block_count()), (0, 6));
        assert_eq!(cache.stats().blocks_idle, 3);
        cache.allocate(s(1), 12).unwrap();
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 13))), 12, "three were free");
        cache.allocate(s(2), 12).unwrap();
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 13))), 0);
        assert_eq!(cache.stats().blocks_reclaimed, 3);
        assert_empties(&cache);
    }
}

#[test]
fn the_tail_goes_before_the_head_and_the_longest_unused_before_the_rest() {
    for cache in shapes(6, 4) {
        serve(&cache, &prompt(1, 12));
        serve(&cache, &prompt(2, 12));
        cache.allocate(s(1), 4).unwrap();
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&prompt(1, 13))),
                cache.prefix().probe(&cache.prompt(&prompt(2, 13)))
            ),
            (8, 12)
        );
        assert_eq!(serve(&cache, &prompt(1, 8)), 4); // used again: both its blocks
        cache.allocate(s(2), 12).unwrap();
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&prompt(1, 9))),
                cache.prefix().probe(&cache.prompt(&prompt(2, 13)))
            ),
            (8, 0)
        );
        assert_empties(&cache);
    }
}

#[test]
fn a_refused_admission_has_changed_nothing() {
    for cache in shapes(6, 4) {
        serve(&cache, &prompt(1, 12));
        serve(&cache, &prompt(2, 12));
        cache.allocate(s(1), 4).unwrap(); // five blocks are idle: two of 1, three of 2
        let before = cache.stats();
        let mut longer = prompt(1, 8);
        longer.extend(prompt(3, 16));
        let refused = PagedKvError::OutOfMemory { requested: 6, available: 5 };
        assert_eq!(cache.admit(s(2), &longer), Err(refused));
        assert_eq!(cache.stats(), before);
        cache.allocate(s(2), 8).unwrap();
        assert_eq!(
            cache.prefix().probe(&cache.prompt(&prompt(1, 9))),
            0,
            "1 was still the longest unused"
        );
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(2, 13))), 12);
        assert_empties(&cache);
    }
}

#[test]
fn a_request_never_reclaims_the_blocks_it_matches() {
    for cache in shapes(4, 4) {
        serve(&cache, &prompt(1, 16));
        let mut longer = prompt(1, 8);
        longer.extend(prompt(2, 8));
        assert_eq!(cache.admit(s(1), &longer).unwrap().cached_tokens, 8);
        assert_eq!(cache.used_block_count(), 4);
        assert_empties(&cache);
    }
}

#[test]
fn salts_and_adapters_keep_contents_apart() {
    for &algorithm in ALGORITHMS {
        for cache in shapes_with(32, 4, |builder| builder.hash_algorithm(algorithm)) {
            let extras = [
                ExtraKeys::default(),
                ExtraKeys::default().salt("a"),
                ExtraKeys::default().salt("b"),
                ExtraKeys::default().lora("a", "/a"),
            ];
            for (number, extra) in extras.iter().enumerate() {
                let asked = cache.prompt_with(&prompt(1, 9), extra);
                assert_eq!(cache.prefix().probe(&asked), 0);
                let (mut sequence, _) =
                    cache.admit_sequence(&asked, &AdmitOptions::default()).unwrap();
                assert_eq!(sequence.commit(9), Ok(2), "{number}");
                assert_eq!(cache.prefix().probe(&asked), 8);
            }
            assert_empties(&cache);
        }
    }
}

#[test]
fn drafts_are_never_named() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 6)).unwrap();
        cache.commit(s(1), 6).unwrap();
        drop(cache.append(s(1), 5).unwrap()); // drafts
        assert_eq!(cache.commit(s(1), &[70, 71]), Ok(1)); // accepted
        cache.truncate(s(1), 8).unwrap();
        drop(cache.append(s(1), 4).unwrap());
        assert_eq!(cache.commit(s(1), &[80, 81, 82, 83]), Ok(1));
        let mut said = prompt(1, 6);
        said.extend([70, 71, 80, 81, 82, 83, 0]);
        assert_eq!(cache.prefix().probe(&cache.prompt(&said)), 12);
        assert!(cache.commit(s(1), &[0]).is_err(), "it has no slot");
        assert_empties(&cache);
    }
}

#[test]
fn truncation_into_a_cached_block_copies_it_and_forgets_its_tokens() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 8)).unwrap();
        cache.commit(s(1), 8).unwrap();
        cache.truncate(s(1), 6).unwrap();
        let append = cache.append_tokens(s(1), &[5, 6]).unwrap();
        assert!(append.copy.is_some(), "the block may be matched by others");
        drop(append);
        assert_eq!(
            cache.prefix().probe(&cache.prompt(&prompt(1, 9))),
            8,
            "what was published stays"
        );
        let mut other = prompt(1, 6);
        other.extend([5, 6, 0]);
        assert_eq!(cache.prefix().probe(&cache.prompt(&other)), 8);
        assert_empties(&cache);
    }
}

#[test]
fn a_fork_goes_on_by_itself() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 6)).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        drop(cache.append_tokens(s(1), &[1, 1]).unwrap());
        drop(cache.append_tokens(s(2), &[2, 2]).unwrap());
        for token in [1, 2] {
            let mut said = prompt(1, 6);
            said.extend([token, token, 0]);
            assert_eq!(cache.prefix().probe(&cache.prompt(&said)), 8);
        }
        assert_empties(&cache);
    }
}

#[test]
fn nothing_behind_a_trim_is_published() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 32)).unwrap();
        cache.apply_streaming_llm(s(1), 4, 8).unwrap();
        assert_eq!(cache.commit(s(1), 32), Ok(1), "the sink");
        drop(cache.append_tokens(s(1), &prompt(2, 8)).unwrap());
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 33))), 4);
        assert_empties(&cache);
    }
}

#[test]
fn a_late_commit_of_an_evicted_request_publishes_nothing() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 8)).unwrap();
        let mut late = lease_row(&cache, s(1));
        assert_eq!(cache.evict(), Ok(s(1)));
        cache.admit(s(1), &prompt(2, 8)).unwrap();
        let mut now = lease_row(&cache, s(1));
        let mut step = cache.step(Default::default());
        let gone = Err(PagedKvError::SequenceNotFound(s(1)));
        assert_eq!(step.commit(&mut late, 8), gone);
        assert_eq!(step.complete().published, 0);
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&prompt(1, 9))),
                cache.prefix().probe(&cache.prompt(&prompt(2, 9)))
            ),
            (0, 0)
        );
        let mut step = cache.step(Default::default());
        assert_eq!(step.commit(&mut now, 8), Ok(2));
        assert_eq!(step.commit(&mut late, &[7]), gone);
        assert_eq!(step.complete().published, 2);
        assert_eq!(
            (
                cache.prefix().probe(&cache.prompt(&prompt(1, 9))),
                cache.prefix().probe(&cache.prompt(&prompt(2, 9)))
            ),
            (0, 8)
        );
        assert_empties(&cache);
    }
}

#[test]
fn a_reset_leaves_running_requests_their_blocks() {
    for cache in shapes(16, 4) {
        serve(&cache, &prompt(1, 8));
        cache.admit(s(1), &prompt(1, 9)).unwrap();
        cache.prefix().reset();
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 9))), 0);
        assert_eq!(cache.commit(s(1), 9), Ok(0), "of old weights");
        assert_eq!(serve(&cache, &prompt(1, 9)), 0);
        assert_eq!(serve(&cache, &prompt(1, 9)), 8, "of new ones");
        assert_empties(&cache);
    }
}

#[test]
fn contents_committed_after_a_reset_are_not_kept() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &prompt(1, 9)).unwrap();
        let other = cache.prompt(&prompt(2, 9));
        let (mut sequence, _) = cache.admit_sequence(&other, &AdmitOptions::default()).unwrap();
        let mut step = cache.step(Default::default());
        assert_eq!(step.commit(&mut sequence, 9), Ok(2));
        cache.prefix().reset();
        assert_eq!(cache.commit(s(1), 9), Ok(0), "none of it can be matched");
        assert_eq!(step.complete().published, 0);
        drop(sequence);
        cache.free(s(1)).unwrap();
        assert_eq!(cache.stats().blocks_idle, 0, "what cannot be matched is free");
        assert_empties(&cache);
    }
}

#[test]
fn chunks_hits_and_priorities_are_as_asked() {
    for cache in shapes_with(16, 4, |builder| {
        builder.with_eviction_strategy(EvictionStrategy::Priority { levels: 4 })
    }) {
        serve(&cache, &prompt(1, 16));
        let options = AdmitOptions::default().first_chunk(5).max_cached_tokens(9).priority(2);
        let admission = cache.admit_with(s(1), &cache.prompt(&prompt(1, 40)), &options).unwrap();
        assert_eq!((admission.cached_tokens, admission.num_tokens), (8, 13));
        assert_eq!(cache.get_sequence(s(1)).unwrap().priority, 2);
        drop(cache.append(s(1), 27).unwrap());
        assert_eq!(cache.commit(s(1), 40), Ok(6), "two of eight hit, two are cached elsewhere");
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(1, 41))), 40);
        assert_empties(&cache);
    }
}

#[test]
fn callers_may_hash_themselves() {
    let hashes: Vec<BlockHash> = (1..=3).map(BlockHash::from_u128).collect();
    for cache in shapes(16, 4) {
        cache
            .admit_with(s(1), &Prompt::from_hashes(&hashes[..2], 12), &AdmitOptions::default())
            .unwrap();
        let unknown = PagedKvError::HashesUnknown { known: 8, requested: 12 };
        assert_eq!(cache.commit(s(1), 12), Err(unknown), "the third has no hash");
        assert_eq!(cache.commit(s(1), 8), Ok(2));
        assert_eq!(
            cache
                .admit_with(s(2), &Prompt::from_hashes(&hashes, 12), &AdmitOptions::default())
                .unwrap()
                .cached_tokens,
            8
        );
        assert!(
            cache
                .admit_with(s(3), &Prompt::from_hashes(&hashes, 11), &AdmitOptions::default())
                .is_err()
        );
        assert_empties(&cache);
    }
}

#[test]
fn statistics_count_tokens_asked_hit_and_too_short() {
    for cache in shapes(16, 4) {
        serve(&cache, &prompt(1, 12));
        serve(&cache, &prompt(1, 13));
        serve(&cache, &prompt(2, 4));
        assert!(cache.admit(s(1), &prompt(3, 1_000)).is_err());
        let stats = cache.stats();
        assert_eq!(
            (stats.prompt_tokens, stats.prompt_tokens_hit, stats.prompt_tokens_too_short),
            (29, 12, 4)
        );
        assert_empties(&cache);
    }
}

#[test]
fn an_empty_prompt_is_an_empty_sequence() {
    for cache in shapes(4, 4) {
        assert_eq!(cache.admit(s(1), &[]).unwrap().num_tokens, 0);
        drop(cache.append_tokens(s(1), &[1, 2, 3, 4]).unwrap());
        assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
        assert_empties(&cache);
    }
}

#[test]
fn with_room_for_everything_nothing_is_ever_forgotten() {
    let cache = PagedKvCache::new(20_000, 4, 1, 1);
    for name in 0..900 {
        assert_eq!(serve(&cache, &prompt(name, 80)), 0);
    }
    for name in 0..900 {
        assert_eq!(cache.prefix().probe(&cache.prompt(&prompt(name, 81))), 80);
    }
    assert_empties(&cache);
}
