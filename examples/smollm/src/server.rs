//! `Server`: the model, and for each group of layers a cache and the memory of its blocks. Threads share it.

use paged_kv::{HashAlgorithm, PagedKvCache, ReclaimPolicy, Result};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kv::KvStore;
use crate::model::Model;
use crate::panel::Split;
use crate::weights::Weights;

/// The parameters of the caches.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Tokens of a block.
    pub block_size: usize,
    /// Blocks of the cache of layers that attend to all positions.
    pub num_blocks: usize,
    /// Blocks of the cache of a group with a window.
    pub window_blocks: usize,
    /// The seed by which the free blocks are shuffled; `None` leaves them in order.
    pub shuffle: Option<u64>,
    /// How the kernels split their work.
    pub split: Split,
    /// Two queues of idle blocks, instead of one.
    pub two_queues: bool,
    /// The hash of the blocks.
    pub hash: HashAlgorithm,
    /// Home shards; `None` for the default.
    pub home_shards: Option<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 400,
            window_blocks: 400,
            shuffle: Some(1),
            split: Split::None,
            two_queues: false,
            hash: HashAlgorithm::Xxh3 { seed: 1 },
            home_shards: None,
        }
    }
}

/// A group of layers with one cache.
pub struct Group {
    /// The cache.
    pub cache: PagedKvCache,
    /// The memory of its blocks.
    pub store: KvStore,
    /// Positions that its layers attend to; `None` for all.
    pub window: Option<usize>,
}

/// The model and its groups.
pub struct Server {
    /// The weights, for the reference.
    pub weights: Weights,
    /// The packed model.
    pub model: Model,
    /// The groups of layers.
    pub groups: Vec<Group>,
}

impl Server {
    /// Creates the caches and the memory of a model.
    pub fn new(weights: Weights, setup: &Setup) -> Result<Self> {
        let model = Model::new(&weights, setup.split);
        let windows = weights.dims.groups().into_iter().enumerate();
        let groups = windows.map(|(number, window)| {
            let num_blocks = window.map_or(setup.num_blocks, |_| setup.window_blocks);
            let shape = weights.dims.kv_shape(number, setup.block_size);
            let cache = cache(setup, num_blocks, shape.block_len() * size_of::<f32>())?;
            if let Some(seed) = setup.shuffle {
                shuffle(&cache, &mut ChaCha8Rng::seed_from_u64(seed))?;
            }
            Ok(Group { cache, store: KvStore::new(shape, num_blocks), window })
        });
        let groups = groups.collect::<Result<_>>()?;
        Ok(Self { weights, model, groups })
    }

    /// Returns the cache of the layers that attend to all positions.
    pub fn cache(&self) -> &PagedKvCache {
        &self.groups[0].cache
    }

    /// Makes all cached contents unmatchable.
    pub fn reset(&self) {
        self.groups.iter().for_each(|group| group.cache.prefix().reset());
    }

    /// Checks that all requests have ended and the caches are consistent.
    pub fn check_empty(&self) -> Result<()> {
        for group in &self.groups {
            assert_eq!(group.cache.used_block_count(), 0, "all requests have ended");
            assert_eq!(group.cache.num_sequences(), 0, "all requests have ended");
            group.cache.validate()?;
        }
        Ok(())
    }
}

fn cache(setup: &Setup, num_blocks: usize, block_bytes: usize) -> Result<PagedKvCache> {
    let policy = if setup.two_queues { ReclaimPolicy::TwoQueue } else { ReclaimPolicy::Lru };
    let builder = PagedKvCache::builder()
        .num_blocks(num_blocks)
        .block_size(setup.block_size)
        .block_bytes(block_bytes)
        .reclaim_policy(policy)
        .hash_algorithm(setup.hash);
    match setup.home_shards {
        Some(home_shards) => builder.home_shards(home_shards).build(),
        None => builder.build(),
    }
}

/// Takes all blocks one by one and releases them in random order.
pub fn shuffle(cache: &PagedKvCache, random: &mut impl Rng) -> Result<()> {
    let blocks = (0..cache.free_block_count()).map(|_| cache.allocate_sequence(1));
    let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
    blocks.shuffle(random);
    blocks.into_iter().for_each(drop);
    Ok(())
}
