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
    store.file.bad_syncs.store(2, Relaxed);
    assert!(store.reset(next).is_err());
    assert!(store.reset(next).is_err(), "it is not on the medium yet");
    assert_eq!(store.saved_epoch.load(Relaxed), next - 1);
    store.reset(next).unwrap();
    assert_eq!(store.saved_epoch.load(Relaxed), next);
    store.file.bad_syncs.store(1, Relaxed);
    store.reset(next).unwrap();
    assert_eq!(store.file.bad_syncs.load(Relaxed), 1, "nothing is left to save");
}

#[test]
fn a_store_that_is_dropped_saves_a_reset_that_failed() {
    let path = TempPath::new("unsaved-drop");
    let store = path.open(false);
    let next = store.epoch() + 1;
    store.file.bad_syncs.store(1, Relaxed);
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
    store.file.bad_syncs.store(2, Relaxed);
    assert!(store.reset(store.epoch() + 1).is_err());
    assert!(write(&store, 1).is_err(), "nothing is written before the reset is saved");
    write(&store, 1).unwrap();
    assert_eq!(store.saved_epoch.load(Relaxed), store.epoch());
}
