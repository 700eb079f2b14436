//! `Shared`: the state that handlers and workers share: one model, one cache, the memory of its blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use paged_kv::{HashAlgorithm, PagedKvCache, Result};
use smollm::kv::KvStore;

use crate::connections::Limits;
use crate::conversations::Conversations;
use crate::loaded::Loaded;
use crate::metrics::Metrics;
use crate::picture::Picture;
use crate::queue::Queue;

/// The parameters of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Workers that share the cache and the model.
    pub workers: usize,
    /// Most samples that a worker runs at the same time.
    pub most_running: usize,
    /// Most samples that wait. Further requests are refused.
    pub most_waiting: usize,
    /// Most tokens of a prompt that a step computes.
    pub chunk: usize,
    /// Most drafts of a sample in a step; 0 for none.
    pub drafts: usize,
    /// Admits as soon as the prompt's blocks are there, and reserves none for growth: more is preempted.
    pub is_eager: bool,
    /// The limits of clients.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_blocks: 512,
            block_size: 16,
            workers: 2,
            most_running: 32,
            most_waiting: 1024,
            chunk: 128,
            drafts: 3,
            is_eager: false,
            limits: Limits::default(),
        }
    }
}

/// The state that handlers and workers share.
pub struct Shared {
    /// The parameters.
    pub config: Config,
    /// The model.
    pub loaded: Loaded,
    /// The cache.
    pub cache: Arc<PagedKvCache>,
    /// The memory of its blocks.
    pub kv: KvStore,
    /// Samples that wait.
    pub queue: Queue,
    /// Recent answers.
    pub conversations: Conversations,
    /// Figures.
    pub metrics: Metrics,
    /// The live picture.
    pub picture: Picture,
    /// For each worker, the blocks that its samples will take soon.
    pub promised: Box<[AtomicUsize]>,
    requests: AtomicU64,
    is_draining: AtomicBool,
    is_stopped: AtomicBool,
}

impl Shared {
    /// Creates the cache and its memory.
    ///
    /// # Errors
    /// The parameters are invalid.
    pub fn new(loaded: Loaded, config: Config) -> Result<Self> {
        let shape = loaded.model.dims().kv_shape(0, config.block_size);
        let cache = PagedKvCache::builder()
            .num_blocks(config.num_blocks)
            .block_size(config.block_size)
            .block_bytes(shape.block_len() * size_of::<f32>())
            .hash_algorithm(HashAlgorithm::Sha256Cbor)
            .build()?;
        let cache = Arc::new(cache);
        let workers = config.workers.max(1);
        Ok(Self {
            kv: KvStore::new(shape, config.num_blocks),
            metrics: Metrics::new(&loaded.name, Arc::clone(&cache)),
            picture: Picture::new(workers),
            promised: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            queue: Queue::default(),
            conversations: Conversations::default(),
            requests: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            config,
            loaded,
            cache,
        })
    }

    /// Returns the number of the next request.
    pub fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the blocks that running samples will take soon.
    pub fn promised_blocks(&self) -> usize {
        self.promised.iter().map(|promised| promised.load(Ordering::Relaxed)).sum()
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// Returns true if new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    /// Ends the workers when their samples have ended.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        self.promised.iter().for_each(|_| self.queue.wake());
    }

    /// Returns true if the workers are to end.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }
}
