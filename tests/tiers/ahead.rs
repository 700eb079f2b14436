//! Tests of stores ahead of need, of the threshold of uses, and of contents that a load overwrites: rule 8, as far as
//! `rules` has it not.

use paged_kv::{
    BlockHash, CachedSequence, CopyOutcome, PagedKvCache, Place, Prompt, StoreFrom, StoreTicket,
    Tier, TierId,
};

use crate::{
    BLOCK_SIZE, DISK, HOST, admit, assert_at_rest, cache_of, computed, loaded, loading, prompt,
    put, stored, storing,
};

const DEVICE: StoreFrom = StoreFrom::Device;

#[track_caller]
fn ahead(cache: &PagedKvCache, from: StoreFrom, to: TierId, blocks: usize) -> Option<StoreTicket> {
    cache.tiers().store_ahead(from, to, blocks).expect("both are there")
}

fn hashes(ticket: &StoreTicket) -> Vec<BlockHash> {
    ticket.stores().iter().map(|store| store.hash).collect()
}

/// Returns the contents of prompts in the order in which the device gives them up, and gives them up.
fn order_of_device(cache: &PagedKvCache, prompts: &[Prompt]) -> Vec<BlockHash> {
    let is_there = |hash: &BlockHash| {
        let alone = Prompt::from_hashes(&[*hash], BLOCK_SIZE + 1);
        cache.tiers().lookup(&alone)[0] > 0
    };
    let mut left: Vec<BlockHash> =
        prompts.iter().flat_map(|prompt| prompt.hashes().to_vec()).filter(is_there).collect();
    let mut order = Vec::new();
    while cache.prefix().forget(1) > 0 {
        let (still, gone): (Vec<_>, Vec<_>) = left.into_iter().partition(is_there);
        order.extend(gone);
        left = still;
    }
    assert!(left.is_empty());
    order
}

/// Three prompts of three blocks, computed one after the other, and the device full of them.
fn full_device(tiers: &[Tier]) -> (PagedKvCache, Vec<Prompt>) {
    let cache = cache_of(9, tiers);
    let prompts: Vec<Prompt> =
        (1..=3).map(|name| Prompt::from_hashes(prompt(&cache, name, 3).hashes(), 12)).collect();
    prompts.iter().for_each(|prompt| drop(computed(&cache, prompt)));
    (cache, prompts)
}

#[test]
fn contents_that_are_stored_ahead_are_given_up_as_if_they_were_not() {
    let (control, prompts) = full_device(&[Tier::host(16)]);
    let expected = order_of_device(&control, &prompts);
    assert_eq!(expected.len(), 9);
    // The windows grow, as they do from step to step: the later contents are stored after the earlier ones.
    for windows in [&[9][..], &[1, 2, 3, 5, 8, 9], &[2, 7], &[4, 4, 6]] {
        let (cache, prompts) = full_device(&[Tier::host(16)]);
        for (at, &window) in windows.iter().enumerate() {
            let known = windows[..at].iter().max().copied().unwrap_or(0);
            let ticket = ahead(&cache, DEVICE, HOST, window);
            let wanted = ticket.as_ref().map_or(Vec::new(), hashes);
            assert_eq!(wanted, expected[known.min(window)..window]);
            ticket.map(stored);
            assert_eq!(ahead(&cache, DEVICE, HOST, window).map(drop), None, "stored once");
        }
        assert_eq!(order_of_device(&cache, &prompts), expected, "windows of {windows:?}");
        assert_at_rest(&cache);
    }
}

/// Tickets end in another order than they began, and not all of them well.
#[test]
fn contents_come_back_to_their_places_whatever_becomes_of_their_copies() {
    let (control, prompts) = full_device(&[Tier::host(16)]);
    let expected = order_of_device(&control, &prompts);
    for outcome in [CopyOutcome::Done, CopyOutcome::Skipped, CopyOutcome::Failed] {
        for is_reversed in [false, true] {
            let (cache, prompts) = full_device(&[Tier::host(16)]);
            let mut tickets: Vec<StoreTicket> =
                (0..3).map(|_| ahead(&cache, DEVICE, HOST, 2).expect("two more")).collect();
            let held: Vec<BlockHash> = tickets.iter().flat_map(hashes).collect();
            assert_eq!(held, expected[..6], "what a ticket has is not ahead of the next");
            if is_reversed {
                tickets.reverse();
            }
            for ticket in tickets {
                let number = ticket.number();
                ticket.complete(&[outcome; 2]).unwrap();
                cache.tiers().quiesced(number);
            }
            assert_eq!(order_of_device(&cache, &prompts), expected);
            assert_at_rest(&cache);
        }
    }
}

