//! The rules of tiers, in the order of the numbers that `main` names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paged_kv::{
    AdmitOptions, BlockId, CopyOutcome, EventSink, KvEvent, LoadLimit, Medium, PagedKvCache, Tier,
    TierAdmission,
};

use crate::{
    BLOCK_SIZE, DISK, HOST, admit, assert_at_rest, cache_of, computed, loaded, loading, prompt,
    put, stored, storing,
};

use CopyOutcome::{Done, Failed};

/// Rule 1.
#[test]
fn a_content_is_missing_pending_or_ready_and_only_a_ready_one_is_pinned() {
    let cache = cache_of(16, &[Tier::host(2)]);
    let wanted = prompt(&cache, 1, 2);
    let sequence = computed(&cache, &wanted);
    let store = storing(&cache, HOST, &wanted);
    drop(sequence);
    // The device loses the contents while they are copied: by a reset they would be lost in the tier too.
    cache.prefix().uncache(
        &store.stores().iter().map(|store| store.src.block().unwrap()).collect::<Vec<_>>(),
    );
    assert_eq!(cache.tiers().lookup(&wanted), [0, 0]);
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Pending));
    assert_eq!(stored(store), 2);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 8]);
    let load = loading(&cache, &wanted);
    // Pinned since the look-up: no other content gets these slots.
    let other = prompt(&cache, 2, 1);
    let held = computed(&cache, &other);
    assert!(cache.tiers().store(HOST, other.hashes()).unwrap().is_none());
    assert_eq!(cache.stats().tiers[0].stores_dropped, 1);
    drop((loaded(load), held));
    cache.prefix().forget(usize::MAX);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 8]);
    assert!(matches!(admit(&cache, &other), TierAdmission::Ready(..)), "missing");
    assert_at_rest(&cache);
}

/// Rule 1: a store to another tier takes nothing from a load.
#[test]
fn a_content_that_is_stored_in_the_next_tier_can_be_loaded_meanwhile() {
    let cache = cache_of(16, &[Tier::host(4), Tier::disk(4)]);
    let wanted = prompt(&cache, 1, 3);
    put(&cache, HOST, &wanted);
    let store = storing(&cache, DISK, &wanted);
    let load = loading(&cache, &wanted);
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Pending), "one load a content");
    let sequence = loaded(load);
    assert!(cache.tiers().store(DISK, wanted.hashes()).unwrap().is_none(), "one store a content");
    assert_eq!(stored(store), 3);
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    let load = loading(&cache, &wanted);
    assert!(cache.tiers().store(DISK, wanted.hashes()).unwrap().is_none(), "it has them");
    drop(loaded(load));
    assert_at_rest(&cache);
}

/// Rule 2.
#[test]
fn a_ticket_that_is_dropped_or_reports_too_few_copies_has_copied_nothing() {
    for drops in [false, true] {
        let cache = cache_of(16, &[Tier::host(8)]);
        let wanted = prompt(&cache, 1, 3);
        let sequence = computed(&cache, &wanted);
        let store = storing(&cache, HOST, &wanted);
        let number = store.number();
        match drops {
            true => drop(store),
            false => assert!(store.complete(&[Done; 2]).is_err()),
        }
        drop(sequence);
        cache.prefix().forget(usize::MAX);
        assert_eq!(cache.tiers().lookup(&wanted), [0, 0]);
        assert_eq!(cache.tiers().quiesced(number), 3);
        put(&cache, HOST, &wanted);

        let load = loading(&cache, &wanted);
        let number = load.number();
        match drops {
            true => drop(load),
            false => assert!(load.complete(&[Done; 4]).is_err()),
        }
        assert_eq!(cache.tiers().lookup(&wanted), [0, 12], "not on the device");
        assert_eq!((cache.used_block_count(), cache.tiers().quiesced(number)), (3, 3));
        assert_eq!(cache.stats().tiers[0].copies_failed, 6);
        assert_at_rest(&cache);
    }
}

/// Rule 3.
#[test]
fn the_source_of_a_store_gets_no_other_content_until_the_ticket_is_settled() {
    let cache = cache_of(4, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 2);
    drop(computed(&cache, &wanted));
    let store = storing(&cache, HOST, &wanted);
    let sources: Vec<BlockId> =
        store.stores().iter().map(|store| store.src.block().unwrap()).collect();
    cache.prefix().reset();
    let mut taken = cache.allocate_sequence(2 * BLOCK_SIZE).unwrap();
    assert!(taken.append(1).is_err(), "the ticket has the other two blocks");
    assert!(taken.block_ids().iter().all(|block| !sources.contains(block)));
    drop(store);
    assert!(taken.append(1).is_ok());
}

