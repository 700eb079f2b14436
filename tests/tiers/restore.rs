//! Tests of contents that a tier has from an earlier process.

use paged_kv::{BlockHash, GroupId, StoreTicket, Tier, TierAdmission};

use crate::{
    BLOCK_SIZE, DISK, HOST, admit, assert_at_rest, cache_of, computed, loaded, loading, prompt,
    put, stored, storing,
};

const GROUP: GroupId = GroupId(0);

#[test]
fn contents_that_are_found_are_loaded_from_their_slots() {
    let cache = cache_of(16, &[Tier::disk(8)]);
    let wanted = prompt(&cache, 1, 3);
    let mut restore = cache.tiers().restore(HOST).unwrap();
    let slots = [6, 1, 3];
    let found: Vec<(u32, BlockHash, GroupId)> =
        slots.into_iter().zip(wanted.hashes()).map(|(slot, &hash)| (slot, hash, GROUP)).collect();
    assert_eq!(restore.found(&found[..1]), 1);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 4], "before the rest is looked for");
    assert_eq!((restore.found(&found[1..]), restore.num_held()), (2, 5));
    drop(restore);
    let load = loading(&cache, &wanted);
    assert!(load.loads().iter().map(|load| load.src.slot).eq(slots));
    drop(loaded(load));
    assert_at_rest(&cache);
}

#[test]
fn nothing_is_stored_over_a_slot_that_was_not_looked_at() {
    let cache = cache_of(16, &[Tier::disk(3)]);
    let (wanted, other) = (prompt(&cache, 1, 2), prompt(&cache, 2, 1));
    let held = computed(&cache, &other);
    let mut restore = cache.tiers().restore(HOST).unwrap();
    assert!(cache.tiers().restore(HOST).is_err());
    assert!(cache.tiers().store(HOST, other.hashes()).unwrap().is_none(), "all slots are held");
    assert_eq!(restore.found(&[(1, wanted.hashes()[0], GROUP)]), 1);
    // Only a slot that was looked at is given up.
    let slots = |ticket: &StoreTicket| ticket.stores()[0].dst.slot;
    let ticket = storing(&cache, HOST, &other);
    assert_eq!(slots(&ticket), 1);
    stored(ticket);
    assert_eq!(restore.found(&[(0, wanted.hashes()[0], GROUP)]), 1);
    drop((restore, held));
    cache.prefix().forget(usize::MAX);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 4]);
    assert_at_rest(&cache);
}

#[test]
fn the_content_that_was_found_last_is_given_up_last() {
    let cache = cache_of(16, &[Tier::disk(4)]);
    let wanted: Vec<_> = (1..=4).map(|name| prompt(&cache, name, 1)).collect();
    let mut restore = cache.tiers().restore(HOST).unwrap();
    let slots = [2, 0, 3, 1];
    let found: Vec<_> = slots.into_iter().zip(&wanted).collect();
    for (slot, prompt) in found {
        assert_eq!(restore.found(&[(slot, prompt.hashes()[0], GROUP)]), 1);
    }
    drop(restore);
    for given_up in 1..4 {
        put(&cache, HOST, &prompt(&cache, 10 + given_up, 1));
        let is_there = wanted.iter().map(|prompt| cache.tiers().lookup(prompt)[1] > 0);
        assert_eq!(is_there.filter(|&is_there| !is_there).count(), given_up as usize);
        assert_eq!(cache.tiers().lookup(&wanted[given_up as usize])[1], BLOCK_SIZE);
    }
    assert_at_rest(&cache);
}

#[test]
fn after_a_reset_nothing_that_is_found_is_ready_and_all_slots_are_free() {
    let cache = cache_of(16, &[Tier::disk(4)]);
    let wanted = prompt(&cache, 1, 3);
    let mut restore = cache.tiers().restore(HOST).unwrap();
    assert_eq!(restore.found(&[(0, wanted.hashes()[0], GROUP)]), 1);
    cache.prefix().reset();
    let later = [(1, wanted.hashes()[1], GROUP), (2, wanted.hashes()[0], GROUP)];
    assert_eq!(restore.found(&later), 0, "of the weights before");
    assert_eq!(cache.tiers().lookup(&wanted), [0, 0]);
    drop(restore);
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Ready(..)));
    put(&cache, HOST, &prompt(&cache, 2, 4));
    assert_at_rest(&cache);
}

#[test]
fn a_slot_that_is_named_wrongly_or_twice_is_counted_once_and_not_lost() {
    let cache = cache_of(16, &[Tier::disk(4), Tier::disk(2)]);
    let (one, other) = (prompt(&cache, 1, 1).hashes()[0], prompt(&cache, 2, 1).hashes()[0]);
    let mut restore = cache.tiers().restore(HOST).unwrap();
    assert_eq!(restore.found(&[(0, one, GROUP), (0, other, GROUP)]), 1, "the slot has one content");
    assert_eq!(restore.found(&[(1, one, GROUP)]), 0, "the tier has it already");
    assert_eq!(restore.found(&[(2, other, GroupId(200))]), 0, "there is no such group");
    assert_eq!(restore.found(&[(4, other, GROUP), (u32::MAX, other, GROUP)]), 0, "no such slot");
    assert_eq!((restore.num_held(), cache.stats().tiers[0].slots_used), (1, 1));
    assert_eq!(restore.found(&[(3, other, GROUP)]), 1);
    drop(restore);
    assert_eq!(cache.stats().tiers[0].slots_ready, 2);
    put(&cache, HOST, &prompt(&cache, 3, 4));
    assert!(cache.tiers().restore(HOST).is_err(), "it has contents");
    assert!(cache.tiers().restore(paged_kv::TierId(2)).is_err());
    drop(cache.tiers().restore(DISK).unwrap());
    assert_at_rest(&cache);
}

/// A store or a failed copy of before.
#[test]
fn a_tier_whose_slots_are_in_use_is_not_restored() {
    let cache = cache_of(16, &[Tier::disk(4)]);
    let wanted = prompt(&cache, 1, 1);
    let held = computed(&cache, &wanted);
    let ticket = storing(&cache, HOST, &wanted);
    let number = ticket.number();
    assert!(cache.tiers().restore(HOST).is_err());
    drop(ticket);
    assert!(cache.tiers().restore(HOST).is_err(), "the slot may still be written");
    cache.tiers().quiesced(number);
    drop(cache.tiers().restore(HOST).unwrap());
    drop(held);
    assert_at_rest(&cache);
}
