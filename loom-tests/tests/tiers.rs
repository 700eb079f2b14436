//! Models of tiers: a content is copied by one ticket, is matched only where its bytes are, and is lost to no thread
//! between two places.
//!
//! Blocks have one token. The caller of a ticket copies cells: those of the device, and those of the tier's slots.

mod common;

use std::sync::Arc;

use common::{Kv, explore, race};
use paged_kv::CopyOutcome::{Done, Failed, Lost};
use paged_kv::loom_api::CopyRights;
use paged_kv::{
    AdmitOptions, BlockHash, BlockId, GroupId, LoadLimit, LoadTicket, PagedKvCache, Prompt,
    StoreFrom, StoreTicket, Tier, TierAdmission, TierId, TierRestore,
};

const HOST: TierId = TierId(0);

/// A cache with a tier, and the cells of the device and of the tier.
struct World {
    cache: PagedKvCache,
    device: Kv,
    host: Kv,
}

fn world(blocks: usize, slots: usize) -> Arc<World> {
    let builder = PagedKvCache::builder().num_blocks(blocks).block_size(1).home_shards(1);
    let cache = builder.tier(Tier::host(slots)).build().expect("a cache of that shape");
    Arc::new(World { cache, device: Kv::new(blocks), host: Kv::new(slots) })
}

/// A cache of so many blocks whose tier has a content, and the ticket of a request that loads it.
fn loading(blocks: usize) -> (Arc<World>, LoadTicket) {
    let world = world(blocks, 1);
    world.compute(1, 1);
    world.stored(1);
    world.forget();
    let TierAdmission::Loading(ticket) = world.admit(1) else { panic!("it is in the tier") };
    (world, ticket)
}

fn prompt(contents: &[u128]) -> Prompt {
    let hashes: Vec<_> = contents.iter().map(|n| BlockHash::from_u128(n << 100 | n)).collect();
    Prompt::from_hashes(&hashes, contents.len())
}

fn options() -> AdmitOptions {
    AdmitOptions::default().allow_full_hit()
}

impl World {
    /// Computes and publishes a content.
    fn compute(&self, content: u128, weights: u64) {
        let admitted = self.cache.admit_sequence(&prompt(&[content]), &options());
        let (mut sequence, admission) = admitted.expect("there is room");
        if admission.cached_tokens == 0 {
            self.device.write(sequence.block_ids()[0], weights * 10 + content as u64);
            sequence.commit(1).expect("it has a slot");
        }
    }

    fn ticket(&self, content: u128) -> Option<StoreTicket> {
        self.cache.tiers().store(HOST, prompt(&[content]).hashes()).expect("the tier is there")
    }

    fn copy_down(&self, ticket: &StoreTicket) {
        for store in ticket.stores() {
            self.host.write(
                BlockId(store.dst.slot),
                self.device.read(store.src.block().expect("from the device")),
            );
        }
    }

    fn stored(&self, content: u128) {
        let ticket = self.ticket(content).expect("it is cached and not stored");
        self.copy_down(&ticket);
        ticket.complete(&[Done]).expect("one outcome");
    }

    /// Makes the device give up its contents.
    fn forget(&self) {
        self.cache.prefix().forget(usize::MAX);
    }

    fn admit(&self, content: u128) -> TierAdmission {
        let admitted =
            self.cache.tiers().admit(&prompt(&[content]), &options(), LoadLimit::default());
        admitted.expect("there is room")
    }

    fn copy_up(&self, ticket: &LoadTicket) {
        for load in ticket.loads() {
            self.device.write(load.dst, self.host.read(BlockId(load.src.slot)));
        }
    }

    /// Admits a content and checks it, if it is cached or can be loaded. Returns the weights that computed it.
    fn read(&self, content: u128) -> Option<u64> {
        let sequence = match self.admit(content) {
            TierAdmission::Ready(sequence, admission) if admission.cached_tokens == 1 => sequence,
            TierAdmission::Loading(ticket) => {
                self.copy_up(&ticket);
                ticket.complete(&[Done]).expect("one outcome").sequence
            }
            _ => return None,
        };
        let found = self.device.read(sequence.block_ids()[0]);
        assert_eq!(found % 10, content as u64, "the block holds the content of its hash");
        Some(found / 10)
    }