#[test]
fn a_content_that_is_used_while_it_is_stored_ahead_is_the_newest() {
    let (cache, prompts) = full_device(&[Tier::host(16)]);
    let ticket = ahead(&cache, DEVICE, HOST, 3).expect("the first prompt");
    drop(computed(&cache, &prompts[0]));
    stored(ticket);
    let order = order_of_device(&cache, &prompts);
    assert!(order[6..].iter().all(|hash| prompts[0].hashes().contains(hash)), "{order:?}");
}

/// The other contents are given up, past those that a ticket has.
#[test]
fn a_content_that_an_allocation_passed_over_is_the_oldest() {
    let (cache, prompts) = full_device(&[Tier::host(16)]);
    let ticket = ahead(&cache, DEVICE, HOST, 3).expect("the first prompt");
    let oldest = hashes(&ticket);
    assert_eq!(cache.free_block_count(), 6);
    let taken = cache.allocate_sequence(6 * BLOCK_SIZE).expect("the other blocks");
    assert!(cache.allocate_sequence(1).is_err(), "the ticket has three blocks");
    drop(taken);
    let new = Prompt::from_hashes(prompt(&cache, 7, 6).hashes(), 24);
    drop(computed(&cache, &new));
    stored(ticket);
    let order = order_of_device(&cache, &[prompts[0].clone(), new]);
    assert_eq!(order[..3], oldest);
    assert_at_rest(&cache);
}

#[test]
fn a_content_that_ends_while_it_is_stored_ahead_leaves_a_free_block() {
    let (cache, prompts) = full_device(&[Tier::host(16)]);
    let ticket = ahead(&cache, DEVICE, HOST, 3).expect("the first prompt");
    cache.prefix().forget_prompt(&prompts[0]).unwrap();
    assert_eq!(stored(ticket), 3);
    cache.validate().expect("consistent");
    assert_eq!(order_of_device(&cache, &prompts).len(), 6);
    assert_eq!(cache.tiers().lookup(&prompts[0])[1], 2 * BLOCK_SIZE);
    assert_at_rest(&cache);
}

#[test]
fn free_blocks_count_before_contents_and_a_reset_leaves_nothing_to_store() {
    let cache = cache_of(8, &[Tier::host(16)]);
    drop(computed(&cache, &Prompt::from_hashes(prompt(&cache, 1, 3).hashes(), 12)));
    assert!(ahead(&cache, DEVICE, HOST, 5).is_none(), "five blocks are free");
    assert_eq!(ahead(&cache, DEVICE, HOST, 6).expect("one content").stores().len(), 1);
    cache.prefix().reset();
    assert!(ahead(&cache, DEVICE, HOST, 8).is_none(), "of the weights before");
    assert!(cache.tiers().store_ahead(StoreFrom::Tier(HOST), HOST, 1).is_err());
    assert!(cache.tiers().store_ahead(StoreFrom::Tier(DISK), HOST, 1).is_err());
    assert!(cache.tiers().store_ahead(DEVICE, DISK, 1).is_err());
}