/// Rule 3, for a content that a step is about to overwrite.
#[test]
fn an_overwritten_source_stays_though_its_row_and_its_step_end() {
    let cache = cache_of(2, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 1);
    drop(computed(&cache, &wanted));
    cache.prefix().forget_prompt(&prompt(&cache, 2, 1)).unwrap();
    let mut rows = [(cache.allocate_sequence(0).unwrap(), 2 * BLOCK_SIZE)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let store = cache.tiers().store_overwritten(HOST, &step).unwrap().expect("one content");
    let source = store.stores()[0].src.block().unwrap();
    assert_eq!(step.overwritten()[0].block, source);
    drop((rows, step));
    assert_eq!(cache.used_block_count(), 1, "the ticket alone has the block");
    assert!(!cache.allocate_sequence(BLOCK_SIZE).unwrap().block_ids().contains(&source));
    assert_eq!(stored(store), 1);
    assert_eq!(cache.tiers().lookup(&wanted), [0, BLOCK_SIZE]);
    assert_at_rest(&cache);
}

/// Rule 4.
#[test]
fn a_failed_load_keeps_the_blocks_before_the_first_failure() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 4);
    put(&cache, HOST, &wanted);
    let load = loading(&cache, &wanted);
    assert_eq!(cache.prefix().probe(&wanted), 0, "not published before it is settled");
    let (number, second) = (load.number(), load.loads()[1].dst);
    let mut loaded = load.complete(&[Done, Failed, Done, Done]).unwrap();
    assert_eq!((loaded.admission.cached_tokens, loaded.admission.num_tokens), (4, 4));
    assert_eq!((loaded.loaded_tokens, loaded.failed_blocks), (4, 1));
    assert_eq!(loaded.sequence.num_tokens(), 4);
    assert_eq!(cache.prefix().probe(&wanted), 4, "no block behind the failure is published");
    assert_eq!(cache.stats().blocks_quarantined, 1);
    // The request computes the rest, and a second request finds it.
    let _ = loaded.sequence.append(wanted.num_tokens() - 4).unwrap();
    assert!(!loaded.sequence.block_ids().contains(&second), "it may still be written");
    assert_eq!(loaded.sequence.commit(wanted.num_tokens()).unwrap(), 3);
    assert_eq!(cache.prefix().probe(&wanted), 16);
    assert_eq!(cache.tiers().quiesced(number), 1);
    drop(loaded);
    assert_at_rest(&cache);
}

/// Rule 5.
#[test]
fn blocks_of_failed_copies_get_no_other_content_until_the_mover_is_quiet() {
    let cache = cache_of(4, &[Tier::host(3)]);
    let (wanted, other) = (prompt(&cache, 1, 2), prompt(&cache, 2, 2));
    put(&cache, HOST, &wanted);
    let load = loading(&cache, &wanted);
    let (of_load, blocks) = (load.number(), load.loads().to_vec());
    drop(load);
    let sequence = cache.allocate_sequence(2 * BLOCK_SIZE).unwrap();
    assert!(blocks.iter().all(|load| !sequence.block_ids().contains(&load.dst)));
    assert!(cache.allocate_sequence(1).is_err(), "two blocks are in quarantine");
    assert_eq!(cache.tiers().quiesced(of_load), 2);
    drop(sequence);

    drop(computed(&cache, &other));
    let store = storing(&cache, HOST, &other);
    let (of_store, slots) = (store.number(), store.stores().to_vec());
    assert_eq!(store.complete(&[Failed, Done]).unwrap(), 1);
    // One slot is in quarantine; the others may be taken.
    let third = prompt(&cache, 3, 2);
    cache.prefix().forget(usize::MAX);
    drop(computed(&cache, &third));
    let store = storing(&cache, HOST, &third);
    assert!(store.stores().iter().all(|store| store.dst != slots[0].dst));
    stored(store);
    assert_eq!((cache.tiers().quiesced(of_store), cache.tiers().quiesced(of_store)), (1, 0));
    assert_at_rest(&cache);
}

