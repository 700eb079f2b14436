//! Media that refuse: a full disk, a limit of the process, permissions that were lost.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use paged_kv::Tier;
use paged_kv::tier_store::{DiskStore, OpenError, TierResets};

use crate::stores::{EIO, ENOSPC, EPERM, Fault, FaultyStore};
use crate::world::{SLOTS, TempPath, World, cache_of, disk_at, options_of};
use crate::{BLOCK_BYTES, FIRST};

fn faulty(path: &TempPath) -> (World, Arc<FaultyStore>) {
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    let store = Arc::new(FaultyStore::new(disk_at(path, &cache)));
    let of_mover = Arc::clone(&store);
    let world = World::new(&[Tier::disk(SLOTS)], |builder, _, resets| {
        builder.store(FIRST, of_mover, resets)
    });
    (world, store)
}

const FAULTS: [Fault; 4] = [Fault::Io(ENOSPC), Fault::Io(EIO), Fault::Io(EPERM), Fault::Panic];

#[test]
fn a_write_that_the_medium_refuses_stores_nothing_and_is_counted() {
    for fault in FAULTS {
        let path = TempPath::new("refuses");
        let (world, store) = faulty(&path);
        let prompt = world.prompt(1, 6);
        store.fail(fault);
        world.put(FIRST, &prompt);
        assert_eq!(world.load(&prompt), 0, "{fault:?}");
        world.assert_at_rest();
        let stats = world.mover.stats();
        assert_eq!((stats.stores_failed, stats.bytes_written), (6, 0), "{fault:?}: {stats:?}");
        assert!(stats.store_errors > 0);
        assert_eq!(world.quarantined(), 0);
        store.heal();
        world.put(FIRST, &prompt);
        assert_eq!(world.load(&prompt), 6, "{fault:?}");
    }
}

/// The content is computed again, and the tier is not asked for it a second time.
#[test]
fn a_content_that_cannot_be_read_is_forgotten() {
    for fault in FAULTS {
        let path = TempPath::new("unread");
        let (world, store) = faulty(&path);
        let prompt = world.prompt(1, 6);
        world.put(FIRST, &prompt);
        store.fail(fault);
        assert_eq!(world.load(&prompt), 0, "{fault:?}");
        world.forget_device();
        assert_eq!(world.cache.tiers().lookup(&prompt), vec![0, 0], "{fault:?}");
        assert_eq!(world.mover.stats().loads_failed, 6);
        store.heal();
        world.put(FIRST, &prompt);
        assert_eq!(world.load(&prompt), 6);
        world.forget_device();
        world.assert_at_rest();
    }
}

#[test]
fn headers_that_cannot_be_read_find_nothing_and_free_all_slots() {
    for fault in FAULTS {
        let path = TempPath::new("unfound");
        let (world, store) = faulty(&path);
        store.fail(fault);
        assert_eq!(world.restore(FIRST), 0);
        assert_eq!(world.mover.stats().store_errors, 1);
        world.assert_at_rest();
    }
}

/// The file is damaged under a store that is open. A load ends at the first content that is not whole, so each load finds
/// one of them.
#[test]
fn damaged_contents_are_computed_again() {
    let path = TempPath::new("damaged");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 12);
    world.put(FIRST, &prompt);
    let file = std::fs::OpenOptions::new().write(true).open(&*path).unwrap();
    let len = file.metadata().unwrap().len();
    let garbage = vec![0xEE; (len - 4_096 - SLOTS as u64 * 128) as usize];
    std::os::unix::fs::FileExt::write_all_at(&file, &garbage, len - garbage.len() as u64).unwrap();
    for whole in 0..12 {
        assert_eq!(world.load(&prompt), whole);
        assert_eq!(world.mover.stats().checksum_errors, whole as u64 + 1);
        world.forget_device();
        world.put(FIRST, &prompt);
    }
    assert_eq!(world.load(&prompt), 12);
    world.forget_device();
    world.assert_at_rest();
}

/// Permissions are checked when a file is opened: requests go on, and the next process has an error with a path.
#[test]
fn lost_permissions_are_an_error_at_the_next_start_only() {
    let path = TempPath::new("permission");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 5);
    world.put(FIRST, &prompt);
    std::fs::set_permissions(&*path, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(world.load(&prompt), 5);
    world.forget_device();
    world.put(FIRST, &world.prompt(2, 5));
    assert_eq!(world.load(&world.prompt(2, 5)), 5);
    let options = options_of(&world.cache, b"weights");
    drop(world);
    // The superuser may open it all the same.
    match DiskStore::open(&*path, &options) {
        Ok(store) => assert!(store.was_kept()),
        Err(OpenError::Io { operation, source, .. }) => {
            assert_eq!((operation, source.kind()), ("open", std::io::ErrorKind::PermissionDenied));
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_file_that_is_removed_while_it_is_open_breaks_no_request() {
    let path = TempPath::new("removed");
    let world = World::disk(&path);
    let prompt = world.prompt(1, 5);
    world.put(FIRST, &prompt);
    std::fs::remove_file(&*path).unwrap();
    assert_eq!(world.load(&prompt), 5);
    world.forget_device();
    world.assert_at_rest();
    drop(world);
    assert_eq!(World::disk(&path).load(&prompt), 0);
}

const PATH: &str = "PAGED_KV_FULL_PATH";

/// Opens a file in a process that may write fewer bytes than the file needs. `a_disk_without_room_is_an_error_when_the_file_is_opened` runs it.
#[test]
#[ignore = "runs in a process of its own"]
fn opens_under_a_limit() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    match DiskStore::open(&path, &options_of(&cache, b"weights")) {
        Err(OpenError::Io { operation: "allocate", source, .. }) => println!("refused: {source}"),
        other => panic!("{other:?}"),
    }
    let left = std::fs::metadata(&path).map_or(0, |file| file.len());
    assert_eq!(left, 0, "its room is given back");
}

fn open_under_limit(path: &Path, kilobytes: usize) {
    let program = std::env::current_exe().expect("tests are programs");
    // Without the trap the signal for a file that is too long ends the process.
    let script = format!(
        "trap '' XFSZ; ulimit -f {}; exec \"$0\" --exact full::opens_under_a_limit --ignored --nocapture",
        kilobytes * 2
    );
    let output = Command::new("sh").arg("-c").arg(script).arg(program).env(PATH, path).output();
    let output = output.expect("there is a shell");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("refused: "), "{text}");
}

#[test]
fn a_disk_without_room_is_an_error_when_the_file_is_opened() {
    let path = TempPath::new("limit");
    open_under_limit(&path, SLOTS * BLOCK_BYTES / 1_024 / 2);
}

/// The folder that the variable names is on a small file system: `mount -t tmpfs -o size=100k tmpfs folder`.
#[test]
fn a_small_file_system_is_an_error_when_the_file_is_opened() {
    let Some(folder) = std::env::var_os("PAGED_KV_SMALL_DISK") else { return };
    let path = Path::new(&folder).join("slots");
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    for _ in 0..3 {
        match DiskStore::open(&path, &options_of(&cache, b"weights")) {
            Err(OpenError::Io { operation: "allocate", source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
