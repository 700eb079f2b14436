//! Tests of reservations: reserved blocks are there when they are needed, and impossible requests are
//! refused by name.

mod common;

use common::{assert_empties, s};
use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError};

/// Creates a cache of blocks of four tokens, with the first two blocks of `tokens` cached and idle.
fn with_two_cached(num_blocks: usize, tokens: &[u32]) -> PagedKvCache {
    let cache = PagedKvCache::new(num_blocks, 4, 1, 1);
    cache.admit(s(9), &tokens[..9]).unwrap();
    assert_eq!(cache.commit(s(9), 9), Ok(2));
    cache.free(s(9)).unwrap();
    cache
}

#[test]
fn blocks_that_hit_leave_as_many_of_the_reservation() {
    let tokens: Vec<u32> = (0..22).collect();
    let cache = with_two_cached(16, &tokens);
    let mut room = cache.reserve(6).unwrap();
    let admitted = room.admit(&cache, s(1), &cache.prompt(&tokens), &AdmitOptions::default());
    let admission = admitted.unwrap();
    assert_eq!((admission.cached_tokens, admission.num_tokens), (8, 22));
    assert_eq!((room.num_blocks(), cache.used_block_count()), (2, 8));
    let sequence = cache.get_sequence(s(1)).unwrap();
    assert_eq!((sequence.num_tokens, sequence.block_ids.len()), (22, 6));
    room.shrink_to(1);
    assert_eq!((room.num_blocks(), cache.used_block_count()), (1, 7));
    room.shrink_to(5);
    assert_eq!(room.num_blocks(), 1, "it never grows");
    drop(room);
    assert_empties(&cache);
}

#[test]
fn an_admission_that_is_refused_takes_nothing_of_the_reservation() {
    let tokens: Vec<u32> = (0..9).collect();
    let cache = PagedKvCache::new(8, 4, 1, 1);
    let prompt = cache.prompt(&tokens);
    let mut room = cache.reserve(3).unwrap();
    cache.allocate(s(2), 1).unwrap();
    let options = AdmitOptions::default();
    let refused = room.admit(&cache, s(2), &prompt, &options);
    assert_eq!(refused.unwrap_err(), PagedKvError::SequenceExists(s(2)));
    assert_eq!(room.allocate(&cache, s(2), 4), Err(PagedKvError::SequenceExists(s(2))));
    let short = PagedKvError::OutOfMemory { requested: 4, available: 3 };
    assert_eq!(room.allocate(&cache, s(3), 13), Err(short));
    let other = PagedKvCache::new(8, 4, 1, 1);
    let refused = room.allocate(&other, s(1), 4);
    assert!(matches!(refused, Err(PagedKvError::WrongCache { .. })));
    assert_eq!((room.num_blocks(), cache.used_block_count()), (3, 4));
    let stats = cache.stats();
    assert_eq!((stats.total_allocations, stats.prompt_tokens), (4, 0));
    assert_eq!(room.allocate(&cache, s(3), 12), Ok(()), "all of it");
    assert_eq!((room.num_blocks(), cache.used_block_count()), (0, 4));
}

#[test]
fn a_refused_admission_counts_nothing_for_used_or_idle_matches() {
    let tokens: Vec<u32> = (0..22).collect();
    for is_in_use in [false, true] {
        let cache = with_two_cached(16, &tokens);
        if is_in_use {
            assert_eq!(cache.admit(s(1), &tokens[..9]).unwrap().cached_tokens, 8);
        }
        let mut room = cache.reserve(3).unwrap();
        let before = cache.stats();
        let refused = room.admit(&cache, s(2), &cache.prompt(&tokens), &AdmitOptions::default());
        assert_eq!(refused.unwrap_err(), PagedKvError::OutOfMemory { requested: 4, available: 3 });
        assert_eq!(cache.stats(), before);
        drop(room);
        assert_empties(&cache);
    }
}

/// A first chunk needs room for its new blocks and for its hits that no sequence uses.
#[test]
fn a_first_chunk_that_does_not_fit_is_refused_with_the_room_it_needs() {
    let tokens: Vec<u32> = (0..25).collect();
    let cache = PagedKvCache::new(6, 4, 1, 1);
    cache.admit(s(1), &tokens[..17]).unwrap();
    assert_eq!(cache.commit(s(1), 17), Ok(4));
    cache.free(s(1)).unwrap();
    cache.allocate(s(2), 1).unwrap();
    let before = cache.stats();
    let options = AdmitOptions::default().first_chunk(8);
    let refused = cache.admit_with(s(3), &cache.prompt(&tokens), &options);
    assert_eq!(refused.unwrap_err(), PagedKvError::OutOfMemory { requested: 6, available: 5 });
    assert_eq!(cache.stats(), before);
    let admission =
        cache.admit_with(s(3), &cache.prompt(&tokens), &options.first_chunk(4)).unwrap();
    assert_eq!((admission.cached_tokens, admission.num_tokens), (16, 20));
    assert_empties(&cache);
}
