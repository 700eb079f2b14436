//! Tests of the builder: each parameter of a cache takes effect, and values without meaning are refused.

mod common;

use std::sync::Arc;

use common::{ALGORITHMS, assert_empties, s};
use paged_kv::{
    AdmitOptions, EventSink, KvEvent, PagedKvCache, PagedKvCacheBuilder, PagedKvError, Watermark,
};

/// Returns the builder of eight blocks of four tokens.
fn eight_blocks() -> PagedKvCacheBuilder {
    PagedKvCache::builder().num_blocks(8).block_size(4)
}

fn refusal(builder: PagedKvCacheBuilder) -> PagedKvError {
    builder.build().expect_err("the parameters make no sense")
}

#[test]
fn new_sequences_leave_the_watermark() {
    let share = || eight_blocks().watermark(Watermark::Share(0.3)); // 2.4 of 8 blocks: 3
    for cache in [eight_blocks().watermark(Watermark::Blocks(3)), share()]
        .map(|builder| builder.build().unwrap())
    {
        let short = PagedKvError::OutOfMemory { requested: 6, available: 5 };
        let prompt = cache.prompt(&[7; 24]);
        let options = AdmitOptions::default();
        assert_eq!(cache.allocate(s(1), 24), Err(short.clone()));
        assert_eq!(cache.admit_with(s(1), &prompt, &options).unwrap_err(), short);
        assert_eq!(cache.reserve(6).unwrap_err(), short);
        cache.allocate(s(1), 20).unwrap();
        let none_left = PagedKvError::OutOfMemory { requested: 1, available: 0 };
        assert_eq!(cache.allocate_sequence(1).unwrap_err(), none_left);
        assert_eq!(cache.allocate(s(2), 0), Ok(()), "what needs no room asks for none");
        // Running sequences may grow below the watermark, up to the last block.
        assert_eq!(cache.append(s(1), 12).unwrap().new_blocks, 5..8);
        assert_empties(&cache);
    }
}

#[test]
fn a_refusal_by_the_watermark_reclaims_no_contents() {
    let cache = eight_blocks().watermark(Watermark::Blocks(2)).build().unwrap();
    let tokens: Vec<u32> = (0..21).collect();
    cache.admit(s(1), &tokens).unwrap();
    assert_eq!(cache.commit(s(1), 21), Ok(5));
    cache.free(s(1)).unwrap();
    let before = cache.stats();
    let short = PagedKvError::OutOfMemory { requested: 7, available: 6 };
    assert_eq!(cache.allocate(s(2), 28), Err(short.clone()));
    assert_eq!(cache.reserve(7).unwrap_err(), short);
    assert_eq!((cache.prefix().probe(&cache.prompt(&tokens)), cache.stats()), (20, before));
    assert_empties(&cache);
}

#[test]
fn a_watermark_that_leaves_nothing_is_refused() {
    let refused = |parameter, reason: &str| PagedKvError::InvalidConfig {
        parameter,
        reason: reason.to_owned(),
    };
    let none_left = "8 of 8 blocks, which leaves none to come in";
    assert_eq!(
        refusal(eight_blocks().watermark(Watermark::Blocks(8))),
        refused("watermark", none_left)
    );
    assert_eq!(
        refusal(eight_blocks().watermark(Watermark::Share(1.0))),
        refused("watermark", none_left)
    );
    assert!(eight_blocks().watermark(Watermark::Blocks(7)).build().is_ok());
    for share in [-0.1, 1.1, f64::NAN] {
        let expected = format!("{share} is not in 0..=1");
        assert_eq!(
            refusal(eight_blocks().watermark(Watermark::Share(share))),
            refused("watermark", &expected)
        );
    }
}

#[test]
fn a_cache_without_prefix_reuse_matches_nothing() {
    let tokens = [7; 9];
    for (builder, cached) in [(eight_blocks(), 8), (eight_blocks().prefix_reuse(false), 0)] {
        let cache = builder.build().unwrap();
        cache.admit(s(1), &tokens).unwrap();
        let published = cache.commit(s(1), 9).unwrap();
        assert_eq!((published * 4, cache.prefix().probe(&cache.prompt(&tokens))), (cached, cached));
        assert_empties(&cache);
    }
}

#[test]
fn prompts_are_hashed_by_the_algorithm_asked_for() {
    let hashes = |builder: PagedKvCacheBuilder| {
        let cache = builder.build().unwrap();
        cache.prompt(&[7; 9]).hashes().to_vec()
    };
    let of = |&algorithm| hashes(eight_blocks().hash_algorithm(algorithm));
    let all: Vec<_> = ALGORITHMS.iter().map(of).collect();
    for (at, of_one) in all.iter().enumerate() {
        assert_eq!(of_one.len(), 2);
        assert!(all[..at].iter().all(|other| other != of_one), "{at} is as another");
    }
}

struct Deaf;

impl EventSink for Deaf {
    fn on_event(&self, _: &KvEvent<'_>) {}
}

#[test]
fn a_printed_builder_states_whether_it_has_an_event_sink() {
    assert!(format!("{:?}", eight_blocks()).contains("event_sink: None"));
    let heard = eight_blocks().event_sink(Arc::new(Deaf));
    assert!(format!("{heard:?}").contains("event_sink: Some(EventSink { .. })"));
}
