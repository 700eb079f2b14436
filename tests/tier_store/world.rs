//! `World`: a cache with tiers, a device of plain memory and a mover; and files that are removed at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use paged_kv::tier_store::{
    CpuDevice, Device, DiskOptions, DiskStore, HostArena, TierMover, TierMoverBuilder, TierResets,
};
use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, HashAlgorithm, LoadLimit, LoadTicket, Loaded,
    PagedKvCache, Prompt, StoreTicket, Tier, TierAdmission, TierId,
};

use crate::random::Random;
use crate::{BLOCK_BYTES, BLOCK_SIZE, FIRST};

pub const NUM_BLOCKS: usize = 48;
pub const SLOTS: usize = 64;

/// Long enough for each wait that ends.
pub const SOON: Duration = Duration::from_secs(60);

/// A path of its own, whose file is removed when it is dropped.
pub struct TempPath(PathBuf);

impl TempPath {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("paged-kv-{name}-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl std::ops::Deref for TempPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the bytes that a model would write for a content.
pub fn bytes_of(hash: BlockHash) -> Vec<u8> {
    let mut random = Random::new(hash.as_u128() as u64);
    (0..BLOCK_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Returns a cache whose hashes are the same in each process.
pub fn cache_of(tiers: &[Tier], resets: &TierResets) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(NUM_BLOCKS).block_size(BLOCK_SIZE);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 });
    let builder = tiers.iter().fold(builder, |builder, &tier| builder.tier(tier));
    builder.reset_observer(resets.observer()).build().expect("the tiers make sense")
}

pub fn options_of(cache: &PagedKvCache, weights: &[u8]) -> DiskOptions {
    let namespace = cache.tiers().namespace(weights).expect("the key is fixed");
    DiskOptions::new(SLOTS, BLOCK_BYTES, namespace)
}

pub fn disk_at(path: &Path, cache: &PagedKvCache) -> DiskStore {
    DiskStore::open(path, &options_of(cache, b"weights")).expect("there is room on the disk")
}

pub fn arena() -> HostArena {
    HostArena::new(SLOTS, BLOCK_BYTES).expect("there is memory")
}

pub fn device() -> Arc<CpuDevice> {
    Arc::new(CpuDevice::new(NUM_BLOCKS, BLOCK_BYTES).expect("there is memory"))
}

pub struct World {
    pub cache: PagedKvCache,
    pub device: Arc<CpuDevice>,
    pub mover: TierMover,
}

impl World {
    /// Returns the blocks and slots in quarantine.
    pub fn quarantined(&self) -> usize {
        let stats = self.cache.stats();
        stats.blocks_quarantined
            + stats.tiers.iter().map(|tier| tier.slots_quarantined).sum::<usize>()
    }

    /// Creates a world whose mover `build` completes.
    pub fn new(
        tiers: &[Tier],
        build: impl FnOnce(TierMoverBuilder, &PagedKvCache, &TierResets) -> TierMoverBuilder,
    ) -> Self {
        Self::with_device(tiers, |device| device, build)
    }

    /// Creates a world whose mover uses the device that `wrap` returns.
    pub fn with_device<D: Device + 'static>(
        tiers: &[Tier],
        wrap: impl FnOnce(Arc<CpuDevice>) -> D,
        build: impl FnOnce(TierMoverBuilder, &PagedKvCache, &TierResets) -> TierMoverBuilder,
    ) -> Self {
        let (resets, device) = (TierResets::new(), device());
        let cache = cache_of(tiers, &resets);
        let builder = TierMover::builder(wrap(Arc::clone(&device)));
        let builder = build(builder, &cache, &resets);
        Self { mover: builder.build().expect("the media make sense"), cache, device }
    }

    /// Creates a world with one tier, in host memory.
    pub fn host() -> Self {
        Self::new(&[Tier::host(SLOTS)], |builder, _, _| builder.host(FIRST, arena()))
    }

    /// Creates a world with one tier, in a file, after its contents were found.
    pub fn disk(path: &Path) -> Self {
        let world = Self::new(&[Tier::disk(SLOTS)], |builder, cache, resets| {
            builder.store(FIRST, disk_at(path, cache), resets)
        });
        world.restore(FIRST);
        world
    }