    fn assert_at_rest(&self) {
        assert_eq!(self.cache.used_block_count(), 0);
        let stats = self.cache.stats();
        let held = (stats.tiers[0].slots_used, stats.tiers[0].slots_quarantined);
        assert_eq!((held, stats.contents_in_flight, stats.blocks_quarantined), ((0, 0), 0, 0));
        assert_eq!(self.cache.validate(), Ok(()));
    }
}

/// A settled store is found by a request that begins after it, and one beside it finds it on the device or in the tier.
#[test]
fn a_content_is_on_the_device_or_in_the_tier_while_it_is_stored_and_given_up() {
    explore(|| {
        let world = world(2, 1);
        world.compute(1, 1);
        let theirs = Arc::clone(&world);
        race(
            || {
                world.stored(1);
                world.forget();
            },
            move || _ = theirs.read(1),
        );
        assert_eq!(world.read(1), Some(1));
        world.assert_at_rest();
    });
}

/// The tier's slot is given up for another content, beside a request that pins it.
#[test]
fn a_pin_beside_a_reclaim_of_the_slot_reads_the_content_or_computes_it() {
    explore(|| {
        let world = world(3, 1);
        world.compute(1, 1);
        world.stored(1);
        world.forget();
        world.compute(2, 1);
        let theirs = Arc::clone(&world);
        race(
            || _ = world.read(1),
            move || {
                if let Some(ticket) = theirs.ticket(2) {
                    theirs.copy_down(&ticket);
                    ticket.complete(&[Done]).expect("one outcome");
                }
            },
        );
        world.assert_at_rest();
    });
}

/// A ticket is dropped while its copy may still be made, beside a thread that takes all blocks.
#[test]
fn a_block_of_a_dropped_ticket_is_not_reused_before_it_is_quiet() {
    explore(|| {
        let (world, ticket) = loading(1);
        let number = ticket.number();
        let late = ticket.loads()[0];
        let theirs = Arc::clone(&world);
        race(
            || {
                drop(ticket); // the request was cancelled
                world.device.write(late.dst, 9); // the mover writes late
                world.cache.tiers().quiesced(number);
            },
            move || {
                if let Ok(taken) = theirs.cache.pool().allocate(1) {
                    theirs.device.use_alone(taken.as_slice(), 7);
                }
            },
        );
        world.assert_at_rest();
    });
}

#[test]
fn a_store_beside_a_reset_publishes_nothing_of_the_old_weights() {
    explore(|| {
        let world = world(2, 1);
        world.compute(1, 1);
        let theirs = Arc::clone(&world);
        race(
            || {
                if let Some(ticket) = world.ticket(1) {
                    world.copy_down(&ticket);
                    ticket.complete(&[Done]).expect("one outcome");
                }
            },
            move || theirs.cache.prefix().reset(),
        );
        assert_eq!(world.read(1), None, "it was computed with the old weights");
        world.assert_at_rest();
    });
}

/// A failed load: the request computes the content, and another request never reads it.
#[test]
fn a_failed_load_is_never_read() {
    explore(|| {
        let (world, ticket) = loading(2);
        let number = ticket.number();
        let theirs = Arc::clone(&world);
        race(
            || {
                world.device.write(ticket.loads()[0].dst, 5); // garbage
                let loaded = ticket.complete(&[Failed]).expect("one outcome");
                assert_eq!((loaded.loaded_tokens, loaded.sequence.num_tokens()), (0, 0));
                world.cache.tiers().quiesced(number);
            },
            move || assert_ne!(theirs.read(1), Some(0), "a load that failed was read"),
        );
        assert_eq!(world.read(1), Some(1));
        world.assert_at_rest();
    });
}

/// The cleaner copies a content that is given up next, beside a request for it and one that takes its block.
#[test]
fn a_store_ahead_beside_a_match_and_a_take_copies_the_content_of_its_name() {
    explore(|| {
        let world = world(2, 2);
        world.compute(1, 1);
        world.compute(2, 1);
        let theirs = Arc::clone(&world);
        race(
            || {
                let tiers = world.cache.tiers();
                let ticket = tiers.store_ahead(StoreFrom::Device, HOST, 1);
                if let Some(ticket) = ticket.expect("the tier is there") {
                    world.copy_down(&ticket);
                    ticket.complete(&[Done]).expect("one outcome");
                }
            },
            move || {
                _ = theirs.read(1);
                theirs.compute(3, 1); // over one of the two blocks
            },
        );
        world.assert_at_rest();
        assert!([Some(1), None].contains(&world.read(1)));
        world.assert_at_rest();
    });
}