/// Rule 5: the quarantine is bounded.
#[test]
#[cfg_attr(miri, ignore = "thousands of blocks: minutes under an interpreter")]
fn a_full_quarantine_lets_no_ticket_be_made() {
    let cache = cache_of(5_000, &[Tier::host(5_000)]);
    let (few, many) = (prompt(&cache, 900, 1), prompt(&cache, 1, 4_096));
    put(&cache, HOST, &few);
    drop(computed(&cache, &many));
    let store = storing(&cache, HOST, &many);
    let number = store.number();
    drop(store);
    assert!(cache.tiers().store(HOST, many.hashes()).unwrap().is_none());
    assert!(matches!(admit(&cache, &few), TierAdmission::Ready(..)), "computed anew");
    assert_eq!(cache.tiers().quiesced(number), 4_096);
    drop(storing(&cache, HOST, &many));
    cache.prefix().forget(usize::MAX);
    cache.tiers().quiesced(paged_kv::TicketNumber(number.0 + 2));
    let load = loading(&cache, &few);
    drop(loaded(load));
}

/// Rule 6.
#[test]
fn a_store_takes_all_its_slots_or_none_and_gives_up_no_content_that_it_names() {
    let cache = cache_of(16, &[Tier::host(3)]);
    let wanted = prompt(&cache, 1, 4);
    let sequence = computed(&cache, &wanted);
    assert!(cache.tiers().store(HOST, wanted.hashes()).unwrap().is_none(), "three slots for four");
    assert_eq!(cache.stats().tiers[0].slots_used, 0);
    assert_eq!(stored(cache.tiers().store(HOST, &wanted.hashes()[..3]).unwrap().unwrap()), 3);
    // Only contents of this call could be given up for the fourth.
    assert!(cache.tiers().store(HOST, wanted.hashes()).unwrap().is_none());
    assert_eq!(cache.stats().tiers[0].stores_dropped, 4 + 1);
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 12]);
    assert_at_rest(&cache);
}

/// Rule 7.
#[test]
fn the_tail_of_a_chain_leaves_a_tier_before_its_head() {
    for is_overwritten in [false, true] {
        let cache = cache_of(4, &[Tier::host(4)]);
        let (first, second) = (prompt(&cache, 1, 3), prompt(&cache, 2, 2));
        if is_overwritten {
            drop(computed(&cache, &first));
            let mut rows = [(cache.allocate_sequence(0).unwrap(), 4 * BLOCK_SIZE)];
            let mut step = cache.step(Default::default());
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            let store = cache.tiers().store_overwritten(HOST, &step).unwrap();
            assert_eq!(stored(store.expect("three contents")), 3);
            drop((rows, step));
        } else {
            put(&cache, HOST, &first);
        }
        assert_eq!(cache.tiers().lookup(&first), [0, 12]);
        put(&cache, HOST, &second);
        assert_eq!(cache.tiers().lookup(&first), [0, 8], "overwritten: {is_overwritten}");
        assert_eq!(cache.tiers().lookup(&second), [0, 8]);
    }
}

