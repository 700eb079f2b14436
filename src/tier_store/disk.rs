//! [`DiskStore`]: the slots of a tier in one preallocated file, which later processes read again.
//!
//! ```text
//!   0       file header   version, namespace, slots, bytes of a block, epoch, a random number
//!   4096    slot headers  128 bytes each: hash, group, epoch, stamp, checksums of the content and of the header
//!   ..      contents      one a slot, at multiples of 4,096 bytes
//! ```
//!
//! A write removes the slot's header, then writes the content, then the new header. A content is read only if its header
//! is whole, has the name that is looked for and the file's epoch, and the content has the checksum that the header says.
//! The namespace and the random number, another one each time that the file is started anew, are in each checksum.
//!
//! Invariant: a slot is never read as a content that was not written to it, whenever a process or the machine stops, and
//! in whichever order the operating system wrote. With [`DiskOptions::sync`], a content whose write was reported as done
//! is found after the machine lost power.

mod data_file;
#[cfg(test)]
mod faults;
mod file_header;
mod layout;
mod options;
mod slot_header;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fmt, io, slice};

use self::data_file::DataFile;
use self::file_header::{FileHeader, MAGIC};
use self::layout::Layout;
use self::slot_header::{SLOT_HEADER_BYTES, SlotHeader, checksum_of};
use super::slot_store::{FoundSlot, SlotError, SlotKey, SlotStore, SlotWrite};
use crate::sync::outside::Mutex;
use crate::sync::{AtomicU64, Ordering};

pub use self::options::{DiskOptions, OpenError};

/// Bits of a stamp that count the writes of one process; those above count the processes.
const STAMP_BITS: u32 = 40;

/// The slots of a tier in one file.
///
/// Reads and writes of different slots go in parallel. None takes a lock, but the first write after a reset that failed;
/// and syncs are made one after the other. Each costs a system call for the header and one
/// for the content, and a pass over the content for its checksum.
///
/// The checksums find damage and no forgery: a process that may write the file can make contents. The file is not
/// encrypted.
///
/// ```
/// use paged_kv::tier_store::{DiskOptions, DiskStore, SlotStore, SlotWrite};
/// use paged_kv::{BlockHash, HashAlgorithm, PagedKvCache, Tier};
///
/// let cache = PagedKvCache::builder()
///     .num_blocks(8)
///     .hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 })
///     .tier(Tier::disk(16))
///     .build()?;
/// let namespace = cache.tiers().namespace(b"weights 3f2a, 24 layers, bf16")?;
/// let options = DiskOptions::new(16, 4_096, namespace);
/// let folder = std::env::temp_dir();
/// let path = folder.join(format!("paged-kv-{}", std::process::id()));
///
/// let key = BlockHash::from_u128(7).into();
/// let store = DiskStore::open(&path, &options)?;
/// store.write(&SlotWrite { slot: 3, key, epoch: store.epoch(), bytes: &[5; 4_096] })?;
/// assert!(DiskStore::open(&path, &options).is_err()); // locked
/// drop(store);
///
/// let store = DiskStore::open(&path, &options)?; // a later process
/// let mut bytes = vec![0; 4_096];
/// store.read(3, key, &mut bytes)?;
/// assert_eq!(bytes, [5; 4_096]);
/// # drop(store);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DiskStore {
    path: PathBuf,
    file: DataFile,
    layout: Layout,
    syncs: bool,
    was_kept: bool,
    /// The key of all checksums in the file but that of its header.
    seed: u64,
    /// The header as it should be in the file.
    header: Mutex<FileHeader>,
    epoch: AtomicU64,
    /// The epoch that the header in the file has.
    saved_epoch: AtomicU64,
    stamp: AtomicU64,
}

