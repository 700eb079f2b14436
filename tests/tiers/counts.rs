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

#[test]
fn the_sources_of_a_prompts_tokens_are_counted() {
    let cache = cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let wanted = prompt(&cache, 1, 5);
    let sequence = computed(&cache, &wanted);
    stored(cache.tiers().store(DISK, wanted.hashes()).unwrap().expect("five contents"));
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    // From the disk to the host, without the device.
    let up = cache.tiers().store(HOST, &wanted.hashes()[..2]).unwrap().expect("two contents");
    assert_eq!(stored(up), 2);
    let first = prompt(&cache, 1, 1);
    drop(loaded(loading(&cache, &first)));
    let load = loading(&cache, &wanted);
    assert!(matches!(crate::admit(&cache, &wanted), paged_kv::TierAdmission::Pending));
    assert_eq!(cache.stats().contents_in_flight, 4);
    drop(loaded(load));
    let (stats, bytes) = (cache.stats(), cache.block_memory_bytes() as u64);
    let [host, disk] = stats.tiers[..] else { panic!("two tiers") };
    assert_eq!((host.blocks_stored, host.blocks_stored_from_tiers, host.blocks_loaded), (2, 2, 2));
    assert_eq!((disk.blocks_stored, disk.blocks_stored_from_tiers, disk.blocks_loaded), (5, 0, 3));
    assert_eq!((host.bytes_stored, host.bytes_loaded), (2 * bytes, 2 * bytes));
    assert_eq!((disk.bytes_stored, disk.bytes_loaded), (5 * bytes, 3 * bytes));
    // Computed in all, then one block loaded, then one hit and four loaded; one token of each prompt is never cached.
    assert_eq!((stats.prompt_tokens, stats.prompt_tokens_hit), (21 + 5 + 21, 4));
    assert_eq!((host.prompt_tokens_loaded, disk.prompt_tokens_loaded), (8, 12));
    assert_eq!(stats.prompt_tokens_computed(), 21 + 1 + 1);
    assert_eq!((stats.admissions_pending, stats.contents_in_flight), (1, 0));
}

#[test]
fn slots_and_blocks_in_quarantine_are_counted_where_they_are() {
    let cache = cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let (first, second) = (prompt(&cache, 1, 3), prompt(&cache, 2, 2));
    put(&cache, HOST, &first);
    let sequence = computed(&cache, &second);
    let store = cache.tiers().store(DISK, second.hashes()).unwrap().expect("two contents");
    let load = loading(&cache, &first);
    let numbers = [store.number(), load.number()];
    store.complete(&[Done, Failed]).unwrap();
    drop(load.complete(&[Done, Failed, Failed]).unwrap());
    let stats = cache.stats();
    let in_tiers = stats.tiers.iter().map(|tier| tier.slots_quarantined).collect::<Vec<_>>();
    assert_eq!((stats.blocks_quarantined, in_tiers), (2, vec![0, 1]));
    assert_eq!(numbers.map(|number| cache.tiers().quiesced(number)), [1, 2]);
    drop(sequence);
    assert_at_rest(&cache);
}

#[test]
fn contents_from_before_a_reset_are_not_ready() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let (old, new) = (prompt(&cache, 1, 5), prompt(&cache, 2, 2));
    put(&cache, HOST, &old);
    assert_eq!(cache.stats().tiers[0].slots_ready, 5);
    cache.prefix().reset();
    assert_eq!(cache.stats().tiers[0].slots_ready, 0);
    put(&cache, HOST, &new);
    assert_eq!(cache.stats().tiers[0].slots_ready, 2);
}
