//! The file by itself: headers, checksums, locks, and files that are not as they were written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use paged_kv::tier_store::{DiskOptions, DiskStore, OpenError, SlotError, SlotStore, SlotWrite};
use paged_kv::tier_store::{SlotKey, TierResets};
use paged_kv::{BlockHash, Namespace, Tier};

use crate::BLOCK_BYTES;
use crate::world::{SLOTS, TempPath, bytes_of, cache_of};

const PAGE: u64 = 4_096;
const HEADER: u64 = 128;

fn namespace(weights: &[u8]) -> Namespace {
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    cache.tiers().namespace(weights).expect("the key is fixed")
}

fn options() -> DiskOptions {
    DiskOptions::new(SLOTS, BLOCK_BYTES, namespace(b"weights"))
}

fn open(path: &Path) -> DiskStore {
    DiskStore::open(path, &options()).expect("there is room on the disk")
}

fn key(content: u32) -> SlotKey {
    BlockHash::from_u128(u128::from(content) << 90 | 1).into()
}

fn content(slot: u32) -> Vec<u8> {
    bytes_of(key(slot).hash)
}

/// Writes a content to each slot, named by the slot.
fn fill(store: &DiskStore) {
    for slot in 0..SLOTS as u32 {
        let bytes = content(slot);
        let write = SlotWrite { slot, key: key(slot), epoch: store.epoch(), bytes: &bytes };
        store.write(&write).expect("there is room");
    }
}

/// Reads the content of a slot. Panics if other bytes are read as the content.
fn read(store: &DiskStore, slot: u32) -> Result<(), SlotError> {
    let mut bytes = vec![0; BLOCK_BYTES];
    store.read(slot, key(slot), &mut bytes)?;
    assert!(bytes == content(slot), "slot {slot}");
    Ok(())
}

fn count_found(store: &DiskStore) -> usize {
    let mut found = Vec::new();
    store.find(0..SLOTS as u32, &mut found).expect("the headers can be read");
    found.len()
}

/// Returns the slots whose contents can be read.
fn good(store: &DiskStore) -> Vec<u32> {
    (0..SLOTS as u32).filter(|&slot| read(store, slot).is_ok()).collect()
}

fn raw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("the file is there")
}

fn contents_at() -> u64 {
    PAGE + (SLOTS as u64 * HEADER).next_multiple_of(PAGE)
}

fn content_at(slot: u64) -> u64 {
    contents_at() + slot * (BLOCK_BYTES as u64).next_multiple_of(PAGE)
}

#[test]
fn contents_are_read_as_they_were_written_after_each_opening() {
    for syncs in [false, true] {
        let path = TempPath::new("kept");
        let store = DiskStore::open(&*path, &options().sync(syncs)).unwrap();
        assert!(!store.was_kept() && store.path() == &*path);
        assert_eq!(good(&store).len(), 0);
        fill(&store);
        for _ in 0..2 {
            assert_eq!(good(&store).len(), SLOTS);
        }
        drop(store);
        let store = open(&path);
        assert!(store.was_kept());
        assert_eq!((good(&store).len(), count_found(&store)), (SLOTS, SLOTS));
    }
}

/// Contents of later processes have larger stamps, whatever was found.
#[test]
fn stamps_are_in_the_order_of_writes_over_processes() {
    let path = TempPath::new("stamps");
    let mut stamps = Vec::new();
    for slot in [5, 3, 9, 1] {
        let store = open(&path);
        let bytes = content(slot);
        for _ in 0..2 {
            let write = SlotWrite { slot, key: key(slot), epoch: store.epoch(), bytes: &bytes };
            store.write(&write).unwrap();
            let mut found = Vec::new();
            store.find(slot..slot + 1, &mut found).unwrap();
            assert_eq!((found.len(), found[0].slot, found[0].key), (1, slot, key(slot)));
            stamps.push(found[0].stamp);
        }
    }
    assert!(stamps.is_sorted_by(|one, other| one < other), "{stamps:?}");
}

