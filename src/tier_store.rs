//! Movers for tiers: slots in host memory and in a file, and threads that copy between them and a device.
//!
//! The cache keeps which content is in which slot, and names copies in tickets. Here are the bytes:
//!
//! | type | is |
//! |---|---|
//! | [`TierMover`] | makes the copies of tickets and settles them |
//! | [`Device`] | the caller's copies to and from its blocks; [`CpuDevice`] for tests |
//! | [`HostArena`] | the slots of a tier in host memory |
//! | [`DiskStore`] | the slots of a tier in a file, found again by a later process |
//! | [`SlotStore`] | the trait of such stores, for other media |
//! | [`TierResets`] | carries resets of the cache over to stores |
//!
//! A tier in host memory above one on disk, which a later process reads again:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use paged_kv::tier_store::{CpuDevice, DiskOptions, DiskStore, HostArena, TierMover, TierResets};
//! use paged_kv::{AdmitOptions, HashAlgorithm, LoadLimit, PagedKvCache, Tier, TierAdmission, TierId};
//!
//! const HOST: TierId = TierId(0);
//! const DISK: TierId = TierId(1);
//!
//! fn start(
//!     path: &std::path::Path,
//! ) -> Result<(PagedKvCache, Arc<CpuDevice>, TierMover), Box<dyn std::error::Error>> {
//!     let resets = TierResets::new();
//!     let cache = PagedKvCache::builder()
//!         .num_blocks(8)
//!         .block_size(4)
//!         .hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 }) // the same in each process
//!         .tier(Tier::host(16))
//!         .tier(Tier::disk(64))
//!         .reset_observer(resets.observer())
//!         .build()?;
//!     let device = Arc::new(CpuDevice::new(8, 4_096)?);
//!     let namespace = cache.tiers().namespace(b"weights 3f2a, 24 layers, bf16")?;
//!     let disk = DiskStore::open(path, &DiskOptions::new(64, 4_096, namespace))?;
//!     let mover = TierMover::builder(Arc::clone(&device))
//!         .host(HOST, HostArena::new(16, 4_096)?)
//!         .store(DISK, disk, &resets)
//!         .build()?;
//!     mover.restore(cache.tiers().restore(DISK)?)?;
//!     while !mover.stats().restores.iter().all(|restore| restore.is_done) {
//!         std::thread::yield_now();
//!     }
//!     Ok((cache, device, mover))
//! }
//!
//! let path = std::env::temp_dir().join(format!("paged-kv-tiers-{}", std::process::id()));
//! let options = AdmitOptions::default();
//!
//! let (cache, device, mover) = start(&path)?;
//! let prompt = cache.prompt(&[7; 5]);
//! let (mut sequence, _) = cache.admit_sequence(&prompt, &options)?;
//! device.write(sequence.block_ids()[0], &[1; 4_096]); // a kernel
//! sequence.commit(5)?;
//! for tier in [HOST, DISK] {
//!     if let Some(ticket) = cache.tiers().store(tier, prompt.hashes())? {
//!         mover.store(ticket);
//!     }
//! }
//! mover.shutdown();
//! drop((sequence, cache));
//!
//! let (cache, device, mover) = start(&path)?; // a later process
//! let admitted = cache.tiers().admit(&prompt, &options, LoadLimit::default())?;
//! let TierAdmission::Loading(ticket) = admitted else { panic!("it is on disk") };
//! let loaded = mover.load_blocking(ticket)?;
//! assert_eq!(loaded.loaded_tokens, 4);
//! assert_eq!(device.read(loaded.sequence.block_ids()[0]), [1; 4_096]);
//! # drop(mover);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Safety of the contents
//!
//! - A content is read only as it was written: every load from a store checks its bytes.
//! - A file has contents of one [namespace](crate::Tiers::namespace) only, and none from before a reset.
//! - A failure of a medium costs hits and no request: the content is computed instead.

mod bytes;
mod cpu_device;
mod device;
mod disk;
mod host_arena;
mod memory;
mod mover;
mod resets;
mod shared_handles;
mod slot_store;

pub use self::cpu_device::CpuDevice;
pub use self::device::{CopyIn, CopyOut, Device, DeviceError};
pub use self::disk::{DiskOptions, DiskStore, OpenError};
pub use self::host_arena::HostArena;
pub use self::mover::{MoverStats, RestoreProgress, TierMover, TierMoverBuilder};
pub use self::resets::TierResets;
pub use self::slot_store::{FoundSlot, SlotError, SlotKey, SlotStore, SlotWrite};