/// From a tier to the next: the contents that the tier would give up first, in this order, and they stay so.
#[test]
fn a_tier_stores_ahead_in_the_next_one_what_it_gives_up_first() {
    let cache = cache_of(16, &[Tier::host(6), Tier::disk(16)]);
    let prompts: Vec<Prompt> = (1..=3).map(|name| prompt(&cache, name, 2)).collect();
    prompts.iter().for_each(|prompt| put(&cache, HOST, prompt));
    let tail_first: Vec<BlockHash> =
        prompts.iter().flat_map(|prompt| prompt.hashes().iter().rev().copied()).collect();
    for (window, wanted) in [(1, 0..1), (2, 1..2), (5, 2..5)] {
        let ticket = ahead(&cache, StoreFrom::Tier(HOST), DISK, window).expect("some are new");
        assert_eq!(hashes(&ticket), tail_first[wanted]);
        let is_of_host = |place: Place| place.slot().is_some_and(|slot| slot.tier == HOST);
        assert!(ticket.stores().iter().all(|store| is_of_host(store.src)));
        stored(ticket);
    }
    // Four more contents: the tier gives up the first four.
    put(&cache, HOST, &prompt(&cache, 4, 4));
    let in_host: Vec<usize> =
        prompts.iter().map(|prompt| cache.tiers().lookup(prompt)[1] / BLOCK_SIZE).collect();
    assert_eq!(in_host, [0, 0, 2]);
    for wanted in &prompts[..2] {
        let load = loading(&cache, wanted);
        assert!(load.loads().iter().all(|load| load.src.tier == DISK));
        drop(loaded(load));
    }
    assert_at_rest(&cache);
}

#[test]
fn a_slot_of_a_store_from_a_tier_gets_no_other_content_until_it_is_settled() {
    let cache = cache_of(16, &[Tier::host(2), Tier::disk(8)]);
    let wanted = prompt(&cache, 1, 2);
    put(&cache, HOST, &wanted);
    let ticket = ahead(&cache, StoreFrom::Tier(HOST), DISK, 2).expect("two contents");
    cache.prefix().reset();
    let other = prompt(&cache, 2, 1);
    let held = computed(&cache, &other);
    assert!(cache.tiers().store(HOST, other.hashes()).unwrap().is_none(), "both slots are read");
    assert_eq!(stored(ticket), 2, "of the weights before");
    assert_eq!(cache.tiers().lookup(&wanted), [0, 0, 0]);
    stored(storing(&cache, HOST, &other));
    drop(held);
    cache.prefix().forget(usize::MAX);
    assert_at_rest(&cache);
}

#[test]
fn a_content_is_stored_from_the_use_that_its_tier_asks_for() {
    for uses in [1, 2, 3] {
        let cache = cache_of(16, &[Tier::host(64).from_use(uses)]);
        let (wanted, other) = (prompt(&cache, 1, 2), prompt(&cache, 2, 1));
        let _held: Vec<CachedSequence> =
            [&wanted, &other].map(|prompt| computed(&cache, prompt)).into();
        for use_ in 1..uses {
            let ticket = cache.tiers().store(HOST, wanted.hashes()).unwrap();
            assert!(ticket.is_none(), "use {use_} of {uses}");
        }
        assert_eq!(stored(storing(&cache, HOST, &wanted)), 2);
        assert_eq!(cache.tiers().store(HOST, other.hashes()).unwrap().is_some(), uses == 1);
        assert_eq!(cache.stats().tiers[0].stores_dropped, 0, "it was not to be stored");
        // The other ways ask for no uses.
        cache.prefix().reset();
    }
}

