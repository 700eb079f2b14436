//! Tiers of a cache with groups of layers: a load is for all contents that the joint hit needs, or there is none.

use std::collections::HashMap;

use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CopyOutcome, GroupId, LayerGroup, LoadLimit, PagedKvCache,
    PagedKvError, Place, Prompt, StoreFrom, Tier, TierAdmission, TierId, TierSlot,
};

use crate::common::random::Random;
use crate::{HOST, admit, assert_at_rest, put};

use CopyOutcome::{Done, Lost, Skipped};

const GROUPS: [LayerGroup; 3] = [
    LayerGroup::Full { block_size: 4 },
    LayerGroup::SlidingWindow { block_size: 4, window: 8 },
    LayerGroup::State { block_size: 8 },
];

fn cache_of(groups: &[LayerGroup], num_blocks: usize, tiers: &[Tier]) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).groups(groups);
    let builder = tiers.iter().fold(builder, |builder, &tier| builder.tier(tier));
    builder.build().expect("the groups and tiers make sense")
}

fn prompt(cache: &PagedKvCache, name: u32, tokens: u32) -> Prompt {
    cache.prompt(&(0..tokens).map(|at| name * 1_000 + at).collect::<Vec<_>>())
}

#[test]
fn a_load_has_the_contents_that_the_joint_hit_needs_and_no_others() {
    let cache = cache_of(&GROUPS[..2], 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    put(&cache, HOST, &wanted);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 32]);
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let of = |group| ticket.loads().iter().filter(|load| load.group == GroupId(group)).count();
    assert_eq!((of(0), of(1)), (8, 2), "all blocks of the full group, and the window");
    let outcomes = vec![Done; ticket.loads().len()];
    let loaded = ticket.complete(&outcomes).unwrap();
    assert_eq!((loaded.loaded_tokens, loaded.admission.cached_tokens), (32, 32));
    let stats = cache.stats();
    assert_eq!((stats.prompt_tokens_loaded(), stats.tiers[0].blocks_loaded), (32, 10));
    assert_eq!(stats.prompt_tokens_computed(), 33 + 1);
    assert_eq!(loaded.sequence.num_tokens(), 33);
    assert_eq!(cache.prefix().probe(&wanted), 32, "published");
    drop(loaded);
    assert_at_rest(&cache);
}

#[test]
fn a_group_that_lacks_a_content_lowers_the_boundary_of_all() {
    let cache = cache_of(&GROUPS[..2], 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    put(&cache, HOST, &wanted);
    // The window's last block is lost: the next boundary needs the two before it.
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let last = wanted.hashes()[7];
    let is_last = |load: &paged_kv::Load| load.group == GroupId(1) && load.hash == last;
    let outcomes: Vec<CopyOutcome> =
        ticket.loads().iter().map(|load| if is_last(load) { Lost } else { Done }).collect();
    let refused = ticket.complete(&outcomes).unwrap_err();
    assert_eq!(refused, PagedKvError::LoadFailed { failed_blocks: 1, loads: 10 });
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("up to 28 tokens") };
    let loads = ticket.loads();
    assert_eq!(loads.len(), 1, "the others are on the device already: {loads:?}");
    let loaded = ticket.complete(&[Done]).unwrap();
    assert_eq!(loaded.admission.cached_tokens, 28);
    drop(loaded);
    assert_at_rest(&cache);
}

#[test]
fn contents_of_the_device_and_of_tiers_make_one_hit() {
    let cache = cache_of(&GROUPS[..2], 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    put(&cache, HOST, &wanted);
    // The middle of the full group is on the device, as a hole the other way round.
    let start = prompt(&cache, 1, 17);
    let TierAdmission::Loading(ticket) = admit(&cache, &start) else { panic!("it is ready") };
    let outcomes = vec![Done; ticket.loads().len()];
    drop(ticket.complete(&outcomes).unwrap());
    assert_eq!(cache.tiers().lookup(&wanted), [16, 16]);
    let blocks: Vec<BlockId> = cache.prefix().acquire(&wanted.hashes()[..1]).as_slice().to_vec();
    cache.prefix().uncache(&blocks);
    assert_eq!(cache.tiers().lookup(&wanted), [0, 32]);
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    assert_eq!(ticket.loads().len(), 1 + 4 + 2, "a hole, the rest, the window");
    let outcomes = vec![Done; 7];
    drop(ticket.complete(&outcomes).unwrap());
    assert_at_rest(&cache);
}

#[test]
fn one_of_two_requests_for_a_content_waits_and_holds_nothing() {
    let cache = cache_of(&GROUPS[..2], 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    put(&cache, HOST, &wanted);
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let held = cache.used_block_count();
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Pending));
    assert_eq!(cache.used_block_count(), held);
    let outcomes = vec![Done; ticket.loads().len()];
    let loaded = ticket.complete(&outcomes).unwrap();
    assert!(matches!(admit(&cache, &wanted), TierAdmission::Ready(_, admission)
        if admission.cached_tokens == 32));
    drop(loaded);
    assert_at_rest(&cache);
}