/// Rule 8.
#[test]
fn contents_are_stored_when_the_caller_says_so_and_when_they_are_overwritten() {
    let cache = cache_of(3, &[Tier::host(8)]);
    let (eager, lazy) = (prompt(&cache, 1, 1), prompt(&cache, 2, 1));
    let held = computed(&cache, &eager);
    assert_eq!(stored(storing(&cache, HOST, &eager)), 1);
    drop(held);
    cache.prefix().forget(usize::MAX);
    drop(computed(&cache, &lazy));
    let mut rows = [(cache.allocate_sequence(0).unwrap(), 3 * BLOCK_SIZE)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(step.overwritten()[0].hash, lazy.hashes()[0]);
    assert_eq!(stored(cache.tiers().store_overwritten(HOST, &step).unwrap().unwrap()), 1);
    assert!(cache.tiers().store_overwritten(HOST, &step).unwrap().is_none(), "once");
    assert_eq!(cache.tiers().lookup(&eager), [0, 4]);
    assert_eq!(cache.tiers().lookup(&lazy), [0, 4]);
}

/// Rule 9.
#[test]
fn a_loaded_content_leaves_an_exclusive_tier_and_stays_in_an_inclusive_one() {
    for (tier, left) in [(Tier::host(8), 8), (Tier::host(8).exclusive(), 0)] {
        let cache = cache_of(16, &[tier]);
        let wanted = prompt(&cache, 1, 2);
        put(&cache, HOST, &wanted);
        let sequence = loaded(loading(&cache, &wanted));
        assert_eq!(cache.tiers().lookup(&wanted), [8, 0]);
        drop(sequence);
        cache.prefix().forget(usize::MAX);
        assert_eq!(cache.tiers().lookup(&wanted), [0, left]);
        assert_at_rest(&cache);
    }
    // A content whose copy failed stays, and so do those behind it.
    let cache = cache_of(16, &[Tier::host(8).exclusive()]);
    let wanted = prompt(&cache, 1, 3);
    put(&cache, HOST, &wanted);
    let load = loading(&cache, &wanted);
    let number = load.number();
    drop(load.complete(&[Done, Failed, Done]).unwrap());
    assert_eq!(cache.tiers().quiesced(number), 1);
    assert_eq!(cache.tiers().lookup(&wanted), [4, 8]);
}

/// Rule 10.
#[test]
fn after_a_reset_nothing_is_found_and_late_copies_change_nothing() {
    let cache = cache_of(16, &[Tier::host(4), Tier::disk(4)]);
    let (in_tier, late) = (prompt(&cache, 1, 2), prompt(&cache, 2, 2));
    put(&cache, DISK, &in_tier);
    put(&cache, HOST, &in_tier);
    drop(computed(&cache, &late));
    let (store, load) = (storing(&cache, HOST, &late), loading(&cache, &in_tier));
    cache.prefix().reset();
    for asked in [&in_tier, &late] {
        assert_eq!(cache.tiers().lookup(asked), [0, 0, 0]);
    }
    assert_eq!(cache.stats().tiers[0].slots_used, 4, "slots stay until their copies end");
    assert_eq!(stored(store), 2, "copied, but of the weights before");
    drop(loaded(load));
    for asked in [&in_tier, &late] {
        assert_eq!(cache.tiers().lookup(asked), [0, 0, 0]);
        assert!(matches!(admit(&cache, asked), TierAdmission::Ready(..)));
    }
    // All slots serve the new contents.
    put(&cache, HOST, &prompt(&cache, 3, 4));
    assert_at_rest(&cache);
}

#[derive(Debug, Default)]
struct StoredCount(AtomicUsize);

impl EventSink for StoredCount {
    fn on_event(&self, event: &KvEvent<'_>) {
        if let KvEvent::BlockStored { hashes, medium: Medium::Device, .. } = event {
            self.0.fetch_add(hashes.len(), Ordering::Relaxed);
        }
    }
}

/// Rule 12, of which [`events`](crate::events) has the rest.
#[test]
fn a_loaded_content_is_reported_as_stored_on_the_device_once_it_is_settled() {
    let count = Arc::<StoredCount>::default();
    let builder = PagedKvCache::builder().num_blocks(16).block_size(BLOCK_SIZE);
    let builder = builder.tier(Tier::host(8)).event_sink(count.clone());
    let cache = builder.build().unwrap();
    let wanted = prompt(&cache, 1, 3);
    put(&cache, HOST, &wanted);
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    let load = loading(&cache, &wanted);
    let number = load.number();
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    drop(load.complete(&[Done, Done, Failed]).unwrap());
    assert_eq!(count.0.load(Ordering::Relaxed), 5);
    cache.tiers().quiesced(number);
}

/// Rule 13.
#[test]
fn a_request_that_waits_for_the_load_of_another_holds_nothing() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let (wanted, other) = (prompt(&cache, 1, 3), prompt(&cache, 2, 2));
    put(&cache, HOST, &wanted);
    let load = loading(&cache, &wanted);
    let before = (cache.used_block_count(), cache.stats().tiers[0]);
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Pending), "one transfer a content");
    assert_eq!((cache.used_block_count(), cache.stats().tiers[0]), before);
    // Other requests, and this one without tiers, are admitted meanwhile.
    assert!(matches!(admit(&cache, &other), TierAdmission::Ready(..)));
    let options = AdmitOptions::default();
    let admitted = cache.tiers().admit(&wanted, &options, LoadLimit::none()).unwrap();
    assert!(matches!(admitted, TierAdmission::Ready(..)));
    drop(admitted);
    let first = loaded(load);
    let TierAdmission::Ready(second, admission) = admit(&cache, &wanted) else {
        panic!("it is on the device");
    };
    assert_eq!(admission.cached_tokens, 12);
    assert_eq!(first.block_ids()[..3], second.block_ids()[..3]);
    drop((first, second));
    assert_at_rest(&cache);
}