    /// Makes the contents of a file ready, and returns their number.
    pub fn restore(&self, tier: TierId) -> usize {
        let restore = self.cache.tiers().restore(tier).expect("the tier is empty");
        self.mover.restore(restore).expect("it has a store");
        let end = Instant::now() + SOON;
        while !self.mover.stats().restores.iter().all(|restore| restore.is_done) {
            assert!(Instant::now() < end, "the contents are being found");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.mover.stats().restores.last().expect("it was begun").contents
    }

    /// Returns a prompt of so many full blocks and one token more. Prompts of two names share no block.
    pub fn prompt(&self, name: u32, blocks: usize) -> Prompt {
        let tokens: Vec<u32> =
            (0..=(blocks * BLOCK_SIZE) as u32).map(|at| name * 10_000 + at).collect();
        self.cache.prompt(&tokens)
    }

    /// Admits a prompt without tiers, and writes and commits all that the device does not have.
    #[track_caller]
    pub fn compute(&self, prompt: &Prompt) -> CachedSequence {
        let admitted = self.cache.admit_sequence(prompt, &AdmitOptions::default());
        let (mut sequence, admission) = admitted.expect("there is room");
        self.write(&sequence, prompt, admission.cached_tokens / BLOCK_SIZE);
        sequence.commit(prompt.num_tokens()).expect("it has slots");
        sequence
    }

    /// Writes the blocks of a prompt from block `first` on, as a model does.
    pub fn write(&self, sequence: &CachedSequence, prompt: &Prompt, first: usize) {
        let blocks = sequence.block_ids().iter().zip(prompt.hashes()).skip(first);
        blocks.for_each(|(&block, &hash)| self.device.write(block, &bytes_of(hash)));
    }

    /// Overwrites a block that is free, so that only a copy can bring its bytes back.
    pub fn forget_device(&self) {
        self.cache.prefix().forget(usize::MAX);
        let blocks = self.cache.free_block_count();
        let sequence = self.cache.allocate_sequence(blocks * BLOCK_SIZE).expect("all are free");
        let garbage = vec![0x55; BLOCK_BYTES];
        sequence.block_ids().iter().for_each(|&block| self.device.write(block, &garbage));
    }

    #[track_caller]
    pub fn storing(&self, tier: TierId, prompt: &Prompt) -> StoreTicket {
        let ticket = self.cache.tiers().store(tier, prompt.hashes()).expect("the tier is there");
        ticket.expect("some content is to be stored")
    }

    /// Stores a prompt in a tier and lets the device forget it.
    #[track_caller]
    pub fn put(&self, tier: TierId, prompt: &Prompt) {
        let sequence = self.compute(prompt);
        self.mover.store(self.storing(tier, prompt));
        self.wait();
        drop(sequence);
        self.forget_device();
    }

    #[track_caller]
    pub fn wait(&self) {
        assert!(self.mover.quiesce(SOON), "jobs end: {:?}", self.mover);
    }

    #[track_caller]
    pub fn admit(&self, prompt: &Prompt) -> TierAdmission {
        let (options, limit) = (AdmitOptions::default(), LoadLimit::default());
        self.cache.tiers().admit(prompt, &options, limit).expect("there is room")
    }

    #[track_caller]
    pub fn loading(&self, prompt: &Prompt) -> LoadTicket {
        match self.admit(prompt) {
            TierAdmission::Loading(ticket) => ticket,
            other => panic!("a content is ready in a tier: {other:?}"),
        }
    }

    /// Checks that the first blocks of a sequence have the bytes of the prompt.
    #[track_caller]
    pub fn check(&self, loaded: &Loaded, prompt: &Prompt) {
        let blocks = loaded.admission.cached_tokens / BLOCK_SIZE;
        let blocks = loaded.sequence.block_ids()[..blocks].iter().zip(prompt.hashes());
        for (&block, &hash) in blocks {
            assert!(self.device.read(block) == bytes_of(hash), "{block} of {hash}");
        }
    }

    /// Loads a prompt, checks its bytes, and returns the number of blocks that were loaded.
    #[track_caller]
    pub fn load(&self, prompt: &Prompt) -> usize {
        let TierAdmission::Loading(ticket) = self.admit(prompt) else { return 0 };
        let loaded = self.mover.load_blocking(ticket).expect("an outcome a copy");
        self.check(&loaded, prompt);
        loaded.loaded_tokens / BLOCK_SIZE
    }

    /// Checks that nothing is held.
    #[track_caller]
    pub fn assert_at_rest(&self) {
        self.wait();
        assert_at_rest(&self.cache);
        let stats = self.mover.stats();
        assert_eq!((stats.staging_used, stats.tickets_uncertain), (0, 0), "{stats:?}");
    }
}

/// Checks that no ticket, sequence or quarantine holds a block or a slot.
#[track_caller]
pub fn assert_at_rest(cache: &PagedKvCache) {
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    let stats = cache.stats();
    assert_eq!((stats.contents_in_flight, stats.blocks_quarantined), (0, 0));
    for tier in stats.tiers {
        assert_eq!((tier.slots_used, tier.slots_quarantined), (0, 0), "slots leaked: {tier:?}");
    }
    cache.validate().expect("a cache at rest is consistent");
}
