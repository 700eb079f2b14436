//! Tests of the tiers below the device, from outside the library: the rules one by one, a sequential reference
//! under random operations, threads with a mover that has faults, and copies of real bytes.
//!
//! `rules` has a test for each rule that engines with tiers taught, `outcomes` those of copies that end otherwise (rules
//! 4 and 5), `ahead` those of rule 8, `restore` those of contents of an earlier process, and `groups` those of rule 11.
//! These rules do not apply, or not in full:
//!
//! - 1: the answer "ask again, the tier is still looking" does not exist, because each tier knows its contents.
//! - 6: a store ahead of need names no contents. It may give up one in the target that the source has too.
//! - 7: contents rank by the end of their copies, not by the request that asked for them.
//!
//! `PAGED_KV_TIERS_OPERATIONS` (6,000) sets the operations of the sequential test, `PAGED_KV_TIERS_SEED` (0) the first
//! seed, and `PAGED_KV_TIERS_SECONDS` (3) the length of the soak.

#[path = "../common/mod.rs"]
mod common;

mod ahead;
mod bytes;
mod counts;
mod events;
mod groups;
mod history;
mod lru;
mod mirror;
mod mover;
mod outcomes;
mod races;
mod reference;
mod requester;
mod resets;
mod restore;
mod rules;
mod shadow;
mod soak;
mod world;

use paged_kv::{
    AdmitOptions, CachedSequence, CopyOutcome, LoadLimit, LoadTicket, PagedKvCache, Prompt,
    StoreTicket, Tier, TierAdmission, TierId,
};

const BLOCK_SIZE: usize = 4;

const HOST: TierId = TierId(0);
const DISK: TierId = TierId(1);

fn cache_of(num_blocks: usize, tiers: &[Tier]) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let builder = tiers.iter().fold(builder, |builder, &tier| builder.tier(tier));
    builder.build().expect("the tiers make sense")
}

/// Returns a prompt of so many full blocks and one token more. Prompts of two names share no block.
fn prompt(cache: &PagedKvCache, name: u32, blocks: usize) -> Prompt {
    let tokens: Vec<u32> =
        (0..=(blocks * BLOCK_SIZE) as u32).map(|at| name * 10_000 + at).collect();
    cache.prompt(&tokens)
}

/// Admits a prompt without tiers and commits all of it.
#[track_caller]
fn computed(cache: &PagedKvCache, prompt: &Prompt) -> CachedSequence {
    let admitted = cache.admit_sequence(prompt, &AdmitOptions::default());
    let (mut sequence, _) = admitted.expect("there is room");
    sequence.commit(prompt.num_tokens()).expect("it has slots");
    sequence
}

/// Returns a ticket to store the contents of a prompt that are on the device.
#[track_caller]
fn storing(cache: &PagedKvCache, tier: TierId, prompt: &Prompt) -> StoreTicket {
    let ticket = cache.tiers().store(tier, prompt.hashes()).expect("the tier is there");
    ticket.expect("some content is to be stored")
}

#[track_caller]
fn stored(ticket: StoreTicket) -> usize {
    let outcomes = vec![CopyOutcome::Done; ticket.stores().len()];
    ticket.complete(&outcomes).expect("an outcome a copy")
}

/// Computes a prompt, stores it in a tier, and lets the device forget all idle contents.
#[track_caller]
fn put(cache: &PagedKvCache, tier: TierId, prompt: &Prompt) {
    let sequence = computed(cache, prompt);
    stored(storing(cache, tier, prompt));
    drop(sequence);
    cache.prefix().forget(usize::MAX);
}

#[track_caller]
fn admit(cache: &PagedKvCache, prompt: &Prompt) -> TierAdmission {
    let admitted = cache.tiers().admit(prompt, &AdmitOptions::default(), LoadLimit::default());
    admitted.expect("there is room")
}

#[track_caller]
fn loading(cache: &PagedKvCache, prompt: &Prompt) -> LoadTicket {
    match admit(cache, prompt) {
        TierAdmission::Loading(ticket) => ticket,
        other => panic!("a content is ready in a tier: {other:?}"),
    }
}

#[track_caller]
fn loaded(ticket: LoadTicket) -> CachedSequence {
    let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
    ticket.complete(&outcomes).expect("an outcome a copy").sequence
}

/// Checks that no ticket, sequence or quarantine holds a block or a slot.
#[track_caller]
fn assert_at_rest(cache: &PagedKvCache) {
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    let stats = cache.stats();
    assert_eq!((stats.contents_in_flight, stats.blocks_quarantined), (0, 0));
    for tier in stats.tiers {
        assert_eq!((tier.slots_used, tier.slots_quarantined), (0, 0), "slots leaked: {tier:?}");
    }
    cache.validate().expect("a cache at rest is consistent");
}