/// The slot turned out to be torn, beside a request for its content.
#[test]
fn a_slot_that_lost_its_content_is_read_by_no_later_request() {
    explore(|| {
        let (world, ticket) = loading(2);
        world.host.write(BlockId(ticket.loads()[0].src.slot), 9); // torn
        let theirs = Arc::clone(&world);
        race(
            || {
                let loaded = ticket.complete(&[Lost]).expect("one outcome");
                assert_eq!((loaded.loaded_tokens, loaded.sequence.num_tokens()), (0, 0));
            },
            move || assert_eq!(theirs.read(1), None, "it waits or computes"),
        );
        assert_eq!(world.read(1), None);
        world.assert_at_rest();
    });
}

/// The ticket has its content claimed beside the place that the next ticket claims it at.
#[test]
fn a_slot_that_lost_a_content_claimed_elsewhere_is_read_by_no_later_request() {
    explore(|| {
        let world = world(3, 2);
        world.compute(1, 1);
        world.stored(1);
        world.forget();
        world.compute(2, 1);
        let other = world.ticket(2).expect("it has the home place");
        let TierAdmission::Loading(ticket) = world.admit(1) else { panic!("it is in the tier") };
        world.host.write(BlockId(ticket.loads()[0].src.slot), 9); // torn
        world.copy_down(&other);
        other.complete(&[Done]).expect("one outcome");
        let theirs = Arc::clone(&world);
        race(
            || drop(ticket.complete(&[Lost]).expect("one outcome")),
            move || assert_eq!(theirs.read(1), None, "it waits or computes"),
        );
        assert_eq!(world.read(1), None);
        world.assert_at_rest();
    });
}

/// A cache whose tier is looked through, and a content of an earlier process in its slot.
fn restoring() -> (Arc<World>, TierRestore) {
    let world = world(2, 1);
    world.host.write(BlockId(0), 11);
    let restore = world.cache.tiers().restore(HOST).expect("it is empty");
    (world, restore)
}

fn found(mut restore: TierRestore) -> usize {
    restore.found(&[(0, prompt(&[1]).hashes()[0], GroupId(0))])
}

#[test]
fn a_content_that_a_restore_finds_beside_a_request_is_read_or_computed() {
    explore(|| {
        let (world, restore) = restoring();
        let theirs = Arc::clone(&world);
        race(|| assert_eq!(found(restore), 1), move || _ = theirs.read(1));
        assert_eq!(world.read(1), Some(1));
        world.assert_at_rest();
    });
}

#[test]
fn a_content_that_a_restore_finds_beside_a_reset_is_not_read_after_it() {
    explore(|| {
        let (world, restore) = restoring();
        let theirs = Arc::clone(&world);
        race(
            || _ = found(restore),
            move || {
                theirs.cache.prefix().reset();
                assert_eq!(theirs.read(1), None, "of the weights before");
            },
        );
        assert_eq!(world.read(1), None);
        world.assert_at_rest();
    });
}

/// One thread may find the home place taken, and the other one free.
#[test]
fn two_claims_of_one_content_never_both_succeed() {
    explore(|| {
        let (rights, cell) = (Arc::new(CopyRights::new()), Arc::new(Kv::new(1)));
        let other = rights.claim(2).expect("it is new");
        // The holder of the right alone copies. Each may be refused.
        let copy = |rights: &CopyRights, cell: &Kv| {
            if let Some(right) = rights.claim(1) {
                let copies = cell.read(BlockId(0));
                cell.write(BlockId(0), copies + 1);
                rights.leave(right);
            }
        };
        let (theirs, their_cell) = (Arc::clone(&rights), Arc::clone(&cell));
        race(
            || {
                rights.leave(other);
                copy(&rights, &cell);
            },
            move || copy(&theirs, &their_cell),
        );
        assert!(cell.read(BlockId(0)) <= 2);
        copy(&rights, &cell);
        assert!(cell.read(BlockId(0)) >= 1, "every right was given back");
    });
}

/// The tier is reset after the device. A request between the two must not take the tier's contents for new ones.
#[test]
fn a_load_beside_a_reset_leaves_nothing_of_the_old_weights() {
    explore(|| {
        let world = world(2, 1);
        world.compute(1, 1);
        world.stored(1);
        world.forget();
        let theirs = Arc::clone(&world);
        race(|| world.cache.prefix().reset(), move || _ = theirs.read(1));
        assert_eq!(world.read(1), None, "it was computed with the old weights");
        world.assert_at_rest();
    });
}