#[test]
fn a_slot_is_read_by_its_name_only() {
    let path = TempPath::new("name");
    let store = open(&path);
    fill(&store);
    let mut bytes = vec![0; BLOCK_BYTES];
    assert!(matches!(store.read(3, key(4), &mut bytes), Err(SlotError::Missing)));
    let other_group = SlotKey { group: paged_kv::GroupId(1), ..key(3) };
    assert!(matches!(store.read(3, other_group, &mut bytes), Err(SlotError::Missing)));
    assert!(matches!(
        store.read(SLOTS as u32, key(3), &mut bytes),
        Err(SlotError::NoSuchSlot { .. })
    ));
    assert!(matches!(store.read(3, key(3), &mut bytes[1..]), Err(SlotError::NoSuchSlot { .. })));
    let write = SlotWrite { slot: 3, key: key(3), epoch: store.epoch(), bytes: &bytes[1..] };
    assert!(matches!(store.write(&write), Err(SlotError::NoSuchSlot { .. })));
    assert!(read(&store, 3).is_ok(), "nothing was written");
}

/// Each bit of a slot's header and a sample of its content's bits, one at a time.
#[test]
fn a_flipped_bit_makes_its_slot_missing_and_no_other() {
    let path = TempPath::new("flip");
    let store = open(&path);
    fill(&store);
    let file = raw(&path);
    let of_header = (0..88 * 8).map(|bit| (PAGE + 7 * HEADER + bit / 8, bit % 8));
    let of_content = (0..BLOCK_BYTES as u64).step_by(37).map(|at| (content_at(7) + at, at % 8));
    for (at, bit) in of_header.chain(of_content) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
        assert!(read(&store, 7).is_err(), "byte {at}, bit {bit}");
        assert!(read(&store, 6).is_ok() && read(&store, 8).is_ok());
        file.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(good(&store).len(), SLOTS);
}

/// The process ends after any number of bytes of a content, or in its header.
#[test]
fn a_torn_write_makes_its_slot_missing() {
    let path = TempPath::new("torn");
    let store = open(&path);
    fill(&store);
    let file = raw(&path);
    let new = vec![0xAB; BLOCK_BYTES];
    for written in [1, 8, 2_048, BLOCK_BYTES - 1] {
        // The header was not written back before the content: without a sync this order is possible.
        file.write_all_at(&new[..written], content_at(7)).unwrap();
        assert!(matches!(read(&store, 7), Err(SlotError::Corrupt)), "{written} bytes");
    }
    fill(&store);
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, PAGE + 7 * HEADER).unwrap();
    for written in 1..88 {
        let mut torn = [0; HEADER as usize];
        torn[..written].copy_from_slice(&header[..written]);
        file.write_all_at(&torn, PAGE + 7 * HEADER).unwrap();
        let is_whole = torn == header;
        assert_eq!(read(&store, 7).is_ok(), is_whole, "{written} bytes");
        assert_eq!(count_found(&store), SLOTS - usize::from(!is_whole));
    }
}

/// A header and a content that were written to the place of another slot.
#[test]
fn a_misplaced_slot_is_missing() {
    let path = TempPath::new("misplaced");
    let store = open(&path);
    fill(&store);
    let file = raw(&path);
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, PAGE + 7 * HEADER).unwrap();
    file.write_all_at(&header, PAGE + 8 * HEADER).unwrap();
    file.write_all_at(&content(7), content_at(8)).unwrap();
    let mut bytes = vec![0; BLOCK_BYTES];
    assert!(matches!(store.read(8, key(7), &mut bytes), Err(SlotError::Missing)));
    assert!(matches!(store.read(8, key(8), &mut bytes), Err(SlotError::Missing)));
}

/// Headers and contents from before the file was started anew, which the operating system wrote after the new file header.
#[test]
fn slots_from_before_a_file_was_started_anew_are_missing() {
    let path = TempPath::new("anew");
    fill(&open(&path));
    let (mut old, start) = (vec![0; raw(&path).metadata().unwrap().len() as usize], PAGE as usize);
    raw(&path).read_exact_at(&mut old, 0).unwrap();
    let other = DiskOptions::new(SLOTS, BLOCK_BYTES, namespace(b"other weights"));
    let reopen = |options: &DiskOptions| {
        let store = DiskStore::open(&*path, options).unwrap();
        raw(&path).write_all_at(&old[start..], PAGE).unwrap();
        assert_eq!((good(&store).len(), count_found(&store)), (0, 0), "{options:?}");
    };
    reopen(&other);
    reopen(&options());
    raw(&path).write_all_at(&old[..start], 0).unwrap();
    assert_eq!(good(&open(&path)).len(), SLOTS, "the whole file from before is good");
}