#[test]
fn a_store_ahead_or_of_an_overwritten_content_asks_for_no_uses() {
    let (cache, _) = full_device(&[Tier::host(16).from_use(9)]);
    assert_eq!(stored(ahead(&cache, DEVICE, HOST, 1).expect("one content")), 1);
    let mut rows = [(cache.allocate_sequence(0).unwrap(), 2 * BLOCK_SIZE)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let ticket = cache.tiers().store_overwritten(HOST, &step).unwrap().expect("the other one");
    assert_eq!(stored(ticket), 1);
}

/// A load onto blocks that had contents: these are stored first, then its copies are made.
#[test]
fn the_contents_that_a_load_overwrites_are_stored_before_its_copies() {
    let cache = cache_of(4, &[Tier::host(16)]);
    let (wanted, other) = (prompt(&cache, 1, 3), prompt(&cache, 2, 3));
    put(&cache, HOST, &wanted);
    drop(computed(&cache, &other));
    // Three contents and a free block: the load needs four blocks.
    let load = loading(&cache, &wanted);
    let lost: Vec<BlockHash> = load.overwritten().iter().map(|lost| lost.hash).collect();
    assert_eq!(lost.len(), 3);
    let store = cache.tiers().store_overwritten(HOST, &load).unwrap().expect("three contents");
    let blocks: Vec<_> = store.stores().iter().filter_map(|store| store.src.block()).collect();
    assert!(load.overwritten().iter().all(|lost| blocks.contains(&lost.block)));
    assert!(blocks.iter().any(|block| load.loads().iter().any(|load| load.dst == *block)));
    assert_eq!(stored(store), 3);
    drop(loaded(load));
    assert_eq!(cache.tiers().lookup(&wanted), [12, 0]);
    assert_eq!(cache.tiers().lookup(&other), [0, 12]);
    assert_at_rest(&cache);
}

#[test]
fn a_load_onto_free_blocks_overwrites_nothing() {
    let cache = cache_of(16, &[Tier::host(16)]);
    let (wanted, other) = (prompt(&cache, 1, 3), prompt(&cache, 2, 3));
    put(&cache, HOST, &wanted);
    drop(computed(&cache, &other));
    let load = loading(&cache, &wanted);
    assert!(load.overwritten().is_empty());
    assert!(cache.tiers().store_overwritten(HOST, &load).unwrap().is_none());
    drop(loaded(load));
    assert!(matches!(admit(&cache, &other), paged_kv::TierAdmission::Ready(..)));
}

/// The request is cancelled between the two copies. The block of the overwritten content stays until it is stored.
#[test]
fn an_overwritten_content_outlives_the_load_that_was_cancelled() {
    let cache = cache_of(4, &[Tier::host(16)]);
    let (wanted, other) = (prompt(&cache, 1, 3), prompt(&cache, 2, 3));
    put(&cache, HOST, &wanted);
    drop(computed(&cache, &other));
    let load = loading(&cache, &wanted);
    let store = cache.tiers().store_overwritten(HOST, &load).unwrap().expect("three contents");
    let number = load.number();
    drop(load);
    assert_eq!(stored(store), 3);
    assert_eq!(cache.tiers().quiesced(number), 3);
    assert_eq!(cache.tiers().lookup(&other), [0, 12]);
    assert_at_rest(&cache);
}

/// The rows are gone, and the step has their blocks until it ends.
#[test]
fn the_contents_that_a_step_overwrites_can_be_stored_after_its_rows_were_freed() {
    for is_truncated in [false, true] {
        let (cache, prompts) = full_device(&[Tier::host(16)]);
        let mut rows = [(cache.allocate_sequence(0).unwrap(), 3 * BLOCK_SIZE)];
        let mut step = cache.step(Default::default());
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        match is_truncated {
            true => rows[0].0.truncate(0).unwrap(),
            false => drop(rows),
        }
        // Other requests get other blocks.
        let others = cache.allocate_sequence(6 * BLOCK_SIZE).expect("six contents");
        let lost: Vec<_> = step.overwritten().iter().map(|lost| lost.block).collect();
        assert!(!others.block_ids().iter().any(|block| lost.contains(block)));
        let ticket = cache.tiers().store_overwritten(HOST, &step).unwrap().expect("the first");
        drop((step, others));
        assert_eq!(cache.used_block_count(), 3, "the ticket alone has them");
        assert_eq!(stored(ticket), 3);
        assert_eq!(cache.tiers().lookup(&prompts[0])[1], 2 * BLOCK_SIZE);
        assert_at_rest(&cache);
    }
}

#[test]
fn overwritten_contents_of_before_a_reset_are_not_stored() {
    let cache = cache_of(4, &[Tier::host(16)]);
    let (wanted, other) = (prompt(&cache, 1, 3), prompt(&cache, 2, 3));
    put(&cache, HOST, &wanted);
    drop(computed(&cache, &other));
    let load = loading(&cache, &wanted);
    cache.prefix().reset();
    assert!(cache.tiers().store_overwritten(HOST, &load).unwrap().is_none());
    let other_cache = cache_of(4, &[Tier::host(16)]);
    assert!(other_cache.tiers().store_overwritten(HOST, &load).is_err(), "of another cache");
}