impl DiskStore {
    /// Opens or creates the file, locks it, and allocates all of its room, so that a full disk is an error here and not
    /// later. A file of another namespace, geometry or format is started anew: nothing is found in it.
    ///
    /// A new file is readable by its owner only. The lock is that of the operating system for open files, so it ends with
    /// the process. On file systems that copy on write, or cannot allocate, a full disk may still show later.
    ///
    /// # Errors
    /// [`OpenError`]. A file that was there is as it was, unless it was to be started anew. That is done only if it begins
    /// as a file of slots does, or has at most 128 bytes and they are zeros.
    ///
    /// ```no_run
    /// use paged_kv::tier_store::{DiskOptions, DiskStore};
    ///
    /// # fn f(namespace: paged_kv::Namespace) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = DiskStore::open("/var/cache/kv", &DiskOptions::new(10_000, 2 << 20, namespace))?;
    /// println!("contents of an earlier process: {}", store.was_kept());
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(path: impl AsRef<Path>, options: &DiskOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let layout = Layout::new(options.slots, options.block_bytes)?;
        let file = DataFile::open(path)?;
        let fault =
            |operation| move |source| OpenError::Io { operation, path: path.to_owned(), source };
        let (first, len) = file.beginning().map_err(fault("read"))?;
        if !FileHeader::may_replace(&first, len) {
            return Err(OpenError::NotAStore { path: path.to_owned() });
        }
        let new = FileHeader::new(*options.namespace.as_bytes(), &layout);
        let old = FileHeader::decode(&first).filter(|old| old.is_like(&new));
        let header = old.map_or(new, FileHeader::next_session);
        if old.is_none() {
            file.clear().map_err(fault("truncate"))?;
            // Before its room: a file of zeros is not known to be one of these.
            file.write(&MAGIC, 0).map_err(fault("write"))?;
            file.sync_all().map_err(fault("sync"))?;
        }
        file.allocate(layout.file_bytes()).map_err(|source| {
            // A file without a header is started anew; its room is given back until then.
            if old.is_none() {
                let _ = file.clear();
            }
            fault("allocate")(source)
        })?;
        file.write(&header.encode(), 0).map_err(fault("write"))?;
        file.sync_all().map_err(fault("sync"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            layout,
            syncs: options.syncs,
            was_kept: old.is_some(),
            seed: header.seed(),
            epoch: AtomicU64::new(header.epoch),
            saved_epoch: AtomicU64::new(header.epoch),
            stamp: AtomicU64::new(header.session << STAMP_BITS),
            header: Mutex::new(header),
        })
    }

    /// Returns the path of the file.
    ///
    /// ```
    /// fn name(store: &paged_kv::tier_store::DiskStore) -> String {
    ///     store.path().display().to_string()
    /// }
    /// ```
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the file had been written under the same namespace and geometry, so that contents may be found.
    ///
    /// ```
    /// fn is_cold_start(store: &paged_kv::tier_store::DiskStore) -> bool {
    ///     !store.was_kept()
    /// }
    /// ```
    pub fn was_kept(&self) -> bool {
        self.was_kept
    }

    /// Writes the header of the file and syncs it.
    fn save(&self, header: &FileHeader) -> io::Result<()> {
        let failed_syncs = self.file.failed_syncs();
        self.file.write(&header.encode(), 0)?;
        self.file.sync_since(failed_syncs)?;
        // Relaxed: a writer that reads the earlier value saves the header again.
        self.saved_epoch.store(header.epoch, Ordering::Relaxed);
        Ok(())
    }

    /// # Errors
    /// `OtherEpoch`, `NoSuchSlot`, or `Io` if a reset is not in the file.
    fn refuse(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        self.layout.refuse(write.slot, write.bytes.len())?;
        let of_store = self.epoch();
        if write.epoch != of_store {
            return Err(SlotError::OtherEpoch { of_content: write.epoch, of_store });
        }
        // Relaxed: as in `save`.
        if write.epoch != self.saved_epoch.load(Ordering::Relaxed) {
            let header = self.header.lock();
            if write.epoch != header.epoch {
                let of_store = header.epoch;
                return Err(SlotError::OtherEpoch { of_content: write.epoch, of_store });
            }
            self.save(&header)?;
        }
        Ok(())
    }

    /// Removes the header of a slot.
    fn invalidate(&self, slot: u32) -> io::Result<()> {
        self.file.write(&[0; SLOT_HEADER_BYTES], self.layout.header_at(slot))
    }

    fn write_content(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        self.refuse(write)?;
        self.invalidate(write.slot)?;
        Ok(self.file.write(write.bytes, self.layout.content_at(write.slot))?)
    }

    fn write_header(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        let header = SlotHeader {
            key: write.key,
            content_bytes: write.bytes.len() as u64,
            content_checksum: checksum_of(write.bytes, self.seed),
            epoch: write.epoch,
            // Relaxed: only the number counts.
            stamp: self.stamp.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let at = self.layout.header_at(write.slot);
        Ok(self.file.write(&header.encode(write.slot, self.seed), at)?)
    }

    /// Syncs the file if the options say so and some write was good. If it fails, or a sync of another thread has failed
    /// since the first write, all good ones have failed.
    fn sync_good(&self, failed_syncs: u64, outcomes: &mut [Result<(), SlotError>]) {
        if !self.syncs || outcomes.iter().all(Result::is_err) {
            return;
        }
        if let Err(fault) = self.file.sync_since(failed_syncs) {
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(SlotError::Io(io::Error::new(fault.kind(), fault.to_string())));
            }
        }
    }