#[test]
fn a_truncated_file_has_the_contents_that_are_left() {
    for at in [0, 1, 100, PAGE, PAGE + 10 * HEADER + 5, content_at(20) + 9] {
        let path = TempPath::new("short");
        let store = open(&path);
        fill(&store);
        let whole = raw(&path).metadata().unwrap().len();
        raw(&path).set_len(at).unwrap();
        let _ = good(&store); // it is truncated while it is open
        drop(store);
        let store = open(&path);
        assert_eq!(raw(&path).metadata().unwrap().len(), whole, "its room is allocated again");
        let left = if at > content_at(20) { 20 } else { 0 };
        assert_eq!(good(&store).len(), left, "truncated at {at}");
        fill(&store);
        assert_eq!(good(&store).len(), SLOTS);
    }
}

#[test]
fn another_namespace_or_geometry_finds_nothing() {
    let others = [
        DiskOptions::new(SLOTS, BLOCK_BYTES, namespace(b"other weights")),
        DiskOptions::new(SLOTS / 2, BLOCK_BYTES, namespace(b"weights")),
        DiskOptions::new(SLOTS * 2, BLOCK_BYTES, namespace(b"weights")),
        DiskOptions::new(SLOTS, BLOCK_BYTES - 8, namespace(b"weights")),
    ];
    for other in &others {
        let path = TempPath::new("other");
        fill(&open(&path));
        let store = DiskStore::open(&*path, other).unwrap();
        assert!(!store.was_kept());
        assert_eq!(count_found(&store), 0, "{other:?}");
        drop(store);
        assert_eq!(count_found(&open(&path)), 0, "it was started anew");
    }
}

#[test]
fn a_damaged_file_header_finds_nothing() {
    for at in [8, 16, 40, 50, 79] {
        let path = TempPath::new("header");
        fill(&open(&path));
        let mut byte = [0];
        raw(&path).read_exact_at(&mut byte, at).unwrap();
        raw(&path).write_all_at(&[byte[0] ^ 4], at).unwrap();
        let store = open(&path);
        assert!(!store.was_kept());
        assert_eq!(count_found(&store), 0, "byte {at}");
    }
}

#[test]
fn one_store_at_a_time_has_a_file() {
    let path = TempPath::new("locked");
    let store = open(&path);
    fill(&store);
    for _ in 0..2 {
        let refused = DiskStore::open(&*path, &options());
        assert!(matches!(refused, Err(OpenError::Locked { .. })), "{refused:?}");
    }
    assert_eq!(good(&store).len(), SLOTS, "the other one changed nothing");
    drop(store);
    assert_eq!(good(&open(&path)).len(), SLOTS);
}

/// A child process has the files of its parent open until it runs its own program.
#[test]
fn a_file_is_free_when_its_store_is_dropped_while_processes_are_started() {
    let path = TempPath::new("children");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let mut child = Command::new("true").spawn().expect("a program that ends");
                child.wait().expect("it ends");
            }
        });
        let openings: Vec<_> =
            (0..300).map(|_| DiskStore::open(&*path, &options()).map(drop)).collect();
        is_over.store(true, Ordering::Relaxed);
        let refused: Vec<_> = openings.iter().filter(|opening| opening.is_err()).collect();
        assert!(refused.is_empty(), "{} of 300: {:?}", refused.len(), refused[0]);
    });
}

#[test]
fn a_file_of_another_kind_is_left_as_it_is() {
    let path = TempPath::new("foreign");
    let text = "weights that took a day to download".repeat(9);
    std::fs::write(&*path, &text).unwrap();
    let refused = DiskStore::open(&*path, &options());
    assert!(matches!(refused, Err(OpenError::NotAStore { .. })), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&*path).unwrap(), text);
}

