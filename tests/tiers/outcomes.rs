//! Tests of copies that are skipped, and of slots that turn out not to hold their contents. Neither leaves a block or a
//! slot that may still be written.

use paged_kv::{CopyOutcome, Place, StoreFrom, Tier, TierAdmission};

use crate::{
    BLOCK_SIZE, DISK, HOST, admit, assert_at_rest, cache_of, computed, loaded, loading, prompt,
    put, stored, storing,
};

use CopyOutcome::{Done, Failed, Lost, Skipped};

#[test]
fn a_skipped_store_counts_as_dropped_and_its_slot_is_free_at_once() {
    let cache = cache_of(16, &[Tier::host(3)]);
    let wanted = prompt(&cache, 1, 3);
    let sequence = computed(&cache, &wanted);
    assert_eq!(storing(&cache, HOST, &wanted).complete(&[Done, Skipped, Skipped]).unwrap(), 1);
    let tier = cache.stats().tiers[0];
    assert_eq!((tier.blocks_stored, tier.stores_dropped, tier.copies_failed), (1, 2, 0));
    assert_eq!((tier.slots_ready, tier.slots_used, tier.slots_quarantined), (1, 0, 0));
    assert_eq!(stored(storing(&cache, HOST, &wanted)), 2, "the other two");
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 12]);
    assert_at_rest(&cache);
}

#[test]
fn a_skipped_load_ends_the_sequence_and_leaves_nothing_in_quarantine() {
    for tier in [Tier::host(8), Tier::host(8).exclusive()] {
        let cache = cache_of(16, &[tier]);
        let wanted = prompt(&cache, 1, 4);
        put(&cache, HOST, &wanted);
        let loaded_part =
            loading(&cache, &wanted).complete(&[Done, Skipped, Done, Skipped]).unwrap();
        assert_eq!((loaded_part.loaded_tokens, loaded_part.failed_blocks), (4, 2));
        assert_eq!(loaded_part.sequence.num_tokens(), BLOCK_SIZE);
        let stats = cache.stats().tiers[0];
        assert_eq!((stats.blocks_loaded, stats.copies_failed, stats.slots_quarantined), (1, 0, 0));
        assert_eq!(cache.used_block_count(), 1, "the other blocks are free");
        drop(loaded_part);
        // The contents are still there, and are loaded the next time.
        assert_eq!(cache.tiers().lookup(&wanted), [4, 12]);
        drop(loaded(loading(&cache, &wanted)));
        assert_eq!(cache.prefix().probe(&wanted), 16);
        assert_at_rest(&cache);
    }
}

#[test]
fn a_tier_forgets_a_content_that_a_load_found_lost() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 3);
    put(&cache, HOST, &wanted);
    let load = loading(&cache, &wanted);
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Pending));
    let mut part = load.complete(&[Done, Lost, Done]).unwrap();
    let stats = cache.stats().tiers[0];
    assert_eq!((stats.copies_failed, stats.slots_quarantined, stats.slots_used), (1, 0, 0));
    assert_eq!(stats.slots_ready, 2, "the lost one's slot is free");
    assert_eq!(cache.tiers().lookup(&wanted), [4, 0], "it is missing now");
    // The request computes it, and it can be stored anew.
    let _ = part.sequence.append(wanted.num_tokens() - BLOCK_SIZE).unwrap();
    part.sequence.commit(wanted.num_tokens()).unwrap();
    assert_eq!(stored(storing(&cache, HOST, &wanted)), 1);
    drop(part);
    cache.prefix().forget(usize::MAX);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 12]);
    assert_at_rest(&cache);
}

#[test]
fn a_tier_forgets_a_content_that_a_store_from_it_found_lost() {
    for is_ahead in [false, true] {
        let cache = cache_of(16, &[Tier::host(8), Tier::disk(8)]);
        let wanted = prompt(&cache, 1, 3);
        put(&cache, HOST, &wanted);
        let ticket = match is_ahead {
            true => cache.tiers().store_ahead(StoreFrom::Tier(HOST), DISK, 8).unwrap(),
            false => cache.tiers().store(DISK, wanted.hashes()).unwrap(),
        };
        let ticket = ticket.expect("three contents");
        let second = ticket.stores().iter().map(|store| store.hash == wanted.hashes()[1]);
        let outcomes: Vec<_> = second.map(|is_lost| if is_lost { Lost } else { Done }).collect();
        assert_eq!(ticket.complete(&outcomes).unwrap(), 2);
        let [host, disk] = cache.stats().tiers[..] else { panic!("two tiers") };
        assert_eq!((host.slots_ready, host.slots_used), (2, 0));
        assert_eq!((disk.slots_ready, disk.copies_failed, disk.slots_quarantined), (2, 1, 0));
        assert_eq!(cache.tiers().lookup(&wanted), [0, 4, 0]);
        assert_at_rest(&cache);
    }
}

/// The source was a block of the device, of which no content is lost.
#[test]
fn a_store_from_the_device_that_reports_a_loss_is_a_failed_copy() {
    let cache = cache_of(16, &[Tier::host(8)]);
    let wanted = prompt(&cache, 1, 1);
    drop(computed(&cache, &wanted));
    assert_eq!(storing(&cache, HOST, &wanted).complete(&[Lost]).unwrap(), 0);
    assert_eq!(cache.tiers().lookup(&wanted), [4, 0]);
    assert_eq!(cache.stats().tiers[0].copies_failed, 1);
    assert_at_rest(&cache);
}

/// Contents that are copied from a tier stay pinned there until both tickets are settled.
#[test]
fn a_lost_slot_gets_no_other_content_while_another_ticket_reads_it() {
    let cache = cache_of(16, &[Tier::host(1), Tier::disk(4)]);
    let wanted = prompt(&cache, 1, 1);
    put(&cache, HOST, &wanted);
    let held = computed(&cache, &wanted);
    // The device has it again, so that the second ticket pins the slot as one that is to be kept.
    let store = storing(&cache, DISK, &wanted);
    assert!(matches!(store.stores()[0].src, Place::Device(_)));
    assert_eq!(store.complete(&[Failed]).unwrap(), 0);
    drop(held);
    cache.prefix().forget(usize::MAX);
    let store = storing(&cache, DISK, &wanted);
    let number = store.number();
    assert!(matches!(store.stores()[0].src, Place::Tier(_)));
    let other = prompt(&cache, 2, 1);
    let held = computed(&cache, &other);
    assert!(cache.tiers().store(HOST, other.hashes()).unwrap().is_none(), "the slot is read");
    assert_eq!(store.complete(&[Lost]).unwrap(), 0);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 0, 0]);
    assert_eq!(stored(storing(&cache, HOST, &other)), 1, "the slot is free");
    assert_eq!(cache.tiers().quiesced(paged_kv::TicketNumber(number.0 - 1)), 1);
    drop(held);
    cache.prefix().forget(usize::MAX);
    assert_at_rest(&cache);
}
