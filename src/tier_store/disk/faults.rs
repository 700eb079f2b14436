//! Tests of syncs that the medium refuses.

use super::*;
use crate::cache::PagedKvCache;
use crate::prefix::HashAlgorithm;
use crate::sync::Ordering::Relaxed;
use crate::tier::Tier;

const BYTES: usize = 64;

/// A path whose file is removed when it is dropped.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("paged-kv-{name}-{}", std::process::id())))
    }

    fn open(&self, syncs: bool) -> DiskStore {
        let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(4));
        let cache = cache.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 }).build().unwrap();
        let namespace = cache.tiers().namespace(b"weights").unwrap();
        DiskStore::open(&self.0, &DiskOptions::new(4, BYTES, namespace).sync(syncs)).unwrap()
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn write(store: &DiskStore, slot: u32) -> Result<(), SlotError> {
    let key = crate::prefix::BlockHash::from_u128(slot.into()).into();
    store.write(&SlotWrite { slot, key, epoch: store.epoch(), bytes: &[7; BYTES] })
}

#[test]
fn a_reset_is_reported_as_done_only_when_it_is_saved() {
    let path = TempPath::new("unsaved");
    let store = path.open(false);
    let next = store.epoch() + 1;
    store.file.faults.own.store(2, Relaxed);
    assert!(store.reset(next).is_err());
    assert!(store.reset(next).is_err(), "it is not on the medium yet");
    assert_eq!(store.saved_epoch.load(Relaxed), next - 1);
    store.reset(next).unwrap();
    assert_eq!(store.saved_epoch.load(Relaxed), next);
    store.file.faults.own.store(1, Relaxed);
    store.reset(next).unwrap();
    assert_eq!(store.file.faults.own.load(Relaxed), 1, "nothing is left to save");
}

#[test]
fn a_store_that_is_dropped_saves_a_reset_that_failed() {
    let path = TempPath::new("unsaved-drop");
    let store = path.open(false);
    let next = store.epoch() + 1;
    store.file.faults.own.store(1, Relaxed);
    assert!(store.reset(next).is_err());
    // A machine that lost power has the header from before.
    let mut earlier = *store.header.lock();
    earlier.epoch = next - 1;
    store.file.write(&earlier.encode(), 0).unwrap();
    drop(store);
    assert_eq!(path.open(false).epoch(), next);
}

#[test]
fn a_write_saves_a_reset_that_failed() {
    let path = TempPath::new("unsaved-write");
    let store = path.open(false);
    store.file.faults.own.store(2, Relaxed);
    assert!(store.reset(store.epoch() + 1).is_err());
    assert!(write(&store, 1).is_err(), "nothing is written before the reset is saved");
    write(&store, 1).unwrap();
    assert_eq!(store.saved_epoch.load(Relaxed), store.epoch());
}

/// The operating system reports the error of a write to one of two syncs.
#[test]
fn a_failed_sync_of_another_thread_fails_the_writes_before_it() {
    let path = TempPath::new("unsynced");
    let store = path.open(true);
    for slot in 0..2 {
        write(&store, slot).unwrap();
        store.file.faults.of_others.store(1, Relaxed);
        assert!(write(&store, slot).is_err());
        assert!(store.header_of(slot).unwrap().is_none(), "it has no content");
        write(&store, slot).unwrap();
    }
    store.file.faults.of_others.store(1, Relaxed);
    let next = store.epoch() + 1;
    assert!(store.reset(next).is_err());
    store.reset(next).unwrap();
}

#[test]
fn a_sync_fails_if_another_has_failed_since_the_write() {
    let path = TempPath::new("since");
    let store = path.open(true);
    let file = &store.file;
    let (first, other) = (file.failed_syncs(), file.failed_syncs());
    file.faults.own.store(1, Relaxed);
    assert!(file.sync_since(other).is_err());
    assert!(file.sync_since(first).is_err());
    file.sync_since(file.failed_syncs()).unwrap();
}