/// Images of disks and tensors may begin with zeros.
#[test]
fn a_file_that_begins_with_zeros_is_left_as_it_is() {
    for zeros in [128, 129, 4_096, 1 << 20] {
        let path = TempPath::new("zeros");
        let mut bytes = vec![0; zeros];
        bytes.extend_from_slice(b"weights that took a day to download");
        std::fs::write(&*path, &bytes).unwrap();
        let refused = DiskStore::open(&*path, &options());
        assert!(matches!(refused, Err(OpenError::NotAStore { .. })), "{refused:?}");
        assert!(std::fs::read(&*path).unwrap() == bytes);
    }
}

/// The process ends after the room of a new file is allocated and before its header is written.
#[test]
fn a_file_whose_start_was_interrupted_is_started_anew() {
    let path = TempPath::new("interrupted");
    for beginning in [&b""[..], b"paged", b"pagedkv\n"] {
        std::fs::write(&*path, beginning).unwrap();
        assert_eq!(count_found(&open(&path)), 0);
    }
    raw(&path).write_all_at(&[0; 120], 8).unwrap();
    assert_eq!(count_found(&open(&path)), 0);
}

#[test]
fn a_path_without_a_file_is_an_error() {
    let missing = std::env::temp_dir().join("paged-kv-no-such-folder").join("file");
    for path in [missing.as_path(), Path::new("/"), Path::new("")] {
        let refused = DiskStore::open(path, &options());
        assert!(matches!(refused, Err(OpenError::Io { .. })), "{refused:?}");
    }
    let path = TempPath::new("none");
    for (slots, block_bytes) in [(0, 8), (8, 0), (usize::MAX, 8), (8, usize::MAX)] {
        let refused =
            DiskStore::open(&*path, &DiskOptions::new(slots, block_bytes, namespace(b"")));
        assert!(matches!(refused, Err(OpenError::InvalidOptions { .. })), "{refused:?}");
    }
    assert!(!path.exists());
}

/// Prompts of users can be recovered from keys and values.
#[test]
fn a_new_file_is_for_its_owner_only() {
    let path = TempPath::new("mode");
    let _store = open(&path);
    assert_eq!(raw(&path).metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn all_room_is_allocated_when_the_file_is_opened() {
    use std::os::unix::fs::MetadataExt;

    let path = TempPath::new("room");
    let _store = open(&path);
    let file = raw(&path).metadata().unwrap();
    assert!(file.blocks() * 512 >= file.len(), "{} of {}", file.blocks() * 512, file.len());
    assert!(file.len() >= (SLOTS * BLOCK_BYTES) as u64);
}

#[test]
fn a_reset_makes_contents_missing_for_ever() {
    let path = TempPath::new("reset");
    let store = open(&path);
    fill(&store);
    let first = store.epoch();
    store.reset(first + 1).unwrap();
    assert_eq!((good(&store).len(), count_found(&store)), (0, 0));
    // A content that was ordered before.
    let bytes = content(3);
    let late = store.write(&SlotWrite { slot: 3, key: key(3), epoch: first, bytes: &bytes });
    assert!(matches!(late, Err(SlotError::OtherEpoch { .. })), "{late:?}");
    let new = SlotWrite { slot: 4, key: key(4), epoch: store.epoch(), bytes: &content(4) };
    store.write(&new).unwrap();
    assert_eq!(good(&store), [4]);
    store.reset(first).unwrap();
    assert_eq!(good(&store), [4], "an epoch that is over is not begun again");
    drop(store);
    let store = open(&path);
    assert_eq!((store.epoch(), good(&store)), (first + 1, vec![4]));
    store.reset(first + 7).unwrap();
    drop(store);
    assert_eq!(count_found(&open(&path)), 0);
}

/// A deleted file serves the process that has it open; the next process begins anew.
#[test]
fn a_file_that_is_deleted_serves_on() {
    let path = TempPath::new("deleted");
    let store = open(&path);
    fill(&store);
    std::fs::remove_file(&*path).unwrap();
    assert_eq!(good(&store).len(), SLOTS);
    fill(&store);
    let other = open(&path);
    assert_eq!((good(&store).len(), good(&other).len()), (SLOTS, 0));
}
