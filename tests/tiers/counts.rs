//! Tests of prompts whose contents are in two tiers by turns, or are equal, and of the counts of copies.

use paged_kv::{BlockHash, CopyOutcome, Prompt, Tier};

use crate::{
    AdmitOptions, DISK, HOST, assert_at_rest, cache_of, computed, loaded, loading, prompt, put,
    stored,
};

use CopyOutcome::{Done, Failed};

/// Contents of one prompt lie in both tiers by turns.
#[test]
fn each_copy_counts_once_though_the_tiers_alternate() {
    let cache = cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let wanted = prompt(&cache, 1, 5);
    let sequence = computed(&cache, &wanted);
    for (at, hash) in wanted.hashes().iter().enumerate() {
        let tier = if at % 2 == 0 { HOST } else { DISK };
        let store = cache.tiers().store(tier, &[*hash]).unwrap();
        assert_eq!(stored(store.expect("it is on the device")), 1);
    }
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    let load = loading(&cache, &wanted);
    let tiers: Vec<_> = load.loads().iter().map(|load| load.src.tier).collect();
    assert_eq!(tiers, [HOST, DISK, HOST, DISK, HOST]);
    drop(loaded(load));
    let counts = |tier: usize| {
        let stats = &cache.stats().tiers[tier];
        (stats.blocks_stored, stats.blocks_loaded, stats.copies_failed)
    };
    assert_eq!((counts(0), counts(1)), ((3, 3, 0), (2, 2, 0)));

    cache.prefix().forget(usize::MAX);
    let load = loading(&cache, &wanted);
    let number = load.number();
    drop(load.complete(&[Done, Done, Failed, Failed, Done]).unwrap());
    assert_eq!((counts(0), counts(1)), ((3, 4, 1), (2, 3, 1)), "the last one did not fail");
    assert_eq!(cache.tiers().quiesced(number), 2);
    assert_at_rest(&cache);
}

/// A caller that hashes blocks itself may give equal hashes.
#[test]
fn a_prompt_of_equal_contents_is_loaded_and_waits_for_no_other() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let hashes = [7, 7, 8].map(BlockHash::from_u128);
    let wanted = Prompt::from_hashes(&hashes, 13);
    let sequence = computed(&cache, &wanted);
    assert_eq!(stored(cache.tiers().store(HOST, &hashes).unwrap().expect("two contents")), 2);
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    let load = loading(&cache, &wanted);
    drop(loaded(load));
    assert_eq!(cache.prefix().probe(&wanted), 12);
    assert_at_rest(&cache);
}

#[test]
fn an_admission_that_is_refused_holds_no_slot() {
    let cache = cache_of(4, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 3);
    put(&cache, HOST, &wanted);
    let held = cache.allocate_sequence(4).unwrap();
    let before = cache.stats();
    let refused = cache.tiers().admit(&wanted, &AdmitOptions::default(), Default::default());
    assert!(refused.is_err());
    assert_eq!(cache.stats().tiers, before.tiers);
    drop(held);
    assert_eq!(loading(&cache, &wanted).loads().len(), 3);
}
