//! Tests of the events of tiers: each content is reported in each medium as the cache has it there.
//!
//! The sequential test of random operations and the soak compare a [`Mirror`] with the cache, too.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use paged_kv::{
    BlockHash, CopyOutcome, EventSink, KvEvent, LayerGroup, Medium, PagedKvCache, StoreTicket,
    Tier, TierId,
};

use crate::mirror::Mirror;
use crate::{
    BLOCK_SIZE, DISK, HOST, assert_at_rest, computed, loaded, loading, prompt, put, stored, storing,
};

use CopyOutcome::{Done, Failed};
use Medium::{Device, Disk, Host};

fn set(hashes: &[BlockHash]) -> BTreeSet<BlockHash> {
    hashes.iter().copied().collect()
}

#[test]
fn a_content_is_stored_in_a_medium_when_its_copy_is_done_and_not_before() {
    let (cache, mirror) = Mirror::cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let wanted = prompt(&cache, 1, 3);
    let sequence = computed(&cache, &wanted);
    mirror.events();
    let to_host = storing(&cache, HOST, &wanted);
    assert!(mirror.events().is_empty(), "a copy that is under way is in no medium");
    let number = to_host.number();
    assert_eq!(to_host.complete(&[Done, Failed, Done]).unwrap(), 2);
    let [first, second, third] = *wanted.hashes() else { panic!("three blocks") };
    assert_eq!(mirror.events(), [("stored", Some(Host), vec![first, third])]);
    stored(storing(&cache, DISK, &wanted));
    assert_eq!(mirror.events(), [("stored", Some(Disk), vec![first, second, third])]);
    drop(sequence);
    cache.prefix().forget(usize::MAX);
    assert_eq!(mirror.events(), [("removed", Some(Device), vec![third, second, first])]);
    mirror.assert_tier(Host, &set(&[first, third]));
    assert_eq!(cache.tiers().quiesced(number), 1);
    assert!(mirror.events().is_empty(), "nothing was announced of a failed copy");
}

#[test]
fn a_load_stores_on_the_device_and_only_an_exclusive_tier_loses_the_content_after_that() {
    for tier in [Tier::host(8), Tier::host(8).exclusive()] {
        let (cache, mirror) = Mirror::cache_of(16, &[tier]);
        let wanted = prompt(&cache, 1, 2);
        put(&cache, HOST, &wanted);
        mirror.events();
        drop(loaded(loading(&cache, &wanted)));
        let hashes = wanted.hashes().to_vec();
        let on_device = ("stored", Some(Device), hashes.clone());
        let in_tier = ("removed", Some(Host), hashes);
        match tier == tier.exclusive() {
            true => assert_eq!(mirror.events(), [on_device, in_tier]),
            false => assert_eq!(mirror.events(), [on_device]),
        }
        assert_at_rest(&cache);
    }
}

#[test]
fn a_content_that_is_given_up_for_another_is_removed_when_its_slot_is_taken() {
    let (cache, mirror) = Mirror::cache_of(16, &[Tier::host(2)]);
    let (old, new) = (prompt(&cache, 1, 2), prompt(&cache, 2, 1));
    put(&cache, HOST, &old);
    let sequence = computed(&cache, &new);
    mirror.events();
    let store = storing(&cache, HOST, &new);
    // The tail of the chain goes first.
    assert_eq!(mirror.events(), [("removed", Some(Host), vec![old.hashes()[1]])]);
    drop(store);
    assert!(mirror.events().is_empty());
    drop(sequence);
}

#[test]
fn tiers_of_one_medium_are_one_place() {
    let (cache, mirror) = Mirror::cache_of(16, &[Tier::host(2), Tier::host(4)]);
    let (wanted, other) = (prompt(&cache, 1, 1), prompt(&cache, 2, 2));
    let sequence = computed(&cache, &wanted);
    stored(storing(&cache, TierId(0), &wanted));
    mirror.events();
    stored(storing(&cache, TierId(1), &wanted));
    assert!(mirror.events().is_empty(), "the medium has it");
    drop(sequence);
    put(&cache, TierId(0), &other);
    mirror.assert_tier(Host, &set(&[wanted.hashes(), other.hashes()].concat()));
    assert!(mirror.held().faults.is_empty());
}

#[test]
fn a_reset_is_one_event_for_all_media_and_late_copies_are_not_announced() {
    let (cache, mirror) = Mirror::cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let (first, second) = (prompt(&cache, 1, 2), prompt(&cache, 2, 2));
    put(&cache, HOST, &first);
    let sequence = computed(&cache, &second);
    let (store, load) = (storing(&cache, DISK, &second), loading(&cache, &first));
    mirror.events();
    cache.prefix().reset();
    assert_eq!(mirror.events(), [("cleared", None, vec![])]);
    assert_eq!(stored(store), 2);
    drop((loaded(load), sequence));
    assert!(mirror.events().is_empty(), "of the weights before");
    // The slots of the old contents serve new ones without an event.
    let new = prompt(&cache, 3, 8);
    put(&cache, HOST, &new);
    mirror.assert_tier(Host, &set(new.hashes()));
    mirror.assert_tier(Disk, &set(&[]));
    assert!(mirror.held().faults.is_empty());
    assert_at_rest(&cache);
}