#[test]
fn a_limit_below_the_need_loads_nothing_and_a_dropped_ticket_frees_all() {
    let cache = cache_of(&GROUPS[..2], 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    put(&cache, HOST, &wanted);
    let limited = cache.tiers().admit(&wanted, &AdmitOptions::default(), LoadLimit::blocks(1..3));
    assert!(matches!(limited, Ok(TierAdmission::Ready(_, ref a)) if a.cached_tokens == 0));
    drop(limited);
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let number = ticket.number();
    let (loads, skipped) = (ticket.loads().len(), vec![Skipped; ticket.loads().len()]);
    drop(ticket);
    assert_eq!((cache.used_block_count(), cache.tiers().quiesced(number)), (loads, loads));
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let refused = ticket.complete(&skipped).unwrap_err();
    assert_eq!(refused, PagedKvError::LoadFailed { failed_blocks: loads, loads });
    assert_at_rest(&cache);
}

#[test]
fn a_state_is_loaded_where_a_commit_ended_and_copied_before_it_is_written() {
    let cache = cache_of(&GROUPS, 64, &[Tier::host(64)]);
    let wanted = prompt(&cache, 1, 33);
    let options = AdmitOptions::default().first_chunk(16);
    let (mut sequence, _) = cache.admit_sequence(&wanted, &options).unwrap();
    sequence.commit(16).unwrap();
    let ticket = cache.tiers().store(HOST, wanted.hashes()).unwrap().expect("contents");
    assert_eq!(ticket.stores().iter().filter(|store| store.group == GroupId(2)).count(), 1);
    let outcomes = vec![Done; ticket.stores().len()];
    ticket.complete(&outcomes).unwrap();
    drop(sequence);
    cache.prefix().forget(usize::MAX);

    assert_eq!(cache.tiers().lookup(&wanted), [0, 16]);
    let TierAdmission::Loading(ticket) = admit(&cache, &wanted) else { panic!("it is ready") };
    let state = ticket.loads().iter().find(|load| load.group == GroupId(2)).unwrap().dst;
    let outcomes = vec![Done; ticket.loads().len()];
    let mut loaded = ticket.complete(&outcomes).unwrap();
    assert_eq!(loaded.admission.cached_tokens, 16);
    let copies = loaded.sequence.take_copies();
    assert!(copies.iter().any(|copy| copy.src == state), "{copies:?}");
    drop((copies, loaded));
    assert_at_rest(&cache);
}

/// Every content has a cell in each block and slot. Sequences of random prompts are computed, stored by all ways, loaded,
/// and compared.
#[test]
fn random_requests_read_the_contents_of_their_prompts() {
    let (full, window) = (GROUPS[0], GROUPS[1]);
    let wide = LayerGroup::SlidingWindow { block_size: 8, window: 16 };
    for seed in 0..20 {
        let sets = [vec![full, window], vec![full, window, wide], vec![window, wide]];
        let groups = sets[seed as usize % 3].clone();
        let tiers = [Tier::host(40), Tier::disk(80).exclusive()];
        let cache = cache_of(&groups, 48, &tiers);
        let mut cells = Cells { groups, ..Cells::default() };
        let mut random = Random::new(seed);
        let mut loads = 0;
        for _ in 0..300 {
            let length = 9 + random.below(40) as u32;
            let wanted = prompt(&cache, random.below(4) as u32, length);
            loads += usize::from(cells.serve(&cache, &wanted, &mut random));
            cache.validate().unwrap();
        }
        assert!(loads > 20, "{loads} loads");
        assert_at_rest(&cache);
    }
}

#[derive(Default)]
struct Cells {
    groups: Vec<LayerGroup>,
    device: HashMap<BlockId, (GroupId, BlockHash)>,
    slots: HashMap<TierSlot, (GroupId, BlockHash)>,
}

impl Cells {
    fn copy(&mut self, src: Place, dst: Place, content: (GroupId, BlockHash)) {
        let read = match src {
            Place::Device(block) => self.device.get(&block),
            Place::Tier(slot) => self.slots.get(&slot),
        };
        assert_eq!(read, Some(&content), "{src:?} holds another content");
        match dst {
            Place::Device(block) => _ = self.device.insert(block, content),
            Place::Tier(slot) => _ = self.slots.insert(slot, content),
        }
    }

    fn store(&mut self, ticket: Option<paged_kv::StoreTicket>) {
        if let Some(ticket) = ticket {
            for store in ticket.stores() {
                self.copy(store.src, Place::Tier(store.dst), (store.group, store.hash));
            }
            let outcomes = vec![Done; ticket.stores().len()];
            ticket.complete(&outcomes).unwrap();
        }
    }

    /// Returns true if contents were loaded.
    fn serve(&mut self, cache: &PagedKvCache, wanted: &Prompt, random: &mut Random) -> bool {
        let tiers = cache.tiers();
        let (mut sequence, admission, is_loaded) = match admit(cache, wanted) {
            TierAdmission::Ready(sequence, admission) => (sequence, admission, false),
            TierAdmission::Loading(ticket) => {
                self.store(
                    tiers.store_overwritten(TierId(random.below(2) as u8), &ticket).unwrap(),
                );
                for load in ticket.loads() {
                    self.copy(
                        Place::Tier(load.src),
                        Place::Device(load.dst),
                        (load.group, load.hash),
                    );
                }
                let fails = random.below(8) == 0;
                let outcome = if fails { [Lost, Skipped][random.below(2)] } else { Done };
                let mut outcomes = vec![Done; ticket.loads().len()];
                let at = random.below(outcomes.len());
                outcomes[at] = outcome;
                match ticket.complete(&outcomes) {
                    Ok(loaded) => (loaded.sequence, loaded.admission, true),
                    Err(PagedKvError::LoadFailed { .. }) => return true,
                    Err(refusal) => panic!("{refusal}"),
                }
            }
            other => panic!("no ticket is open: {other:?}"),
        };
        self.compare(wanted, &sequence, admission.cached_tokens);
        self.compute(wanted, &sequence, admission.cached_tokens);
        sequence.commit(wanted.num_tokens()).unwrap();
        match random.below(4) {
            0 => self.store(tiers.store(TierId(random.below(2) as u8), wanted.hashes()).unwrap()),
            1 => self.store(tiers.store_ahead(StoreFrom::Device, HOST, 24).unwrap()),
            2 => self.store(tiers.store_ahead(StoreFrom::Tier(HOST), TierId(1), 24).unwrap()),
            _ => {}
        }
        is_loaded
    }

    /// Checks that each block that the hit needs has its content.
    fn compare(&self, wanted: &Prompt, sequence: &paged_kv::CachedSequence, length: usize) {
        self.each_block(wanted, sequence, |block, content, end| {
            if end <= length {
                assert_eq!(self.device.get(&block), Some(&content), "at {end} of {length}");
            }
        });
    }

    fn compute(&mut self, wanted: &Prompt, sequence: &paged_kv::CachedSequence, from: usize) {
        let mut written = Vec::new();
        self.each_block(wanted, sequence, |block, content, end| {
            if end > from {
                written.push((block, content));
            }
        });
        self.device.extend(written);
    }

    /// Passes each resident full block, its content, and the tokens up to its end.
    fn each_block(
        &self,
        wanted: &Prompt,
        sequence: &paged_kv::CachedSequence,
        mut look: impl FnMut(BlockId, (GroupId, BlockHash), usize),
    ) {
        for (number, kind) in (0..).zip(&self.groups) {
            let group = GroupId(number);
            for (at, block) in sequence.blocks_in(group).enumerate() {
                let end = (at + 1) * kind.block_size();
                // A hash for each 4 tokens, in all of the sets.
                if let (Some(block), Some(&hash)) = (block, wanted.hashes().get(end / 4 - 1)) {
                    look(block, (group, hash), end);
                }
            }
        }
    }
}