    fn header_of(&self, slot: u32) -> io::Result<Option<SlotHeader>> {
        let mut bytes = [0; SLOT_HEADER_BYTES];
        self.file.read(&mut bytes, self.layout.header_at(slot))?;
        Ok(SlotHeader::decode(&bytes, slot, self.seed))
    }

    fn is_present(&self, header: &SlotHeader) -> bool {
        header.epoch == self.epoch() && header.content_bytes == self.layout.block_bytes() as u64
    }
}

impl SlotStore for DiskStore {
    fn slots(&self) -> usize {
        self.layout.slots()
    }

    fn block_bytes(&self) -> usize {
        self.layout.block_bytes()
    }

    fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        self.write_all(slice::from_ref(write)).pop().expect("an outcome a write")
    }

    /// Writes all contents and then all headers. With [`DiskOptions::sync`], the file is synced twice, however many
    /// contents there are.
    fn write_all(&self, writes: &[SlotWrite<'_>]) -> Vec<Result<(), SlotError>> {
        let failed_syncs = self.file.failed_syncs();
        let mut outcomes: Vec<_> = writes.iter().map(|write| self.write_content(write)).collect();
        self.sync_good(failed_syncs, &mut outcomes);
        for (outcome, write) in outcomes.iter_mut().zip(writes).filter(|(o, _)| o.is_ok()) {
            *outcome = self.write_header(write);
            if outcome.is_err() {
                // A part of the header may have been written; its checksum refuses it, too.
                let _ = self.invalidate(write.slot);
            }
        }
        let before: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
        self.sync_good(failed_syncs, &mut outcomes);
        for ((outcome, write), was_good) in outcomes.iter().zip(writes).zip(before) {
            if was_good && outcome.is_err() {
                let _ = self.invalidate(write.slot);
            }
        }
        outcomes
    }

    fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError> {
        self.layout.refuse(slot, into.len())?;
        let header = self.header_of(slot)?.ok_or(SlotError::Missing)?;
        if header.key != key || !self.is_present(&header) {
            return Err(SlotError::Missing);
        }
        self.file.read(into, self.layout.content_at(slot))?;
        match checksum_of(into, self.seed) == header.content_checksum {
            true => Ok(()),
            false => Err(SlotError::Corrupt),
        }
    }

    fn find(&self, slots: Range<u32>, found: &mut Vec<FoundSlot>) -> Result<(), SlotError> {
        let end = slots.end.min(self.layout.slots() as u32);
        let slots = slots.start.min(end)..end;
        let mut table = vec![0; slots.len() * SLOT_HEADER_BYTES];
        self.file.read(&mut table, self.layout.header_at(slots.start))?;
        let headers = table.chunks_exact(SLOT_HEADER_BYTES).zip(slots);
        found.extend(headers.filter_map(|(bytes, slot)| {
            let bytes = bytes.try_into().expect("a chunk's length");
            let header = SlotHeader::decode(bytes, slot, self.seed)?;
            let SlotHeader { key, stamp, .. } = header;
            self.is_present(&header).then_some(FoundSlot { slot, key, stamp })
        }));
        Ok(())
    }

    fn epoch(&self) -> u64 {
        // Relaxed: each content says its own epoch.
        self.epoch.load(Ordering::Relaxed)
    }

    /// Writes the epoch to the file and syncs it, also without [`DiskOptions::sync`]: one write and one sync, however
    /// many slots there are.
    fn reset(&self, epoch: u64) -> Result<(), SlotError> {
        let mut header = self.header.lock();
        if epoch > header.epoch {
            header.epoch = epoch;
            // Relaxed: as in `epoch`.
            self.epoch.store(epoch, Ordering::Relaxed);
        }
        // Relaxed: written with the lock.
        if self.saved_epoch.load(Ordering::Relaxed) >= epoch {
            return Ok(());
        }
        // A reset that began this epoch before may have failed.
        Ok(self.save(&header)?)
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        let header = self.header.lock();
        // Relaxed: written with the lock.
        if self.saved_epoch.load(Ordering::Relaxed) < header.epoch {
            // The last try; the reset was reported as failed.
            let _ = self.save(&header);
        }
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStore")
            .field("path", &self.path)
            .field("slots", &self.layout.slots())
            .field("block_bytes", &self.layout.block_bytes())
            .finish_non_exhaustive()
    }
}