#[test]
fn a_repetition_has_the_contents_of_each_medium() {
    let (cache, mirror) = Mirror::cache_of(16, &[Tier::host(8), Tier::disk(8)]);
    let (first, second) = (prompt(&cache, 1, 3), prompt(&cache, 2, 2));
    put(&cache, HOST, &first);
    put(&cache, DISK, &second);
    let sequence = computed(&cache, &second);
    *mirror.held() = Default::default();
    cache.prefix().announce_all();
    mirror.assert_device(&cache, &[first.clone(), second.clone()]);
    mirror.assert_tier(Host, &set(first.hashes()));
    mirror.assert_tier(Disk, &set(second.hashes()));
    drop(sequence);
}

/// Panics once, at its first event of a tier.
#[derive(Default)]
struct Panicking(Arc<Mirror>, AtomicUsize);

impl EventSink for Panicking {
    fn on_event(&self, event: &KvEvent<'_>) {
        let is_first = event.medium() == Some(Host) && self.1.fetch_add(1, SeqCst) == 0;
        assert!(!is_first, "on purpose");
        self.0.on_event(event);
    }
}

#[test]
fn a_panic_of_the_sink_at_an_event_of_a_tier_loses_no_content() {
    let sink = Arc::<Panicking>::default();
    let builder = PagedKvCache::builder().num_blocks(16).block_size(BLOCK_SIZE);
    let cache = builder.tier(Tier::host(8)).event_sink(sink.clone()).build().unwrap();
    let (first, second) = (prompt(&cache, 1, 3), prompt(&cache, 2, 1));
    put(&cache, HOST, &first);
    let sequence = computed(&cache, &second);
    sink.0.assert_device(&cache, &[first.clone(), second]);
    sink.0.assert_tier(Host, &set(first.hashes()));
    assert!(cache.stats().events_dropped > 0);
    drop(sequence);
}

/// Settles a store during a reset, when the device has begun the next generation and the tier has not.
#[derive(Default)]
struct Settling(Arc<Mirror>, Mutex<Option<StoreTicket>>);

impl EventSink for Settling {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.0.on_event(event);
        if matches!(event, KvEvent::AllBlocksCleared) {
            let ticket = self.1.lock().unwrap().take();
            assert_eq!(ticket.map(stored), Some(2));
        }
    }
}

#[test]
fn a_store_that_is_settled_during_a_reset_is_not_announced() {
    let sink = Arc::<Settling>::default();
    let builder = PagedKvCache::builder().num_blocks(16).block_size(BLOCK_SIZE);
    let cache = builder.tier(Tier::host(8)).event_sink(sink.clone()).build().unwrap();
    let wanted = prompt(&cache, 1, 2);
    let sequence = computed(&cache, &wanted);
    *sink.1.lock().unwrap() = Some(storing(&cache, HOST, &wanted));
    cache.prefix().reset();
    assert!(sink.1.lock().unwrap().is_none());
    sink.0.assert_tier(Host, &set(&[]));
    assert_eq!(cache.tiers().lookup(&wanted), [0, 0]);
    drop(sequence);
    assert_at_rest(&cache);
}

/// Equal tokens have equal hashes in both groups.
#[test]
fn the_groups_of_a_tier_are_kept_apart() {
    let mirror = Arc::<Mirror>::default();
    let groups = [
        LayerGroup::Full { block_size: BLOCK_SIZE },
        LayerGroup::SlidingWindow { block_size: BLOCK_SIZE, window: 8 },
    ];
    let builder = PagedKvCache::builder().num_blocks(64).groups(&groups);
    let builder = builder.tier(Tier::host(64).exclusive()).event_sink(mirror.clone());
    let cache = builder.build().unwrap();
    let wanted = prompt(&cache, 1, 8);
    put(&cache, HOST, &wanted);
    let held = |group| mirror.held().of_group(Host, group);
    assert_eq!((held(0), held(1)), (set(wanted.hashes()), set(wanted.hashes())));
    // All blocks of full attention come back, and of the window the last two.
    drop(loaded(loading(&cache, &wanted)));
    assert_eq!((held(0), held(1)), (set(&[]), set(&wanted.hashes()[..6])));
    let again = [held(0), held(1)];
    *mirror.held() = Default::default();
    cache.prefix().announce_all();
    assert_eq!([held(0), held(1)], again);
    cache.prefix().reset();
    assert_eq!([held(0), held(1)], [set(&[]), set(&[])]);
    assert!(mirror.held().faults.is_empty(), "{:?}", mirror.held().faults);
}
