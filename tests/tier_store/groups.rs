//! Caches with groups of layers: a content is named by its hash and its group, in the file too.

use std::path::Path;
use std::sync::Arc;

use paged_kv::tier_store::{TierMover, TierResets};
use paged_kv::{
    BlockHash, BlockId, GroupId, HashAlgorithm, LayerGroup, Load, PagedKvCache, PagedKvError,
    Place, Prompt, Tier,
};

use crate::world::{NUM_BLOCKS, SLOTS, TempPath, World, bytes_of, device, disk_at};
use crate::{BLOCK_BYTES, FIRST};

const GROUPS: [LayerGroup; 2] =
    [LayerGroup::Full { block_size: 4 }, LayerGroup::SlidingWindow { block_size: 4, window: 8 }];

/// The bytes of a content differ in each group.
fn bytes_in(hash: BlockHash, group: GroupId) -> Vec<u8> {
    bytes_of(BlockHash::from_u128(hash.as_u128() ^ u128::from(group.0)))
}

fn world(path: &Path) -> World {
    let resets = TierResets::new();
    let builder = PagedKvCache::builder().num_blocks(NUM_BLOCKS).groups(&GROUPS);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 }).tier(Tier::disk(SLOTS));
    let cache = builder.reset_observer(resets.observer()).build().expect("the groups make sense");
    let device = device();
    let mover = TierMover::builder(Arc::clone(&device));
    let mover = mover.store(FIRST, disk_at(path, &cache), &resets).build().expect("one medium");
    let world = World { cache, device, mover };
    world.restore(FIRST);
    world
}

/// Computes a prompt, writes its blocks of all groups, and stores them.
fn put(world: &World, prompt: &Prompt) {
    let admitted = world.cache.admit_sequence(prompt, &Default::default());
    let (mut sequence, _) = admitted.expect("there is room");
    sequence.commit(prompt.num_tokens()).expect("it has slots");
    let ticket = world.storing(FIRST, prompt);
    for store in ticket.stores() {
        let Place::Device(block) = store.src else { panic!("the device has it") };
        world.device.write(block, &bytes_in(store.hash, store.group));
    }
    world.mover.store(ticket);
    world.wait();
    drop(sequence);
    forget_device(world);
}

/// Lets the device forget everything, of which no sequence holds a block.
fn forget_device(world: &World) {
    world.cache.prefix().forget(usize::MAX);
    assert_eq!(world.cache.used_block_count(), 0);
    (0..NUM_BLOCKS as u32).for_each(|id| world.device.write(BlockId(id), &[0x55; BLOCK_BYTES]));
}

/// Loads a prompt and checks the bytes of each block that was loaded. Returns the tokens of the hit.
fn load(world: &World, prompt: &Prompt) -> Result<usize, PagedKvError> {
    let ticket = world.loading(prompt);
    let loads: Vec<Load> = ticket.loads().to_vec();
    assert!(loads.iter().any(|load| load.group == GroupId(1)), "{loads:?}");
    let loaded = world.mover.load_blocking(ticket)?;
    for Load { dst, hash, group, .. } in loads {
        assert!(world.device.read(dst) == bytes_in(hash, group), "{dst} of {hash} in {group}");
    }
    Ok(loaded.admission.cached_tokens)
}

#[test]
fn contents_of_all_groups_survive_a_restart() {
    let path = TempPath::new("groups");
    for process in 0..3 {
        let world = world(&path);
        let prompt = world.prompt(1, 8);
        if process == 0 {
            put(&world, &prompt);
        }
        assert_eq!(load(&world, &prompt), Ok(32), "process {process}");
        forget_device(&world);
        world.assert_at_rest();
    }
}

/// The file loses a content of the window: no group is loaded, and the next hit is shorter.
#[test]
fn a_content_that_is_lost_in_one_group_ends_the_load_of_all() {
    let path = TempPath::new("window");
    let world = world(&path);
    let prompt = world.prompt(1, 8);
    put(&world, &prompt);
    let ticket = world.loading(&prompt);
    let of_window: Vec<u32> = ticket
        .loads()
        .iter()
        .filter(|load| load.group == GroupId(1))
        .map(|load| load.src.slot)
        .collect();
    let file = std::fs::OpenOptions::new().write(true).open(&*path).unwrap();
    let last = *of_window.last().expect("the window has contents");
    let header = 4_096 + u64::from(last) * 128;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 128], header).unwrap();
    let failed = world.mover.load_blocking(ticket).map(|loaded| loaded.loaded_tokens);
    assert!(matches!(failed, Err(PagedKvError::LoadFailed { .. })), "{failed:?}");
    assert_eq!(load(&world, &prompt), Ok(28));
    forget_device(&world);
    world.assert_at_rest();
}
